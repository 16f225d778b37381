//! Memory that runs out: for each operation and each of its allocations, that allocation fails, and nothing has changed.
//! And memory that comes back: what a split took, a collapse returns.

mod common;

use common::{GIB, MIB, Machine, property, range, scaled, vmid};
use proptest::prelude::*;
use stage2::*;
use stage2_oracle::{Checked, Mapping, Model};

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
