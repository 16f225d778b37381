//! Write protection: stores are stopped or reported, exactly where and how it was asked for, while others run.

use crate::calls::services::{
    ALL, Log, MIB, RET, area, collapse, hvc, leaf, modes, page, protect, read, required, status_of, watch, write,
    write_code,
};
use crate::machine::memory::PAGE;
use crate::machine::mmu::{self, NORMAL_RW};
use crate::machine::probe::{self, DATA_ACCESSES, EXECUTE, READ64, WRITE64};
use crate::machine::report::{Outcome, Stop};
use crate::machine::{cpu, smp, timer};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use hypervisor_abi::{function, leaf as size, permissions, status, watch as wanted};

group!(
    "protection",
    [
        every_kind_of_store,
        nothing_allowed,
        denied_page_only,
        denied_under_a_log,
        changed_while_running: 60,
        stores_are_reported,
        denied_stores_are_reported,
        deny_wins_over_report,
        reports_of_all_cpus,
    ]
);

const READ_EXECUTE: u64 = permissions::READ | permissions::EXECUTE;

/// Gives pages permissions, which has to work.
fn set(range: &core::ops::Range<u64>, allowed: u64) -> Result<(), Stop> {
    let answer = protect(range, allowed);
    if answer != status::SUCCESS {
        fail!("permissions {allowed} for {range:#x?}: status {answer}");
    }
    Ok(())
}

/// FEAT_LSE, by ID_AA64ISAR0_EL1.Atomic.
fn has_atomics() -> bool {
    read_sysreg!("ID_AA64ISAR0_EL1") >> 20 & 0xf >= 2
}

fn every_kind_of_store() -> Outcome {
    required()?;
    let area = area(2 * MIB, 2 * MIB)?;
    let at = area.start + 5 * PAGE;
    write(at, 3);
    set(&page(at), READ_EXECUTE)?;
    for access in DATA_ACCESSES.iter().filter(|access| has_atomics() || !access.needs_atomics) {
        let exclusive = access.name == "exclusive store";
        if access.is_write() == Some(false) && !exclusive {
            // SAFETY: a page of the test's own.
            let result = unsafe { access.attempt(at, 0) };
            check!(result.is_ok(), "{} of a page that may be read: seen {result:x?}", access.name);
            continue;
        }
        // SAFETY: as above; it is to abort.
        let result = unsafe { access.attempt(at, 9) };
        let Some(seen) = probe::exception(result) else {
            fail!("{} of a read-only page: expected an external abort, seen {result:x?}", access.name);
        };
        check!(
            seen.is_external_abort(),
            "{} of a read-only page: expected an external abort, seen {seen}",
            access.name
        );
        check_eq!(
            (seen.elr, seen.far),
            (access.instruction(), at),
            "{}: the address of instruction and access",
            access.name
        );
        check!(seen.esr & 1 << 6 != 0 || access.is_write().is_none(), "{}: WnR is 0 in {seen}", access.name);
        check!(seen.esr & 1 << 25 != 0, "{}: IL is 0 in {seen}", access.name);
        check_eq!(seen.vector, 0, "{}: the vector", access.name);
    }
    check_eq!(read(at), 3, "the page");
    set(&page(at), ALL)?;
    write(at, 6);
    check_eq!(read(at), 6, "the page when it is allowed again");
    Ok(())
}

fn nothing_allowed() -> Outcome {
    required()?;
    let area = area(2 * MIB, 2 * MIB)?;
    let at = area.start + 9 * PAGE;
    write_code(at, &[RET]);
    let cases = [
        (0, [true, true, true]),
        (permissions::READ, [false, true, true]),
        (permissions::READ | permissions::WRITE, [false, false, true]),
        (READ_EXECUTE, [false, true, false]),
        (ALL, [false, false, false]),
    ];
    for (allowed, aborts) in cases {
        set(&page(at), allowed)?;
        check_eq!(leaf(at).map(|leaf| leaf.allowed), Some(allowed), "what the leaf allows");
        for ((access, place), aborts) in [(READ64, at), (WRITE64, at + 64), (EXECUTE, at)].into_iter().zip(aborts) {
            if aborts {
                // SAFETY: a page of the test's own; the branch meets a `ret` if it gets there.
                unsafe { access.must_abort(place, 1, "a page that is protected") };
            } else {
                // SAFETY: as above.
                let result = unsafe { access.attempt(place, 1) };
                check!(result.is_ok(), "{} with permissions {allowed}: seen {result:x?}", access.name);
            }
        }
    }
    Ok(())
}

fn denied_page_only() -> Outcome {
    required()?;
    let area = area(4 * MIB, 2 * MIB)?;
    // Across the edge of two blocks.
    let denied = area.start + 2 * MIB - PAGE..area.start + 2 * MIB + PAGE;
    area.clone().step_by(PAGE as usize).for_each(|at| write(at, at));
    set(&denied, READ_EXECUTE)?;
    for at in area.clone().step_by(PAGE as usize) {
        if denied.contains(&at) {
            // SAFETY: memory of the test's; it is to abort.
            unsafe { WRITE64.must_abort(at, 4, "a page that is denied") };
        } else {
            write(at, at);
        }
        check_eq!(read(at), at, "the page at {at:#x}");
    }
    set(&denied, ALL)?;
    check_eq!(collapse(&area), status::SUCCESS, "collapse");
    check!(
        leaf(area.start).is_some_and(|leaf| leaf.size >= size::BLOCK_2M),
        "the leaf in the end: {:?}",
        leaf(area.start)
    );
    Ok(())
}

fn denied_under_a_log() -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        let area = area(2 * MIB, 2 * MIB)?;
        let log = Log::must_start(&area, mode)?;
        let at = area.start + 40 * PAGE;
        write(at, 1);
        set(&page(at), READ_EXECUTE)?;
        log.harvest()?;
        check!(log.has(at), "{name}: the write before the page was denied is not reported");
        // SAFETY: memory of the test's; it is to abort.
        unsafe { WRITE64.must_abort(at, 2, "a logged page that is denied") };
        log.harvest()?;
        check!(!log.has(at), "{name}: a store that was denied is reported");
        check_eq!(read(at), 1, "{name}: the page");
        set(&page(at), ALL)?;
        log.harvest()?;
        write(at, 3);
        log.must_report(&[at], name)?;
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
    }
    Ok(())
}

/// The page that a CPU stores to, whether it goes on, and the stores that were stopped.
static PAGE_AT: AtomicU64 = AtomicU64::new(0);
static RUNNING: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicU64 = AtomicU64::new(0);

/// Counts up in the page; a store that aborts is tried again.
fn count_up(_: u64) -> u64 {
    let at = PAGE_AT.load(Relaxed);
    let mut value = 1;
    while RUNNING.load(Acquire) {
        // SAFETY: a page of the test's own.
        match unsafe { WRITE64.attempt(at, value) } {
            Ok(_) => value += 1,
            Err(_) => {
                STOPPED.fetch_add(1, Relaxed);
            }
        }
    }
    value
}

fn changed_while_running() -> Outcome {
    required()?;
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let area = area(2 * MIB, 2 * MIB)?;
    let at = area.start + 3 * PAGE;
    write(at, 0);
    PAGE_AT.store(at, Relaxed);
    STOPPED.store(0, Relaxed);
    RUNNING.store(true, Release);
    smp::post(1, count_up, 0)?;
    for round in 0..100 {
        set(&page(at), READ_EXECUTE)?;
        // No store may land once the call has returned; some have to be stopped.
        let (before, stopped) = (read(at), STOPPED.load(Relaxed));
        let met = timer::wait_until(10_000, || STOPPED.load(Relaxed) >= stopped + 3);
        check!(met, "round {round}: no store was stopped within 10 s of the page being denied");
        check_eq!(read(at), before, "round {round}: the page while it is denied");
        set(&page(at), ALL)?;
        let moved = timer::wait_until(10_000, || read(at) != before);
        check!(moved, "round {round}: no store has landed within 10 s of the page being allowed");
        if !met || !moved {
            break;
        }
    }
    RUNNING.store(false, Release);
    let last = smp::wait(1, 20_000)?;
    check_eq!(read(at), last - 1, "the last store that was not stopped");
    Ok(())
}

/// A store that was watched.
#[derive(Debug, PartialEq, Eq)]
struct Store {
    ipa: u64,
    va: u64,
    pc: u64,
    cpu: u64,
    denied: bool,
}

/// The oldest store that was watched.
fn take() -> Option<Store> {
    let mut all = [0; 17];
    all[0] = 0;
    let answer = smccc::hvc64(function::WATCH_TAKE, all);
    let [x0, ipa, va, pc, cpu, denied, ..] = answer;
    (x0 as i64 == status::SUCCESS).then_some(Store { ipa, va, pc, cpu, denied: denied != 0 })
}

/// What a store by the calling CPU's `WRITE64` at `va` is reported as.
fn expected(ipa: u64, va: u64, denied: bool) -> Option<Store> {
    Some(Store { ipa, va, pc: WRITE64.instruction(), cpu: cpu::current().mpidr(), denied })
}

/// Makes a store that has to go through.
fn store(at: u64, value: u64) -> Result<(), Stop> {
    // SAFETY: a page of the test's own.
    match unsafe { WRITE64.attempt(at, value) } {
        Ok(_) => Ok(()),
        Err(why) => fail!("a store at {at:#x}, which is only to be reported: {why}"),
    }
}

fn stores_are_reported() -> Outcome {
    required()?;
    let area = area(4 * MIB, 2 * MIB)?;
    let watched = area.start + 100 * PAGE..area.start + 700 * PAGE;
    check_eq!(watch(&watched, wanted::REPORT), status::SUCCESS, "watch");
    check_eq!(take(), None, "a report before any store");
    let at = watched.start + 7 * PAGE + 24;
    check_eq!(read(at), read(at), "a load");
    store(at, 11)?;
    store(at + 8, 12)?;
    check_eq!((read(at), read(at + 8)), (11, 12), "what was stored");
    check_eq!(take(), expected(at, at, false), "the report of the first store to a page");
    check_eq!(take(), None, "a report of the second store to that page");
    // Through another virtual address: both are told.
    let alias = mmu::alias(area.clone(), NORMAL_RW) + (watched.end - PAGE - area.start);
    store(alias + 16, 13)?;
    check_eq!(take(), expected(watched.end - PAGE + 16, alias + 16, false), "the report of a store through an alias");
    // Beside the range nothing is.
    store(watched.start - 8, 14)?;
    store(watched.end, 15)?;
    check_eq!(take(), None, "a report of a store beside the range");
    check_eq!(status_of(function::WATCH_REARM, [0; 3]), status::SUCCESS, "rearm");
    store(at, 16)?;
    check_eq!(take(), expected(at, at, false), "the report once it is asked for anew");
    check_eq!(watch(&watched, wanted::NONE), status::SUCCESS, "watch no more");
    store(watched.start + 300 * PAGE, 17)?;
    check_eq!(take(), None, "a report when nothing is watched");
    Ok(())
}

fn denied_stores_are_reported() -> Outcome {
    required()?;
    let area = area(2 * MIB, 2 * MIB)?;
    let watched = area.start + 30 * PAGE..area.start + 31 * PAGE;
    write(watched.start, 5);
    check_eq!(watch(&watched, wanted::DENY), status::SUCCESS, "watch");
    for round in 0..3 {
        // SAFETY: memory of the test's; it is to abort.
        unsafe { WRITE64.must_abort(watched.start, round, "a page that is denied") };
        check_eq!(take(), expected(watched.start, watched.start, true), "round {round}: the report of a denied store");
    }
    check_eq!(take(), None, "a fourth report");
    check_eq!(read(watched.start), 5, "the page");
    check_eq!(watch(&watched, wanted::NONE), status::SUCCESS, "watch no more");
    store(watched.start, 6)?;
    check_eq!(read(watched.start), 6, "the page when it is allowed again");
    Ok(())
}

fn deny_wins_over_report() -> Outcome {
    required()?;
    let area = area(2 * MIB, 2 * MIB)?;
    check_eq!(watch(&area, wanted::REPORT), status::SUCCESS, "report all");
    let denied = area.start + 4 * PAGE..area.start + 6 * PAGE;
    check_eq!(watch(&denied, wanted::DENY), status::SUCCESS, "deny some");
    check_eq!(watch(&area, wanted::REPORT), status::SUCCESS, "report all again");
    // SAFETY: memory of the test's; it is to abort.
    unsafe { WRITE64.must_abort(denied.start, 1, "a page that is denied inside a range that is reported") };
    check_eq!(take(), expected(denied.start, denied.start, true), "the report of the denied store");
    store(denied.end, 1)?;
    check_eq!(take(), expected(denied.end, denied.end, false), "the report of the store beside it");
    check_eq!(hvc(function::WATCH, [area.start, PAGE, 9])[0] as i64, status::INVALID_PARAMETERS, "an unknown policy");
    Ok(())
}

/// Stores to the page whose number is the CPU's.
fn store_own(start: u64) -> u64 {
    let at = start + cpu::current().index() as u64 * PAGE;
    // SAFETY: a page of the test's own.
    u64::from(unsafe { WRITE64.attempt(at, 1) }.is_ok())
}

fn reports_of_all_cpus() -> Outcome {
    required()?;
    let area = area(2 * MIB, 2 * MIB)?;
    check_eq!(watch(&area, wanted::REPORT), status::SUCCESS, "watch");
    for index in 1..smp::count() {
        smp::post(index, store_own, area.start)?;
    }
    check_eq!(store_own(area.start), 1, "whether the store by this CPU went through");
    for index in 1..smp::count() {
        check_eq!(smp::wait(index, 20_000)?, 1, "whether the store by cpu {index} went through");
    }
    let mut seen = 0_u64;
    while let Some(store) = take() {
        let index = (store.ipa - area.start) / PAGE;
        let right = index < smp::count() as u64 && store.cpu == cpu::cpu(index as usize).mpidr() && !store.denied;
        check!(right && seen & 1 << index == 0, "an unexpected report: {store:x?}");
        seen |= 1 << (index % 64);
    }
    check_eq!(seen.count_ones() as usize, smp::count(), "reports of stores by as many CPUs");
    Ok(())
}
