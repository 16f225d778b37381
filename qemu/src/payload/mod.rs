//! Running the EL1 test suite: on one machine, which is started anew behind a test that took it down, or on many.

pub mod junit;
pub mod matrix;
mod reader;
pub mod suite;

use std::time::Duration;

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All of its checks held.
    Passed,
    /// One did not; or it never ended.
    Failed,
    /// It can't be run on this machine, for this reason.
    Skipped(String),
}

/// A test that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// Its full name: `group::name`.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// What it says about its failure.
    pub lines: Vec<String>,
    /// How long it took.
    pub time: Duration,
}

/// How many tests ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Skipped.
    pub skipped: usize,
}

impl Counts {
    /// Counts some tests.
    pub fn of(tests: &[Test]) -> Self {
        let count = |is: fn(&Verdict) -> bool| tests.iter().filter(|test| is(&test.verdict)).count();
        Self {
            passed: count(|verdict| *verdict == Verdict::Passed),
            failed: count(|verdict| *verdict == Verdict::Failed),
            skipped: count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        }
    }

    /// Whether something ran, and nothing failed.
    pub fn is_success(self) -> bool {
        self.passed > 0 && self.failed == 0
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}
