//! Each operation on a small table, as its user sees it. What the hardware may see meanwhile is the oracle's business.

use crate::host::{Access, Host, load};
use stage2::features::HardwareUpdate;
use stage2::*;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn features(bbm: BbmLevel) -> Features {
    Features::MINIMAL.with_pa_bits(40).with_bbm(bbm).with_tlbi_range(true).with_vmid_bits(16).with_lse(true)
}

fn table(host: &Host, bbm: BbmLevel) -> Stage2<&Host> {
    Stage2::new(host, Config::new(Vmid::new(7).unwrap(), features(bbm))).unwrap()
}

fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::from_size(Ipa(start), bytes).unwrap()
}

fn sizes(table: &Stage2<&Host>, range: IpaRange) -> Vec<(LeafSize, usize)> {
    let mut sizes: Vec<(LeafSize, usize)> = Vec::new();
    for leaf in table.leaves(range) {
        assert_eq!(leaf.output.0, leaf.ipa.0, "identity");
        match sizes.last_mut() {
            Some((size, n)) if *size == leaf.size => *n += 1,
            _ => sizes.push((leaf.size, 1)),
        }
    }
    sizes
}

fn identity(table: &mut Stage2<&Host>, range: IpaRange) {
    table.map(range, PhysAddr(range.start().0), Attributes::RAM).unwrap();
}

use LeafSize::*;

#[test]
fn mapping_takes_the_largest_leaves_that_fit() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let ram = range(GIB - 34 * MIB - 0x11000, 2 * GIB);
    identity(&mut table, ram);
    let got = sizes(&table, ram);
    let want = [
        (Page, 1),
        (Contiguous64K, 1),
        (Block2M, 1),
        (Contiguous32M, 1),
        (Block1G, 1),
        (Contiguous32M, 30),
        (Block2M, 14),
        (Contiguous64K, 30),
        (Page, 15),
    ];
    assert_eq!(got, want);
    assert_eq!(host.count(Event::TlbiVmallE1Broadcast) + host.count(Event::TlbiVmallS12E1Broadcast), 0);
    let census = table.census();
    assert_eq!(census.leaves, [0, 1, 31, 15, 31, 16]);
    assert_eq!(census.tables, host.live.get());
    // SAFETY: no hardware walks the table.
    unsafe { table.release() };
    assert_eq!(host.live.get(), 0);
}

/// Root tables are concatenated up to 43 bits: each is reached, at both of its ends, as hardware reaches it.
#[test]
fn every_table_of_a_concatenated_root_is_used() {
    for (ipa_bits, tables) in [(39, 1), (40, 2), (42, 8), (43, 16)] {
        let host = Host::new();
        let wide = features(BbmLevel::Level2).with_pa_bits(48);
        let config = Config::new(Vmid::new(7).unwrap(), wide).with_ipa_bits(ipa_bits);
        let mut table = Stage2::new(&host, config).unwrap();
        let ends = |root| [root * 512 * GIB, root * 512 * GIB + 511 * GIB];
        for start in (0..tables).flat_map(ends) {
            identity(&mut table, range(start, GIB));
            table.protect(range(start, 2 * MIB), Permissions::NONE).unwrap();
        }
        assert_eq!(table.census().leaves, [0, 0, 31, 16, 0, 0].map(|n| n * 2 * tables as usize), "{ipa_bits} bits");
        for start in (0..tables).flat_map(ends) {
            assert_eq!(sizes(&table, range(start, GIB)), [(Block2M, 16), (Contiguous32M, 31)], "{start:#x}");
            assert_eq!(load(&table, start + 2 * MIB), Access::Done, "{ipa_bits} bits, {start:#x}");
            assert_ne!(load(&table, start), Access::Done, "{ipa_bits} bits, {start:#x}");
        }
        table.unmap(range(0, tables * 512 * GIB)).unwrap();
        assert_eq!(table.leaves(range(0, tables * 512 * GIB)).count(), 0);
        // SAFETY: no hardware walks the table.
        unsafe { table.release() };
        assert_eq!(host.live.get(), 0);
    }
}

#[test]
fn mapping_the_same_again_changes_nothing() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level0);
    let ram = range(GIB, GIB);
    identity(&mut table, ram);
    table.split(range(GIB + 4 * MIB, 4096), Page).unwrap();
    let writes = host.count(Event::DescriptorWrite);
    identity(&mut table, ram);
    identity(&mut table, range(GIB + 4 * MIB, 4096));
    assert_eq!(host.count(Event::DescriptorWrite), writes);
}

#[test]
fn mapping_over_something_else_replaces_only_that() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    identity(&mut table, range(0, GIB));
    let part = range(6 * MIB, 4 * MIB + 0x3000);
    table.map(part, PhysAddr(0x8_0000_1000), Attributes::DEVICE).unwrap();
    for leaf in table.leaves(range(0, GIB)) {
        if part.contains(leaf.ipa) {
            assert_eq!(leaf.output.0, 0x8_0000_1000 + leaf.ipa.0 - part.start().0);
            assert_eq!(leaf.attributes, Attributes::DEVICE);
        } else {
            assert_eq!((leaf.output.0, leaf.attributes), (leaf.ipa.0, Attributes::RAM));
        }
    }
    let pages: u64 = table.leaves(range(0, GIB)).map(|leaf| leaf.range().pages()).sum();
    assert_eq!(pages, GIB / 4096);
}

#[test]
fn protect_splits_at_the_edges_only_and_invalidates_once() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    identity(&mut table, range(0, 2 * GIB));
    let tlbi = |host: &Host| {
        [
            Event::TlbiRangeBroadcast,
            Event::TlbiIpaBroadcast,
            Event::TlbiVmallE1Broadcast,
            Event::TlbiVmallS12E1Broadcast,
        ]
        .map(|event| host.count(event))
    };
    let frames = host.live.get();
    table.protect(range(GIB / 2 + 0x5000, GIB), Permissions::READ_EXECUTE).unwrap();
    assert_eq!(host.live.get() - frames, 4, "two tables an edge");
    assert_eq!(tlbi(&host), [1, 0, 1, 0]);
    assert_eq!(host.count(Event::InvalidWindow), 0);
    assert_eq!(
        sizes(&table, range(0, 2 * GIB)),
        [(Contiguous32M, 16), (Page, 16), (Contiguous64K, 31), (Block2M, 15), (Contiguous32M, 31), (Block2M, 0),]
            .into_iter()
            .filter(|&(_, n)| n > 0)
            .chain([(Page, 16), (Contiguous64K, 31), (Block2M, 15), (Contiguous32M, 15)])
            .collect::<Vec<_>>()
    );
    for leaf in table.leaves(range(0, 2 * GIB)) {
        let inside = range(GIB / 2 + 0x5000, GIB).contains(leaf.ipa);
        assert_eq!(leaf.attributes.permissions.write, !inside, "{leaf:?}");
    }
}

#[test]
fn protecting_what_is_protected_splits_nothing() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level0);
    identity(&mut table, range(0, GIB));
    let writes = host.count(Event::DescriptorWrite);
    table.protect(range(0x5000, 0x1000), Permissions::ALL).unwrap();
    assert_eq!(host.count(Event::DescriptorWrite), writes);
    assert_eq!(sizes(&table, range(0, GIB)), [(Block1G, 1)]);
}

#[test]
fn both_edges_in_one_block_take_one_split() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    identity(&mut table, range(0, 2 * MIB));
    table.protect(range(0x21000, 0x2000), Permissions::READ).unwrap();
    assert_eq!(host.count(Event::Split2M), 1);
    assert_eq!(sizes(&table, range(0, 2 * MIB)), [(Contiguous64K, 2), (Page, 16), (Contiguous64K, 29)]);
}

#[test]
fn mapping_anew_replaces_what_differs_and_leaves_the_rest_alone() {
    for bbm in [BbmLevel::Level0, BbmLevel::Level2] {
        let host = Host::new();
        let mut table = table(&host, bbm);
        let all = range(0, 64 * MIB);
        identity(&mut table, all);
        let writes = host.count(Event::DescriptorWrite);
        identity(&mut table, all);
        assert_eq!(host.count(Event::DescriptorWrite), writes, "it was mapped so already");
        // Elsewhere, in the middle of leaves; and as something else.
        let moved = range(3 * MIB, 4 * MIB);
        table.map(moved, PhysAddr(GIB + 3 * MIB), Attributes::RAM).unwrap();
        let device = range(10 * MIB, 0x3000);
        table.map(device, PhysAddr(10 * MIB), Attributes::DEVICE).unwrap();
        for ipa in (0..64 * MIB).step_by(0x1000) {
            let leaf = table.walk(Ipa(ipa)).expect("everything is mapped");
            let output = leaf.output.0 + (ipa - leaf.ipa.0);
            assert_eq!(output, if moved.contains(Ipa(ipa)) { GIB + ipa } else { ipa }, "{ipa:#x}");
            let expected = if device.contains(Ipa(ipa)) { Attributes::DEVICE } else { Attributes::RAM };
            assert_eq!(leaf.attributes, expected, "{ipa:#x}");
        }
        identity(&mut table, all);
        table.collapse(all).unwrap();
        assert_eq!(sizes(&table, all).iter().map(|(_, n)| n).sum::<usize>(), 2, "two runs of 32 MiB again");
    }
}

#[test]
fn batches_share_one_invalidation() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    identity(&mut table, range(0, 64 * MIB));
    let mut batch = table.batch();
    for n in 0..32 {
        batch.protect(range(n * 2 * MIB, 2 * MIB), Permissions::READ).unwrap();
    }
    batch.split(range(0, 2 * MIB), Page).unwrap();
    batch.finish();
    assert_eq!(sizes(&table, range(0, 2 * MIB)), [(Page, 512)]);
    assert_eq!(host.count(Event::TlbiRangeBroadcast), 1);
    assert_eq!(host.count(Event::TlbiVmallE1Broadcast), 1);
}

#[test]
fn split_then_collapse_gives_everything_back_at_every_level() {
    for bbm in [BbmLevel::Level0, BbmLevel::Level1, BbmLevel::Level2, BbmLevel::Level3] {
        let host = Host::new();
        let mut table = table(&host, bbm);
        let ram = range(GIB - 2 * MIB - 0x3000, GIB + 8 * MIB);
        identity(&mut table, ram);
        let (frames, before) = (host.live.get(), sizes(&table, ram));
        for to in [Block2M, Contiguous64K, Page] {
            table.split(ram, to).unwrap();
            assert!(table.leaves(ram).all(|leaf| leaf.size <= to), "{bbm:?} {to:?}");
        }
        table.collapse(ram).unwrap();
        assert_eq!((host.live.get(), sizes(&table, ram)), (frames, before), "{bbm:?}");
        let windows = host.count(Event::InvalidWindow);
        assert_eq!(windows == 0, bbm != BbmLevel::Level0, "{bbm:?}: {windows} windows");
    }
}

#[test]
fn unmapping_leaves_a_hole_of_exactly_that_size() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let frames = host.live.get();
    identity(&mut table, range(0, 3 * GIB));
    let hole = range(GIB - 0x1000, GIB + 0x2000);
    table.unmap(hole).unwrap();
    assert!(table.walk(Ipa(GIB - 0x1000)).is_none() && table.walk(Ipa(2 * GIB)).is_none());
    assert!(table.walk(Ipa(GIB - 0x2000)).is_some() && table.walk(Ipa(2 * GIB + 0x1000)).is_some());
    table.unmap(range(0, 3 * GIB)).unwrap();
    table.collapse(range(0, 3 * GIB)).unwrap();
    assert_eq!(host.live.get(), frames, "empty tables go too");
}

#[test]
fn memory_that_runs_out_changes_nothing() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    identity(&mut table, range(0, 2 * GIB));
    let before = sizes(&table, range(0, 2 * GIB));
    let frames = host.live.get();
    for more in 0..4 {
        host.limit.set(frames + more);
        let out = Err(Error::OutOfMemory { ipa: Ipa(0x5000) });
        assert_eq!(table.protect(range(0x5000, GIB), Permissions::READ), out, "{more} frames");
        assert_eq!(table.unmap(range(0x5000, GIB)), out, "{more} frames");
        assert_eq!((host.live.get(), sizes(&table, range(0, 2 * GIB))), (frames, before.clone()));
    }
    host.limit.set(frames + 4);
    table.protect(range(0x5000, GIB), Permissions::READ).unwrap();
}

#[test]
fn no_argument_is_beyond_an_error() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let past = range(1 << 40, 4096);
    let refused = Err(Error::OutOfRange { end: Ipa((1 << 40) + 4096), ipa_bits: 40 });
    assert_eq!(table.map(past, PhysAddr(0), Attributes::RAM), refused);
    assert_eq!(table.unmap(past), refused);
    assert_eq!(table.protect(past, Permissions::READ), refused);
    assert_eq!(table.split(past, Page), refused);
    assert_eq!(table.collapse(past), refused);
    assert_eq!(table.walk(Ipa(u64::MAX)), None);
    assert_eq!(table.leaves(past).count(), 0);
    for output in
        [PhysAddr(0x800), PhysAddr((1 << 40) - 4096), PhysAddr(1 << 48), PhysAddr((1 << 48) - 4096), PhysAddr(!0xfff)]
    {
        assert_eq!(table.map(range(0, 8192), output, Attributes::RAM), Err(Error::BadOutput { output }));
    }
    // The last page of the IPA space.
    identity(&mut table, range((1 << 40) - 4096, 4096));
    table.protect(range((1 << 40) - 4096, 4096), Permissions::READ).unwrap();
    table.unmap(range((1 << 40) - 4096, 4096)).unwrap();
}

#[test]
fn registers_say_what_the_table_is() {
    let host = Host::new();
    let table = table(&host, BbmLevel::Level2);
    assert_eq!(table.vttbr() >> 48, 7);
    // 40 bits: T0SZ 24, SL0 1 (level 1), PS 2, 16-bit VMID, inner shareable, write-back, RES1.
    assert_eq!(table.vtcr(), 0x8008_0000 | 2 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | 24);
    let narrow = features(BbmLevel::Level2).with_vmid_bits(8);
    let config = Config::new(Vmid::new(256).unwrap(), narrow);
    assert_eq!(Stage2::new(&host, config).err(), Some(Error::BadVmid { vmid: 256 }));
}

#[test]
fn the_control_register_follows_the_features() {
    let host = Host::new();
    let vtcr = |features: Features, ipa_bits, hardware_dirty| {
        let config =
            Config::new(Vmid::new(7).unwrap(), features).with_ipa_bits(ipa_bits).with_hardware_dirty(hardware_dirty);
        Stage2::new(&host, config).unwrap().vtcr()
    };
    let of = |pa_bits| features(BbmLevel::Level2).with_pa_bits(pa_bits);
    for (pa_bits, ps) in [(32, 0), (36, 1), (40, 2), (42, 3), (44, 4), (48, 5)] {
        assert_eq!(vtcr(of(pa_bits), 32, false) >> 16 & 7, ps, "{pa_bits} bits");
    }
    const VS: u64 = 1 << 19;
    const HA_HD: u64 = 3 << 21;
    assert_eq!(vtcr(of(40), 40, false) & VS, VS);
    assert_eq!(vtcr(of(40).with_vmid_bits(8), 40, false) & VS, 0);
    // Hardware marks nothing unless it can and is to.
    for (hardware_update, hardware_dirty, expected) in [
        (HardwareUpdate::DirtyState, true, HA_HD),
        (HardwareUpdate::DirtyState, false, 0),
        (HardwareUpdate::AccessFlag, true, 0),
    ] {
        assert_eq!(vtcr(of(40).with_hardware_update(hardware_update), 40, hardware_dirty) & HA_HD, expected);
    }
}

#[test]
fn a_table_takes_another_vmid_if_it_fits() {
    let host = Host::new();
    let narrow = features(BbmLevel::Level2).with_vmid_bits(8);
    let mut wide = table(&host, BbmLevel::Level2);
    wide.set_vmid(Vmid::new(u16::MAX).unwrap()).unwrap();
    assert_eq!(wide.vttbr() >> 48, 0xffff);
    let mut table = Stage2::new(&host, Config::new(Vmid::new(255).unwrap(), narrow)).unwrap();
    assert_eq!(table.set_vmid(Vmid::new(256).unwrap()), Err(Error::BadVmid { vmid: 256 }));
    assert_eq!(table.vttbr() >> 48, 255);
    table.set_vmid(Vmid::new(254).unwrap()).unwrap();
    assert_eq!(table.vttbr() >> 48, 254);
}

#[test]
fn repaint_leaves_pages_only() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let ram = range(32 * MIB, 34 * MIB);
    identity(&mut table, ram);
    table.split_all_for_good().unwrap();
    table.admit(features(BbmLevel::Level0)).unwrap();
    assert_eq!(sizes(&table, ram), [(Page, 34 * 256)]);
    table.collapse(ram).unwrap();
    assert_eq!(sizes(&table, ram), [(Page, 34 * 256)]);
    assert_eq!(host.count(Event::InvalidWindow), 0);
}

#[test]
fn a_dump_has_a_line_for_what_is_mapped_alike() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    assert_eq!(table.dump().to_string(), "nothing is mapped");
    identity(&mut table, range(GIB, GIB));
    table.map(range(2 * GIB, 2 * MIB), PhysAddr(4 * GIB), Attributes::RAM).unwrap();
    table.map(range(0x900_0000, 0x1000), PhysAddr(0x900_0000), Attributes::DEVICE).unwrap();
    table.protect(range(GIB + 4 * MIB, 0x1000), Permissions::READ_EXECUTE).unwrap();
    let lines = "\
0x000009000000-0x000009001000 -> 0x000009000000 rw- device: 1 of 4 KiB
0x000040000000-0x000040400000 -> 0x000040000000 rwx normal: 2 of 2 MiB
0x000040400000-0x000040401000 -> 0x000040400000 r-x normal: 1 of 4 KiB
0x000040401000-0x000080000000 -> 0x000040401000 rwx normal: 31 of 32 MiB, 13 of 2 MiB, 31 of 64 KiB, 15 of 4 KiB
0x000080000000-0x000080200000 -> 0x000100000000 rwx normal: 1 of 2 MiB";
    assert_eq!(table.dump().to_string(), lines);
    let leaf = table.walk(Ipa(GIB + 4 * MIB)).unwrap();
    assert_eq!(leaf.to_string(), "0x40400000-0x40401000 -> 0x40400000 r-x normal: 4 KiB");
    let log = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: false };
    let words = Box::leak((0..9).map(|_| std::sync::atomic::AtomicU64::new(0)).collect::<Vec<_>>().into_boxed_slice());
    let _log = table.start_log(range(2 * GIB, 0x1000), words, log).unwrap();
    let leaf = table.walk(Ipa(2 * GIB)).unwrap();
    assert!(leaf.to_string().ends_with("rwx normal: 4 KiB, write-protected for a log"), "{leaf}");
}

#[test]
fn memory_types_are_those_of_the_register_that_the_embedder_sets() {
    let with = features(BbmLevel::Level2).with_fwb(true);
    let config = |features: Features, fwb| Config::new(Vmid::new(7).unwrap(), features).with_fwb(fwb);
    let host = Host::new();
    let missing = Some(Error::MissingFeature { feature: "FEAT_S2FWB" });
    assert_eq!(Stage2::new(&host, config(with.with_fwb(false), true)).err(), missing);
    for (fwb, memory, taken) in [
        (false, MemoryType::WriteThrough, true),
        (true, MemoryType::WriteThrough, false),
        (true, MemoryType::Stage1, true),
        (true, MemoryType::Normal, true),
    ] {
        let mut table = Stage2::new(&host, config(with, fwb)).unwrap();
        let attributes = Attributes { memory, ..Attributes::RAM };
        let mapped = table.map(range(GIB, GIB), PhysAddr(GIB), attributes);
        assert_eq!(mapped, if taken { Ok(()) } else { Err(Error::BadMemoryType { memory }) }, "{memory:?} {fwb}");
        assert_eq!(table.walk(Ipa(GIB)).map(|leaf| leaf.attributes), taken.then_some(attributes));
        // Once more changes nothing; a CPU without FWB would read other types.
        let writes = host.count(Event::DescriptorWrite);
        let _ = table.map(range(GIB, GIB), PhysAddr(GIB), attributes);
        assert_eq!(host.count(Event::DescriptorWrite), writes);
        assert_eq!(table.admit(with.with_fwb(false)).err(), missing.filter(|_| fwb));
    }
}
