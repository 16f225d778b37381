//! What a test is, and a group of them.

use crate::machine::report::Outcome;

/// A test.
pub struct Test {
    /// Name within its group.
    pub name: &'static str,
    /// What it does.
    pub run: fn() -> Outcome,
    /// How many seconds it may take.
    pub limit: u64,
}

/// Tests on one subject.
pub struct Group {
    /// Name.
    pub name: &'static str,
    /// Its tests, in the order in which they run.
    pub tests: &'static [Test],
}

/// Seconds that a test may take unless it says otherwise.
pub const LIMIT: u64 = 20;

/// A group: its name and its tests, functions named as the tests are; `name: seconds` sets a limit of its own.
macro_rules! group {
    ($group:literal, [$($test:ident $(: $limit:literal)?),* $(,)?]) => {
        /// The tests of this file.
        pub const GROUP: $crate::suite::group::Group = $crate::suite::group::Group {
            name: $group,
            tests: &[$($crate::suite::group::Test {
                name: stringify!($test),
                run: $test,
                limit: group!(@limit $($limit)?),
            }),*],
        };
    };
    (@limit) => { $crate::suite::group::LIMIT };
    (@limit $limit:literal) => { $limit };
}
