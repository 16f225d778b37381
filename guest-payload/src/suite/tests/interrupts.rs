//! Interrupts: timers, software-generated ones between CPUs, and the instructions that wait for them.

use crate::machine::report::{Outcome, Stop};
use crate::machine::timer::{self, Timer};
use crate::machine::{cpu, gic, smp};

group!(
    "interrupts",
    [
        virtual_timer,
        physical_timer,
        timers_on_every_cpu,
        timer_not_early,
        counters_agree,
        sgi_to_self,
        sgi_to_every_cpu,
        sgi_between_all,
        wfi_until_timer,
        wfe_until_event,
        wfi_elsewhere,
        none_unasked,
    ]
);

/// Lets a timer fire on this CPU ten times; each must bring exactly one interrupt, not before its time.
fn fire(which: u64) -> u64 {
    let timer = if which == 0 { Timer::Virtual } else { Timer::Physical };
    let cpu = cpu::current();
    for round in 0..10 {
        let before = cpu.interrupt_count(timer.interrupt());
        let when = timer.count() + timer::milliseconds(2);
        timer.start(when);
        let arrived = timer::wait_until(2000, || cpu.interrupt_count(timer.interrupt()) != before);
        let after = timer.count();
        timer.stop();
        let count = cpu.interrupt_count(timer.interrupt()) - before;
        check!(
            arrived && count == 1,
            "{timer:?} timer, cpu {}, round {round}: expected 1 interrupt, seen {count}",
            cpu.index()
        );
        check!(
            !arrived || after >= when,
            "{timer:?} timer, cpu {}, round {round}: interrupt {} ticks early",
            cpu.index(),
            when - after
        );
        if !arrived {
            break;
        }
    }
    0
}

fn virtual_timer() -> Outcome {
    timer::watch_with(Timer::Physical);
    fire(0);
    Ok(())
}

fn physical_timer() -> Outcome {
    fire(1);
    Ok(())
}

fn timers_on_every_cpu() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for which in 0..2 {
        for index in 1..smp::count() {
            smp::post(index, fire, which)?;
        }
        for index in 1..smp::count() {
            smp::wait(index, 15_000)?;
        }
    }
    Ok(())
}

fn timer_not_early() -> Outcome {
    // The condition is TimerConditionMet, ISTATUS (bit 2): clear before the time, set after it, interrupt masked.
    let when = Timer::Physical.count() + timer::milliseconds(5);
    // SAFETY: a masked timer.
    unsafe { write_sysreg!("CNTP_CVAL_EL0", when) };
    // SAFETY: as above.
    unsafe { write_sysreg!("CNTP_CTL_EL0", 0b11_u64) };
    cpu::isb();
    let early = read_sysreg!("CNTP_CTL_EL0") & 4 != 0;
    let now = Timer::Physical.count();
    check!(!early || now >= when, "CNTP_CTL.ISTATUS is set {} ticks early", when - now);
    // An emulator may set it a little later than hardware would.
    let met = timer::wait_until(2000, || read_sysreg!("CNTP_CTL_EL0") & 4 != 0);
    check!(met, "CNTP_CTL.ISTATUS is clear after the time");
    Timer::Physical.stop();
    Ok(())
}

fn counters_agree() -> Outcome {
    // The offset between the two counters is the same on all CPUs, and no CPU's clock is behind what another has seen.
    let offset = |_| {
        cpu::isb();
        let before = read_sysreg!("CNTVCT_EL0");
        cpu::isb();
        Timer::Physical.count().wrapping_sub(before)
    };
    let mine = offset(0);
    check!(mine < timer::milliseconds(1000), "CNTPCT - CNTVCT: expected next to nothing, seen {mine:#x}");
    for index in 1..smp::count() {
        let other = smp::run(index, offset, 0)?;
        check!(
            mine.abs_diff(other) < timer::milliseconds(1000),
            "CNTPCT - CNTVCT: {mine:#x} on cpu 0, {other:#x} on cpu {index}"
        );
        let before = timer::now();
        let there = smp::run(index, |_| timer::now(), 0)?;
        let after = timer::now();
        check!(
            (before..=after).contains(&there),
            "CNTVCT of cpu {index}: expected {before:#x} to {after:#x}, seen {there:#x}"
        );
    }
    Ok(())
}

/// An interrupt that only tests use.
const SGI: u32 = 5;

/// Sends the test's interrupt so many times to a CPU, waiting for each.
fn send(target: usize, times: u64) -> Outcome {
    let cpu = cpu::cpu(target);
    let start = cpu.interrupt_count(SGI);
    for sent in 1..=times {
        gic::send(SGI, cpu);
        if !timer::wait_until(2000, || cpu.interrupt_count(SGI) >= start + sent) {
            fail!("SGI {sent} to cpu {target} did not arrive within 2 s");
        }
    }
    check_eq!(cpu.interrupt_count(SGI) - start, times, "SGIs that arrived at cpu {target}");
    Ok(())
}

fn sgi_to_self() -> Outcome {
    send(0, 100)
}

fn sgi_to_every_cpu() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for index in 1..smp::count() {
        send(index, 100)?;
    }
    Ok(())
}

fn send_to_next(_: u64) -> u64 {
    let next = (cpu::current().index() + 1) % smp::count();
    u64::from(send(next, 100).is_ok())
}

fn sgi_between_all() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for index in 1..smp::count() {
        smp::post(index, send_to_next, 0)?;
    }
    let mine = send_to_next(0);
    for index in 1..smp::count() {
        check_eq!(smp::wait(index, 15_000)?, 1, "all SGIs of cpu {index} to its neighbour arrived");
    }
    check_eq!(mine, 1, "all SGIs of cpu 0 to its neighbour arrived");
    Ok(())
}

/// Waits with WFI, interrupts unmasked, until a timer has fired. Returns how often WFI ended, or 0 if no interrupt came.
fn wait_for_timer(_: u64) -> u64 {
    let cpu = cpu::current();
    let interrupt = Timer::Physical.interrupt();
    let before = cpu.interrupt_count(interrupt);
    Timer::Physical.start(Timer::Physical.count() + timer::milliseconds(20));
    let mut ended = 0;
    let deadline = timer::now() + timer::milliseconds(5000);
    loop {
        // Masked, so that the interrupt can't come between the look and the WFI.
        cpu::without_interrupts(|| {
            if cpu.interrupt_count(interrupt) == before {
                cpu::wfi();
                ended += 1;
            }
        });
        if cpu.interrupt_count(interrupt) != before {
            return ended;
        }
        if timer::now() > deadline {
            return 0;
        }
    }
}

/// WFI may end early, but a CPU that never waits ends it thousands of times in 20 ms.
const SPURIOUS_LIMIT: u64 = 1000;

fn wfi_until_timer() -> Outcome {
    let ended = wait_for_timer(0);
    check!(
        (1..SPURIOUS_LIMIT).contains(&ended),
        "WFI until the timer: expected it to end once or a few times, seen {ended}"
    );
    Ok(())
}

fn wfi_elsewhere() -> Outcome {
    for index in 1..smp::count() {
        let ended = smp::run(index, wait_for_timer, 0)?;
        check!(
            (1..SPURIOUS_LIMIT).contains(&ended),
            "WFI on cpu {index}: expected it to end once or a few times, seen {ended}"
        );
    }
    Ok(())
}

fn wfe_until_event() -> Outcome {
    // SAFETY: SEV sets this CPU's event register too, so the first WFE returns at once; a hypervisor that traps WFE must
    // let the guest go on all the same.
    unsafe { core::arch::asm!("sev", "wfe", "sev", "wfe", "sevl", "wfe", options(nostack, preserves_flags)) };
    Ok(())
}

fn none_unasked() -> Outcome {
    // Of a CPU's private interrupts only those that the suite uses ever arrive, and none that is shared.
    let mine = [Timer::Virtual.interrupt(), Timer::Physical.interrupt(), SGI, gic::WAKE_SGI, gic::ABANDON_SGI];
    for index in 0..smp::count() {
        let cpu = cpu::cpu(index);
        for interrupt in (0..32).filter(|interrupt| !mine.contains(interrupt)) {
            check_eq!(cpu.interrupt_count(interrupt), 0, "times that interrupt {interrupt} arrived at cpu {index}");
        }
        check_eq!(
            cpu.other_interrupts.load(core::sync::atomic::Ordering::Relaxed),
            0,
            "shared interrupts at cpu {index}"
        );
    }
    Ok::<(), Stop>(())
}
