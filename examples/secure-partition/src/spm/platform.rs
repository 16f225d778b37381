//! What the engine needs of this machine.

use crate::cpu;
use secure_partition::layout::CPUS;
use stage2::aarch64::{El2, Secure};
use stage2::pool::StaticPool;
use stage2::{Counters, Dsb, Event, FrameAllocator, Maintenance, Mapped, PhysAddr, Tlbi, Vmid};

/// Table frames in the pool.
pub const FRAMES: usize = 64;

/// All table frames: the root of each table, and a table for each 2 MiB block that is split.
pub static POOL: StaticPool<1> = StaticPool::new();

static COUNTERS: [Counters; CPUS] = [const { Counters::new() }; CPUS];

/// How often something happened, on all CPUs.
pub fn count(event: Event) -> u64 {
    COUNTERS.iter().map(|counters| counters.get(event)).sum()
}

/// The engine's platform: frames are mapped where they are.
pub type Platform = Mapped<Own>;

/// The engine's platform.
pub const PLATFORM: Platform = Mapped::new(Own);

/// What a platform is made of: frames and instructions.
#[derive(Clone, Copy, Debug)]
pub struct Own;

// SAFETY: the pool's frames are the engine's alone, and mapped at their physical address as the hardware's walks see them:
// Normal, write-back, inner shareable (boot.S and `Stage2::vtcr` say the same).
unsafe impl FrameAllocator for Own {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        POOL.allocate(frames)
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        // SAFETY: the caller's promise.
        unsafe { POOL.free(first, frames) };
    }
}

// SAFETY: the instructions are the regime's own, and a TLBI names the table's VMID.
unsafe impl Maintenance for Own {
    fn dsb(&self, barrier: Dsb) {
        El2::<Secure>::dsb(barrier);
    }

    fn isb(&self) {
        El2::<Secure>::isb();
    }

    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        El2::<Secure>::tlbi_for(vmid, tlbi);
    }

    fn counters(&self) -> &Counters {
        &COUNTERS[cpu::index()]
    }
}
