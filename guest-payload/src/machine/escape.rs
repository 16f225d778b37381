//! What an exception was, and why a call that was to be caught ended.

use core::cell::Cell;
use core::fmt;

/// A synchronous exception or SError, as the CPU described it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which vector: 0 synchronous, 3 SError, plus 4 when taken from a handler and 8 when from EL0.
    pub vector: u64,
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`; says something only for aborts and alignment faults.
    pub far: u64,
    /// `ELR_EL1`.
    pub elr: u64,
}

/// Exception classes (Arm ARM, ESR_ELx.EC) that tests name.
pub mod class {
    /// Unknown reason: an undefined instruction or register.
    pub const UNKNOWN: u64 = 0x00;
    /// Instruction abort without a change of exception level.
    pub const INSTRUCTION_ABORT: u64 = 0x21;
    /// Data abort without a change of exception level.
    pub const DATA_ABORT: u64 = 0x25;
    /// BRK instruction.
    pub const BRK: u64 = 0x3c;
}

impl Exception {
    /// `ESR_EL1.EC`.
    pub fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// The fault status code of an abort, `ESR_EL1.ISS[5:0]`.
    pub fn fault_status(&self) -> u64 {
        self.esr & 0x3f
    }

    /// A synchronous external abort: on the access itself (0x10), or on a level of the table walk (0x13 to 0x17).
    pub fn is_external_abort(&self) -> bool {
        matches!(self.class(), class::DATA_ABORT | class::INSTRUCTION_ABORT)
            && matches!(self.fault_status(), 0x10 | 0x13..=0x17)
    }

    /// The exception that an unallocated instruction or register gives.
    pub fn is_undefined(&self) -> bool {
        self.vector == 0 && self.class() == class::UNKNOWN
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match (self.vector & 3, self.class()) {
            (0, class::UNKNOWN) => "undefined instruction",
            (0, class::INSTRUCTION_ABORT) => "instruction abort",
            (0, class::DATA_ABORT) => "data abort",
            (0, class::BRK) => "breakpoint instruction",
            (0, _) => "synchronous exception",
            (2, _) => "FIQ",
            (3, _) => "SError",
            _ => "exception",
        };
        write!(f, "{kind}, ESR {:#x}, FAR {:#x}, ELR {:#x}", self.esr, self.far, self.elr)?;
        match self.vector >> 2 {
            1 => write!(f, ", from a handler"),
            2 | 3 => write!(f, ", from EL0"),
            _ => Ok(()),
        }
    }
}

/// Why a call under `exceptions::catch` did not return by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// It took an exception.
    Exception(Exception),
    /// It panicked; the message is in the report.
    Panic,
    /// It ran longer than its test may.
    Timeout,
    /// Its test was over.
    Abandoned,
}

impl Escape {
    /// The exception, if it was one.
    pub fn exception(self) -> Option<Exception> {
        if let Self::Exception(exception) = self { Some(exception) } else { None }
    }
}

impl fmt::Display for Escape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception(exception) => exception.fmt(f),
            Self::Panic => f.write_str("panic"),
            Self::Timeout => f.write_str("timeout"),
            Self::Abandoned => f.write_str("still running when its test was over"),
        }
    }
}

/// Where to go on after an exception, and what it was. It lives on the stack of `exceptions::catch`.
pub struct Recovery {
    /// The stack pointer to go on with.
    pub sp: Cell<u64>,
    /// The recovery of the call around this one; null if there is none.
    pub outer: *mut Recovery,
    /// Why the call ended early, once it has.
    pub escape: Cell<Option<Escape>>,
}
