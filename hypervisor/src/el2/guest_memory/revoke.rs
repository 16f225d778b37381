//! Taking the guest's memory away, when EL2 crashes.

use crate::el2::guest_memory::platform::Platform;
use crate::el2::guest_memory::{GuestMemory, guest_memory};
use stage2::{Mapped, PAGE_SIZE, TableMemory};

/// Takes all memory from the guest, at once and for good: each CPU faults at its next access. For crashes: needs no lock, but
/// closes the table's, so that nothing puts back what is taken.
pub fn revoke() {
    let Some(memory) = guest_memory() else { return };
    empty_root(memory);
    // Some CPU may be at work in the table: one that breaks entries, or thaws, restores some of the root's at its end.
    memory.table.close();
    empty_root(memory);
}

/// Takes once more what [`revoke`] has taken, in case that a CPU was at work in the table for longer than it was waited for.
pub fn revoke_again() {
    if let Some(memory) = guest_memory() {
        empty_root(memory);
    }
}

/// Makes all of the root's entries invalid, and removes all translations from all TLBs.
fn empty_root(memory: &GuestMemory) {
    let (root, frames) = memory.root;
    for frame in 0..frames {
        // SAFETY: the root's frames are identity mapped; descriptors of 0 are invalid; the engine is not used again.
        unsafe { Mapped::new(Platform).fill(root.offset(frame * PAGE_SIZE), 0, 0) };
    }
    // Of all VMIDs, since the executing CPU's VTTBR_EL2 need not hold the guest's yet. No translation is left on any CPU when
    // this returns.
    stage2::aarch64::invalidate_all_vmids();
}
