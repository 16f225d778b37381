//! The engine's doors to this machine.

use crate::el2::base::{cpu::this_cpu, firmware, frames::FRAMES};
use stage2::aarch64::{El2, Identity, NonSecure};
use stage2::{Counters, Dsb, Maintenance, PAGE_SIZE, PhysAddr, Slot, TableMemory, Tlbi, Vmid};

/// The machine, as the engine knows it.
#[derive(Debug)]
pub struct Platform;

// SAFETY: frames come from the pool, which nothing else uses; they are mapped at their physical addresses as Normal
// write-back inner-shareable memory, as VTCR_EL2 says for the walks.
unsafe impl TableMemory for Platform {
    #[inline(always)]
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        FRAMES.allocate(frames as u64, frames as u64)
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        for frame in 0..frames as u64 {
            // SAFETY: the caller's promise, frame by frame.
            unsafe { FRAMES.free(first.offset(frame * PAGE_SIZE)) };
        }
    }

    #[inline(always)]
    unsafe fn load(&self, slot: Slot) -> u64 {
        // SAFETY: the caller's promise; frames are identity mapped.
        unsafe { Identity::load(slot) }
    }

    #[inline(always)]
    unsafe fn store(&self, slot: Slot, value: u64) {
        // SAFETY: the caller's promise; frames are identity mapped.
        unsafe { Identity::store(slot, value) };
    }

    #[inline(always)]
    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the caller's promise; frames are identity mapped.
        unsafe { Identity::compare_exchange(slot, old, new) }
    }

    #[inline(always)]
    unsafe fn fetch_clear(&self, slot: Slot, mask: u64) -> u64 {
        // SAFETY: the caller's promise; frames are identity mapped.
        unsafe { Identity::fetch_clear(slot, mask) }
    }

    #[inline(always)]
    unsafe fn clear_run<const SEE: bool>(&self, first: Slot, count: usize, mask: u64, lse: bool) -> u64 {
        // SAFETY: the caller's promise; frames are identity mapped.
        unsafe { Identity::clear_run::<SEE>(first, count, mask, lse) }
    }

    #[inline(always)]
    unsafe fn is_filled(&self, table: PhysAddr, first: u64, step: u64) -> bool {
        // SAFETY: the caller's promise; frames are identity mapped.
        unsafe { Identity::is_filled(table, first, step) }
    }

    #[inline(always)]
    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        // SAFETY: the caller's promise; frames are identity mapped.
        unsafe { Identity::fill(table, first, step) };
    }
}

// SAFETY: the instructions do what is asked; there is one VMID, and VTTBR_EL2 has held it since before the first
// translation was used.
unsafe impl Maintenance for Platform {
    #[inline(always)]
    fn dsb(&self, barrier: Dsb) {
        El2::<NonSecure>::dsb(barrier);
    }

    #[inline(always)]
    fn isb(&self) {
        El2::<NonSecure>::isb();
    }

    #[inline(always)]
    fn tlbi(&self, _: Vmid, tlbi: Tlbi) {
        El2::<NonSecure>::tlbi(tlbi);
    }

    #[inline(always)]
    fn counters(&self) -> &Counters {
        &this_cpu().stage2
    }

    #[inline(always)]
    fn wait(&self) {
        // A CPU that has crashed may be the one that is waited for.
        firmware::park_if_stopped();
        // YIELD first: an emulator that runs its CPUs in turn, as QEMU does when it counts instructions, goes over to the one
        // that is waited for.
        // SAFETY: a hint.
        unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
        core::hint::spin_loop();
    }
}
