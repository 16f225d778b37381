//! The guest's own stage 1: faults that the engine answers do not come back for what the PE has kept, under any alias, on any
//! PE, after a TLB conflict too. Each step of the local invalidation is left out or misdirected once, and found by that.

mod common;

use common::{GIB, MIB, Machine, range, vmid};
use core::sync::atomic::AtomicU64;
use stage2::*;
use stage2_oracle::{Access, Checked, Model, Setup, Verdict};

const BASE: u64 = 2 * GIB;
/// Where the guest maps pages of its RAM once more.
const ALIASES: u64 = 0x7f00_0000_0000;

fn page(n: u64) -> u64 {
    BASE + n * PAGE_SIZE
}

fn alias(n: u64) -> u64 {
    ALIASES + n * PAGE_SIZE
}

/// What becomes of an invalidation: another one, or none.
type Planted = fn(Tlbi) -> Option<Tlbi>;

/// A model whose invalidations go through a mistake.
#[derive(Debug)]
struct Platform<'m> {
    model: &'m Model,
    planted: Planted,
}

// SAFETY: all calls go to the model, which keeps the contract.
unsafe impl TableMemory for Platform<'_> {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        self.model.allocate(frames)
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.model.free(first, frames) }
    }

    unsafe fn load(&self, slot: Slot) -> u64 {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.model.load(slot) }
    }

    unsafe fn store(&self, slot: Slot, value: u64) {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.model.store(slot, value) }
    }

    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.model.compare_exchange(slot, old, new) }
    }

    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.model.fill(table, first, step) }
    }
}

// SAFETY: the mistake concerns the model's TLBs, and no memory of this process.
unsafe impl Maintenance for Platform<'_> {
    fn dsb(&self, barrier: Dsb) {
        self.model.dsb(barrier);
    }

    fn isb(&self) {
        self.model.isb();
    }

    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        if let Some(tlbi) = (self.planted)(tlbi) {
            self.model.tlbi(vmid, tlbi);
        }
    }

    fn counters(&self) -> &Counters {
        self.model.counters()
    }

    fn wait(&self) {
        self.model.wait();
    }
}

fn machine(bbm: BbmLevel, contiguous: bool) -> Machine {
    Machine { bbm, contiguous, hardware_dirty: false, ipa_bits: 32, tlbi_range: true }
}

/// First writes to a log's pages, under two virtual addresses and on two PEs; rights that are given back; a block that is
/// split under a PE that holds it.
fn scene<'m>(model: &'m Model, machine: Machine, planted: Planted) -> Checked<'m, Platform<'m>> {
    let ram = range(BASE, BASE + 4 * MIB);
    let mut table = Checked::on(model, Platform { model, planted }, machine.config()).expect("a table");
    table.map(ram, PhysAddr(BASE), Attributes::RAM).expect("a mapping");
    (0..16).for_each(|n| model.guest_maps(vmid(), alias(n), Some(Ipa(page(n)))));
    let words: Vec<_> = (0..Layout::new(ram).words()).map(|_| AtomicU64::new(0)).collect();
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: false };
    let mut log = table.start_log(ram, words.leak(), options).expect("a log");
    let mut histories = [FaultHistory::new(); 2];
    let mut access = |table: &Checked<'m, Platform<'m>>, pe: u8, va: u64, access: Access| {
        model.set_pe(pe);
        let result = table.access(va, access, &mut histories[usize::from(pe)]);
        let known = result == Err(Outcome::Stuck) && !model.is_clean();
        assert!(result.is_ok() || known, "{access:?} at {va:#x}, which the table allows: {result:?}");
    };
    // Page 3 by the long way, page 4 by the short one.
    for n in [3, 4] {
        access(&table, 0, page(n), Access::Write);
        access(&table, 0, alias(n), Access::Write);
        access(&table, 1, alias(n), Access::Write);
        access(&table, 1, alias(n), Access::Read);
    }
    let mut words = vec![0; log.layout().words()];
    let mut report = PageSet::new(log.layout(), &mut words).expect("words enough");
    table.harvest(&mut log, &mut report).expect("a harvest");
    assert!(report.contains(Ipa(page(3))) && report.contains(Ipa(page(4))), "a write that is not reported");
    access(&table, 1, alias(4), Access::Write);
    // The guest maps an alias elsewhere and does not invalidate.
    model.guest_maps(vmid(), alias(4), Some(Ipa(page(6))));
    access(&table, 1, alias(4), Access::Write);
    // Rights come back, and nobody is told.
    let one = range(page(9), page(10));
    table.protect(one, Permissions::READ).expect("memory");
    table.protect(one, Permissions::ALL).expect("memory");
    access(&table, 0, alias(9), Access::Execute);
    access(&table, 0, alias(9), Access::Write);
    // The second block is split, and may be held whole.
    model.set_pe(0);
    table.split(range(BASE + 2 * MIB, BASE + 4 * MIB), LeafSize::Page).expect("memory");
    access(&table, 1, BASE + 2 * MIB, Access::Read);
    access(&table, 0, BASE + 2 * MIB, Access::Write);
    table
}

/// The verdicts, and what the first of them says.
fn judge(bbm: BbmLevel, contiguous: bool, conflicts: bool, planted: Planted) -> (Vec<Verdict>, String, u64) {
    let machine = machine(bbm, contiguous);
    let model = Model::new(Setup { conflicts, ..machine.setup() });
    let _table = scene(&model, machine, planted);
    let counted: u64 = (0..2).map(|pe| model.counters_of(pe).get(stage2::counters::Event::FaultConflict)).sum();
    (model.verdicts(), model.violations().first().map(ToString::to_string).unwrap_or_default(), counted)
}

#[test]
fn every_fault_that_is_answered_is_over() {
    for bbm in Machine::LEVELS {
        for (contiguous, conflicts) in [(false, false), (true, false), (false, true), (true, true)] {
            let (verdicts, what, counted) = judge(bbm, contiguous, conflicts, Some);
            assert!(verdicts.is_empty(), "{bbm:?}, runs {contiguous}, conflicts {conflicts}: {what}");
            let some = conflicts && matches!(bbm, BbmLevel::Level1 | BbmLevel::Level2);
            assert!(some || counted == 0, "{bbm:?}: {counted} conflicts");
            assert!(!some || bbm == BbmLevel::Level1 || counted > 0, "{bbm:?}: no conflict was taken");
        }
    }
}

#[test]
fn each_mistake_of_the_local_invalidation_is_found_for_the_right_reason() {
    const COMBINED: &str = "combined with stage 1";
    const ALONE: &str = "may hold";
    let planted: [(&str, Planted, &str); 4] = [
        ("no VAAE1", |tlbi| Some(tlbi).filter(|tlbi| !matches!(tlbi, Tlbi::VaLocal { .. })), COMBINED),
        (
            "VAAE1 of the next page",
            |tlbi| match tlbi {
                Tlbi::VaLocal { va } => Some(Tlbi::VaLocal { va: va ^ 0x1000 }),
                other => Some(other),
            },
            COMBINED,
        ),
        (
            "no local IPAS2E1",
            |tlbi| Some(tlbi).filter(|tlbi| !matches!(tlbi, Tlbi::Ipa { scope: Scope::Local, .. })),
            ALONE,
        ),
        (
            "local IPAS2E1 of the next page",
            |tlbi| match tlbi {
                Tlbi::Ipa { ipa, scope: Scope::Local } => {
                    Some(Tlbi::Ipa { ipa: Ipa(ipa.0 ^ 0x20_0000), scope: Scope::Local })
                }
                other => Some(other),
            },
            ALONE,
        ),
    ];
    for (name, planted, reason) in planted {
        for bbm in Machine::LEVELS {
            let (verdicts, what, _) = judge(bbm, false, false, planted);
            assert_eq!(verdicts, [Verdict::Progress], "{name} at {bbm:?}: {what}");
            let right = what.contains(reason) && what.contains(COMBINED) == (reason == COMBINED);
            assert!(right, "{name} at {bbm:?}: {what}");
        }
    }
}

#[test]
fn a_conflict_that_is_answered_with_too_little_is_found() {
    let (verdicts, what, _) = judge(BbmLevel::Level2, false, true, |tlbi| match tlbi {
        Tlbi::VmallS12E1(Scope::Local) => Some(Tlbi::VmallE1(Scope::Local)),
        other => Some(other),
    });
    assert_eq!(verdicts, [Verdict::Progress], "{what}");
    assert!(what.contains("has ended the TLB conflict"), "{what}");
}
