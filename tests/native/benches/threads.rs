//! One and two threads at once, on disjoint blocks and on the same ones.

use criterion::Criterion;
use native_bench::{Arena, GIB, range, start_log, table};
use stage2::fault::Status;
use stage2::*;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// How the work is shared.
#[derive(Clone, Copy)]
enum Share {
    Alone,
    Disjoint,
    Same,
}

const SHARES: [(&str, Share); 3] = [
    ("1 thread", Share::Alone),
    ("2 threads, disjoint blocks", Share::Disjoint),
    ("2 threads, the same blocks", Share::Same),
];

impl Share {
    /// The parts of 1 GiB that the threads do, one each.
    fn parts(self) -> Vec<IpaRange> {
        let part = |start, size| IpaRange::from_size(Ipa(start), size).expect("a part of a gibibyte");
        match self {
            Self::Alone => vec![part(0, GIB)],
            Self::Disjoint => vec![part(0, GIB / 2), part(GIB / 2, GIB / 2)],
            Self::Same => vec![part(0, GIB); 2],
        }
    }
}

/// Runs `work` on each thread's part, all at once; from the first one's begin to the last one's end.
fn at_once(parts: &[IpaRange], work: impl Fn(IpaRange) + Sync) -> Duration {
    let barrier = Barrier::new(parts.len());
    std::thread::scope(|scope| {
        let run = |part| {
            barrier.wait();
            let begin = Instant::now();
            work(part);
            (begin, Instant::now())
        };
        let threads: Vec<_> = parts.iter().map(|&part| scope.spawn(move || run(part))).collect();
        let times: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect();
        let begin = times.iter().map(|time| time.0).min();
        let end = times.iter().map(|time| time.1).max();
        begin.zip(end).map_or(Duration::ZERO, |(begin, end)| end - begin)
    })
}

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("threads: split 1 GiB to pages");
    for (name, share) in SHARES {
        // Threads that split the same block each take a frame, and one gives it back.
        let arena = super::arena(2);
        let mut table = table(&arena, 1, false);
        let parts = share.parts();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    spent += at_once(&parts, |part| {
                        table.split(part, LeafSize::Page).expect("the arena holds the tables");
                    });
                    table.collapse(range(1)).expect("the range is good");
                }
                spent
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("threads: write to each page of 1 GiB of protected pages");
    for (name, share) in SHARES {
        let arena = super::arena(2);
        let mut table = table(&arena, 1, false);
        let mut log = start_log(&mut table, 1, Mechanism::WriteProtect);
        table.split(range(1), LeafSize::Page).expect("the arena holds the tables");
        let mut words = vec![0; log.layout().words()];
        let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
        let parts = share.parts();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    spent += at_once(&parts, |part| write(&table, part));
                    table.harvest(&mut log, &mut report).expect("the log's own set");
                }
                spent
            });
        });
    }
    group.finish();
}

/// The fault of each page's first write.
fn write(table: &Stage2<&Arena>, part: IpaRange) {
    let mut history = FaultHistory::new();
    for ipa in (part.start().0..part.end().0).step_by(PAGE_SIZE as usize) {
        let status = Status::Permission;
        let abort =
            Abort { status, write: true, execute: false, stage1_walk: false, el0: false, ipa: Ipa(ipa), va: ipa };
        // The faults of two threads at the same page: one is late, and retries like the other.
        assert_eq!(table.fault(&abort, &mut history), Outcome::Retry);
    }
}
