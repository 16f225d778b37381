//! Being saved: the guest asks for it on the console, the tool saves it and has it go on in another machine (`saves`), and
//! nothing may be any different, whatever its CPUs were doing.

mod ask;
mod registers;
mod vectors;

use crate::machine::escape::Escape;
use crate::machine::exceptions::catch;
use crate::machine::report::{Outcome, Stop};
use crate::machine::timer::{self, Timer};
use crate::machine::{cpu, gic, memory, smp};
use ask::{required, wait_for_save};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use registers::{devices, interrupts, system};
use vectors::{general, simd, stepping, sve, za};

group!(
    "saved",
    [
        system: 120,
        interrupts: 120,
        devices: 120,
        general: 120,
        simd: 120,
        sve: 120,
        za: 120,
        stepping: 120,
        timers: 120,
        asleep: 120,
        in_a_handler: 120,
        off: 120,
        in_an_exclusive_pair: 120,
        faulting: 120,
        contents: 120,
    ]
);

core::arch::global_asm!(include_str!("saved/saved.S"), options(raw));

/// Set when what the other CPU does is to end.
static OVER: AtomicBool = AtomicBool::new(false);
/// How far the other CPU is.
static PROGRESS: AtomicU64 = AtomicU64::new(0);

fn is_over() -> bool {
    OVER.load(Ordering::Acquire)
}

/// Runs `job` on CPU 1 while the guest is saved. It goes on until it [is over](is_over), and counts in [`PROGRESS`]; it must
/// do so before the save as well as after it. Returns what it returns.
fn beside(job: fn(u64) -> u64, argument: u64) -> Result<u64, Stop> {
    OVER.store(false, Ordering::Relaxed);
    PROGRESS.store(0, Ordering::Relaxed);
    smp::post(1, job, argument)?;
    let begun = timer::wait_until(5000, || PROGRESS.load(Ordering::Relaxed) > 0);
    check!(begun, "cpu 1 does not begin");
    wait_for_save(|| {})?;
    OVER.store(true, Ordering::Release);
    smp::wait(1, 10_000)
}

/// A CPU that waits for an interrupt wakes for one that comes after the save, and a timer that ran goes on.
fn asleep() -> Outcome {
    required(2)?;
    wait_for_save(|| {})?;
    for index in 1..smp::count() {
        let there = smp::run(index, |argument| argument + 1, 41)?;
        check!(there == 42, "cpu {index} has answered {there}");
    }
    Ok(())
}

/// Virtual time goes on where it was, on every CPU, and does not go back; a timer fires when its time has come.
fn timers() -> Outcome {
    required(1)?;
    let mut last = timer::now();
    let fires = last + timer::milliseconds(30_000);
    timer::watch_with(Timer::Physical);
    Timer::Virtual.start(fires);
    wait_for_save(|| {
        let now = timer::now();
        check!(now >= last, "the virtual counter goes back from {last:#x} to {now:#x}");
        check!(now - last < timer::milliseconds(20_000), "the virtual counter jumps from {last:#x} to {now:#x}");
        last = now;
    })?;
    let now = timer::now();
    check!(read_sysreg!("CNTV_CVAL_EL0") == fires, "CNTV_CVAL_EL0 has changed");
    check!(now - last < timer::milliseconds(20_000), "the virtual counter jumps from {last:#x} to {now:#x}");
    for index in 1..smp::count() {
        let (before, there, after) = (timer::now(), smp::run(index, |_| timer::now(), 0)?, timer::now());
        check!((before..=after).contains(&there), "cpu {index}: {there:#x} is not in {before:#x} to {after:#x}");
    }
    // The time is brought nearer now that the save is over.
    let interrupt = Timer::Virtual.interrupt();
    let seen = cpu::current().interrupt_count(interrupt);
    Timer::Virtual.start(timer::now() + timer::milliseconds(5));
    let fired = timer::wait_until(2000, || cpu::current().interrupt_count(interrupt) != seen);
    check!(fired, "the virtual timer does not fire after the save");
    Timer::Virtual.stop();
    Ok(())
}

/// An SGI that nobody else sends.
const TEST_SGI: u32 = 5;

/// Takes an interrupt and does not end it: it is active in the redistributor and in the CPU interface.
fn handle(_: u64) -> u64 {
    cpu::without_interrupts(|| {
        gic::send(TEST_SGI, cpu::current());
        let mut taken = None;
        timer::wait_until(1000, || {
            taken = gic::acknowledge();
            taken.is_some()
        });
        let Some(taken) = taken.filter(|taken| taken.id() == TEST_SGI) else { return 1 };
        while !is_over() {
            PROGRESS.fetch_add(1, Ordering::Relaxed);
            cpu::relax();
        }
        // One of the same priority must not come before the end of this one, and must come after it.
        gic::send(TEST_SGI, cpu::current());
        let early = timer::wait_until(20, || gic::acknowledge().inspect(|&other| gic::end(other)).is_some());
        gic::end(taken);
        let mut late = None;
        timer::wait_until(1000, || {
            late = gic::acknowledge();
            late.is_some()
        });
        late.into_iter().for_each(gic::end);
        if early {
            2
        } else if late.is_none() {
            3
        } else {
            0
        }
    })
}

fn in_a_handler() -> Outcome {
    required(2)?;
    match beside(handle, 0)? {
        0 => Ok(()),
        1 => fail!("cpu 1 did not get its interrupt before the save"),
        2 => fail!("an interrupt of the same priority preempts the one that was being handled"),
        _ => fail!("after the end of the interrupt no other one comes"),
    }
}

/// A CPU that is off stays off, and can be turned on.
fn off() -> Outcome {
    required(2)?;
    smp::stop(1)?;
    let affinity = || crate::machine::conduit::psci(smccc::psci::PSCI_AFFINITY_INFO_64, [cpu::cpu(1).mpidr(), 0, 0]);
    let is_off = || affinity() == smp::AFFINITY_OFF;
    check!(timer::wait_until(5000, is_off), "cpu 1 does not turn off");
    wait_for_save(|| {})?;
    check!(is_off(), "cpu 1 was off, and AFFINITY_INFO says {}", affinity());
    if let Err(status) = smp::start(1) {
        fail!("cpu 1 does not turn on after the save: {status}");
    }
    Ok(())
}

/// Adds 1 again and again with a load-exclusive and a store-exclusive far apart.
fn add_exclusively(counter: u64) -> u64 {
    let mut added = 0;
    while !is_over() {
        let failed: u64;
        // SAFETY: the counter is this CPU's alone, and lives until the job has ended.
        unsafe {
            core::arch::asm!(
                "ldxr {value}, [{counter}]",
                "mov {wait}, #2000",
                "2: subs {wait}, {wait}, #1",
                "b.ne 2b",
                "add {value}, {value}, #1",
                "stxr {failed:w}, {value}, [{counter}]",
                counter = in(reg) counter, value = out(reg) _, wait = out(reg) _, failed = out(reg) failed,
                options(nostack)
            );
        }
        added += u64::from(failed & 1 == 0);
        PROGRESS.store(added, Ordering::Relaxed);
    }
    added
}

fn in_an_exclusive_pair() -> Outcome {
    required(2)?;
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    COUNTER.store(0, Ordering::Relaxed);
    let added = beside(add_exclusively, COUNTER.as_ptr() as u64)?;
    let seen = COUNTER.load(Ordering::Relaxed);
    check!(seen == added, "{added} store-exclusives succeeded, and the counter is {seen}");
    Ok(())
}

unsafe extern "C" fn load_from(address: u64, _: u64) -> u64 {
    // SAFETY: nothing is mapped there; the caller catches the exception.
    unsafe { core::ptr::read_volatile(address as *const u64) }
}

/// Takes an abort of stage 1 again and again: each must say what it is.
fn fault(address: u64) -> u64 {
    while !is_over() {
        // SAFETY: nothing is mapped there, so the load is an exception.
        let why = unsafe { catch(load_from, address, 0) }.err().and_then(Escape::exception);
        // ESR_EL1: a translation fault, at level 0 to 3.
        if !why.is_some_and(|why| why.far == address && why.fault_status() & !3 == 4) {
            return 1;
        }
        PROGRESS.fetch_add(1, Ordering::Relaxed);
    }
    0
}

fn faulting() -> Outcome {
    required(2)?;
    /// Far above all memory and registers.
    const NOTHING: u64 = 0x70_0000_0000;
    check!(beside(fault, NOTHING)? == 0, "an abort of stage 1 does not say what it should");
    Ok(())
}

/// Memory is the same: some MiB of numbers that no other page has, and pages of nothing.
fn contents() -> Outcome {
    required(1)?;
    const PAGES: u64 = 4096;
    let Some(start) = memory::allocate(PAGES * memory::PAGE, memory::PAGE) else { fail!("no memory") };
    let word = |page: u64, word: u64| (page << 20 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Every third page is left zero.
    let expected = |page: u64, at: u64| if page.is_multiple_of(3) { 0 } else { word(page, at) };
    let all = || (0..PAGES).flat_map(|page| (0..512).map(move |at| (page, at)));
    let place = |page: u64, at: u64| (start + page * memory::PAGE + at * 8) as *mut u64;
    for (page, at) in all() {
        // SAFETY: memory of this test's alone.
        unsafe { place(page, at).write(expected(page, at)) };
    }
    let mut turns = 0u64;
    wait_for_save(|| {
        turns += 1;
        // SAFETY: as above. A page that changes all the time.
        unsafe { place(PAGES - 1, 0).write_volatile(turns) };
    })?;
    for (page, at) in all() {
        // SAFETY: as above.
        let seen = unsafe { place(page, at).read_volatile() };
        let expected = if (page, at) == (PAGES - 1, 0) { turns } else { expected(page, at) };
        if seen != expected {
            fail!("page {page}, word {at}: expected {expected:#x}, seen {seen:#x}");
        }
    }
    Ok(())
}
