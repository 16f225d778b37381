//! The engine's memory work beside `memset` and a plain read of the same bytes, and beside peer crates, in the same run.
//!
//! `cargo hv bench --native` runs it and prints the ratios.

#![expect(missing_docs, reason = "criterion_group makes a public function")]

mod peers;
mod threads;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use native_bench::{Arena, GIB, TABLES, range, read_words, start_log, table};
use stage2::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The engine's name in every group.
const ENGINE: &str = "engine";
/// Sizes whose growth is looked at, in GiB.
const GROWTH: [u64; 4] = [1, 4, 16, 64];

/// A table of `gib` GiB, and an arena with room for all of it in pages.
fn arena(gib: u64) -> Arena {
    Arena::new((gib * TABLES) as usize + 64)
}

fn split(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("split 1 GiB to pages");
    group.throughput(Throughput::Bytes(TABLES * PAGE_SIZE));
    {
        let arena = arena(1);
        let (bytes, _) = arena.bytes();
        group.bench_function("memset of the same bytes", |bencher| {
            bencher.iter(|| {
                // SAFETY: the arena is that large, and no table lives in it.
                unsafe { std::ptr::write_bytes(black_box(bytes), black_box(1), (TABLES * PAGE_SIZE) as usize) };
            });
        });
    }
    let arena = arena(1);
    let mut table = table(&arena, 1, false);
    group.bench_function(ENGINE, |bencher| bencher.iter_custom(|rounds| split_rounds(&mut table, 1, rounds)));
    peers::split(&mut group);
    group.finish();

    let mut group = criterion.benchmark_group("growth: split to pages");
    group.sample_size(10);
    for gib in GROWTH {
        let arena = self::arena(gib);
        let mut table = native_bench::table(&arena, gib, false);
        group.throughput(Throughput::Bytes(gib * TABLES * PAGE_SIZE));
        group.bench_function(BenchmarkId::from_parameter(format!("{gib} GiB")), |bencher| {
            bencher.iter_custom(|rounds| split_rounds(&mut table, gib, rounds));
        });
    }
    group.finish();
}

fn split_rounds(table: &mut Stage2<&Arena>, gib: u64, rounds: u64) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let start = Instant::now();
        table.split(range(gib), LeafSize::Page).expect("the arena holds the tables");
        spent += start.elapsed();
        table.collapse(range(gib)).expect("the range is good");
    }
    spent
}

fn collapse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("collapse 1 GiB of pages");
    group.throughput(Throughput::Bytes(TABLES * PAGE_SIZE));
    let arena = arena(1);
    {
        let (bytes, _) = arena.bytes();
        group.bench_function("read of the same bytes", |bencher| {
            // SAFETY: the arena is that large, and no table lives in it.
            bencher.iter(|| unsafe { read_words(black_box(bytes), (TABLES * PAGE_SIZE / 8) as usize) });
        });
    }
    let mut table = table(&arena, 1, false);
    group.bench_function(ENGINE, |bencher| {
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                table.split(range(1), LeafSize::Page).expect("the arena holds the tables");
                let start = Instant::now();
                table.collapse(range(1)).expect("the range is good");
                spent += start.elapsed();
            }
            spent
        });
    });
    group.finish();
}

fn harvest_hardware(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("harvest hardware dirty state of 1 GiB of pages, none dirty");
    group.throughput(Throughput::Bytes(512 * PAGE_SIZE));
    let arena = arena(1);
    let mut table = table(&arena, 1, true);
    let mut log = start_log(&mut table, 1, Mechanism::HardwarePage);
    let (bytes, _) = arena.bytes();
    group.bench_function("read of the same bytes", |bencher| {
        // SAFETY: the arena is that large, and nobody changes the tables meanwhile.
        bencher.iter(|| unsafe { read_words(black_box(bytes), 512 * 512) });
    });
    let mut words = vec![0; log.layout().words()];
    let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
    group.bench_function(ENGINE, |bencher| {
        bencher.iter(|| table.harvest(&mut log, &mut report).expect("the log's own set"));
    });
    peers::scan(&mut group);
    group.finish();
}

fn harvest_bitmap(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("growth: harvest the bitmap, none dirty");
    for gib in GROWTH {
        let arena = Arena::new(4096);
        let mut table = table(&arena, gib, false);
        let mut log = start_log(&mut table, gib, Mechanism::WriteProtect);
        let mut words = vec![0; log.layout().words()];
        let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
        group.bench_function(BenchmarkId::from_parameter(format!("{gib} GiB")), |bencher| {
            bencher.iter(|| table.harvest(&mut log, &mut report).expect("the log's own set"));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("harvest the bitmap, 1 GiB all dirty");
    group.throughput(Throughput::Elements(GIB / PAGE_SIZE));
    let arena = arena(1);
    let (bytes, _) = arena.bytes();
    let mut table = table(&arena, 1, false);
    table.split(range(1), LeafSize::Page).expect("the arena holds the tables");
    group.bench_function("read of the tables' bytes", |bencher| {
        // SAFETY: the arena is that large, and nobody changes the tables meanwhile.
        bencher.iter(|| unsafe { read_words(black_box(bytes), 512 * 512) });
    });
    let mut log = start_log(&mut table, 1, Mechanism::WriteProtect);
    let mut words = vec![0; log.layout().words()];
    let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
    group.bench_function(ENGINE, |bencher| {
        bencher.iter_batched(
            || table.mark_written(range(1)),
            |()| table.harvest(&mut log, &mut report).expect("the log's own set"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn map_and_walk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("map 64 GiB in the largest leaves");
    group.bench_function(ENGINE, |bencher| {
        bencher.iter_batched(|| Arena::new(64), |arena| table(&arena, 64, false).vttbr(), BatchSize::PerIteration);
    });
    peers::map(&mut group);
    group.finish();
    let mut group = criterion.benchmark_group("growth: map in the largest leaves");
    for gib in GROWTH {
        group.bench_function(BenchmarkId::from_parameter(format!("{gib} GiB")), |bencher| {
            bencher.iter_batched(|| Arena::new(64), |arena| table(&arena, gib, false).vttbr(), BatchSize::PerIteration);
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("walk to a page");
    let arena = Arena::new(4096);
    let table = table(&arena, 1, false);
    table.split(IpaRange::from_size(Ipa(0), 4096).expect("a page"), LeafSize::Page).expect("the arena holds it");
    group.bench_function(ENGINE, |bencher| bencher.iter(|| table.walk(black_box(Ipa(0x3000)))));
    peers::walk(&mut group);
    group.finish();
}

criterion_group! {
    name = benches;
    // There are many, and what is compared was measured one after the other: the sooner the better.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20);
    targets = split, collapse, harvest_hardware, harvest_bitmap, map_and_walk, threads::bench
}
criterion_main!(benches);
