//! Tests that have to fail: they show that the suite notices, reports and survives what it is there to notice.
//!
//! `must-fail` on the command line runs them; the run has to end with all of them failed, and the last one, which passes,
//! shows that the machine is whole after them.

use crate::machine::report::Outcome;
use crate::machine::{cpu, probe, smp};

group!("must-fail", [
    check, panic, abort, hang: 1, hang_elsewhere, abort_elsewhere, stack_overflow, ends_the_machine, passes,
]);

/// An address that is not mapped: the device window starts above it.
const NOTHING: *const u64 = core::ptr::without_provenance(0x1008);

fn check() -> Outcome {
    check_eq!(1 + 1, 3, "a wrong sum");
    Ok(())
}

fn panic() -> Outcome {
    panic!("on purpose")
}

fn abort() -> Outcome {
    // SAFETY: nothing is mapped there.
    unsafe { NOTHING.read_volatile() };
    Ok(())
}

fn hang() -> Outcome {
    loop {
        cpu::relax();
    }
}

fn hang_elsewhere() -> Outcome {
    if smp::count() < 2 {
        fail!("needs a second CPU to hang");
    }
    smp::post(
        1,
        |_| loop {
            cpu::relax()
        },
        0,
    )?;
    smp::wait(1, 100)?;
    Ok(())
}

fn abort_elsewhere() -> Outcome {
    if smp::count() < 2 {
        fail!("needs a second CPU");
    }
    // SAFETY: nothing is mapped there.
    smp::run(1, |_| unsafe { NOTHING.read_volatile() }, 0)?;
    Ok(())
}

fn stack_overflow() -> Outcome {
    // SAFETY: the branch is to an instruction that pushes onto a stack pointer that points nowhere; the exception is taken
    // on its own stack.
    unsafe { core::arch::asm!("mov sp, {0}", "stp x0, x1, [sp, #-16]!", in(reg) 0x1000_u64, options(noreturn)) }
}

fn ends_the_machine() -> Outcome {
    // The tool starts it anew behind this test.
    crate::machine::conduit::system_off()
}

fn passes() -> Outcome {
    for index in 1..smp::count() {
        check_eq!(smp::run(index, |argument| argument + 1, 41)?, 42, "what cpu {index} computed");
    }
    let page = crate::machine::memory::allocate_zeroed_page().expect("a page");
    // SAFETY: the test's own page.
    check_eq!(unsafe { probe::WRITE64.attempt(page, 1) }.is_ok(), true, "a store to an own page");
    Ok(())
}
