//! The hypervisor's stage-2 engine, worked from the inside: blocks that split under the guest's feet, logs of what it
//! writes, and faults that the machine raises too seldom, or never.

use crate::hypercall::{self, call};
use crate::machine::Conduit;
use crate::memory;
use crate::report::{Outcome, Stop};
use hypervisor_abi::{function, leaf, log, permissions, status};
use stage2::Event;

group!(
    "engine",
    [
        conflict_abort,
        spurious_fault_escalates,
        split_and_collapse,
        protected_page_aborts,
        logs_report_what_was_written,
        logs_by_hardware,
        bad_arguments,
    ]
);

const MIB: u64 = 1 << 20;
const PAGE: u64 = memory::PAGE;

/// Calls a function of the hypervisor's.
fn hvc(function: u32, arguments: [u64; 3]) -> [u64; 4] {
    let [x1, x2, x3] = arguments;
    call(Conduit::Hvc, function, [x1, x2, x3, 0])
}

fn status_of(answer: [u64; 4]) -> i64 {
    answer[0] as i64
}

/// What most tests need: the hypervisor, with these calls on.
fn required() -> Outcome {
    hypercall::required()?;
    if !hypercall::present() {
        skip!("no hypervisor");
    }
    if status_of(hvc(function::FEATURES, [0; 3])) == status::NOT_SUPPORTED {
        skip!("the hypervisor was started without hypercalls=on");
    }
    Ok(())
}

fn bbm_level() -> u64 {
    hvc(function::FEATURES, [0; 3])[1]
}

fn counter(event: Event) -> u64 {
    hvc(function::COUNTER, [event as u64, 0, 0])[1]
}

/// 4 MiB of the guest's memory at a multiple of 2 MiB.
fn area() -> Result<u64, Stop> {
    let Some(start) = memory::allocate(4 * MIB, 2 * MIB) else { fail!("no 4 MiB of memory are free") };
    Ok(start)
}

fn write(address: u64, value: u64) {
    // SAFETY: the tests write to memory that they have allocated, which is mapped.
    unsafe { (address as *mut u64).write_volatile(value) };
}

fn read(address: u64) -> u64 {
    // SAFETY: as for `write`.
    unsafe { (address as *const u64).read_volatile() }
}

fn conflict_abort() -> Outcome {
    required()?;
    let at = area()?;
    write(at, 1);
    let before = [Event::FaultConflict, Event::TlbiVmallS12E1Local].map(counter);
    // Data abort from a lower exception level, TLB conflict; FAR is an address that AT can't translate.
    for address in [at, 0xffff_dead_0000] {
        check_eq!(status_of(hvc(function::INJECT_ABORT, [0x9200_0030, address, 0])), status::SUCCESS, "conflict");
    }
    // The same for an instruction fetch.
    check_eq!(status_of(hvc(function::INJECT_ABORT, [0x8200_0030, at, 0])), status::SUCCESS, "conflict on a fetch");
    check_eq!(counter(Event::FaultConflict) - before[0], 3, "conflict aborts counted");
    check_eq!(counter(Event::TlbiVmallS12E1Local) - before[1], 3, "answered by TLBI VMALLS12E1");
    check_eq!(read(at), 1, "memory after it");
    Ok(())
}

fn spurious_fault_escalates() -> Outcome {
    required()?;
    // Not a page that another test has had fault: the engine remembers the last one.
    let at = area()? + 77 * PAGE;
    write(at, 2);
    let events = [Event::FaultSpurious, Event::EscalateVmallE1, Event::EscalateVmallS12E1];
    let before = events.map(counter);
    for _ in 0..3 {
        // A permission fault on a store to a page that is writable.
        check_eq!(status_of(hvc(function::INJECT_ABORT, [0x9200_004f, at, at])), status::SUCCESS, "spurious fault");
    }
    let seen = [0, 1, 2].map(|n| counter(events[n]) - before[n]);
    check_eq!(seen, [3, 1, 1], "spurious faults, and the two escalations");
    Ok(())
}

fn split_and_collapse() -> Outcome {
    required()?;
    let at = area()?;
    for page in 0..1024 {
        write(at + page * PAGE, page);
    }
    let events = [Event::InvalidWindow, Event::FaultTranslation];
    let before = events.map(counter);
    for size in [leaf::CONTIGUOUS_64K, leaf::PAGE] {
        for _ in 0..10 {
            check_eq!(status_of(hvc(function::SPLIT, [at, 4 * MIB, size])), status::SUCCESS, "split");
            for page in [0, 15, 16, 511, 512, 1023] {
                check_eq!(read(at + page * PAGE), page, "page {page} after the split");
            }
            check_eq!(status_of(hvc(function::COLLAPSE, [at, 4 * MIB, 0])), status::SUCCESS, "collapse");
            for page in [0, 15, 16, 511, 512, 1023] {
                check_eq!(read(at + page * PAGE), page, "page {page} after the collapse");
            }
        }
    }
    let windows = counter(events[0]) - before[0];
    check!(windows == 0 || bbm_level() < 2, "BBM level {}: {windows} invalid windows", bbm_level());
    check!(windows > 0 || bbm_level() > 0, "BBM level 0, and no invalid window was counted");
    Ok(())
}

fn protected_page_aborts() -> Outcome {
    required()?;
    let at = area()?;
    let page = at + 5 * PAGE;
    write(page, 3);
    let read_only = permissions::READ | permissions::EXECUTE;
    check_eq!(status_of(hvc(function::PROTECT, [page, PAGE, read_only])), status::SUCCESS, "deny");
    // SAFETY: a store to memory of the test's; it is to abort.
    unsafe { crate::probe::WRITE64.must_abort(page, 4, "a store to a page that is denied") };
    check_eq!(read(page), 3, "the page");
    write(page - PAGE, 5);
    write(page + PAGE, 5);
    let all = read_only | permissions::WRITE;
    check_eq!(status_of(hvc(function::PROTECT, [page, PAGE, all])), status::SUCCESS, "allow");
    write(page, 6);
    check_eq!(read(page), 6, "the page when it is allowed again");
    check_eq!(status_of(hvc(function::COLLAPSE, [at, 4 * MIB, 0])), status::SUCCESS, "collapse");
    Ok(())
}

/// Rounds of writes to scattered pages, each followed by a harvest that has to report exactly these.
fn log_rounds(mode: u64) -> Outcome {
    let at = area()?;
    let Some(buffer) = memory::allocate_zeroed_page() else { fail!("no page is free") };
    let started = hvc(function::LOG_START, [at + PAGE, 3 * MIB, mode]);
    if status_of(started) == status::NOT_SUPPORTED {
        skip!("no hardware dirty state");
    }
    check_eq!(status_of(started), status::SUCCESS, "start");
    let handle = started[1];
    let harvest = || hvc(function::LOG_HARVEST, [handle, buffer, 512]);
    for round in 0..32 {
        // Pages 0 and 1000 lie outside of the log.
        let pages = [0, 1, 2 + round, 64 + round * 7, 511, 512, 768, 1000];
        for page in pages {
            write(at + page * PAGE, round);
        }
        let [x0, count, words, _] = harvest();
        check_eq!(x0 as i64, status::SUCCESS, "harvest");
        check_eq!(words, 13, "words: 3 MiB and a page from a multiple of 2 MiB");
        let mut reported = 0;
        for page in 0..words * 64 {
            let dirty = read(buffer + page / 64 * 8) >> (page % 64) & 1 != 0;
            let expected = (1..769).contains(&page) && pages.contains(&page);
            check!(dirty == expected, "round {round}, page {page}: written {expected}, reported {dirty}");
            reported += u64::from(dirty);
        }
        check_eq!(count, reported, "the count of pages");
    }
    check_eq!(harvest()[1], 0, "pages of a harvest with nothing written");
    check_eq!(status_of(hvc(function::LOG_STOP, [handle, 0, 0])), status::SUCCESS, "stop");
    check_eq!(status_of(harvest()), status::INVALID_PARAMETERS, "a harvest of a log that has ended");
    Ok(())
}

fn logs_report_what_was_written() -> Outcome {
    required()?;
    log_rounds(log::WRITE_PROTECT)
}

fn logs_by_hardware() -> Outcome {
    required()?;
    log_rounds(log::HARDWARE_PAGE)
}

fn bad_arguments() -> Outcome {
    required()?;
    let at = area()?;
    let own = hvc(function::OWN_MEMORY, [0; 3])[1];
    let bad = status::INVALID_PARAMETERS;
    for (start, bytes) in [(at + 1, PAGE), (at, 0), (at, 100), (!0xfff, 2 * PAGE), (1 << 50, PAGE)] {
        for function in [function::PROTECT, function::SPLIT, function::COLLAPSE, function::LOG_START] {
            check_eq!(status_of(hvc(function, [start, bytes, 0])), bad, "{function:#x} of {start:#x}, {bytes:#x}");
        }
    }
    check_eq!(status_of(hvc(function::PROTECT, [own, PAGE, 7])), bad, "the hypervisor's own memory");
    check_eq!(status_of(hvc(function::PROTECT, [at, PAGE, 8])), bad, "unknown permissions");
    check_eq!(status_of(hvc(function::SPLIT, [at, PAGE, 5])), bad, "an unknown size");
    check_eq!(status_of(hvc(function::LOG_START, [at, PAGE, 77])), bad, "an unknown mechanism");
    check_eq!(status_of(hvc(function::COUNTER, [9999, 0, 0])), bad, "an unknown counter");
    check_eq!(status_of(hvc(function::INJECT_ABORT, [0x5600_0000, at, at])), bad, "a syndrome that is no abort's");
    let handle = hvc(function::LOG_START, [at, PAGE, log::WRITE_PROTECT])[1];
    for buffer in [own, at + 4, 0x0800_0000, u64::MAX - 7, 1 << 50] {
        check_eq!(status_of(hvc(function::LOG_HARVEST, [handle, buffer, 512])), bad, "a buffer at {buffer:#x}");
    }
    check_eq!(status_of(hvc(function::LOG_HARVEST, [handle, at + MIB, 0])), bad, "a buffer without room");
    check_eq!(status_of(hvc(function::LOG_START, [at, PAGE, 0])), status::BUSY, "a log of what is logged");
    check_eq!(status_of(hvc(function::LOG_STOP, [handle, 0, 0])), status::SUCCESS, "stop");
    check_eq!(status_of(hvc(function::LOG_STOP, [handle, 0, 0])), bad, "stop again");
    Ok(())
}
