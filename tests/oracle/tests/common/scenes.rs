//! What the scenes with several threads share: two blocks of RAM, and logs of their pages.

use super::{GIB, MIB, Machine, range};
use core::sync::atomic::AtomicU64;
use stage2::*;
use stage2_oracle::{Checked, Model, Setup};

pub const BASE: u64 = 2 * GIB;

pub fn machine(bbm: BbmLevel, contiguous: bool, hardware_dirty: bool) -> Machine {
    Machine { bbm, contiguous, hardware_dirty, ipa_bits: 32, tlbi_range: true }
}

pub fn setup(machine: Machine, late_stores: bool) -> Setup {
    Setup { pes: 3, mark_rate: 0, frames: 256, late_stores, ..machine.setup() }
}

pub fn page(n: u64) -> u64 {
    BASE + n * PAGE_SIZE
}

pub fn pages(first: u64, last: u64) -> IpaRange {
    range(page(first), page(last + 1))
}

/// Two blocks of RAM.
pub fn table(model: &Model, machine: Machine) -> Checked<'_> {
    let mut table = Checked::new(model, machine.config()).expect("a table");
    table.map(range(BASE, BASE + 4 * MIB), PhysAddr(BASE), Attributes::RAM).expect("a mapping");
    table
}

/// Words for a log's bitmap, until [`stop`].
pub fn storage(logged: IpaRange) -> &'static [AtomicU64] {
    let words = Layout::new(logged).words();
    (0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
}

/// The end of a log and of its table, which leaves nothing.
pub fn stop(model: &Model, mut table: Checked<'_>, log: Log) {
    let storage = table.stop_log_and_collapse(log).expect("the log's own words");
    // SAFETY: the words were leaked by `storage`, and the engine has given them back.
    drop(unsafe { Box::from_raw(core::ptr::from_ref(storage).cast_mut()) });
    model.assert_clean();
    table.release();
    model.assert_clean();
    assert_eq!(model.frames_in_use(), 0, "frames are leaked");
}
