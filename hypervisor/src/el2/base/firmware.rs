//! Ends: power-off, reset, refusal.

use crate::el2::base::{console, totals};
use crate::el2::manager;
use smccc::{Smc, psci};

/// How the run ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest turned the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The hypervisor cannot run what it was given.
    Refused,
    /// The hypervisor crashed.
    Panic,
}

impl End {
    /// As the last line of the console says it, for whoever watches.
    pub const fn name(self) -> &'static str {
        match self {
            End::PowerOff => "power-off",
            End::Reset => "reset",
            End::Refused => "refused",
            End::Panic => "panic",
        }
    }
}

/// The guest has asked for the end: reports what it cost, and ends.
pub fn end_guest(end: End) -> ! {
    manager::guest_ends();
    totals::print();
    console::print(format_args!("end: {}", end.name()));
    stop(end)
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
