//! Limits on ratios: fails if one is missed.
//!
//! Each is a ratio of two times, taken in turns, of each the best of many: another process on the host makes some
//! samples slower, never faster.

use native_bench::{Arena, TABLES, range, read_words, start_log, table};
use stage2::*;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often each time is taken.
const ROUNDS: u32 = 400;

/// A ratio and what it must be.
struct Limit {
    what: &'static str,
    ratio: f64,
    holds: bool,
    rule: &'static str,
}

fn time(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

/// Takes turns until both times have been taken often enough; of each the best, in seconds.
fn best_of(mut first: impl FnMut() -> Duration, mut second: impl FnMut() -> Duration) -> (f64, f64) {
    let mut best = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        best = (best.0.min(first()), best.1.min(second()));
    }
    (best.0.as_secs_f64(), best.1.as_secs_f64())
}

/// The bandwidth of splitting 1 GiB to pages, as a share of `memset`'s on the same number of bytes.
fn split() -> f64 {
    let bytes = (TABLES * PAGE_SIZE) as usize;
    let (arena, plain) = (Arena::new(TABLES as usize + 64), Arena::new(TABLES as usize + 64));
    let mut table = table(&arena, 1, false);
    let (memset, split) = best_of(
        || {
            time(|| {
                // SAFETY: the arena is that large, and no table lives in it.
                unsafe { std::ptr::write_bytes(black_box(plain.bytes().0), black_box(1), bytes) };
            })
        },
        || {
            let spent = time(|| table.split(range(1), LeafSize::Page).expect("the arena holds the tables"));
            table.collapse(range(1)).expect("the range is good");
            spent
        },
    );
    memset / split
}

/// The bandwidth of a harvest of hardware dirty state over 1 GiB of pages, as a share of a plain read's.
fn harvest_hardware() -> f64 {
    let (arena, plain) = (Arena::new(TABLES as usize + 64), Arena::new(TABLES as usize + 64));
    let mut table = table(&arena, 1, true);
    let mut log = start_log(&mut table, 1, Mechanism::HardwarePage);
    let mut words = vec![0; log.layout().words()];
    let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
    let (read, harvest) = best_of(
        || {
            time(|| {
                // SAFETY: the arena is that large, and nobody writes to it.
                black_box(unsafe { read_words(black_box(plain.bytes().0), 512 * 512) });
            })
        },
        || time(|| table.harvest(&mut log, &mut report).expect("the log's own set")),
    );
    read / harvest
}

/// The time of a harvest of 64 GiB in which nothing is dirty, by that of 1 GiB.
fn harvest_none() -> f64 {
    /// A single harvest is too short for a clock.
    const TIMES: u32 = 1000;
    let arenas = [Arena::new(64), Arena::new(64)];
    let [mut small, mut large] = [(&arenas[0], 1), (&arenas[1], 64)].map(|(arena, gib)| {
        let mut table = table(arena, gib, false);
        let mut log = start_log(&mut table, gib, Mechanism::WriteProtect);
        move || {
            let mut words = vec![0; log.layout().words()];
            let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
            time(|| {
                for _ in 0..TIMES {
                    black_box(&table).harvest(black_box(&mut log), &mut report).expect("the log's own set");
                }
            })
        }
    });
    let (small, large) = best_of(&mut small, &mut large);
    large / small
}

fn main() -> ExitCode {
    let mut limits = Vec::new();
    let mut at_least =
        |what, ratio: f64, least: f64, rule| limits.push(Limit { what, ratio, holds: ratio >= least, rule });
    at_least("split 1 GiB to pages, bandwidth by memset's", split(), 0.5, "at least 0.5");
    at_least(
        "harvest hardware dirty state, bandwidth by a plain read's",
        harvest_hardware(),
        0.2,
        "at least 0.2 (0.3 is aimed at)",
    );
    let ratio = harvest_none();
    limits.push(Limit {
        what: "harvest with nothing dirty, time of 64 GiB by that of 1 GiB",
        ratio,
        holds: (0.5..=2.0).contains(&ratio),
        rule: "from 0.5 to 2",
    });
    for Limit { what, ratio, holds, rule } in &limits {
        println!("{} {what}: {ratio:.2}, must be {rule}", if *holds { "passed" } else { "FAILED" });
    }
    let missed = limits.iter().filter(|limit| !limit.holds).count();
    println!("{} passed, {missed} failed", limits.len() - missed);
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
