//! The guest's counters: the virtual one goes on where it was, the physical one cannot. And how often that was so.

use crate::el2::base::registers::read_register;
use core::sync::atomic::{AtomicU64, Ordering};

/// CNTVOFF_EL2 of all CPUs.
static OFFSET: AtomicU64 = AtomicU64::new(0);
/// How far CNTPCT_EL0 is ahead of where it was when the guest was stopped.
static JUMP: AtomicU64 = AtomicU64::new(0);

/// How often this guest has gone on from a save.
static RESUMED: AtomicU64 = AtomicU64::new(0);

/// Physical and virtual count, as they are now, and how often the guest has gone on from a save.
pub type Moment = [u64; 3];

/// This moment.
pub fn now() -> Moment {
    let physical = read_register!("cntpct_el0");
    [physical, physical.wrapping_sub(offset()), times_resumed()]
}

/// How often this guest has gone on from a save.
pub fn times_resumed() -> u64 {
    RESUMED.load(Ordering::Relaxed)
}

/// The guest goes on from what was a moment elsewhere.
pub fn go_on_from([physical, virtual_, resumed]: Moment) {
    RESUMED.store(resumed.wrapping_add(1), Ordering::Relaxed);
    let now = read_register!("cntpct_el0");
    JUMP.store(now.wrapping_sub(physical), Ordering::Relaxed);
    // Release: a CPU that starts with this offset finds the jump.
    OFFSET.store(now.wrapping_sub(virtual_), Ordering::Release);
}

/// What CNTVOFF_EL2 is to be.
pub fn offset() -> u64 {
    OFFSET.load(Ordering::Acquire)
}

/// What is added to comparators of the physical timer.
pub fn jump() -> u64 {
    JUMP.load(Ordering::Relaxed)
}
