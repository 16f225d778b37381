//! Exceptions: caught where somebody expects them, otherwise the end of the test that ran into them.
//!
//! There is one mechanism. [`catch`] calls a function, and an exception on the same CPU ends the call and becomes its
//! result. Probes of forbidden addresses use it, and so does the runner around each test, so an exception that no probe
//! expects ends its test and nothing else. The frames in between are dropped without their destructors: what runs under
//! `catch` holds no lock across an access that can fault.

use crate::{cpu, gic, report, smp, timer};
use core::cell::Cell;
use core::fmt;
use core::sync::atomic::Ordering;

/// Registers of the interrupted code, in the order of `vectors.S`.
#[repr(C)]
pub struct Frame {
    x: [u64; 31],
    sp: u64,
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
}

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

/// `BRK` immediate with which a panic leaves the code that panicked.
const PANIC_BRK: u64 = 0x7001;

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

/// Why a call under [`catch`] did not return by itself.
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

/// Where to go on after an exception, and what it was. Lives on the stack of [`catch`].
pub struct Recovery {
    sp: Cell<u64>,
    outer: *mut Recovery,
    escape: Cell<Option<Escape>>,
}

/// A function that [`catch`] can call.
pub type Caught = unsafe extern "C" fn(u64, u64) -> u64;

unsafe extern "C" {
    fn catch_call(function: Caught, a: u64, b: u64, sp: *mut u64) -> u64;
    fn catch_return();
}

/// Calls `function(a, b)`; an exception ends it and is returned.
///
/// # Errors
///
/// The exception that ended the call. A panic, the test's timeout and its end go to the outermost `catch` instead.
///
/// # Safety
///
/// What `function` itself asks for. It may end at any instruction that can fault, without running destructors.
pub unsafe fn catch(function: Caught, a: u64, b: u64) -> Result<u64, Escape> {
    let cpu = cpu::current();
    let outer = cpu.recovery.load(Ordering::Relaxed);
    let recovery = Recovery { sp: Cell::new(0), outer, escape: Cell::new(None) };
    cpu.recovery.store(core::ptr::from_ref(&recovery).cast_mut(), Ordering::Relaxed);
    // SAFETY: `recovery` outlives the call, and the caller answers for `function`.
    let value = unsafe { catch_call(function, a, b, recovery.sp.as_ptr()) };
    cpu.recovery.store(outer, Ordering::Relaxed);
    match recovery.escape.get() {
        None => Ok(value),
        Some(escape) => Err(escape),
    }
}

/// Makes `frame` go on behind the innermost or the outermost [`catch`] of this CPU.
///
/// Returns `false` if there is none.
fn escape(frame: &mut Frame, why: Escape) -> bool {
    let mut target = cpu::current().recovery.load(Ordering::Relaxed);
    if target.is_null() {
        return false;
    }
    if !matches!(why, Escape::Exception(_)) {
        loop {
            // SAFETY: the list's members are on the stacks of calls of `catch` that have not returned.
            let outer = unsafe { &*target }.outer;
            if outer.is_null() {
                break;
            }
            target = outer;
        }
    }
    // SAFETY: as above.
    let recovery = unsafe { &*target };
    recovery.escape.set(Some(why));
    frame.sp = recovery.sp.get();
    frame.elr = catch_return as *const () as u64;
    frame.spsr = SPSR_EL1T_MASKED;
    true
}

/// `SPSR_EL1`: EL1 on SP_EL0, all of DAIF masked, all other state bits clear.
const SPSR_EL1T_MASKED: u64 = 0x3c4;

/// Called by `vectors.S` with the frame on SP_EL1.
#[unsafe(no_mangle)]
extern "C" fn handle_exception(frame: &mut Frame, vector: u64) {
    // IRQ from the code that runs tests, from a handler that allowed it, or from EL0.
    if vector & 3 == 1 {
        if let Some(why) = interrupt() {
            escape(frame, why);
        }
        return;
    }
    let exception = Exception { vector, esr: frame.esr, far: frame.far, elr: frame.elr };
    let panicked = exception.class() == class::BRK && exception.esr & 0xffff == PANIC_BRK;
    let why = if panicked { Escape::Panic } else { Escape::Exception(exception) };
    if !escape(frame, why) {
        report::fatal(format_args!(
            "cpu {}: {why} (x30 {:#x}, sp {:#x})",
            cpu::current().index(),
            frame.x[30],
            frame.sp
        ));
    }
}

/// Handles one interrupt. Returns why the interrupted code must end, if it must.
fn interrupt() -> Option<Escape> {
    let cpu = cpu::current();
    let acknowledged = gic::acknowledge()?;
    let id = acknowledged.id();
    match cpu.interrupts.get(id as usize) {
        Some(counter) => counter.fetch_add(1, Ordering::Relaxed),
        None => cpu.other_interrupts.fetch_add(1, Ordering::Relaxed),
    };
    let expired = timer::interrupt(id);
    gic::end(acknowledged);
    if expired {
        Some(Escape::Timeout)
    } else if id == smp::ABANDON_SGI {
        Some(Escape::Abandoned)
    } else {
        None
    }
}

/// Leaves the code that panicked; the message is in the report already.
pub fn end_after_panic() -> ! {
    // SAFETY: the handler goes on at the outermost `catch`, or ends the machine.
    unsafe { core::arch::asm!("brk #{}", const PANIC_BRK, options(noreturn)) }
}
