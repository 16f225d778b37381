//! The tests, one file a group.

mod boot;
mod must_fail;

use crate::suite::Group;

/// All groups, in the order in which they run.
pub const GROUPS: [Group; 1] = [boot::GROUP];

/// The tests that have to fail.
pub const MUST_FAIL: [Group; 1] = [must_fail::GROUP];
