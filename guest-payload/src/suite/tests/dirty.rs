//! The dirty log: what was written is reported, what was not is not, while the guest runs and when it stands still.

mod rounds;

use crate::calls::services::{
    ALL, Log, MIB, RET, Since, area, collapse, leaf, modes, page, protect, read, required, split, write, write_code,
};
use crate::machine::escape::class;
use crate::machine::memory::{self, PAGE};
use crate::machine::probe::{self, EXECUTE};
use crate::machine::report::Outcome;
use crate::machine::{cpu, smp};
use crate::options;
use crate::suite::random::Random;
use core::sync::atomic::{AtomicU64, Ordering::*};
use hypervisor_abi::{leaf as size, log, permissions, status};
use stage2::Event;

use rounds::{rounds_at_the_top, rounds_unaligned};

group!("dirty", [
    rounds_at_the_top: 60, rounds_unaligned: 60, all_dirty_at_first, clear_scattered, stop_collapses,
    executable_stays_forbidden, several_cpus_in_one_block, first_page_only, edges, report_into_the_log, four_logs,
]);

fn all_dirty_at_first() -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        let area = area(8 * MIB, 2 * MIB)?;
        let range = area.start + 3 * PAGE..area.end - PAGE;
        let pages = (range.end - range.start) / PAGE;
        let since = Since::now([Event::FaultPermission]);
        let log = Log::must_start(&range, mode | log::ALL_DIRTY)?;
        // Nothing is protected yet.
        for at in range.clone().step_by(7 * PAGE as usize) {
            write(at, 1);
        }
        check_eq!(since.counts(), [0], "{name}: faults before the first harvest");
        check_eq!(log.harvest()?, pages, "{name}: pages of the first harvest");
        check_eq!(log.harvest()?, 0, "{name}: pages of the second, with nothing written");
        let second = range.start + 700 * PAGE;
        write(second, 2);
        if mode == log::HARDWARE_BLOCK {
            check!(log.harvest()? > 0 && log.has(second), "{name}: the page written after it is not reported");
        } else {
            log.must_report(&[second], name)?;
        }
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
    }
    Ok(())
}

fn clear_scattered() -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        let area = area(4 * MIB, 2 * MIB)?;
        // By pages, so that clearing one says nothing of its neighbours.
        check_eq!(split(&area, size::PAGE), status::SUCCESS, "split");
        let log = Log::must_start(&area, mode)?;
        let every = |value: u64| area.clone().step_by(PAGE as usize).for_each(|at| write(at, value));
        every(1);
        check_eq!(log.peek()?, 1024, "{name}: pages after each was written");
        let mut random = Random::new(options::get().seed, 7);
        let mut masks = [0; 16];
        // All, none, the ends of a word, and whatever comes.
        masks.fill_with(|| random.next() & random.next());
        (masks[0], masks[1], masks[2]) = (u64::MAX, 0, 1 << 63 | 1);
        for (word, mask) in log.bitmap().iter().zip(masks) {
            word.store(mask, Relaxed);
        }
        let cleared: u64 = masks.iter().map(|mask| u64::from(mask.count_ones())).sum();
        check_eq!(log.clear(), status::SUCCESS, "{name}: clear");
        check_eq!(log.peek()?, 1024 - cleared, "{name}: pages that are dirty after {cleared} were cleared");
        for (index, (word, mask)) in log.bitmap().iter().zip(masks).enumerate() {
            check_eq!(word.load(Relaxed), !mask, "{name}: word {index} after its mask was cleared");
        }
        let since = Since::now([Event::FaultPermission]);
        every(2);
        let expected = if mode == log::WRITE_PROTECT { cleared } else { 0 };
        check_eq!(since.counts(), [expected], "{name}: faults of writing each page again");
        check_eq!(log.harvest()?, 1024, "{name}: pages after each was written again");
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
    }
    Ok(())
}

fn stop_collapses() -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        let area = area(8 * MIB, 2 * MIB)?;
        check_eq!(collapse(&area), status::SUCCESS, "collapse");
        let before = leaf(area.start);
        let collapses = Since::now([Event::Collapse2M, Event::Collapse1G, Event::CollapseRun]);
        let log = Log::must_start(&area, mode)?;
        for at in area.clone().step_by(5 * PAGE as usize) {
            write(at, at);
        }
        let during = leaf(area.start);
        check!(
            mode == log::HARDWARE_BLOCK || during.is_some_and(|leaf| leaf.size == size::PAGE),
            "{name}: the first page's leaf after a write under the log: {during:?}"
        );
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
        check_eq!(leaf(area.start), before, "{name}: the leaf after the log, against the one before");
        check!(collapses.counts().iter().sum::<u64>() > 0, "{name}: nothing was collapsed");
        let since = Since::now([Event::FaultPermission, Event::FaultTranslation, Event::FaultSpurious]);
        for at in area.clone().step_by(PAGE as usize) {
            let expected = if (at - area.start).is_multiple_of(5 * PAGE) { at } else { read(at) };
            check_eq!(read(at), expected, "{name}: {at:#x} after the log");
            write(at, 1);
        }
        check_eq!(since.counts(), [0; 3], "{name}: faults of writing each page after the log");
    }
    Ok(())
}

fn executable_stays_forbidden() -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        let area = area(4 * MIB, 2 * MIB)?;
        for at in area.clone().step_by(PAGE as usize) {
            write_code(at, &[RET]);
        }
        let read_write = permissions::READ | permissions::WRITE;
        check_eq!(protect(&area, read_write), status::SUCCESS, "deny execution");
        let log = Log::must_start(&area, mode)?;
        for offset in [0, 3 * PAGE, 2 * MIB + 17 * PAGE] {
            let at = area.start + offset;
            write(at + 64, 1);
            check_eq!(leaf(at).map(|leaf| leaf.allowed), Some(read_write), "{name}: what {at:#x} allows once split");
            for at in [at, at + PAGE] {
                // SAFETY: there is a `ret`, should it be executed.
                unsafe { EXECUTE.must_abort(at, 0, "a block that is not executable, under a log") };
            }
        }
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
        // SAFETY: as above.
        unsafe { EXECUTE.must_abort(area.start, 0, "the block after the log") };
        check_eq!(protect(&area, ALL), status::SUCCESS, "allow execution");
        // SAFETY: as above.
        let result = unsafe { EXECUTE.attempt(area.start, 0) };
        check!(result.is_ok(), "{name}: executing when it is allowed again: {result:x?}");
        let log = Log::must_start(&area, mode)?;
        let since = Since::now([Event::FaultPermission]);
        // SAFETY: as above.
        let seen = probe::exception(unsafe { EXECUTE.attempt(area.start, 0) });
        check!(
            seen.is_none_or(|seen| seen.class() != class::INSTRUCTION_ABORT),
            "{name}: executing an executable block under a log: {seen:x?}"
        );
        check_eq!(since.counts(), [0], "{name}: faults of executing under a log");
        log.must_report(&[], name)?;
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
    }
    Ok(())
}

/// First address of the block in which each CPU writes pages of its own.
static BLOCK: AtomicU64 = AtomicU64::new(0);

/// Writes the pages of the block whose number leaves the CPU's index as remainder.
fn write_own_pages(round: u64) -> u64 {
    let (start, cpus) = (BLOCK.load(Relaxed), smp::count());
    let own = (0..512).skip(cpu::current().index()).step_by(cpus);
    own.map(|page| write(start + page * PAGE, round << 16 | page)).count() as u64
}

fn several_cpus_in_one_block() -> Outcome {
    required()?;
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for (name, mode) in modes()? {
        let area = area(2 * MIB, 2 * MIB)?;
        BLOCK.store(area.start, Relaxed);
        for round in 0..20 {
            let log = Log::must_start(&area, mode)?;
            let since = Since::now([Event::Split2M, Event::FrameAllocated, Event::FrameFreed]);
            for index in 1..smp::count() {
                smp::post(index, write_own_pages, round)?;
            }
            write_own_pages(round);
            for index in 1..smp::count() {
                smp::wait(index, 20_000)?;
            }
            check_eq!(log.harvest()?, 512, "{name}, round {round}: pages that were reported");
            let [splits, taken, freed] = since.counts();
            let expected = u64::from(mode == log::WRITE_PROTECT);
            check_eq!(splits, expected, "{name}, round {round}: splits of one block by {} CPUs", smp::count());
            // A CPU that comes second gives its frame back.
            check_eq!(taken - freed, expected, "{name}, round {round}: frames that are kept");
            for page in 0..512 {
                check_eq!(read(area.start + page * PAGE), round << 16 | page, "{name}, round {round}: page {page}");
            }
            check_eq!(log.stop(), status::SUCCESS, "{name}, round {round}: stop");
        }
    }
    Ok(())
}

fn first_page_only() -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        let area = area(4 * MIB, 2 * MIB)?;
        let value = |at: u64| at ^ 0xabcd;
        area.clone().step_by(PAGE as usize).for_each(|at| write(at + 8, value(at)));
        let log = Log::must_start(&area, mode)?;
        let since = Since::now([Event::FaultPermission, Event::FaultTranslation]);
        write(area.start, 1);
        let check_all = |when: &str| {
            for at in area.clone().step_by(PAGE as usize) {
                check_eq!(read(at + 8), value(at), "{name}: {at:#x} {when}");
            }
        };
        check_all("under the log, after a write to the first page");
        let faults = u64::from(mode == log::WRITE_PROTECT);
        check_eq!(since.counts()[0], faults, "{name}: permission faults of one write and many reads");
        if mode != log::HARDWARE_BLOCK {
            log.must_report(&[area.start], name)?;
        }
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
        let since = Since::now([Event::FaultPermission, Event::FaultTranslation]);
        check_all("after the log");
        check_eq!(since.counts(), [0, 0], "{name}: faults of reading after the log");
    }
    Ok(())
}

fn edges() -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        let area = area(6 * MIB, 2 * MIB)?;
        let range = area.start + MIB + 3 * PAGE..area.start + 4 * MIB + 17 * PAGE;
        let log = Log::must_start(&range, mode)?;
        let since = Since::now([Event::FaultPermission]);
        for at in [area.start, range.start - PAGE, range.end, area.end - PAGE] {
            write(at, 1);
        }
        check_eq!(since.counts(), [0], "{name}: faults of writes beside the log");
        log.must_report(&[], name)?;
        write(range.start, 1);
        write(range.end - PAGE, 1);
        log.harvest()?;
        check!(log.has(range.start) && log.has(range.end - PAGE), "{name}: the log's first and last page");
        check!(!log.has(range.start - PAGE), "{name}: the page before the log is reported");
        let behind = log.place(range.end);
        let stray = log.bitmap().get(behind.0).map_or(0, |word| word.load(Relaxed) & behind.1);
        check_eq!(stray, 0, "{name}: the bit behind the log's last page");
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
    }
    Ok(())
}

fn report_into_the_log() -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        // The bitmap that the hypervisor writes is a page of the log: that write counts too.
        let mark = memory::mark();
        let start = memory::free().start.next_multiple_of(PAGE);
        let range = start..start + 4 * MIB;
        let log = Log::must_start(&range, mode)?;
        let bitmap = log.bitmap().as_ptr() as u64 / PAGE * PAGE;
        check!(range.contains(&bitmap), "{name}: the bitmap at {bitmap:#x} is not in {range:#x?}");
        log.harvest()?;
        log.harvest()?;
        check!(log.has(bitmap), "{name}: the page that a harvest was written to is not in the next one");
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
        memory::release_to(&mark);
    }
    Ok(())
}

fn four_logs() -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        let area = area(16 * MIB, 2 * MIB)?;
        let part = |n: u64| area.start + n * 4 * MIB..area.start + (n + 1) * 4 * MIB;
        let logs = [
            Log::must_start(&part(0), mode)?,
            Log::must_start(&part(1), mode)?,
            Log::must_start(&part(2), mode)?,
            Log::must_start(&part(3), mode)?,
        ];
        let other = Log::start(&page(area.end), mode).err();
        check_eq!(other, Some(status::BUSY), "{name}: a fifth log");
        for (number, log) in (0..).zip(&logs) {
            let at = part(number).start + (number + 1) * 9 * PAGE;
            write(at, 1);
            for (other, log) in (0..).zip(&logs).filter(|(other, _)| *other != number) {
                check_eq!(log.harvest()?, 0, "{name}: pages in log {other} after a write in log {number}");
            }
            check!(log.harvest()? > 0 && log.has(at), "{name}: {at:#x} is not in log {number}");
        }
        for log in logs {
            check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
        }
    }
    Ok(())
}
