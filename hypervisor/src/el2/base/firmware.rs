//! What the firmware is asked for: CPUs on and off, and the ends: power-off, reset, refusal.

use crate::el2::base::{
    console,
    cpu::{CpuArea, this_cpu},
    registers::read_register,
};
use core::sync::atomic::{AtomicBool, Ordering};
use smccc::psci::error::Error as PsciError;
use smccc::{Smc, psci};

unsafe extern "C" {
    fn secondary_entry();
}

/// Set once a CPU crashes: the others stop where they come to EL2.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// How the run ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest turned the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The guest was saved, and goes on elsewhere.
    Saved,
    /// The hypervisor cannot run what it was given.
    Refused,
    /// The hypervisor crashed.
    Panic,
}

impl End {
    /// As the last line of the console says it, for the tool that watches it.
    pub const fn name(self) -> &'static str {
        match self {
            End::PowerOff => "power-off",
            End::Reset => "reset",
            End::Saved => "saved",
            End::Refused => "refused",
            End::Panic => "panic",
        }
    }
}

/// Says why nothing can be run, and ends.
pub fn refuse(reason: impl core::fmt::Display) -> ! {
    console::print(format_args!("refused: {reason}"));
    console::print(format_args!("end: {}", End::Refused.name()));
    stop(End::Refused)
}

/// Tells the firmware.
pub fn stop(end: End) -> ! {
    // A firmware that refuses leaves nothing to do but to wait, so the answer is not looked at.
    let _ = match end {
        End::Reset => psci::system_reset::<Smc>(),
        _ => psci::system_off::<Smc>(),
    };
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Stops all CPUs, each where it comes to EL2, but for the one that executes this. Whether that was so already.
pub fn stop_all() -> bool {
    STOPPED.swap(true, Ordering::AcqRel)
}

/// Stops this CPU for good. It is at work in the guest's table no more.
pub fn park() -> ! {
    this_cpu().reading.0.store(0, Ordering::Release);
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Called where a CPU comes to EL2 because its memory is gone: never returns if that is due to a crash.
pub fn park_if_stopped() {
    if STOPPED.load(Ordering::Acquire) {
        park();
    }
}

/// Asks the firmware to start a CPU, which goes to the entry of `boot.S`. Waits while it is still on its way down from
/// before, and is still `wanted`.
///
/// # Errors
///
/// What the firmware says.
pub fn start(area: &'static CpuArea, mpidr: u64, wanted: impl Fn() -> bool) -> Result<(), PsciError> {
    let entry = secondary_entry as *const () as u64;
    let context = core::ptr::from_ref(area).expose_provenance() as u64;
    let mut result = Err(PsciError::InternalFailure);
    let _ = wait_until(|| {
        result = psci::cpu_on::<Smc>(mpidr, entry, context);
        result != Err(PsciError::AlreadyOn) || !wanted()
    });
    result
}

/// Turns the executing CPU off. Returns only if the firmware refuses.
pub fn turn_off() {
    let _ = psci::cpu_off::<Smc>();
}

/// Waits until `condition` holds; nothing if it does not within a second.
pub fn wait_until(mut condition: impl FnMut() -> bool) -> Option<()> {
    let now = || read_register!("cntpct_el0");
    // Firmware that does not say the rate leaves 0: the fastest that there are, so that a second is at least one.
    let second = match read_register!("cntfrq_el0") {
        0 => 1_000_000_000,
        rate => rate,
    };
    let start = now();
    while !condition() {
        if now().wrapping_sub(start) > second {
            return condition().then_some(());
        }
        core::hint::spin_loop();
    }
    Some(())
}
