//! The engine on a platform with one mistake at a time: the oracle finds each, for the right reason. The table of
//! `docs/mutations.md` is this file's.

mod common;

use common::{GIB, MIB, Machine, Units, range, units, vmid};
use stage2::*;
use stage2_oracle::mutant::{Mutant, Mutation};
use stage2_oracle::{Checked, Checks, Model, Setup, Shape, Verdict};
use std::collections::BTreeSet;

/// Something of everything that needs an invalidation, an order or a break.
fn work<G: Granule>(table: &mut Checked<'_, Mutant<'_>, G>, hardware: bool) {
    let Units { page, block, .. } = units::<G>();
    let (base, all) = (all::<G>().start().0, all::<G>());
    table.stage2().platform().arm();
    // Split at the edges, take rights away, one page and many.
    let _ = table.protect(range(base + 5 * page, base + 6 * page), Permissions::READ);
    let _ = table.protect(range(base + 2 * block + page, base + 4 * block + block / 2), Permissions::READ_EXECUTE);
    // Put together again: tables go.
    let _ = table.protect(all, Permissions::ALL);
    let _ = table.collapse(all);
    // Other memory, other type.
    let _ = table.map(range(base + 8 * block, base + 9 * block), PhysAddr(4 * base), Attributes::RAM);
    let _ = table.unmap(range(base + 3 * block, base + 20 * block + page));
    if hardware {
        let words: Vec<_> = (0..512).map(|_| core::sync::atomic::AtomicU64::new(0)).collect();
        let options = LogOptions { mechanism: Mechanism::HardwareBlock, all_dirty: false };
        let Ok(_log) = table.start_log(range(base, base + 2 * block), words.leak(), options) else { return };
        table.model().guest_write(1, Ipa(base + page));
        let _ = table.split(range(base, base + 2 * block), LeafSize::Page);
    }
}

fn verdicts(mutation: Mutation, machine: Machine, checks: Checks) -> BTreeSet<Verdict> {
    verdicts_with::<Granule4K>(mutation, machine, checks, Errata::default())
}

/// What is mapped: large leaves behind as much again.
fn all<G: Granule>() -> IpaRange {
    // Not so much that nothing short of VMALLS12E1 reaches all of it.
    let large = units::<G>().blocks_run.max(GIB);
    range(2 * large, 3 * large)
}

/// The same for an engine that knows of errata.
fn verdicts_with<G: Granule>(
    mutation: Mutation,
    machine: Machine,
    checks: Checks,
    errata: Errata,
) -> BTreeSet<Verdict> {
    verdicts_of::<G>(mutation, machine, checks, errata, Shape::of::<G>())
}

/// The same for an engine whose granule need not be the machine's.
fn verdicts_of<G: Granule>(
    mutation: Mutation,
    machine: Machine,
    checks: Checks,
    errata: Errata,
    granule: Shape,
) -> BTreeSet<Verdict> {
    let early_dsb = mutation == Mutation::EarlyCompletion;
    let model = Model::new(Setup { granule, checks, early_dsb, mark_rate: 0, ..machine.setup() });
    let platform = Mutant::new(&model, mutation);
    let mut config = machine.config();
    config.features.errata = errata;
    let mut table = Checked::<_, G>::with_granule(&model, platform, config).expect("a table");
    let (all, high) = (all::<G>(), units::<G>().high);
    table.map(all, PhysAddr(all.start().0 + high), Attributes::RAM).expect("a mapping");
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

/// What a mistake is found by, at the levels where it is one.
type Row = (Mutation, &'static [BbmLevel], &'static [Verdict]);

const TABLE: &[Row] = {
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
        (Mutation::OtherGranule, ALL, &[Invalidation]),
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
    let rows: Vec<_> = TABLE.iter().map(|row| row.0).chain(TABLE_52_BITS.iter().map(|row| row.0)).collect();
    for mutation in Mutation::ALL.into_iter().chain(Mutation::OF_52_BITS) {
        assert!(rows.contains(&mutation), "{mutation:?} is in no row");
    }
    for &(mutation, levels, expected) in TABLE {
        for &bbm in levels {
            let found = verdicts(mutation, machine(bbm), Checks::ALL);
            assert!(expected.iter().all(|v| found.contains(v)), "{mutation:?} at {bbm:?}: {found:?}, not {expected:?}");
        }
    }
}

/// The same with the larger granules, whose tables take several frames.
#[test]
fn each_mistake_is_found_with_every_granule() {
    fn each<G: Granule>(ipa_bits: u8, rows: &[Row]) {
        let found = |mutation, bbm| {
            let machine = Machine { ipa_bits, ..machine(bbm) };
            verdicts_with::<G>(mutation, machine, Checks::ALL, Errata::default())
        };
        for bbm in Machine::LEVELS {
            assert_eq!(found(Mutation::None, bbm), BTreeSet::new(), "{bbm:?}");
        }
        let is_one = |row: &&Row| G::DS || G::ADDRESS_BITS == 52 && row.0 == Mutation::HighBits;
        for &(mutation, levels, expected) in rows.iter().chain(TABLE_52_BITS.iter().filter(is_one)) {
            for &bbm in levels {
                let found = found(mutation, bbm);
                let all = expected.iter().all(|v| found.contains(v));
                assert!(all, "{mutation:?} at {bbm:?} with {:?}: {found:?}, not {expected:?}", Shape::of::<G>());
            }
        }
    }
    each::<Granule16K>(40, TABLE);
    each::<Granule64K>(40, TABLE);
    each::<Granule4KLpa2>(52, TABLE);
    // The others take long, and differ from their brothers of 48 bits in the format only.
    each::<Granule16KLpa2>(52, &[]);
    each::<Granule64KLpa>(52, &[]);
}

/// Mistakes in the formats with 52-bit addresses; all but one are mistakes with FEAT_LPA2 only.
const TABLE_52_BITS: &[Row] = {
    use BbmLevel::{Level0, Level1, Level2, Level3};
    use Verdict::{Contract, EarlyMake, Freed, Invalidation, Stale, Translation};
    const ALL: &[BbmLevel] = &Machine::LEVELS;
    &[
        // A break comes before the wrong leaf; without, it contradicts the one that may be held.
        (Mutation::Shareability, &[Level0], &[Contract]),
        (Mutation::Shareability, &[Level1, Level2, Level3], &[Translation, EarlyMake]),
        (Mutation::HighBits, ALL, &[Freed, Contract]),
        (Mutation::BaseInPages, ALL, &[Stale, Freed, Invalidation]),
    ]
};

/// An engine that had the length of a granule's runs wrong would be found out.
#[test]
fn a_wrong_constant_of_a_granule_is_found() {
    fn wrong<G: Granule>(ipa_bits: u8) {
        let right = Shape::of::<G>();
        let [pages, blocks] = [G::PAGE_RUN_SHIFT as u8, G::BLOCK_RUN_SHIFT as u8];
        // Where a mixture of sizes is harmless while it lasts.
        let machine = Machine { ipa_bits, contiguous: true, ..machine(BbmLevel::Level3) };
        let found = |shape| verdicts_of::<G>(Mutation::None, machine, Checks::ALL, Errata::default(), shape);
        assert_eq!(found(right), BTreeSet::new(), "{right:?}");
        for shape in [right.with_runs(pages + 1, blocks), right.with_runs(pages, blocks + 1)] {
            let found = found(shape);
            assert!(found.contains(&Verdict::Size), "{shape:?}: {found:?}");
        }
    }
    wrong::<Granule4K>(40);
    wrong::<Granule16K>(40);
    wrong::<Granule64K>(40);
    wrong::<Granule4KLpa2>(52);
    wrong::<Granule16KLpa2>(52);
    wrong::<Granule64KLpa>(52);
}

/// What the cores of `Errata::repeat_tlbi` do is made good by the repetition, with and without range TLBIs; the repetition does
/// not make good anything else.
#[test]
fn a_dsb_that_completes_early_is_survived_by_the_repetition_only() {
    let repeats = Errata::NONE.with_repeat_tlbi(true);
    for bbm in Machine::LEVELS {
        for tlbi_range in [true, false] {
            let machine = Machine { tlbi_range, ..machine(bbm) };
            let with = |mutation, errata| verdicts_with::<Granule4K>(mutation, machine, Checks::ALL, errata);
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
