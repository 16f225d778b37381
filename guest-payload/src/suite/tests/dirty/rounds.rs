//! Rounds of writing by all CPUs to a large range, each compared with what the log reports.

use crate::calls::services::{Log, MIB, Since, modes, read, required, write};
use crate::machine::memory::{self, PAGE};
use crate::machine::report::{Outcome, Stop};
use crate::machine::smp;
use crate::options;
use crate::suite::random::Random;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use hypervisor_abi::{log, status};
use stage2::Event;

/// Rounds of writing, each reported by itself.
const ROUNDS: u64 = 32;

/// Pages that a round may write: some at each edge, a run of neighbours, and the rest anywhere.
const POOL: usize = 1024;

/// What the writers on all CPUs share. The bitmap is the log's shape, with a bit for each page written this round.
struct Shared {
    round: AtomicU64,
    running: AtomicBool,
    written: AtomicU64,
    base: AtomicU64,
    pool: [AtomicU64; POOL],
}

static SHARED: Shared = Shared {
    round: AtomicU64::new(0),
    running: AtomicBool::new(false),
    written: AtomicU64::new(0),
    base: AtomicU64::new(0),
    pool: [const { AtomicU64::new(0) }; POOL],
};

/// Stamps random pages of the pool with the round's number, at least so many, and then for as long as others do.
fn stamp_pages(stream: u64) -> u64 {
    const LEAST: u64 = 150;
    let round = SHARED.round.load(Relaxed);
    let mut random = Random::new(options::get().seed, stream << 32 | round);
    let mut count = 0;
    while count < LEAST || SHARED.running.load(Acquire) {
        // Not the whole pool in each round, or no page would ever be clean.
        let at = SHARED.pool[(random.below(POOL as u64 / 4) + round * 97) as usize % POOL].load(Relaxed);
        write(at, round);
        let number = (at - SHARED.base.load(Relaxed)) / PAGE;
        let word = SHARED.written.load(Relaxed) + number / 64 * 8;
        // SAFETY: a word of the bitmap that the test has set up for all of the log's pages.
        unsafe { &*(word as *const AtomicU64) }.fetch_or(1 << (number % 64), Relaxed);
        count += 1;
    }
    count
}

/// A GiB and three pages, or what the machine has of that, at the end of memory or from a page that is not aligned.
fn large_range(top: bool) -> Range<u64> {
    let free = memory::free();
    let bytes = (1024 * MIB).min((free.end - free.start) / 4 / MIB * MIB) + 3 * PAGE;
    match top {
        true => free.end - bytes..free.end,
        false => {
            let start = free.start.next_multiple_of(2 * MIB) + 16 * MIB + 5 * PAGE;
            start..start + bytes
        }
    }
}

fn fill_pool(range: &Range<u64>) {
    let mut random = Random::new(options::get().seed, range.start);
    let pages = (range.end - range.start) / PAGE;
    for (index, slot) in SHARED.pool.iter().enumerate() {
        let number = match index as u64 {
            n @ 0..3 => n,
            n @ 3..6 => pages - (n - 2),
            n @ 6..134 => n + 500,
            _ => random.below(pages),
        };
        let at = range.start + number * PAGE;
        slot.store(at, Relaxed);
        write(at, 0);
    }
}

/// All CPUs write in each round; the log is taken while they do (in every other round), and when they have stopped.
fn rounds(range: &Range<u64>) -> Outcome {
    required()?;
    for (name, mode) in modes()? {
        fill_pool(range);
        let mark = memory::mark();
        let log = Log::must_start(range, mode)?;
        let (written, seen) = (log.empty_bitmap()?, log.empty_bitmap()?);
        SHARED.written.store(written.as_ptr() as u64, Relaxed);
        SHARED.base.store(log.address(0), Relaxed);
        let since = Since::now([Event::PrecisionLost, Event::FaultPermission]);
        for round in 1..=ROUNDS {
            written.iter().chain(seen).for_each(|word| word.store(0, Relaxed));
            SHARED.round.store(round, Relaxed);
            SHARED.running.store(true, Release);
            for index in 1..smp::count() {
                smp::post(index, stamp_pages, index as u64)?;
            }
            let take = || {
                let result = log.harvest();
                for (all, now) in seen.iter().zip(log.bitmap()) {
                    all.store(all.load(Relaxed) | now.load(Relaxed), Relaxed);
                }
                result
            };
            if round % 2 == 0 && smp::count() > 1 {
                take()?;
                take()?;
            }
            SHARED.running.store(false, Release);
            stamp_pages(0);
            for index in 1..smp::count() {
                smp::wait(index, 20_000)?;
            }
            take()?;
            check_round(name, round, range, &log, written, seen)?;
        }
        let [lost, faults] = since.counts();
        check_eq!(lost, 0, "{name}: precision lost");
        check!((mode == log::WRITE_PROTECT) == (faults > 0), "{name}: {faults} permission faults");
        check_eq!(log.stop(), status::SUCCESS, "{name}: stop");
        memory::release_to(&mark);
    }
    Ok(())
}

/// Compares what was written in a round, what was reported, and what the pages hold.
fn check_round(
    name: &str,
    round: u64,
    range: &Range<u64>,
    log: &Log,
    written: &[AtomicU64],
    seen: &[AtomicU64],
) -> Result<(), Stop> {
    const BLOCK_WORDS: usize = 8;
    let coarse = name == "hardware-block";
    for (index, (wrote, saw)) in written.iter().zip(seen).enumerate() {
        let [wrote, saw] = [wrote, saw].map(|word| word.load(Relaxed));
        let block = index / BLOCK_WORDS * BLOCK_WORDS;
        let in_block = || written.iter().skip(block).take(BLOCK_WORDS).any(|word| word.load(Relaxed) != 0);
        let (missed, extra) = (wrote & !saw, saw & !wrote);
        if missed != 0 {
            let at = log.address(index as u64 * 64 + u64::from(missed.trailing_zeros()));
            fail!("{name}, round {round}: {at:#x} was written and not reported (word: {wrote:#x}, reported {saw:#x})");
        }
        if extra != 0 && !(coarse && in_block()) {
            let at = log.address(index as u64 * 64 + u64::from(extra.trailing_zeros()));
            fail!("{name}, round {round}: {at:#x} was reported and not written (word: {wrote:#x}, reported {saw:#x})");
        }
    }
    for at in SHARED.pool.iter().map(|slot| slot.load(Relaxed)) {
        let (word, bit) = log.place(at);
        let dirty = seen[word].load(Relaxed) & bit != 0;
        let value = read(at);
        // With blocks, dirty says less.
        if value > round || !dirty && value == round || dirty && !coarse && value != round {
            fail!(
                "{name}, round {round}: {at:#x} is dirty: {dirty}, but holds the stamp of round {value} ({range:#x?})"
            );
        }
    }
    Ok(())
}

pub fn rounds_at_the_top() -> Outcome {
    rounds(&large_range(true))
}

pub fn rounds_unaligned() -> Outcome {
    rounds(&large_range(false))
}
