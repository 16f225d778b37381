//! Exceptions: caught where somebody expects them, otherwise the end of the test that ran into them.
//!
//! There is one mechanism. [`catch`] calls a function, and an exception on the same CPU ends the call and becomes its
//! result. Probes of forbidden addresses use it, and so does the runner around each test, so an exception that no probe
//! expects ends its test and nothing else. The frames in between are dropped without their destructors: what runs under
//! `catch` holds no lock across an access that can fault.

use crate::machine::escape::{Escape, Exception, Recovery, class};
use crate::machine::{cpu, gic, report, timer};
use core::cell::Cell;
use core::sync::atomic::Ordering;

core::arch::global_asm!(include_str!("vectors.S"));

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

/// `BRK` immediate with which a panic leaves the code that panicked.
const PANIC_BRK: u64 = 0x7001;

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
    } else if id == gic::ABANDON_SGI {
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
