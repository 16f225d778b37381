//! Every kind of access to a page that is logged: what the architecture counts as a write is reported, nothing else is.

use crate::calls::services::{
    ALL, Log, MIB, RET, Since, area, modes, page, protect, read, required, split, write, write_code,
};
use crate::machine::memory::PAGE;
use crate::machine::mmu::{self, NORMAL_RO, NORMAL_RW, bits};
use crate::machine::probe::{self, DATA_ACCESSES, EXECUTE, HARMLESS, MAY_WRITE, Probe, READ64, WRITE64};
use crate::machine::report::{Outcome, Stop};
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;
use hypervisor_abi::{leaf as size, log, permissions, status};
use stage2::Event;

group!(
    "access",
    [
        writes,
        reads,
        may_write,
        crossing,
        fetch,
        refused_by_stage_1,
        atomic_results,
        walk_sets_access_flag,
        walk_sets_dirty_state,
        walk_in_read_only_table,
    ]
);

/// FEAT_LSE, by ID_AA64ISAR0_EL1.Atomic.
fn has_atomics() -> bool {
    read_sysreg!("ID_AA64ISAR0_EL1") >> 20 & 0xf >= 2
}

/// Runs `body` on a log of 4 MiB of pages in each mode; `exact` says whether it reports single pages.
fn with_logs(body: impl Fn(&Log, &Range<u64>, &str, u64) -> Result<(), Stop>) -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        let range = area(4 * MIB, 2 * MIB)?;
        range.clone().step_by(PAGE as usize).for_each(|at| write_code(at, &[RET, 0, 0, 0]));
        let log = Log::must_start(&range, mode)?;
        // By pages, so that hardware says which one of a block it was.
        check_eq!(split(&range, size::PAGE), status::SUCCESS, "{name}: split");
        body(&log, &range, name, mode)?;
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
    }
    Ok(())
}

/// Whether the CPU has the instruction.
fn exists(access: &&Probe) -> bool {
    has_atomics() || !access.needs_atomics
}

/// Makes an access that must not abort.
fn attempt(access: &Probe, at: u64, value: u64) -> Result<u64, Stop> {
    // SAFETY: a page of the test's own.
    match unsafe { access.attempt(at, value) } {
        Ok(value) => Ok(value),
        Err(why) => fail!("{} at {at:#x}: expected it to work, seen {why}", access.name),
    }
}

/// The exclusive pair's load reports as a read, and its store may fail for no reason.
fn is_exclusive_store(access: &Probe) -> bool {
    access.name == "exclusive store"
}

fn writes() -> Outcome {
    with_logs(|log, range, name, mode| {
        let all = DATA_ACCESSES.iter().filter(|access| access.is_write() != Some(false) || is_exclusive_store(access));
        for (number, access) in (1..).zip(all.filter(exists)) {
            // A value for the compare and swap to find.
            let at = range.start + number * 7 * PAGE;
            write(at + 64, 1);
            log.harvest()?;
            let since = Since::now([Event::FaultPermission]);
            let mut failed = attempt(access, at + 64, 1)?;
            while is_exclusive_store(access) && failed != 0 {
                failed = attempt(access, at + 64, 1)?;
            }
            // An exclusive store whose first try has faulted succeeds the second time.
            let faults = u64::from(mode == log::WRITE_PROTECT);
            check_eq!(since.counts(), [faults], "{name}: permission faults of a {}", access.name);
            log.must_report(&[at], access.name)?;
        }
        Ok(())
    })
}

fn reads() -> Outcome {
    with_logs(|log, range, name, _| {
        let loads =
            DATA_ACCESSES.iter().filter(|access| access.is_write() == Some(false) && !is_exclusive_store(access));
        for (number, access) in (1..).zip(loads.chain(&HARMLESS).filter(exists)) {
            let at = range.start + number * 5 * PAGE;
            let before = read(at + 64);
            log.harvest()?;
            let since = Since::now([Event::FaultPermission, Event::FaultTranslation]);
            attempt(access, at + 64, 0)?;
            check_eq!(since.counts(), [0, 0], "{name}: faults of a {}", access.name);
            log.must_report(&[], access.name)?;
            check_eq!(read(at + 64), before, "{name}: the contents after a {}", access.name);
        }
        Ok(())
    })
}

fn may_write() -> Outcome {
    with_logs(|log, range, name, _| {
        for (number, access) in (1..).zip(MAY_WRITE.iter().filter(exists)) {
            let at = range.start + number * 9 * PAGE;
            write(at + 64, 7);
            log.harvest()?;
            attempt(access, at + 64, 8)?;
            let count = log.harvest()?;
            check!(
                count == 0 || count == 1 && log.has(at),
                "{name}: {} at {at:#x}: {count} pages are reported",
                access.name
            );
            check_eq!(read(at + 64), 7, "{name}: the contents after a {}", access.name);
            // And a store after it is noticed, whatever it was taken for.
            write(at + 64, 9);
            log.must_report(&[at], access.name)?;
        }
        Ok(())
    })
}

fn crossing() -> Outcome {
    with_logs(|log, range, name, _| {
        let places = [
            ("pages", range.start + 20 * PAGE),
            ("blocks", range.start + 2 * MIB),
            ("64 KiB", range.start + 16 * PAGE),
        ];
        for (what, second) in places {
            for (access, offset) in [(&WRITE64, 4), (&WRITE64, 1), (&DATA_ACCESSES[11], 8), (&DATA_ACCESSES[11], 4)] {
                log.harvest()?;
                attempt(access, second - offset, 0x1122_3344_5566_7788)?;
                log.must_report(&[second - PAGE, second], what)?;
            }
            log.harvest()?;
            attempt(&READ64, second - 4, 0)?;
            log.must_report(&[], what)?;
            write(second - 8, 1);
            log.must_report(&[second - PAGE], what)?;
            write(second, 1);
            log.must_report(&[second], what)?;
        }
        // Out of the log on either side: only the page inside counts.
        check!(range.start.is_multiple_of(2 * MIB), "{name}: the range is not aligned");
        attempt(&WRITE64, range.start - 4, 0)?;
        log.must_report(&[range.start], "a store into the log from below")?;
        attempt(&WRITE64, range.end - 4, 0)?;
        log.must_report(&[range.end - PAGE], "a store out of the log")
    })
}

fn fetch() -> Outcome {
    with_logs(|log, range, name, _| {
        log.harvest()?;
        let since = Since::now([Event::FaultPermission]);
        for at in range.clone().step_by(11 * PAGE as usize) {
            attempt(&EXECUTE, at, 0)?;
        }
        check_eq!(since.counts(), [0], "{name}: faults of fetches");
        log.must_report(&[], "fetches")
    })
}

fn refused_by_stage_1() -> Outcome {
    with_logs(|log, range, name, _| {
        let alias = mmu::alias(range.clone(), NORMAL_RO);
        log.harvest()?;
        // SAFETY: it is to abort.
        let result = unsafe { WRITE64.attempt(alias + 3 * PAGE, 1) };
        let seen = probe::exception(result);
        check!(
            seen.is_some_and(|seen| seen.fault_status() & 0x3c == 0xc),
            "{name}: a store that stage 1 refuses: expected its permission fault, seen {seen:x?}"
        );
        log.must_report(&[], "a store that stage 1 refuses")
    })
}

fn atomic_results() -> Outcome {
    if !has_atomics() {
        skip!("no FEAT_LSE");
    }
    with_logs(|log, range, name, _| {
        // The fault in the middle of it must neither lose the operation nor do it twice.
        let [add, swap, compare] = [16, 17, 18].map(|index: usize| &DATA_ACCESSES[index]);
        let at = range.start + 33 * PAGE;
        for (access, value, old, new) in [(add, 5, 100, 105), (swap, 9, 100, 9), (compare, 100, 100, 100)] {
            write(at, 100);
            log.harvest()?;
            check_eq!(attempt(access, at, value)?, old, "{name}: what {} returns", access.name);
            check_eq!(read(at), new, "{name}: what {} leaves", access.name);
            log.must_report(&[at], access.name)?;
        }
        Ok(())
    })
}

/// TCR_EL1.HA and HD: hardware sets the access flag, and keeps dirty state, in stage 1.
const TCR_HA: u64 = 1 << 39;
const TCR_HD: u64 = 1 << 40;

/// Runs `body` with bits of TCR_EL1 set. What it returns early with is kept until the register is as before.
fn with_tcr<R>(set: u64, body: impl FnOnce() -> R) -> R {
    let tcr = read_sysreg!("TCR_EL1");
    let apply = |value: u64| {
        // SAFETY: hardware updates of stage 1 change no translation of the payload's own: its leaves have the access flag
        // set and no DBM. The invalidation makes walks start anew.
        unsafe {
            core::arch::asm!("msr TCR_EL1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb", in(reg) value, options(nostack, preserves_flags))
        };
    };
    apply(tcr | set);
    let result = body();
    apply(tcr);
    result
}

/// Needs hardware management of at least the access flag (1), or of dirty state too (2).
fn hardware_update(least: u64) -> Outcome {
    if read_sysreg!("ID_AA64MMFR1_EL1") & 0xf < least {
        skip!("the CPU does not update stage-1 descriptors");
    }
    Ok(())
}

/// A virtual address of nobody's, whose last table is the page at `table`: there its one entry is `descriptor`.
fn map_through(table: u64, descriptor: u64) -> u64 {
    let address = mmu::ALIAS + (3 << 40);
    for index in 0..512 {
        write(table + index * 8, 0);
    }
    write(table, descriptor);
    mmu::entry(address, 2).store(mmu::table_descriptor(table), Relaxed);
    mmu::invalidate_all();
    address
}

fn walk_sets_access_flag() -> Outcome {
    hardware_update(1)?;
    with_logs(|log, range, name, _| {
        let (table, target) = (range.start + 8 * PAGE, range.start + 99 * PAGE);
        let virtual_address = map_through(table, mmu::page_descriptor(target, NORMAL_RW) & !bits::ACCESSED);
        log.harvest()?;
        let seen = with_tcr(TCR_HA, || attempt(&READ64, virtual_address, 0));
        seen?;
        check!(read(table) & bits::ACCESSED != 0, "{name}: the descriptor after a load: {:#x}", read(table));
        log.must_report(&[table], "a load whose walk sets the access flag")
    })
}

fn walk_sets_dirty_state() -> Outcome {
    hardware_update(2)?;
    with_logs(|log, range, name, _| {
        let (table, target) = (range.start + 8 * PAGE, range.start + 99 * PAGE);
        let clean = mmu::page_descriptor(target, NORMAL_RW) | bits::READ_ONLY | bits::DIRTY_MANAGEMENT;
        let virtual_address = map_through(table, clean);
        log.harvest()?;
        let seen = with_tcr(TCR_HA | TCR_HD, || {
            attempt(&READ64, virtual_address, 0)?;
            log.must_report(&[], "a load through a clean descriptor")?;
            attempt(&WRITE64, virtual_address, 0x77)
        });
        seen?;
        check_eq!(read(target), 0x77, "{name}: what was stored");
        check!(read(table) & bits::READ_ONLY == 0, "{name}: the descriptor after a store: {:#x}", read(table));
        log.must_report(&[table, target], "a store whose walk sets dirty state")
    })
}

fn walk_in_read_only_table() -> Outcome {
    hardware_update(1)?;
    required()?;
    let range = area(2 * MIB, 2 * MIB)?;
    let (table, target) = (range.start + 8 * PAGE, range.start + 99 * PAGE);
    let virtual_address = map_through(table, mmu::page_descriptor(target, NORMAL_RW) & !bits::ACCESSED);
    let before = read(table);
    let denied = page(table);
    check_eq!(protect(&denied, permissions::READ), status::SUCCESS, "make the table read-only");
    // SAFETY: a page of the test's own.
    let result = with_tcr(TCR_HA, || unsafe { READ64.attempt(virtual_address, 0) });
    let seen = probe::exception(result);
    check!(
        seen.is_some_and(|seen| seen.is_external_abort() && seen.far == virtual_address),
        "a load whose walk may not set the access flag: expected an external abort, seen {seen:x?}"
    );
    check_eq!(read(table), before, "the descriptor in the read-only table");
    check_eq!(protect(&denied, ALL), status::SUCCESS, "make the table writable");
    let seen = with_tcr(TCR_HA, || attempt(&READ64, virtual_address, 0));
    seen?;
    check!(read(table) & bits::ACCESSED != 0, "the descriptor once the table is writable: {:#x}", read(table));
    Ok(())
}
