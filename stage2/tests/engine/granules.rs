//! Granules of 16 and 64 KiB, and 52-bit addresses, as their user sees them. Each operation with them is the oracle's business (`granules.rs` there).

use crate::host::Host;
use core::sync::atomic::AtomicU64;
use stage2::fault::Status;
use stage2::features::{ConflictAborts, IdRegisters};
use stage2::platform::{ipa_tlbi_operand, range_tlbi_operand};
use stage2::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;

fn features() -> Features {
    let features =
        Features::MINIMAL.with_pa_bits(40).with_bbm(BbmLevel::Level2).with_tlbi_range(true).with_vmid_bits(16);
    features
        .with_granule::<Granule16K>(true)
        .with_granule::<Granule64K>(true)
        .with_granule::<Granule4KLpa2>(true)
        .with_granule::<Granule16KLpa2>(true)
}

fn config(ipa_bits: u8) -> Config {
    Config::new(Vmid::new(7).unwrap(), features().with_pa_bits(48)).with_ipa_bits(ipa_bits)
}

fn table<G: Granule>(host: &Host, ipa_bits: u8) -> Stage2<&Host, G> {
    Stage2::with_granule(host, config(ipa_bits)).unwrap()
}

fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::from_size(Ipa(start), bytes).unwrap()
}

#[test]
fn granules_at_stage_2_are_what_the_registers_say() {
    let had = |mmfr0| {
        let id = IdRegisters { mmfr0, ..Default::default() };
        let f = Features::from_id_registers(&id, ConflictAborts::Handled);
        (f.has_granule::<Granule16K>(), f.has_granule::<Granule64K>())
    };
    // ID_AA64MMFR0_EL1.TGran16 (23:20) and TGran64 (27:24), where TGran16_2 (35:32) and TGran64_2 (39:36) are 0.
    assert_eq!(
        [had(0), had(0xf << 24), had(1 << 20), had(2 << 20 | 0xf << 24)],
        [(false, true), (false, false), (true, true), (true, false)]
    );
    // And where they are not.
    assert_eq!([had(1 << 32 | 1 << 20), had(2 << 32), had(3 << 32)], [(false, true), (true, true), (true, true)]);
    assert_eq!([had(1 << 36), had(2 << 36 | 0xf << 24)], [(false, false), (false, true)]);
    let has_4k = |mmfr0| {
        let id = IdRegisters { mmfr0, ..Default::default() };
        Features::from_id_registers(&id, ConflictAborts::Handled).has_granule::<Granule4K>()
    };
    // TGran4 (31:28), and TGran4_2 (43:40) where it is not 0.
    assert_eq!([has_4k(0), has_4k(1 << 28), has_4k(0xf << 28)], [true, true, false]);
    assert_eq!([has_4k(1 << 40), has_4k(2 << 40 | 0xf << 28), has_4k(3 << 40)], [false, true, true]);
    let lpa2 = |mmfr0| {
        let id = IdRegisters { mmfr0, ..Default::default() };
        let f = Features::from_id_registers(&id, ConflictAborts::Handled);
        (f.has_granule::<Granule4KLpa2>(), f.has_granule::<Granule16KLpa2>())
    };
    // TGran4 (31:28) and TGran4_2 (43:40) have other values than TGran16 and TGran16_2.
    let of_stage_1 = [lpa2(0), lpa2(1 << 28), lpa2(0xf << 28), lpa2(1 << 20), lpa2(2 << 20)];
    assert_eq!(of_stage_1, [(false, false), (true, false), (false, false), (false, false), (false, true)]);
    let both = 1 << 28 | 2 << 20;
    let of_stage_2 = [lpa2(1 << 40 | both), lpa2(2 << 40 | both), lpa2(3 << 40 | 3 << 32), lpa2(2 << 32 | both)];
    assert_eq!(of_stage_2, [(false, true), (false, true), (true, true), (true, false)]);
}

#[test]
fn the_control_register_says_granule_start_level_and_size() {
    fn fields<G: Granule>(ipa_bits: u8) -> (u64, u64, u64) {
        let host = Host::new();
        let table = table::<G>(&host, ipa_bits);
        let fields = (table.vtcr() >> 14 & 3, table.vtcr() >> 6 & 3, table.vtcr() & 0x3f);
        // SAFETY: no hardware walks it.
        unsafe { table.release() };
        assert_eq!(host.live.get(), 0, "the root comes back");
        fields
    }
    // TG0, SL0, T0SZ.
    assert_eq!(fields::<Granule4K>(40), (0, 1, 24));
    assert_eq!(fields::<Granule16K>(40), (2, 1, 24));
    assert_eq!(fields::<Granule16K>(48), (2, 2, 16));
    assert_eq!(fields::<Granule64K>(40), (1, 1, 24));
    assert_eq!(fields::<Granule64K>(48), (1, 2, 16));
}

#[test]
fn the_control_register_says_whether_addresses_have_52_bits() {
    fn fields<G: Granule>(pa_bits: u8, ipa_bits: u8) -> (u64, u64, u64, u64) {
        let host = Host::new();
        let config = Config::new(Vmid::new(7).unwrap(), features().with_pa_bits(pa_bits)).with_ipa_bits(ipa_bits);
        let vtcr = Stage2::<_, G>::with_granule(&host, config).unwrap().vtcr();
        assert_eq!(vtcr >> 33, 0, "SL2 = 0: no walk begins at level -1");
        (vtcr >> 32 & 1, vtcr >> 16 & 7, vtcr >> 6 & 3, vtcr & 0x3f)
    }
    // DS, PS, SL0, T0SZ.
    assert_eq!(fields::<Granule4KLpa2>(52, 52), (1, 6, 2, 12));
    assert_eq!(fields::<Granule4KLpa2>(52, 40), (1, 6, 1, 24));
    assert_eq!(fields::<Granule4KLpa2>(48, 48), (1, 5, 2, 16), "FEAT_LPA2 does not mean as many address lines");
    assert_eq!(fields::<Granule16KLpa2>(52, 51), (1, 6, 2, 13));
    assert_eq!(fields::<Granule16KLpa2>(52, 52), (1, 6, 3, 12));
    assert_eq!(fields::<Granule64KLpa>(52, 52), (0, 6, 2, 12));
    // A CPU that has them, and a granule that does not use them.
    assert_eq!(fields::<Granule4K>(52, 48), (0, 5, 2, 16));
    assert_eq!(fields::<Granule64K>(52, 48), (0, 5, 2, 16));
    let wide = Config::new(Vmid::new(7).unwrap(), features().with_pa_bits(52));
    assert_eq!(wide.ipa_bits, 48, "what every granule has");
    let error = Stage2::new(&Host::new(), wide.with_ipa_bits(52)).err();
    assert_eq!(error, Some(Error::BadIpaSize { bits: 52 }));
}

#[test]
fn operands_of_tlbis_are_in_their_places() {
    assert_eq!(ipa_tlbi_operand(Ipa(0xf_edcb_a987_6fff)), 0xfe_dcba_9876);
    let fields =
        |operand: u64| (operand >> 46, operand >> 44 & 3, operand >> 39 & 31, operand >> 37 & 3, operand << 27 >> 27);
    let base = Ipa(0xf_edcb_a987_0000);
    // TG, SCALE, NUM, TTL, BaseADDR: in granules, and with VTCR_EL2.DS = 1 in 64 KiB.
    assert_eq!(fields(range_tlbi_operand(Ipa(0xedcb_a987_6000), 1, 2, 12, 12)), (1, 1, 2, 0, 0xe_dcba_9876));
    assert_eq!(fields(range_tlbi_operand(Ipa(0xedcb_a987_4000), 3, 31, 14, 14)), (2, 3, 31, 0, 0x3_b72e_a61d));
    assert_eq!(fields(range_tlbi_operand(base, 0, 0, 16, 16)), (3, 0, 0, 0, 0xf_edcb_a987));
    assert_eq!(fields(range_tlbi_operand(base, 2, 30, 12, 16)), (1, 2, 30, 0, 0xf_edcb_a987));
    assert_eq!(fields(range_tlbi_operand(base, 2, 30, 14, 16)), (2, 2, 30, 0, 0xf_edcb_a987));
    let nonsense = range_tlbi_operand(base, 255, 255, 0, 255);
    assert_eq!(nonsense >> 48, 0, "no panic, and nothing in the fields of ASIDs");
}

/// Descriptors as D8.3.1 has them, of an address with all of bits 51:48.
#[test]
fn descriptors_have_52_bit_addresses_in_their_places() {
    const RAM: u64 = 1 << 56 | 1 << 10 | 3 << 6 | 0xf << 2;
    let output = PhysAddr(0xf_4321_0000_0000);
    let leaf = |level| {
        let ram = Attributes::RAM.encode();
        let leaf = Descriptor::leaf_of::<Granule4KLpa2>(level, output, ram);
        assert_eq!(leaf, Descriptor::leaf_of::<Granule16KLpa2>(level, output, ram));
        (leaf, Descriptor::leaf_of::<Granule64KLpa>(level, output, ram))
    };
    let (block, block_64k) = leaf(Level::L1);
    assert_eq!(block.0, 0x0003_4321_0000_0000 | 3 << 8 | RAM | 1, "bits 51:50 in 9:8, where SH was");
    assert_eq!(block_64k.0, 0x4321_0000_0000 | 0xf << 12 | 3 << 8 | RAM | 1, "bits 51:48 in 15:12, SH where it was");
    let low = Descriptor::leaf_of::<Granule4KLpa2>(Level::L1, PhysAddr(0x4000_0000), block.0);
    assert_eq!(low.0, 0x4000_0000 | RAM | 1, "nothing of an address comes with attributes");
    let page = leaf(Level::L3);
    for (kind, contiguous) in
        [(block.kind_of::<Granule4KLpa2>(Level::L1), false), (page.1.kind_of::<Granule64KLpa>(Level::L3), false)]
    {
        assert_eq!(kind, descriptor::Kind::Leaf { output, contiguous });
    }
    let frame = PhysAddr(0xa_4321_8765_0000);
    assert_eq!(Descriptor::table_of::<Granule4KLpa2>(frame).0, 0x2_4321_8765_0000 | 2 << 8 | 3);
    assert_eq!(Descriptor::table_of::<Granule64KLpa>(frame).0, 0x4321_8765_0000 | 0xa << 12 | 3);
    assert_eq!(Descriptor::table_of::<Granule16KLpa2>(frame).address_of::<Granule16KLpa2>(), frame);
    assert_eq!(
        Descriptor::table_of::<Granule64KLpa>(frame).kind_of::<Granule64KLpa>(Level::L2),
        descriptor::Kind::Table(frame)
    );
    // nT in a block of level 0, where there are such blocks.
    let nt = Descriptor(Descriptor::leaf_of::<Granule4KLpa2>(Level::L0, PhysAddr(0), RAM).0 | 1 << 16);
    assert!(nt.is_busy(Level::L0));
}

#[test]
fn the_largest_leaves_are_split_and_put_together() {
    fn largest<G: Granule>(size: LeafSize, bytes: u64, below: (u64, usize)) {
        let host = Host::new();
        let config = Config::new(Vmid::new(7).unwrap(), features().with_pa_bits(52)).with_ipa_bits(52);
        let mut table = Stage2::<_, G>::with_granule(&host, config).unwrap();
        let far = range(7 << 49, bytes);
        table.map(far, PhysAddr(far.start().0), Attributes::RAM).unwrap();
        assert_eq!(sizes(&table, far), [(bytes, 1)]);
        assert_eq!(table.walk(far.start()).unwrap().size, size);
        let page = range(far.end().0 - G::BYTES, G::BYTES);
        table.protect(page, Permissions::READ).unwrap();
        let mut split = sizes(&table, far);
        assert_eq!(split.remove(0), below);
        assert_eq!(split.iter().map(|&(bytes, n)| bytes * n as u64).sum::<u64>(), bytes - below.0 * below.1 as u64);
        table.protect(page, Permissions::ALL).unwrap();
        table.collapse(far).unwrap();
        assert_eq!(sizes(&table, far), [(bytes, 1)]);
        // Where a leaf's output ends, and what a granule without can't say.
        let beyond = PhysAddr(1 << 52);
        assert_eq!(table.map(far, beyond, Attributes::RAM), Err(Error::BadOutput { output: beyond }));
        // SAFETY: no hardware walks it.
        unsafe { table.release() };
        assert_eq!(host.live.get(), 0);
    }
    largest::<Granule4KLpa2>(LeafSize::Block512G, 512 * GIB, (GIB, 511));
    largest::<Granule16KLpa2>(LeafSize::Block1G, 64 * GIB, (GIB, 63));
    largest::<Granule64KLpa>(LeafSize::Block1G, 4096 * GIB, (16 * GIB, 255));
    let host = Host::new();
    let mut table = table::<Granule4K>(&host, 48);
    let output = PhysAddr(1 << 48);
    assert_eq!(table.map(range(GIB, GIB), output, Attributes::RAM), Err(Error::BadOutput { output }));
}

/// Bytes of the leaves, with how many there are side by side.
fn sizes<G: Granule>(table: &Stage2<&Host, G>, range: IpaRange) -> Vec<(u64, usize)> {
    let mut sizes: Vec<(u64, usize)> = Vec::new();
    for leaf in table.leaves(range) {
        assert_eq!(leaf.output.0, leaf.ipa.0, "identity");
        match sizes.last_mut() {
            Some((size, n)) if *size == leaf.range().bytes() => *n += 1,
            _ => sizes.push((leaf.range().bytes(), 1)),
        }
    }
    sizes
}

#[test]
fn mapping_takes_the_largest_leaves_that_fit_and_a_page_is_split_out() {
    let host = Host::new();
    let mut table = table::<Granule16K>(&host, 40);
    let ram = range(2 * GIB - 34 * MIB - 16 * KIB, GIB + 34 * MIB + 16 * KIB);
    table.map(ram, PhysAddr(ram.start().0), Attributes::RAM).unwrap();
    assert_eq!(sizes(&table, ram), [(16 * KIB, 1), (2 * MIB, 1), (32 * MIB, 1), (GIB, 1)]);
    table.protect(range(2 * GIB, 16 * KIB), Permissions::READ).unwrap();
    let block = [(16 * KIB, 128), (2 * MIB, 15)];
    assert_eq!(sizes(&table, range(2 * GIB, 32 * MIB)), block);
    assert_eq!(sizes(&table, range(2 * GIB + 32 * MIB, GIB - 32 * MIB)), [(32 * MIB, 31)]);
    let lines = table.dump().to_string();
    assert!(lines.contains(" 1 of 16 KiB") && lines.contains("15 of 2 MiB, 127 of 16 KiB"), "{lines}");
    table.protect(range(2 * GIB, 16 * KIB), Permissions::ALL).unwrap();
    table.collapse(ram).unwrap();
    assert_eq!(sizes(&table, range(2 * GIB, GIB)), [(GIB, 1)]);

    let host = Host::new();
    let mut table = self::table::<Granule64K>(&host, 42);
    let ram = range(16 * GIB - 514 * MIB - 64 * KIB, 16 * GIB + 514 * MIB + 64 * KIB);
    table.map(ram, PhysAddr(ram.start().0), Attributes::RAM).unwrap();
    assert_eq!(sizes(&table, ram), [(64 * KIB, 1), (2 * MIB, 1), (512 * MIB, 1), (16 * GIB, 1)]);
    assert_eq!(
        table.walk(Ipa(17 * GIB)).unwrap().to_string(),
        "0x400000000-0x800000000 -> 0x400000000 rwx normal: 16 GiB"
    );
}

#[test]
fn what_is_no_multiple_of_the_granule_is_refused() {
    let host = Host::new();
    let mut table = table::<Granule16K>(&host, 40);
    for bad in [range(GIB + 4 * KIB, 16 * KIB), range(GIB, 20 * KIB)] {
        let refused = Error::BadRange { start: bad.start(), end: bad.end() };
        assert_eq!(table.map(bad, PhysAddr(GIB), Attributes::RAM), Err(refused));
        assert_eq!(table.unmap(bad), Err(refused));
        assert_eq!(table.protect(bad, Permissions::READ), Err(refused));
        assert_eq!(table.split(bad, LeafSize::Page), Err(refused));
        assert_eq!(table.collapse(bad), Err(refused));
    }
    let output = PhysAddr(GIB + 4 * KIB);
    assert_eq!(table.map(range(GIB, 16 * KIB), output, Attributes::RAM), Err(Error::BadOutput { output }));
}

#[test]
fn a_cpu_without_the_granule_can_not_use_the_table() {
    let host = Host::new();
    let without = features().with_pa_bits(48).with_granule::<Granule64K>(false);
    let mut config = config(40);
    config.features = without;
    assert!(matches!(
        Stage2::<_, Granule64K>::with_granule(&host, config),
        Err(Error::MissingFeature { feature: "the granule at stage 2" })
    ));
    assert_eq!(host.live.get(), 0);
    let refused = |error: Option<Error>| matches!(error, Some(Error::MissingFeature { .. }));
    let mut config = self::config(40);
    config.features = features().with_pa_bits(48);
    assert!(refused(Stage2::<_, Granule64KLpa>::with_granule(&host, config).err()), "no FEAT_LPA");
    config.features = features().with_granule::<Granule4KLpa2>(false);
    assert!(refused(Stage2::<_, Granule4KLpa2>::with_granule(&host, config).err()));
    assert!(Stage2::<_, Granule16KLpa2>::with_granule(&host, config).is_ok());
    config.features = features().with_granule::<Granule16KLpa2>(false);
    assert!(refused(Stage2::<_, Granule16KLpa2>::with_granule(&host, config).err()));
    let host = Host::new();
    let mut table = table::<Granule64K>(&host, 40);
    assert!(matches!(table.admit(without), Err(Error::MissingFeature { .. })));
    assert_eq!(table.admit(features().with_pa_bits(48)), Ok(()));
    // Leaves and tables may lie where a PE with shorter physical addresses does not reach, whatever the IPA space is.
    let config = Config::new(Vmid::new(7).unwrap(), features().with_pa_bits(52));
    let mut wide = Stage2::<_, Granule4KLpa2>::with_granule(&host, config.with_ipa_bits(40)).unwrap();
    assert!(matches!(wide.admit(features().with_pa_bits(48)), Err(Error::MissingFeature { .. })));
    let mut narrow = Stage2::<_, Granule4K>::with_granule(&host, config.with_ipa_bits(40)).unwrap();
    assert_eq!(narrow.admit(features().with_pa_bits(48)), Ok(()), "48 are all that its descriptors have");
}

#[test]
fn a_log_has_a_bit_for_each_page_of_the_granule() {
    let host = Host::new();
    let mut table = table::<Granule64K>(&host, 40);
    let ram = range(GIB, 512 * MIB);
    table.map(ram, PhysAddr(GIB), Attributes::RAM).unwrap();
    let layout = Layout::<Granule64K>::with_granule(ram);
    assert_eq!(layout.page_words(), 8192 / 64);
    let words: Vec<_> = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: false };
    let mut log = table.start_log(ram, words.leak(), options).unwrap();
    // The guest's store to a page, by way of a fault, and a device's write of 4 KiB to another.
    let (first, second) = (Ipa(GIB + 3 * 64 * KIB), Ipa(GIB + 700 * 64 * KIB));
    let abort = Abort {
        status: Status::Permission,
        write: true,
        execute: false,
        stage1_walk: false,
        el0: false,
        ipa: first.offset(0x8123),
        va: 0,
    };
    assert_eq!(table.fault(&abort, &mut FaultHistory::new()), Outcome::Retry);
    assert_eq!(table.walk(first).unwrap().range(), range(first.0, 64 * KIB));
    table.mark_written(range(second.0 + 0x3000, 4 * KIB));
    let mut words = vec![0; log.layout().words()];
    let mut report = PageSet::new(log.layout(), &mut words).unwrap();
    table.harvest(&mut log, &mut report).unwrap();
    let mut pages = Vec::new();
    report.for_each(|page| pages.push(page));
    assert_eq!(pages, [first, second]);
    assert!(!table.walk(first).unwrap().range().contains(second) && table.walk(first).unwrap().write_protected);
}

/// Tables that are written at once, whose leaves lead elsewhere than to their own addresses: also over 2^48 and 2^50, where
/// the pieces of a 52-bit address meet.
#[test]
fn outputs_that_are_aligned_otherwise_are_where_they_should_be() {
    fn leaves<G: Granule>(start: u64, bytes: u64, output: u64) -> Vec<u64> {
        let host = Host::new();
        let features = features().with_pa_bits(G::ADDRESS_BITS as u8);
        let config = Config::new(Vmid::new(7).unwrap(), features).with_ipa_bits(40).with_contiguous(true);
        let mut table = Stage2::<_, G>::with_granule(&host, config).unwrap();
        let all = range(start, bytes);
        table.map(all, PhysAddr(output), Attributes::RAM).unwrap();
        let wrong = table.leaves(all).find(|leaf| leaf.output.0 - output != leaf.ipa.0 - all.start().0);
        assert_eq!(wrong.map(|leaf| leaf.to_string()), None);
        assert_eq!(table.leaves(all).map(|leaf| leaf.range().bytes()).sum::<u64>(), bytes);
        let sizes = table.leaves(all).map(|leaf| leaf.range().bytes()).collect::<std::collections::BTreeSet<_>>();
        // SAFETY: no hardware walks it.
        unsafe { table.release() };
        sizes.into_iter().collect()
    }
    assert_eq!(
        leaves::<Granule4K>(64 * GIB, 4 * MIB, 9 * GIB + 4 * KIB),
        [4 * KIB],
        "no run: its output would not be aligned"
    );
    assert_eq!(leaves::<Granule4K>(64 * GIB, 4 * MIB, 9 * GIB + 64 * KIB), [64 * KIB]);
    assert_eq!(leaves::<Granule4K>(0, 4 * KIB, 9 * GIB), [4 * KIB], "less than an entry of any table but the last");
    assert_eq!(leaves::<Granule4K>(64 * GIB, 2 * GIB, 9 * GIB + 2 * MIB), [2 * MIB]);
    assert_eq!(leaves::<Granule4K>(64 * GIB, 2 * GIB, 9 * GIB + 32 * MIB), [32 * MIB]);
    assert_eq!(leaves::<Granule4KLpa2>(64 * GIB, 2 * GIB, (1 << 50) - 2 * MIB), [2 * MIB]);
    assert_eq!(leaves::<Granule16KLpa2>(64 * GIB, 64 * MIB, (1 << 50) - 16 * KIB), [16 * KIB]);
    assert_eq!(leaves::<Granule64KLpa>(64 * GIB, 512 * MIB, (1 << 48) - 64 * KIB), [64 * KIB]);
}

#[test]
fn a_part_of_a_page_stands_for_the_page_in_a_set() {
    fn pages<G: Granule>(of: IpaRange, inserted: IpaRange) -> usize {
        let layout = Layout::<G>::with_granule(of);
        let mut words = vec![0; layout.words()];
        let mut set = PageSet::new(layout, &mut words).unwrap();
        set.insert_range(inserted);
        set.len()
    }
    let part = range(0x3_0000, 0x1000);
    assert_eq!(pages::<Granule64K>(part, part), 1);
    assert_eq!(pages::<Granule64K>(part, range(0x2_f000, 0x2000)), 1, "the rest of the page is the page, too");
    assert_eq!(pages::<Granule64K>(part, range(0xf000, 0x1000)), 0);
    assert_eq!(pages::<Granule16K>(range(0x1000, 0x4000), range(0x1000, 0x4000)), 2);
    assert_eq!(Layout::<Granule16K>::with_granule(range(63 << 14, 0x5000)).page_words(), 2);
    let last = IpaRange::new(Ipa(!0x1fff), Ipa(!0xfff)).unwrap();
    assert_eq!(Layout::<Granule64K>::with_granule(last).range().start(), Ipa(!0xffff));
}
