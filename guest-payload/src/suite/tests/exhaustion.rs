//! Memory for tables that runs out, at every place where some is needed: the guest goes on, nothing is missed, and once
//! there is memory again all is as before.

use crate::calls::services::{
    ALL, Leaf, Log, MIB, Since, apart, area, collapse, leaf, meet_all_frames, page, protect, read, refuse_frames,
    required, split, watch, write,
};
use crate::machine::memory::PAGE;
use crate::machine::report::{Outcome, Stop};
use core::ops::Range;
use hypervisor_abi::{leaf as size, log, permissions, status, watch as wanted};
use stage2::Event;

group!("exhaustion", [
    split_blocks, split_1_gib, protect_one_page, protect_two_edges, watch_pages, start_log, start_log_by_hardware,
    first_write: 60, first_write_in_1_gib: 60, clear_part_of_a_block, storage_of_logs,
]);

const READ_EXECUTE: u64 = permissions::READ | permissions::EXECUTE;

/// Pages that are looked at before and after.
fn looked_at(range: &Range<u64>) -> [u64; 6] {
    let middle = (range.start + range.end) / 2 / PAGE * PAGE;
    [range.start, range.start + PAGE, middle - PAGE, middle, middle + 5 * PAGE, range.end - PAGE]
}

fn allowed(at: u64) -> Option<u64> {
    leaf(at).map(|leaf| leaf.allowed)
}

/// Lets `act` run out of memory at its first request for a frame, at its second, and so on, until there are enough for it.
/// Each time it has to say so and to have changed nothing that the guest could notice. In the end it has to work.
fn at_every_frame(range: &Range<u64>, least: u64, act: impl Fn() -> i64) -> Outcome {
    let pages = looked_at(range);
    apart(range)?;
    pages.iter().for_each(|&at| write(at, at));
    let whole = Since::now([Event::FrameAllocated, Event::FrameFreed]);
    let mut number = 0;
    loop {
        let frames = Since::now([Event::FrameAllocated, Event::FrameFreed]);
        refuse_frames(number);
        let answer = act();
        // The guest goes on while there is still no memory.
        for at in pages {
            check_eq!(read(at), at, "frame {number} refused: {at:#x}");
        }
        let refused = meet_all_frames();
        if refused == 0 {
            check_eq!(answer, status::SUCCESS, "status with {number} frames");
            break;
        }
        check_eq!(answer, status::NO_MEMORY, "status with frame {number} refused");
        for at in pages {
            check_eq!(allowed(at), Some(ALL), "frame {number} refused: what {at:#x} allows");
            write(at, at);
        }
        check_eq!(collapse(range), status::SUCCESS, "collapse after frame {number} was refused");
        let [taken, freed] = frames.counts();
        check_eq!(taken, freed, "frame {number} refused: frames taken, against those given back");
        number += 1;
        if number > 2000 {
            fail!("{number} frames, and more are asked for");
        }
    }
    check!(number >= least, "it takes {number} frames; expected at least {least}");
    check!(whole.counts()[0] > 0, "no frame was allocated at all");
    Ok(())
}

fn split_blocks() -> Outcome {
    required()?;
    let range = area(8 * MIB, 2 * MIB)?;
    at_every_frame(&range, 4, || split(&range, size::PAGE))?;
    check_eq!(leaf(range.end - PAGE).map(|leaf| leaf.size), Some(size::PAGE), "the last leaf in the end");
    Ok(())
}

fn split_1_gib() -> Outcome {
    required()?;
    let range = area(1024 * MIB, 1024 * MIB)?;
    at_every_frame(&range, 1, || split(&range, size::BLOCK_2M))?;
    check_eq!(leaf(range.start).map(|leaf| leaf.size), Some(size::BLOCK_2M), "the first leaf in the end");
    Ok(())
}

fn protect_one_page() -> Outcome {
    required()?;
    let range = area(1024 * MIB, 1024 * MIB)?;
    let denied = page(range.start + 345 * MIB + 7 * PAGE);
    at_every_frame(&range, 2, || protect(&denied, READ_EXECUTE))?;
    let page = Leaf { start: denied.start, size: size::PAGE, allowed: READ_EXECUTE };
    check_eq!(leaf(denied.start), Some(page), "the page's leaf in the end");
    Ok(())
}

fn protect_two_edges() -> Outcome {
    required()?;
    let range = area(64 * MIB, 2 * MIB)?;
    let denied = range.start + MIB + PAGE..range.start + 50 * MIB + 3 * PAGE;
    at_every_frame(&range, 2, || protect(&denied, READ_EXECUTE))?;
    let edges = [denied.start - PAGE, denied.start, denied.end - PAGE, denied.end];
    check_eq!(edges.map(allowed), [ALL, READ_EXECUTE, READ_EXECUTE, ALL].map(Some), "what is allowed at the edges");
    Ok(())
}

fn watch_pages() -> Outcome {
    required()?;
    let range = area(8 * MIB, 2 * MIB)?;
    let watched = range.start + MIB..range.start + 3 * MIB;
    at_every_frame(&range, 2, || watch(&watched, wanted::DENY))?;
    check_eq!(allowed(watched.start), Some(READ_EXECUTE), "what a watched page allows");
    Ok(())
}

/// A log whose start may fail; one that starts is stopped when the runner cleans up after the test.
fn log_status(range: &Range<u64>, mode: u64) -> i64 {
    let mark = crate::machine::memory::mark();
    let status = Log::start(range, mode).err().unwrap_or(status::SUCCESS);
    crate::machine::memory::release_to(&mark);
    status
}

fn start_log() -> Outcome {
    required()?;
    let range = area(16 * MIB, 2 * MIB)?;
    let logged = range.start + 5 * PAGE..range.end - 3 * PAGE;
    at_every_frame(&range, 2, || log_status(&logged, log::WRITE_PROTECT))
}

fn start_log_by_hardware() -> Outcome {
    required()?;
    let range = area(16 * MIB, 2 * MIB)?;
    if log_status(&range, log::HARDWARE_PAGE) == status::NOT_SUPPORTED {
        skip!("no hardware dirty state");
    }
    crate::calls::services::reset();
    required()?;
    at_every_frame(&range, 8, || log_status(&range, log::HARDWARE_PAGE))
}

/// The first write to a block under a log finds no memory to split it with at each place where some is needed: it lands,
/// and the page is reported, at worst along with what it could not be split from.
fn first_writes(range: &Range<u64>, frames_needed: u64) -> Outcome {
    required()?;
    let mark = crate::machine::memory::mark();
    for number in 0..=frames_needed {
        check_eq!(collapse(range), status::SUCCESS, "collapse");
        let size = leaf(range.start).map(|leaf| leaf.size);
        let log = Log::must_start(range, log::WRITE_PROTECT)?;
        let since = Since::now([Event::PrecisionLost]);
        let at = range.start + 11 * PAGE;
        refuse_frames(number);
        write(at, number);
        let refused = meet_all_frames();
        check_eq!(read(at), number, "frame {number} refused: what was written");
        check_eq!(since.counts(), [refused.min(1)], "frame {number} refused: writes that lost precision");
        check_eq!(refused > 0, number < frames_needed, "frame {number} of {frames_needed}: whether it was asked for");
        // What the write has opened beside its page is open, and reported, so nothing there is missed.
        let beside = at + 3 * PAGE;
        write(beside, number);
        let count = log.harvest()?;
        check!(log.has(at) && log.has(beside), "frame {number} refused: a page that was written is not reported");
        let expected = [(range.end - range.start) / PAGE, 512, 2];
        let expected = expected[3 - 1 - (frames_needed - number) as usize];
        check_eq!(count, expected, "frame {number} refused: pages reported");
        check_eq!(log.harvest()?, 0, "frame {number} refused: pages of a harvest with nothing written");
        // With memory, the log says single pages again.
        for at in [at, beside, range.end - 9 * PAGE] {
            write(at, 1);
            log.must_report(&[at], "a write once there is memory again")?;
        }
        check_eq!(log.stop(), status::SUCCESS, "stop");
        check_eq!(leaf(range.start).map(|leaf| leaf.size), size, "frame {number} refused: the leaf after the log");
        crate::machine::memory::release_to(&mark);
    }
    Ok(())
}

fn first_write() -> Outcome {
    required()?;
    // One frame splits a block of 2 MiB.
    let range = area(2 * MIB, 2 * MIB)?;
    first_writes(&range, 1)
}

fn first_write_in_1_gib() -> Outcome {
    required()?;
    let range = area(1024 * MIB, 1024 * MIB)?;
    check_eq!(collapse(&range), status::SUCCESS, "collapse");
    if leaf(range.start).is_none_or(|leaf| leaf.size != size::BLOCK_1G) {
        skip!("no leaf of 1 GiB");
    }
    first_writes(&range, 2)
}

fn clear_part_of_a_block() -> Result<(), Stop> {
    required()?;
    let range = area(2 * MIB, 2 * MIB)?;
    check_eq!(collapse(&range), status::SUCCESS, "collapse");
    let log = Log::must_start(&range, log::WRITE_PROTECT | log::ALL_DIRTY)?;
    let bitmap = log.bitmap();
    bitmap.iter().for_each(|word| word.store(0, core::sync::atomic::Ordering::Relaxed));
    bitmap[0].store(0b1010, core::sync::atomic::Ordering::Relaxed);
    refuse_frames(0);
    check_eq!(log.clear(), status::SUCCESS, "clear without memory");
    check!(meet_all_frames() > 0, "clearing two pages of a block took no memory");
    // The two stay dirty: reported once more, never missed.
    write(range.start + PAGE, 1);
    check_eq!(log.harvest()?, 512, "pages that are dirty after they could not be cleared");
    check_eq!(log.harvest()?, 0, "pages of a harvest with nothing written");
    write(range.start + 3 * PAGE, 1);
    log.must_report(&[range.start + 3 * PAGE], "a write once there is memory again")?;
    check_eq!(log.stop(), status::SUCCESS, "stop");
    Ok(())
}

fn storage_of_logs() -> Outcome {
    required()?;
    // The bitmaps come from the hypervisor's own heap, and are given back: far more logs than it has room for at a time.
    let whole = area(512 * MIB, 2 * MIB)?;
    for round in 0..200 {
        // One bitmap is kept for the next log of its size.
        let range = whole.start..whole.end - round % 2 * 2 * MIB;
        check_eq!(log_status(&range, log::WRITE_PROTECT), status::SUCCESS, "log {round}");
        check_eq!(
            crate::calls::services::status_of(hypervisor_abi::function::LOG_STOP, [0; 3]),
            status::SUCCESS,
            "stop {round}"
        );
    }
    Ok(())
}
