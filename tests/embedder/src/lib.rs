//! The least that a program needs to have stage-2 tables of its own: two traits, a lock, a pool.
#![no_std]

use stage2::pool::StaticPool;
use stage2::*;

/// 64 table frames.
pub static POOL: StaticPool<1> = StaticPool::new();
/// One for each PE; this program has one.
static COUNTERS: Counters = Counters::new();

/// What the engine needs of this machine: `Mapped` makes a platform of it.
#[derive(Clone, Copy, Debug)]
pub struct Platform;

// SAFETY: the pool's frames are the engine's alone; static memory is mapped where it is, as the hardware's walks see it.
unsafe impl FrameAllocator for Platform {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        POOL.allocate(frames)
    }
    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        // SAFETY: the caller's promise.
        unsafe { POOL.free(first, frames) };
    }
}

#[cfg(target_arch = "aarch64")]
type Regime = stage2::aarch64::El2<stage2::aarch64::NonSecure>;

// SAFETY: the regime's own instructions; where there are none, on a host, no hardware walks the tables.
unsafe impl Maintenance for Platform {
    fn dsb(&self, _barrier: Dsb) {
        #[cfg(target_arch = "aarch64")]
        Regime::dsb(_barrier);
    }
    fn isb(&self) {
        #[cfg(target_arch = "aarch64")]
        Regime::isb();
    }
    fn tlbi(&self, _vmid: Vmid, _tlbi: Tlbi) {
        #[cfg(target_arch = "aarch64")]
        Regime::tlbi_for(_vmid, _tlbi);
    }
    fn counters(&self) -> &Counters {
        &COUNTERS
    }
}
