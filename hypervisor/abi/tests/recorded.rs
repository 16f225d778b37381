//! What [`Recorded`] hands on to the platform inside, and what it writes down of it.

use hypervisor_abi::events::{Barrier, Invalidation, Record};
use hypervisor_abi::recorded::{Recorded, Recorder};
use stage2::{Counters, Dsb, Event, Ipa, Maintenance, PhysAddr, Scope, Slot, TableMemory, Tlbi, Vmid};
use std::cell::RefCell;

const TABLE: PhysAddr = PhysAddr(0x8000_0000);
/// The VMID that the PE holds, which is not the one that the engine names.
const HELD: u16 = 7;

/// A platform that has one value in each slot, and remembers how it was called.
#[derive(Default)]
struct Plain {
    calls: RefCell<Vec<String>>,
    counters: Counters,
}

impl Plain {
    fn called(&self, what: String) {
        self.calls.borrow_mut().push(what);
    }
}

const VALUE: u64 = 0xf0;

// SAFETY: nothing walks what this gives out.
unsafe impl TableMemory for &Plain {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        self.called(format!("allocate {frames}"));
        (frames == 1).then_some(TABLE)
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        self.called(format!("free {:#x} {frames}", first.0));
    }

    unsafe fn load(&self, slot: Slot) -> u64 {
        self.called(format!("load {}", slot.index));
        VALUE
    }

    unsafe fn store(&self, slot: Slot, value: u64) {
        self.called(format!("store {} {value:#x}", slot.index));
    }

    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        self.called(format!("exchange {} {old:#x} {new:#x}", slot.index));
        if old == VALUE { Ok(()) } else { Err(VALUE) }
    }

    unsafe fn fetch_clear(&self, slot: Slot, mask: u64) -> u64 {
        self.called(format!("clear {} {mask:#x}", slot.index));
        VALUE
    }

    unsafe fn is_filled(&self, _: PhysAddr, first: u64, step: u64) -> bool {
        self.called(format!("is filled {first:#x} {step:#x}"));
        first == 1
    }

    unsafe fn fill(&self, _: PhysAddr, first: u64, step: u64) {
        self.called(format!("fill {first:#x} {step:#x}"));
    }
}

// SAFETY: nothing is ever translated.
unsafe impl Maintenance for &Plain {
    fn dsb(&self, barrier: Dsb) {
        self.called(format!("{barrier:?}"));
    }

    fn isb(&self) {
        self.called("isb".into());
    }

    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        self.called(format!("{} {tlbi:?}", vmid.get()));
    }

    fn counters(&self) -> &Counters {
        self.called("counters".into());
        &self.counters
    }

    fn wait(&self) {
        self.called("wait".into());
    }
}

/// Keeps all records, and how each came: as a store, a load, or in order.
#[derive(Default)]
struct Kept(RefCell<Vec<(&'static str, Record)>>);

// SAFETY: `load` returns what was loaded.
unsafe impl Recorder for &Kept {
    fn ordered<R>(&self, act: impl FnOnce() -> R, record: impl FnOnce(&R) -> Option<Record>) -> R {
        let result = act();
        self.0.borrow_mut().extend(record(&result).map(|record| ("ordered", record)));
        result
    }

    fn stored<R>(&self, act: impl FnOnce() -> R, record: impl FnOnce(&R) -> Option<Record>) -> R {
        let result = act();
        self.0.borrow_mut().extend(record(&result).map(|record| ("stored", record)));
        result
    }

    fn load(&self, act: impl Fn() -> u64, record: impl FnOnce(u64) -> Record) -> u64 {
        let value = act();
        self.0.borrow_mut().push(("load", record(value)));
        value
    }

    fn push(&self, record: Record) {
        self.0.borrow_mut().push(("pushed", record));
    }

    fn held_vmid(&self) -> u16 {
        HELD
    }
}

/// What reached the platform, and what was kept, when `act` is done.
fn seen(act: impl FnOnce(&Recorded<&Plain, &Kept>)) -> (Vec<String>, Vec<(&'static str, Record)>) {
    let (plain, kept) = (Plain::default(), Kept::default());
    act(&Recorded::new(&plain, &kept));
    (plain.calls.take(), kept.0.take())
}

fn slot(index: usize) -> Slot {
    Slot { table: TABLE, index }
}

#[test]
fn frames_come_and_go_in_order() {
    let (calls, kept) = seen(|recorded| {
        assert_eq!(recorded.allocate(1), Some(TABLE));
        assert_eq!(recorded.allocate(2), None, "a request that is not met is no event");
        // SAFETY: nothing is there.
        unsafe { recorded.free(TABLE, 1) };
    });
    assert_eq!(calls, ["allocate 1", "allocate 2", "free 0x80000000 1"]);
    assert_eq!(kept, [("ordered", Record::allocate(TABLE.0, 1)), ("ordered", Record::free(TABLE.0, 1))]);
}

#[test]
fn each_access_is_carried_out_once_and_kept_if_it_changes_anything() {
    let (calls, kept) = seen(|recorded| {
        // SAFETY: the platform touches no memory.
        assert_eq!(unsafe { recorded.load(slot(3)) }, VALUE);
        // SAFETY: as above.
        unsafe { recorded.store(slot(4), 5) };
        for (old, new, result) in [(VALUE, 1, Ok(())), (VALUE, VALUE, Ok(())), (2, 3, Err(VALUE))] {
            // SAFETY: as above.
            assert_eq!(unsafe { recorded.compare_exchange(slot(5), old, new) }, result);
        }
        for mask in [0x30, 0x3] {
            // SAFETY: as above.
            assert_eq!(unsafe { recorded.fetch_clear(slot(6), mask) }, VALUE);
        }
    });
    let exchanges = ["exchange 5 0xf0 0x1", "exchange 5 0xf0 0xf0", "exchange 5 0x2 0x3"];
    assert_eq!(calls, [&["load 3", "store 4 0x5"], &exchanges[..], &["clear 6 0x30", "clear 6 0x3"]].concat());
    let expected = [
        ("load", Record::load(TABLE.0, 3, VALUE)),
        ("stored", Record::store(TABLE.0, 4, 5)),
        ("stored", Record::exchange(TABLE.0, 5, VALUE, 1)),
        ("stored", Record::exchange(TABLE.0, 6, VALUE, 0xc0)),
    ];
    assert_eq!(kept, expected);
}

#[test]
fn a_run_is_cleared_slot_by_slot() {
    let (calls, kept) = seen(|recorded| {
        // SAFETY: the platform touches no memory.
        unsafe { recorded.clear_run::<false>(slot(16), 2, 0x10, true) };
        // SAFETY: as above.
        assert_eq!(unsafe { recorded.clear_run::<true>(slot(32), 2, 0x20, true) }, VALUE);
    });
    assert_eq!(calls, ["clear 16 0x10", "clear 17 0x10", "clear 32 0x20", "clear 33 0x20"]);
    let cleared = |index, bits: u64| ("stored", Record::exchange(TABLE.0, index, VALUE, VALUE & !bits));
    assert_eq!(kept, [cleared(16, 0x10), cleared(17, 0x10), cleared(32, 0x20), cleared(33, 0x20)]);
}

#[test]
fn what_the_platform_does_its_own_way_is_left_to_it() {
    let (calls, kept) = seen(|recorded| {
        // SAFETY: the platform touches no memory.
        unsafe { recorded.fill(TABLE, 9, 8) };
        for first in [1, 2] {
            // SAFETY: as above.
            assert_eq!(unsafe { recorded.is_filled(TABLE, first, 4) }, first == 1);
        }
        recorded.wait();
        recorded.counters().add(Event::Split2M, 2);
    });
    assert_eq!(calls, ["fill 0x9 0x8", "is filled 0x1 0x4", "is filled 0x2 0x4", "wait", "counters"]);
    assert_eq!(kept, [("stored", Record::fill(TABLE.0, 9, 8))]);
}

#[test]
fn barriers_and_invalidations_are_kept_for_the_vmid_that_is_held() {
    let barriers = [(Dsb::IshSt, Barrier::IshSt), (Dsb::Ish, Barrier::Ish), (Dsb::Nsh, Barrier::Nsh)];
    let invalidations = [
        (
            Tlbi::Ipa { ipa: Ipa(0x5000), scope: Scope::Broadcast },
            Invalidation::Ipas2E1 { ipa: 0x5000, broadcast: true },
        ),
        (Tlbi::Ipa { ipa: Ipa(0x6000), scope: Scope::Local }, Invalidation::Ipas2E1 { ipa: 0x6000, broadcast: false }),
        (
            Tlbi::Range { base: Ipa(0x7000), scale: 1, num: 2, granule: 12, unit: 12 },
            Invalidation::Ripas2E1 { base: 0x7000, scale: 1, num: 2 },
        ),
        (Tlbi::VaLocal { va: 0x8000 }, Invalidation::Vaae1 { va: 0x8000 }),
        (Tlbi::VmallE1(Scope::Local), Invalidation::VmallE1 { broadcast: false }),
        (Tlbi::VmallS12E1(Scope::Broadcast), Invalidation::VmallS12E1 { broadcast: true }),
    ];
    let vmid = Vmid::new(1).expect("1 is a VMID");
    let (calls, kept) = seen(|recorded| {
        barriers.iter().for_each(|(barrier, _)| recorded.dsb(*barrier));
        recorded.isb();
        invalidations.iter().for_each(|(tlbi, _)| recorded.tlbi(vmid, *tlbi));
    });
    let asked = barriers.iter().map(|(barrier, _)| format!("{barrier:?}"));
    let asked = asked.chain(["isb".into()]).chain(invalidations.iter().map(|(tlbi, _)| format!("1 {tlbi:?}")));
    assert_eq!(calls, asked.collect::<Vec<_>>());
    let expected = barriers.iter().map(|(_, kind)| ("ordered", Record::barrier(*kind)));
    let expected = expected.chain([("pushed", Record::isb())]);
    let expected = expected.chain(invalidations.iter().map(|(_, it)| ("ordered", Record::tlbi(HELD, *it))));
    assert_eq!(kept, expected.collect::<Vec<_>>());
}
