//! The engine's doors to this machine.

use crate::el2::base::{
    cpu::{pause, this_cpu},
    firmware,
    frames::FRAMES,
};
use stage2::aarch64::{El2, NonSecure};
use stage2::{Counters, Dsb, FrameAllocator, Maintenance, PhysAddr, Tlbi, Vmid};

/// Where tables' frames come from, and the instructions: [`stage2::Mapped`] makes of it what the engine asks for.
#[derive(Debug)]
pub struct Platform;

// SAFETY: frames come from the pool, which nothing else uses; they are mapped at their physical addresses as Normal
// write-back inner-shareable memory, as VTCR_EL2 says for the walks.
unsafe impl FrameAllocator for Platform {
    #[inline(always)]
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        FRAMES.allocate(frames as u64, frames as u64)
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        // SAFETY: the caller's promise.
        unsafe { FRAMES.free(first, frames as u64) };
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
        pause();
    }
}
