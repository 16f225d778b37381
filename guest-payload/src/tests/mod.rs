//! The tests, one file a group.

mod boot;
mod devices;
mod engine;
mod features;
mod interrupts;
mod isolation;
mod memory;
mod must_fail;
mod psci;
mod registers;
mod smccc;
mod tree;

use crate::suite::Group;

/// All groups, in the order in which they run.
pub const GROUPS: [Group; 11] = [
    boot::GROUP,
    tree::GROUP,
    memory::GROUP,
    psci::GROUP,
    smccc::GROUP,
    interrupts::GROUP,
    registers::GROUP,
    features::GROUP,
    isolation::GROUP,
    devices::GROUP,
    engine::GROUP,
];

/// The tests that have to fail.
pub const MUST_FAIL: [Group; 1] = [must_fail::GROUP];
