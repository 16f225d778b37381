//! What the engine's calls take by the size of the guest's memory: 1 to 256 GiB.
//!
//! One line a size, in nanoseconds, of each the best of some rounds; then the bytes of tables in use while all is pages:
//!
//! ```text
//! scale: GIB map start harvest-none harvest-one-percent stop collapse table-bytes
//! ```
//!
//! Map and start find the largest leaves, 1 GiB; one page in a hundred has been written, and all leaves are pages, when the
//! harvest looks for them.

use native_bench::{Arena, TABLES, range, start_log, table};
use stage2::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

const SIZES: [u64; 5] = [1, 4, 16, 64, 256];
/// Of the pages, every hundredth is written.
const WRITTEN: usize = 100;
/// What a clock cannot measure once is done so often.
const OFTEN: u32 = 1000;

fn time(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

/// One round: a time for each call, and the tables' bytes at most.
fn round(arena: &Arena, gib: u64) -> ([Duration; 6], u64) {
    let before = Arena::bytes_in_use();
    let begin = Instant::now();
    let mut table = table(arena, gib, false);
    let map = begin.elapsed();
    let mut log = None;
    let start = time(|| log = Some(start_log(&mut table, gib, Mechanism::WriteProtect)));
    let mut log = log.expect("it has started");
    let mut words = vec![0; log.layout().words()];
    let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
    let none = time(|| {
        for _ in 0..OFTEN {
            table.harvest(black_box(&mut log), &mut report).expect("the log's own set");
        }
    }) / OFTEN;
    table.split(range(gib), LeafSize::Page).expect("the arena holds the tables");
    let bytes = Arena::bytes_in_use() - before;
    let mut history = FaultHistory::new();
    for ipa in (0..range(gib).bytes()).step_by(WRITTEN * PAGE_SIZE as usize) {
        assert!(table.first_write(Ipa(ipa), ipa, &mut history), "a page is protected");
    }
    let dirty = time(|| table.harvest(&mut log, &mut report).expect("the log's own set"));
    assert_eq!(report.len() as u64, range(gib).pages().div_ceil(WRITTEN as u64), "all that was written is reported");
    let stop = time(|| _ = table.stop_log_keeping_pages(log));
    let collapse = time(|| table.collapse(range(gib)).expect("the range is good"));
    (([map, start, none, dirty, stop, collapse]), bytes)
}

fn main() {
    for gib in SIZES {
        let arena = Arena::new((gib * TABLES) as usize + 1024);
        let rounds = (64 / gib).clamp(3, 16);
        let mut best = [Duration::MAX; 6];
        let mut bytes = 0;
        for _ in 0..rounds {
            let (times, most) = round(&arena, gib);
            best = std::array::from_fn(|call| best[call].min(times[call]));
            bytes = most;
        }
        let times: Vec<String> = best.iter().map(|time| time.as_nanos().to_string()).collect();
        println!("scale: {gib} {} {bytes}", times.join(" "));
    }
}
