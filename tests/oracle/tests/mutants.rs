//! The engine on a platform with one mistake at a time: the oracle finds each, for the right reason. The table of
//! `docs/mutations.md` is this file's.

mod common;

use common::{GIB, MIB, Machine, range, vmid};
use stage2::*;
use stage2_oracle::mutant::{Mutant, Mutation};
use stage2_oracle::{Checked, Checks, Model, Setup, Verdict};
use std::collections::BTreeSet;

/// Something of everything that needs an invalidation, an order or a break.
fn work(table: &mut Checked<'_, Mutant<'_>>, hardware: bool) {
    let all = range(2 * GIB, 3 * GIB);
    table.stage2().platform().arm();
    // Split at the edges, take rights away, one page and many.
    let _ = table.protect(range(2 * GIB + 5 * 4096, 2 * GIB + 6 * 4096), Permissions::READ);
    let _ = table.protect(range(2 * GIB + 4 * MIB + 4096, 2 * GIB + 9 * MIB), Permissions::READ_EXECUTE);
    // Put together again: tables go.
    let _ = table.protect(all, Permissions::ALL);
    let _ = table.collapse(all);
    // Other memory, other type.
    let _ = table.map(range(2 * GIB + 16 * MIB, 2 * GIB + 18 * MIB), PhysAddr(8 * GIB), Attributes::RAM);
    let _ = table.unmap(range(2 * GIB + 6 * MIB, 2 * GIB + 40 * MIB + 4096));
    if hardware {
        let words: Vec<_> = (0..64).map(|_| core::sync::atomic::AtomicU64::new(0)).collect();
        let options = LogOptions { mechanism: Mechanism::HardwareBlock, all_dirty: false };
        let Ok(_log) = table.start_log(range(2 * GIB, 2 * GIB + 4 * MIB), words.leak(), options) else { return };
        table.model().guest_write(1, Ipa(2 * GIB + 4096));
        let _ = table.split(range(2 * GIB, 2 * GIB + 4 * MIB), LeafSize::Page);
    }
}

fn verdicts(mutation: Mutation, machine: Machine, checks: Checks) -> BTreeSet<Verdict> {
    verdicts_with(mutation, machine, checks, Errata::default())
}

/// The same for an engine that knows of errata.
fn verdicts_with(mutation: Mutation, machine: Machine, checks: Checks, errata: Errata) -> BTreeSet<Verdict> {
    let early_dsb = mutation == Mutation::EarlyCompletion;
    let model = Model::new(Setup { checks, early_dsb, mark_rate: 0, ..machine.setup() });
    let platform = Mutant::new(&model, mutation);
    let mut config = machine.config();
    config.features.errata = errata;
    let mut table = Checked::on(&model, platform, config).expect("a table");
    table.map(range(2 * GIB, 3 * GIB), PhysAddr(2 * GIB), Attributes::RAM).expect("a mapping");
    model.assert_clean();
    work(&mut table, machine.hardware_dirty);
    assert_eq!(table.vmid(), vmid());
    model.verdicts().into_iter().collect()
}

fn machine(bbm: BbmLevel) -> Machine {
    Machine { bbm, contiguous: false, hardware_dirty: true, ipa_bits: 32, tlbi_range: true }
}

#[test]
fn without_a_mistake_nothing_is_found() {
    for bbm in Machine::LEVELS {
        assert_eq!(verdicts(Mutation::None, machine(bbm), Checks::ALL), BTreeSet::new(), "{bbm:?}");
    }
}

/// What each mistake is found by, at the levels where it is one.
const TABLE: &[(Mutation, &[BbmLevel], &[Verdict])] = {
    use BbmLevel::{Level0, Level1, Level2, Level3};
    use Verdict::{Contract, EarlyMake, Freed, Invalidation, Size, Stale, Translation, Unfilled};
    const ALL: &[BbmLevel] = &Machine::LEVELS;
    const DIRECT: &[BbmLevel] = &[Level2, Level3];
    &[
        (Mutation::NoStage2Tlbi, &[Level0], &[Size, Stale, Freed, EarlyMake]),
        (Mutation::NoStage2Tlbi, DIRECT, &[Stale, Freed]),
        (Mutation::NoCombinedTlbi, &[Level0], &[Size, Stale, EarlyMake]),
        (Mutation::NoCombinedTlbi, DIRECT, &[Stale]),
        (Mutation::OtherRegime, ALL, &[Stale, Freed]),
        (Mutation::OtherVmid, ALL, &[Stale, Invalidation]),
        (Mutation::Local, &[Level0], &[Size, Stale, Freed, EarlyMake]),
        (Mutation::Local, DIRECT, &[Stale, Freed]),
        (Mutation::HalfRange, ALL, &[Stale, Invalidation]),
        (Mutation::UnalignedRange, ALL, &[Invalidation]),
        (Mutation::PageHint, ALL, &[Stale, Invalidation]),
        (Mutation::LastLevel, ALL, &[Freed, Invalidation]),
        (Mutation::NoStoreBarrier, &[Level0], &[Size, Stale, EarlyMake]),
        (Mutation::NoStoreBarrier, DIRECT, &[Stale, Unfilled]),
        (Mutation::BarrierAfterTlbi, &[Level0], &[Size, Stale, EarlyMake]),
        (Mutation::BarrierAfterTlbi, DIRECT, &[Stale, Unfilled]),
        (Mutation::NoCompletion, &[Level0], &[Size, Stale, Freed, EarlyMake]),
        (Mutation::NoCompletion, DIRECT, &[Stale, Freed]),
        (Mutation::EarlyCompletion, &[Level0], &[Size, Translation, Stale, EarlyMake]),
        (Mutation::EarlyCompletion, DIRECT, &[Stale]),
        (Mutation::FillAfterPublish, DIRECT, &[Unfilled]),
        (Mutation::ShortFill, ALL, &[Unfilled]),
        (Mutation::ShortFill, DIRECT, &[Translation, Unfilled]),
        (Mutation::FreeEarly, ALL, &[Stale, Freed]),
        (Mutation::Leak, ALL, &[Contract]),
        (Mutation::DoubleFree, ALL, &[Contract]),
        (Mutation::PlainStore, ALL, &[Contract]),
        (Mutation::NoBreak, &[Level0], &[Size, EarlyMake]),
        (Mutation::NoUnmap, ALL, &[Freed]),
        (Mutation::NoNt, &[Level1], &[EarlyMake]),
    ]
};

#[test]
fn each_mistake_is_found_for_the_right_reason() {
    for mutation in Mutation::ALL {
        assert!(TABLE.iter().any(|row| row.0 == mutation), "{mutation:?} is in no row");
    }
    for &(mutation, levels, expected) in TABLE {
        for &bbm in levels {
            let found = verdicts(mutation, machine(bbm), Checks::ALL);
            assert!(expected.iter().all(|v| found.contains(v)), "{mutation:?} at {bbm:?}: {found:?}, not {expected:?}");
        }
    }
}

/// What the cores of `Errata::repeat_tlbi` do is made good by the repetition, with and without range TLBIs; the repetition does
/// not make good anything else.
#[test]
fn a_dsb_that_completes_early_is_survived_by_the_repetition_only() {
    let repeats = Errata::NONE.with_repeat_tlbi(true);
    for bbm in Machine::LEVELS {
        for tlbi_range in [true, false] {
            let machine = Machine { tlbi_range, ..machine(bbm) };
            let with = |mutation, errata| verdicts_with(mutation, machine, Checks::ALL, errata);
            assert!(!with(Mutation::EarlyCompletion, Errata::default()).is_empty(), "{machine:?}: not found");
            assert_eq!(with(Mutation::EarlyCompletion, repeats), BTreeSet::new(), "{machine:?}");
            assert_eq!(with(Mutation::None, repeats), BTreeSet::new(), "{machine:?}");
            assert!(!with(Mutation::NoCompletion, repeats).is_empty(), "{machine:?}: no DSB, and not found");
        }
    }
}

/// What it does to a log: a store lands after the harvest that says that its page is clean.
#[test]
fn a_harvest_misses_no_late_store_where_a_dsb_completes_early() {
    let found = |mechanism, repeat_tlbi| {
        let machine = machine(BbmLevel::Level3);
        let model = Model::new(Setup { early_dsb: true, mark_rate: 0, ..machine.setup() });
        let mut config = machine.config();
        config.features.errata.repeat_tlbi = repeat_tlbi;
        let mut table = Checked::new(&model, config).expect("a table");
        let logged = range(2 * GIB, 2 * GIB + 2 * MIB);
        table.map(logged, PhysAddr(2 * GIB), Attributes::RAM).expect("a mapping");
        table.split(logged, LeafSize::Page).expect("memory");
        let words: Vec<_> = (0..64).map(|_| core::sync::atomic::AtomicU64::new(0)).collect();
        let options = LogOptions { mechanism, all_dirty: true };
        let mut log = table.start_log(logged, words.leak(), options).expect("a log");
        let mut words = vec![0; log.layout().words()];
        let mut report = PageSet::new(log.layout(), &mut words).expect("words enough");
        table.harvest(&mut log, &mut report).expect("a harvest");
        model.verdicts()
    };
    for mechanism in [Mechanism::WriteProtect, Mechanism::HardwarePage] {
        assert!(found(mechanism, false).contains(&Verdict::Dirty), "{mechanism:?}: {:?}", found(mechanism, false));
        assert_eq!(found(mechanism, true), [], "{mechanism:?}");
    }
}

/// A verdict that is switched off is not given, and the mistakes that nothing else notices go through.
#[test]
fn a_check_that_is_switched_off_lets_a_mistake_through() {
    for (mutation, verdict) in [(Mutation::UnalignedRange, Verdict::Invalidation), (Mutation::Leak, Verdict::Contract)]
    {
        let machine = machine(BbmLevel::Level3);
        assert_eq!(verdicts(mutation, machine, Checks::ALL), [verdict].into(), "{mutation:?}");
        assert_eq!(verdicts(mutation, machine, Checks::ALL.without(verdict)), [].into(), "{mutation:?}");
    }
}
