//! Counter, timers, and the time limit of a test.
//!
//! One of the boot CPU's two EL1 timers watches over the test that runs there; a test that wants that timer for itself
//! moves the watch to the other one with [`watch_with`]. The watch is an interrupt: a test that hangs with interrupts
//! masked is ended by the tool that started the machine.

use crate::machine::{cpu, gic, tree};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The timers of EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The virtual timer, CNTV.
    Virtual,
    /// The physical timer, CNTP.
    Physical,
}

/// CNT*_CTL bits.
const ENABLE: u64 = 1;
const MASKED: u64 = 2;

impl Timer {
    /// Its interrupt, by the tree.
    pub fn interrupt(self) -> u32 {
        match self {
            Self::Virtual => tree::get().virtual_timer,
            Self::Physical => tree::get().physical_timer,
        }
    }

    /// The counter that it compares with.
    pub fn count(self) -> u64 {
        cpu::isb();
        match self {
            Self::Virtual => read_sysreg!("CNTVCT_EL0"),
            Self::Physical => read_sysreg!("CNTPCT_EL0"),
        }
    }

    /// Lets it fire once its counter reaches `when`.
    pub fn start(self, when: u64) {
        match self {
            // SAFETY: a timer fires an interrupt that the handler knows.
            Self::Virtual => unsafe { write_sysreg!("CNTV_CVAL_EL0", when) },
            // SAFETY: as above.
            Self::Physical => unsafe { write_sysreg!("CNTP_CVAL_EL0", when) },
        }
        self.control(ENABLE);
    }

    /// Stops it.
    pub fn stop(self) {
        self.control(0);
    }

    /// Writes its control register.
    fn control(self, value: u64) {
        match self {
            // SAFETY: as in `start`.
            Self::Virtual => unsafe { write_sysreg!("CNTV_CTL_EL0", value) },
            // SAFETY: as in `start`.
            Self::Physical => unsafe { write_sysreg!("CNTP_CTL_EL0", value) },
        }
        cpu::isb();
    }
}

/// Ticks of the counters in a second.
pub fn frequency() -> u64 {
    read_sysreg!("CNTFRQ_EL0")
}

/// The virtual counter, now.
pub fn now() -> u64 {
    Timer::Virtual.count()
}

/// Ticks in so many milliseconds, at least one.
pub fn milliseconds(count: u64) -> u64 {
    (frequency() * count / 1000).max(1)
}

/// Waits until `condition` holds, but not longer than so many milliseconds. Returns whether it held.
pub fn wait_until(limit: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = now() + milliseconds(limit);
    loop {
        if condition() {
            return true;
        }
        if now() > end {
            return condition();
        }
        cpu::relax();
    }
}

/// The watch: on which CPU's physical instead of virtual timer, until when (of its counter; 0: nobody is watched).
static USE_PHYSICAL: AtomicBool = AtomicBool::new(false);
static DEADLINE: AtomicU64 = AtomicU64::new(0);

fn watch() -> Timer {
    if USE_PHYSICAL.load(Ordering::Relaxed) { Timer::Physical } else { Timer::Virtual }
}

/// Stops this CPU's timers and enables their interrupts.
pub fn init_cpu() {
    for timer in [Timer::Virtual, Timer::Physical] {
        timer.stop();
        gic::enable(timer.interrupt(), true);
    }
}

/// Ends the test on the boot CPU after so many milliseconds, unless [`stop_watch`] comes first.
pub fn start_watch(limit: u64) {
    USE_PHYSICAL.store(false, Ordering::Relaxed);
    let deadline = watch().count() + milliseconds(limit);
    DEADLINE.store(deadline, Ordering::Relaxed);
    watch().start(deadline);
}

/// The test ended in time. Stops both timers of this CPU.
pub fn stop_watch() {
    DEADLINE.store(0, Ordering::Relaxed);
    Timer::Virtual.stop();
    Timer::Physical.stop();
}

/// Hands the watch over to `timer`, so that the test can use the other one.
pub fn watch_with(timer: Timer) {
    let left = DEADLINE.load(Ordering::Relaxed).saturating_sub(watch().count());
    watch().stop();
    USE_PHYSICAL.store(timer == Timer::Physical, Ordering::Relaxed);
    let deadline = timer.count() + left;
    DEADLINE.store(deadline, Ordering::Relaxed);
    timer.start(deadline);
}

/// Handles the interrupt `id` if it is a timer's: the timer stays silent until it is started again. Returns whether the
/// test's time is over.
pub fn interrupt(id: u32) -> bool {
    let Some(timer) = [Timer::Virtual, Timer::Physical].into_iter().find(|timer| timer.interrupt() == id) else {
        return false;
    };
    timer.control(ENABLE | MASKED);
    let deadline = DEADLINE.load(Ordering::Relaxed);
    cpu::current().index() == 0 && timer == watch() && deadline != 0 && timer.count() >= deadline
}
