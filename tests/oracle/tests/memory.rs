//! Memory that runs out: for each operation and each of its allocations, that allocation fails, and nothing has changed.
//! And memory that comes back: what a split took, a collapse returns.

mod common;

use common::{GIB, MIB, Machine, property, range, scaled, vmid};
use proptest::prelude::*;
use stage2::*;
use stage2_oracle::{Checked, Mapping, Model, Setup, Shape};
use std::sync::atomic::AtomicU64;

const BASE: u64 = 2 * GIB;

fn machine(bbm: BbmLevel, contiguous: bool) -> Machine {
    Machine { bbm, contiguous, hardware_dirty: false, ipa_bits: 32, tlbi_range: true }
}

fn world() -> IpaRange {
    range(BASE, BASE + GIB)
}

/// Ranges with edges on and off every size of leaf.
fn ranges() -> impl Strategy<Value = IpaRange> {
    let edge = || {
        prop_oneof![
            (0..2048u64).prop_map(|n| n << 12),
            (0..64u64).prop_map(|n| n << 16),
            (0..32u64).prop_map(|n| n << 21)
        ]
    };
    (edge(), edge())
        .prop_filter_map("a range of something", |(a, b)| (a != b).then(|| range(BASE + a.min(b), BASE + a.max(b))))
}

type Operation = fn(&mut Checked<'_>, IpaRange) -> Result<(), Error>;

const ALL_OR_NOTHING: [(&str, Operation); 4] = [
    ("protect", |t, r| t.protect(r, Permissions::READ)),
    ("unmap", |t, r| t.unmap(r)),
    ("map over", |t, r| t.map(r, PhysAddr(r.start().0 + 4 * GIB + 4096), Attributes::RAM)),
    ("map alike", |t, r| t.map(r, PhysAddr(r.start().0), Attributes::RAM)),
];

#[test]
fn a_failed_allocation_changes_nothing() {
    for bbm in Machine::LEVELS {
        for (name, operation) in ALL_OR_NOTHING {
            let title = format!("{name} at {bbm:?}");
            property(&title, scaled(100), (ranges(), ranges(), any::<bool>()), |(before, range, contiguous)| {
                let machine = machine(bbm, contiguous);
                let model = Model::new(machine.setup());
                let mut table = Checked::new(&model, machine.config()).expect("a table");
                table.map(world(), PhysAddr(BASE), Attributes::RAM).expect("a mapping");
                table.protect(before, Permissions::READ_EXECUTE).expect("memory");
                let snapshot = model.snapshot();
                for allowed in 0.. {
                    model.fail_allocations(Some(allowed));
                    let result = operation(&mut table, range);
                    model.fail_allocations(None);
                    model.assert_clean();
                    match result {
                        Ok(()) if name == "map over" => break,
                        Ok(()) => {
                            assert!(allowed <= 4, "{title} of {range}: {allowed} frames for two edges");
                            break;
                        }
                        Err(Error::OutOfMemory { .. }) => {
                            assert!(model.snapshot() == snapshot, "{title} of {range} changed")
                        }
                        Err(other) => panic!("{title} of {range}: {other}"),
                    }
                }
            });
        }
    }
}

/// A block of 512 GiB takes three tables an edge, and as many for both edges where these are in the same block, GiB and 2 MiB.
#[test]
fn a_failed_allocation_changes_nothing_in_the_largest_blocks() {
    const BLOCK: u64 = 512 * GIB;
    let ranges = [
        (range(2 * BLOCK - 4096, 2 * BLOCK + 4096), 6),
        (range(BLOCK, 2 * BLOCK + 4096), 3),
        (range(BLOCK + 4096, 2 * BLOCK), 3),
        (range(BLOCK + 4096, BLOCK + 0x3000), 3),
        (range(BLOCK + 4096, BLOCK + 2 * MIB + 4096), 4),
        (range(BLOCK + 4096, BLOCK + GIB + 4096), 5),
        (range(BLOCK + GIB, BLOCK + 2 * GIB), 1),
        (range(BLOCK, 3 * BLOCK), 0),
    ];
    for bbm in Machine::LEVELS {
        for ((name, operation), (range, frames)) in [
            (
                "protect",
                (|t, r| t.protect(r, Permissions::READ)) as fn(&mut Checked<'_, &Model, Granule4KLpa2>, IpaRange) -> _,
            ),
            ("unmap", |t, r| t.unmap(r)),
        ]
        .into_iter()
        .flat_map(|operation| ranges.map(|range| (operation, range)))
        {
            let machine = Machine { ipa_bits: 52, ..machine(bbm, true) };
            let model = Model::new(Setup { granule: Shape::of::<Granule4KLpa2>(), ..machine.setup() });
            let mut table =
                Checked::<_, Granule4KLpa2>::with_granule(&model, &model, machine.config()).expect("a table");
            table.map(common::range(BLOCK, 3 * BLOCK), PhysAddr(9 << 48), Attributes::RAM).expect("a mapping");
            let snapshot = model.snapshot();
            for allowed in 0..frames {
                model.fail_allocations(Some(allowed));
                let result = operation(&mut table, range);
                assert!(matches!(result, Err(Error::OutOfMemory { .. })), "{name} {range} with {allowed}: {result:?}");
                assert!(model.snapshot() == snapshot, "{name} of {range} changed");
            }
            model.fail_allocations(Some(frames));
            assert_eq!(operation(&mut table, range), Ok(()), "{name} of {range} at {bbm:?}");
            model.assert_clean();
        }
    }
}

#[test]
fn a_split_that_runs_out_of_memory_says_how_far_it_came() {
    for bbm in Machine::LEVELS {
        property(&format!("split at {bbm:?}"), scaled(100), (ranges(), 0..20usize), |(range, allowed)| {
            let machine = machine(bbm, true);
            let model = Model::new(machine.setup());
            let mut table = Checked::new(&model, machine.config()).expect("a table");
            table.map(world(), PhysAddr(BASE), Attributes::RAM).expect("a mapping");
            model.fail_allocations(Some(allowed));
            let result = table.split(range, LeafSize::Page);
            model.assert_clean();
            let end = match result {
                Ok(()) => range.end(),
                Err(Error::OutOfMemory { ipa }) => ipa.max(range.start()),
                Err(other) => panic!("{other}"),
            };
            for leaf in table.stage2().leaves(range).filter(|leaf| leaf.range().end() <= end) {
                assert_eq!(leaf.size, LeafSize::Page, "{leaf:?} lies before {end}");
            }
            assert_eq!(table.stage2().leaves(world()).map(|leaf| leaf.size.bytes()).sum::<u64>(), GIB);
        });
    }
}

#[test]
fn a_collapse_returns_what_a_split_took() {
    for bbm in Machine::LEVELS {
        let strategy = (prop::collection::vec(ranges(), 1..4), any::<bool>());
        property(&format!("split and collapse at {bbm:?}"), scaled(200), strategy, |(ranges, contiguous)| {
            let machine = machine(bbm, contiguous);
            let model = Model::new(machine.setup());
            let mut table = Checked::new(&model, machine.config()).expect("a table");
            // Leaves of all sizes to begin with.
            table.map(range(BASE, BASE + 40 * MIB), PhysAddr(BASE), Attributes::RAM).expect("a mapping");
            table
                .map(range(BASE + 44 * MIB, BASE + 45 * MIB + 4096), PhysAddr(BASE), Attributes::RAM)
                .expect("a mapping");
            let state =
                |model: &Model| -> (usize, Vec<Mapping>) { (model.frames_in_use(), model.mappings(vmid(), world())) };
            let before = state(&model);
            let invalid = model.stats().invalid_windows;
            let broadcasts = model.stats().broadcasts;
            ranges.iter().for_each(|&range| table.split(range, LeafSize::Page).expect("memory"));
            if bbm >= BbmLevel::Level2 {
                assert_eq!(model.stats().broadcasts, broadcasts, "a direct split invalidates nothing");
            }
            table.collapse(world()).expect("a collapse");
            assert_eq!(state(&model), before);
            if bbm >= BbmLevel::Level1 {
                assert_eq!(model.stats().invalid_windows, invalid);
            }
            model.assert_clean();
        });
    }
}

/// Words for a log of `range`, for ever.
fn storage(range: IpaRange) -> &'static [AtomicU64] {
    (0..Layout::new(range).words()).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
}

/// A table of 1 GiB, and a log's options.
fn logged(bbm: BbmLevel, mechanism: Mechanism) -> (Machine, LogOptions) {
    let hardware_dirty = mechanism != Mechanism::WriteProtect;
    let machine = Machine { hardware_dirty, ..machine(bbm, true) };
    (machine, LogOptions { mechanism, all_dirty: false })
}

/// What the guest may do, page by page or leaf by leaf: the same at any size of leaf.
fn rights(table: &Checked<'_>, range: IpaRange) -> Vec<(u64, Attributes)> {
    let mut rights: Vec<(u64, Attributes)> = Vec::new();
    for leaf in table.stage2().leaves(range) {
        if rights.last().is_none_or(|last| last.1 != leaf.attributes) {
            rights.push((leaf.ipa.0, leaf.attributes));
        }
    }
    rights
}

#[test]
fn a_log_that_finds_no_memory_does_not_start() {
    for (bbm, mechanism) in Machine::LEVELS.into_iter().flat_map(|bbm| {
        [Mechanism::WriteProtect, Mechanism::HardwarePage, Mechanism::HardwareBlock].map(|mechanism| (bbm, mechanism))
    }) {
        let strategy = (ranges(), ranges(), prop_oneof![0..8usize, 0..400usize]);
        property(&format!("start {mechanism:?} at {bbm:?}"), scaled(60), strategy, |(closed, range, allowed)| {
            let (machine, options) = logged(bbm, mechanism);
            let model = Model::new(machine.setup());
            let mut table = Checked::new(&model, machine.config()).expect("a table");
            table.map(world(), PhysAddr(BASE), Attributes::RAM).expect("a mapping");
            table.protect(closed, Permissions::READ_EXECUTE).expect("memory");
            let before = rights(&table, world());
            let words = storage(range);
            model.fail_allocations(Some(allowed));
            let result = table.start_log(range, words, options);
            model.fail_allocations(None);
            model.assert_clean();
            assert_eq!(rights(&table, world()), before);
            let log = match result {
                Ok(log) => log,
                // Nothing is left of the attempt: the same words serve the next one.
                Err(Error::OutOfMemory { .. }) => table.start_log(range, words, options).expect("there is memory now"),
                Err(other) => panic!("{other}"),
            };
            table.stop_log_and_collapse(log);
            model.assert_clean();
            assert_eq!(rights(&table, world()), before);
        });
    }
}

/// Blocks that were given to hardware before memory ran out: no PE may hold one of them still when the next log starts.
#[test]
fn a_log_that_found_no_memory_leaves_nothing_that_the_next_would_miss() {
    for (bbm, allowed) in Machine::LEVELS.into_iter().flat_map(|bbm| (1..6).map(move |allowed| (bbm, allowed))) {
        let (machine, options) = logged(bbm, Mechanism::HardwarePage);
        let model = Model::new(machine.setup());
        let mut table = Checked::new(&model, machine.config()).expect("a table");
        let range = range(BASE, BASE + 14 * MIB);
        table.map(world(), PhysAddr(BASE), Attributes::RAM).expect("a mapping");
        let words = storage(range);
        model.fail_allocations(Some(allowed));
        assert!(matches!(table.start_log(range, words, options), Err(Error::OutOfMemory { .. })), "{bbm:?} {allowed}");
        model.fail_allocations(None);
        let mut log = table.start_log(range, words, options).expect("there is memory now");
        let mut words = vec![0; Layout::new(range).words()];
        let mut report = PageSet::new(Layout::new(range), &mut words).expect("words enough");
        table.harvest(&mut log, &mut report).expect("a harvest");
        model.assert_clean();
    }
}

#[test]
fn a_fault_that_finds_no_memory_costs_precision_and_nothing_else() {
    for bbm in Machine::LEVELS {
        let range = range(BASE, BASE + 64 * MIB);
        property(&format!("fault at {bbm:?}"), scaled(60), prop::collection::vec(0..16384u64, 1..8), |pages| {
            let (machine, options) = logged(bbm, Mechanism::WriteProtect);
            let model = Model::new(machine.setup());
            let mut table = Checked::new(&model, machine.config()).expect("a table");
            table.map(world(), PhysAddr(BASE), Attributes::RAM).expect("a mapping");
            let mut log = table.start_log(range, storage(range), options).expect("memory");
            model.fail_allocations(Some(0));
            let frames = model.frames_in_use();
            let mut history = FaultHistory::new();
            for page in &pages {
                table.store(Ipa(BASE + page * PAGE_SIZE), &mut history).expect("the guest goes on");
            }
            assert_eq!(model.frames_in_use(), frames);
            let layout = Layout::new(range);
            let mut words = vec![0; layout.words()];
            let mut report = PageSet::new(layout, &mut words).expect("words enough");
            let opened = |report: &PageSet<'_>| {
                let mut blocks = pages.iter().map(|page| (BASE + page * PAGE_SIZE) & !(2 * MIB - 1));
                blocks.all(|block| report.contains_range(common::range(block, block + 2 * MIB)))
            };
            table.stage2().peek(&log, &mut report).expect("a look takes no memory");
            assert!(opened(&report), "all that was opened is marked");
            report.clear();
            table.harvest(&mut log, &mut report).expect("a harvest takes no memory");
            model.assert_clean();
            assert!(opened(&report), "all that was opened is reported");
            model.fail_allocations(None);
            table.stop_log_and_collapse(log);
            model.assert_clean();
        });
    }
}

#[test]
fn a_batch_that_finds_no_memory_keeps_what_it_has_done() {
    for bbm in Machine::LEVELS {
        property(
            &format!("batch at {bbm:?}"),
            scaled(100),
            (ranges(), ranges(), 0..9usize),
            |(first, second, allowed)| {
                let machine = machine(bbm, true);
                let model = Model::new(machine.setup());
                let mut table = Checked::new(&model, machine.config()).expect("a table");
                table.map(world(), PhysAddr(BASE), Attributes::RAM).expect("a mapping");
                let mut done = Vec::new();
                model.fail_allocations(Some(allowed));
                let result = table.batch(|batch| {
                    for range in [first, second] {
                        batch.protect(range, Permissions::READ)?;
                        done.push(range);
                    }
                    Ok(())
                });
                model.fail_allocations(None);
                model.assert_clean();
                assert_eq!(result.is_ok(), done.len() == 2);
                for leaf in table.stage2().leaves(world()) {
                    let asked = done.iter().any(|range| range.contains(leaf.ipa));
                    let wanted = if asked { Permissions::READ } else { Permissions::ALL };
                    assert_eq!(leaf.attributes.permissions, wanted, "{leaf:?} after {done:?}");
                }
            },
        );
    }
}

#[test]
fn a_freeze_that_finds_no_memory_stops_nobody() {
    for bbm in Machine::LEVELS {
        let machine = machine(bbm, true);
        let model = Model::new(machine.setup());
        let mut table = Checked::new(&model, machine.config()).expect("a table");
        table.map(world(), PhysAddr(BASE), Attributes::RAM).expect("a mapping");
        let before = model.snapshot();
        model.fail_allocations(Some(0));
        assert!(matches!(table.freeze(), Err(Error::OutOfMemory { .. })));
        assert!(model.snapshot() == before && !table.stage2().is_frozen());
        table.store(Ipa(BASE), &mut FaultHistory::new()).expect("the guest goes on");
        model.assert_clean();
    }
}

#[test]
fn a_table_that_finds_no_memory_is_not_made() {
    let machine = machine(BbmLevel::Level2, true);
    let model = Model::new(machine.setup());
    model.fail_allocations(Some(0));
    assert!(matches!(Checked::new(&model, machine.config()), Err(Error::OutOfMemory { .. })));
    assert_eq!(model.frames_in_use(), 0);
}
