//! The engine's memory work beside `memset` and a plain read of the same bytes, in the same run.
//!
//! `cargo hv bench --native` runs it and prints the ratios.

#![expect(missing_docs, reason = "criterion_group makes a public function")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use native_bench::Arena;
use stage2::features::HardwareUpdate;
use stage2::*;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;

const GIB: u64 = 1 << 30;
/// Tables that 1 GiB of pages takes: one of level 2, 512 of level 3.
const TABLES: u64 = 513;

fn table(arena: &Arena, gib: u64, hardware_dirty: bool) -> Stage2<&Arena> {
    let features = Features {
        pa_bits: 40,
        bbm: BbmLevel::Level2,
        hardware_update: HardwareUpdate::DirtyState,
        tlbi_range: true,
        vmid_bits: 16,
        lse: true,
    };
    let config = Config { hardware_dirty, ..Config::new(Vmid::new(1).expect("1 is a VMID"), features) };
    let mut table = Stage2::new(arena, config).expect("the arena holds the root");
    table.map(range(gib), PhysAddr(0), Attributes::RAM).expect("the arena holds the tables");
    table
}

fn range(gib: u64) -> IpaRange {
    IpaRange::from_size(Ipa(0), gib * GIB).expect("whole gibibytes are a range")
}

fn split_1_gib(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("split 1 GiB to pages");
    group.throughput(Throughput::Bytes(TABLES * PAGE_SIZE));
    let arena = Arena::new(TABLES as usize + 64);
    let (bytes, _) = arena.bytes();
    group.bench_function("memset of the same bytes", |bencher| {
        bencher.iter(|| {
            // SAFETY: the arena is that large, and no table lives in it yet.
            unsafe { std::ptr::write_bytes(black_box(bytes), black_box(1), (TABLES * PAGE_SIZE) as usize) };
        });
    });
    group.bench_function("engine", |bencher| {
        let mut table = table(&arena, 1, false);
        bencher.iter_custom(|rounds| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..rounds {
                let start = std::time::Instant::now();
                table.split(range(1), LeafSize::Page).expect("the arena holds the tables");
                spent += start.elapsed();
                table.collapse(range(1)).expect("the range is good");
            }
            spent
        });
    });
    group.finish();
}

fn collapse_1_gib(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("collapse 1 GiB of pages");
    group.throughput(Throughput::Bytes(TABLES * PAGE_SIZE));
    let arena = Arena::new(TABLES as usize + 64);
    group.bench_function("engine", |bencher| {
        let mut table = table(&arena, 1, false);
        bencher.iter_custom(|rounds| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..rounds {
                table.split(range(1), LeafSize::Page).expect("the arena holds the tables");
                let start = std::time::Instant::now();
                table.collapse(range(1)).expect("the range is good");
                spent += start.elapsed();
            }
            spent
        });
    });
    group.finish();
}

fn read_words(bytes: *const u8, words: usize) -> u64 {
    // SAFETY: the caller's arena is that large and lives on.
    let words = unsafe { std::slice::from_raw_parts(bytes.cast::<u64>(), words) };
    words.iter().fold(0, |sum, word| sum ^ word)
}

fn harvest_hardware(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("harvest hardware dirty state of 1 GiB of pages, none dirty");
    group.throughput(Throughput::Bytes(512 * PAGE_SIZE));
    let arena = Arena::new(TABLES as usize + 64);
    let mut table = table(&arena, 1, true);
    let mut log = start(&mut table, 1, Mechanism::HardwarePage);
    let (bytes, _) = arena.bytes();
    group.bench_function("read of the same bytes", |bencher| {
        bencher.iter(|| read_words(black_box(bytes), 512 * 512));
    });
    let mut words = vec![0; log.layout().words()];
    let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
    group.bench_function("engine", |bencher| {
        bencher.iter(|| table.harvest(&mut log, &mut report).expect("the log's own set"));
    });
    group.finish();
}

fn start(table: &mut Stage2<&Arena>, gib: u64, mechanism: Mechanism) -> Log {
    let storage = Box::leak((0..Layout::new(range(gib)).words()).map(|_| AtomicU64::new(0)).collect());
    let options = LogOptions { mechanism, all_dirty: false };
    table.start_log(range(gib), storage, options).expect("nothing else is logged")
}

fn harvest_bitmap(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("harvest the bitmap, none dirty");
    for gib in [1, 4, 16, 64] {
        let arena = Arena::new(4096);
        let mut table = table(&arena, gib, false);
        let mut log = start(&mut table, gib, Mechanism::WriteProtect);
        let mut words = vec![0; log.layout().words()];
        let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
        group.bench_function(BenchmarkId::from_parameter(format!("{gib} GiB")), |bencher| {
            bencher.iter(|| table.harvest(&mut log, &mut report).expect("the log's own set"));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("harvest the bitmap, 1 GiB all dirty");
    group.throughput(Throughput::Elements(GIB / PAGE_SIZE));
    let arena = Arena::new(TABLES as usize + 64);
    let mut table = table(&arena, 1, false);
    table.split(range(1), LeafSize::Page).expect("the arena holds the tables");
    let mut log = start(&mut table, 1, Mechanism::WriteProtect);
    let mut words = vec![0; log.layout().words()];
    let mut report = PageSet::new(log.layout(), &mut words).expect("the layout's own size");
    group.bench_function("engine", |bencher| {
        bencher.iter_batched(
            || table.mark_written(range(1)),
            |()| table.harvest(&mut log, &mut report).expect("the log's own set"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn map_and_walk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("map 64 GiB");
    group.bench_function("engine", |bencher| {
        bencher.iter_batched(|| Arena::new(64), |arena| table(&arena, 64, false).vttbr(), BatchSize::PerIteration);
    });
    group.finish();
    let mut group = criterion.benchmark_group("walk");
    let arena = Arena::new(4096);
    let table = table(&arena, 1, false);
    table.split(IpaRange::from_size(Ipa(0), 4096).expect("a page"), LeafSize::Page).expect("the arena holds it");
    group.bench_function("to a page", |bencher| bencher.iter(|| table.walk(black_box(Ipa(0x3000)))));
    group.finish();
}

criterion_group!(benches, split_1_gib, collapse_1_gib, harvest_hardware, harvest_bitmap, map_and_walk);
criterion_main!(benches);
