//! The tests, one file a group.

mod access;
mod boot;
mod devices;
mod dirty;
mod engine;
mod exhaustion;
mod faults;
mod features;
mod hostile;
mod interrupts;
mod isolation;
mod memory;
mod must_fail;
mod protection;
mod psci;
mod registers;
mod saved;
mod sizes;
mod smccc;
mod storm;
mod tree;
mod virtio;
mod walks;
mod wide;

use crate::suite::group::Group;

/// All groups, in the order in which they run.
pub const GROUPS: [Group; 23] = [
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
    dirty::GROUP,
    sizes::GROUP,
    access::GROUP,
    protection::GROUP,
    exhaustion::GROUP,
    faults::GROUP,
    walks::GROUP,
    wide::GROUP,
    storm::GROUP,
    virtio::GROUP,
    saved::GROUP,
    hostile::GROUP,
];

/// The tests that have to fail.
pub const MUST_FAIL: [Group; 1] = [must_fail::GROUP];
