//! Dirty logs and freezing, against a CPU that walks the tables by itself (but has no TLB: that is the oracle's part).

use crate::host::{Access, Host, guest_store, load, store};
use stage2::fault::Status;
use stage2::features::HardwareUpdate;
use stage2::*;
use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

pub const GIB: u64 = 1 << 30;
pub const MIB: u64 = 1 << 20;

pub fn table(host: &Host, bbm: BbmLevel) -> Stage2<&Host> {
    let hardware_update = HardwareUpdate::DirtyState;
    let features = Features::MINIMAL
        .with_pa_bits(36)
        .with_bbm(bbm)
        .with_hardware_update(hardware_update)
        .with_tlbi_range(true)
        .with_lse(true);
    let config = Config::new(Vmid::new(1).unwrap(), features).with_hardware_dirty(true);
    let mut table = Stage2::new(host, config).unwrap();
    table.map(range(GIB, GIB), PhysAddr(GIB), Attributes::RAM).unwrap();
    table
}

pub fn range(start: u64, bytes: u64) -> IpaRange {
    IpaRange::from_size(Ipa(start), bytes).unwrap()
}

pub fn storage(range: IpaRange) -> &'static [AtomicU64] {
    Box::leak((0..Layout::new(range).words()).map(|_| AtomicU64::new(0)).collect())
}

pub fn start(table: &mut Stage2<&Host>, range: IpaRange, mechanism: Mechanism) -> Log {
    table.start_log(range, storage(range), LogOptions { mechanism, all_dirty: false }).unwrap()
}

fn pages(set: &PageSet<'_>) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    set.for_each(|ipa| assert!(pages.insert(ipa.0)));
    pages
}

fn report<'b>(log: &Log, words: &'b mut Vec<u64>) -> PageSet<'b> {
    words.resize(log.layout().words(), 0);
    PageSet::new(log.layout(), words).unwrap()
}

pub fn harvest(table: &Stage2<&Host>, log: &mut Log) -> BTreeSet<u64> {
    let mut words = Vec::new();
    let mut set = report(log, &mut words);
    table.harvest(log, &mut set).unwrap();
    pages(&set)
}

pub fn peek(table: &Stage2<&Host>, log: &Log) -> BTreeSet<u64> {
    let mut words = Vec::new();
    let mut set = report(log, &mut words);
    table.peek(log, &mut set).unwrap();
    pages(&set)
}

fn clear(table: &Stage2<&Host>, log: &mut Log, chosen: &[u64]) {
    let mut words = Vec::new();
    let mut set = report(log, &mut words);
    chosen.iter().for_each(|&page| set.insert(Ipa(page)));
    table.clear(log, &set).unwrap();
}

fn sizes(table: &Stage2<&Host>) -> Vec<(Ipa, LeafSize, bool)> {
    table.leaves(range(0, 4 * GIB)).map(|leaf| (leaf.ipa, leaf.size, leaf.write_protected)).collect()
}

const PRECISE: [Mechanism; 2] = [Mechanism::WriteProtect, Mechanism::HardwarePage];

#[test]
fn written_pages_are_reported_once_and_no_others() {
    for mechanism in PRECISE {
        let host = Host::new();
        let mut table = table(&host, BbmLevel::Level2);
        // Not aligned to anything, and over a 2 MiB boundary.
        let logged = range(GIB + 5 * MIB - 0x3000, 11 * MIB);
        let mut log = start(&mut table, logged, mechanism);
        assert_eq!(harvest(&table, &mut log), BTreeSet::new());
        let (first, last) = (logged.start().0, logged.end().0 - 0x1000);
        let written = [first, first + 0x1000, GIB + 6 * MIB, GIB + 8 * MIB + 0x5000, last];
        for ipa in written {
            guest_store(&table, ipa + 8).unwrap();
        }
        // Outside of the log nothing is held back.
        for ipa in [first - 0x1000, last + 0x1000] {
            assert_eq!(store(&table, ipa), Access::Done);
        }
        assert_eq!(load(&table, GIB + 7 * MIB), Access::Done);
        assert_eq!(peek(&table, &log), written.into());
        assert_eq!(harvest(&table, &mut log), written.into(), "{mechanism:?}");
        assert_eq!(harvest(&table, &mut log), BTreeSet::new());
        guest_store(&table, first).unwrap();
        assert_eq!(harvest(&table, &mut log), [first].into());
        assert_eq!(host.count(Event::InvalidWindow), 0);
        table.stop_log_and_collapse(log).unwrap();
    }
}

#[test]
fn a_first_write_opens_one_page_and_unmaps_none() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, GIB), Mechanism::WriteProtect);
    assert_eq!(sizes(&table).len(), 1, "nothing is split before the first write");
    assert_eq!(guest_store(&table, GIB + 0x5000), Ok(1));
    let open: Vec<_> = table.leaves(range(GIB, GIB)).filter(|leaf| !leaf.write_protected).collect();
    assert_eq!(open.iter().map(|leaf| (leaf.ipa.0, leaf.size)).collect::<Vec<_>>(), [(GIB + 0x5000, LeafSize::Page)]);
    assert_eq!(table.leaves(range(GIB, GIB)).map(|leaf| leaf.range().bytes()).sum::<u64>(), GIB);
    assert_eq!(guest_store(&table, GIB + 0x5008), Ok(0));
    assert_eq!(harvest(&table, &mut log), [GIB + 0x5000].into());
    assert_eq!(store(&table, GIB + 0x5000), Access::Fault(Status::Permission));
    table.stop_log_and_collapse(log).unwrap();
}

#[test]
fn stopping_restores_leaves_and_frames() {
    for (mechanism, bbm) in [
        (Mechanism::WriteProtect, BbmLevel::Level2),
        (Mechanism::WriteProtect, BbmLevel::Level0),
        (Mechanism::WriteProtect, BbmLevel::Level1),
        (Mechanism::HardwarePage, BbmLevel::Level2),
        (Mechanism::HardwareBlock, BbmLevel::Level2),
        (Mechanism::HardwareBlock, BbmLevel::Level0),
    ] {
        let host = Host::new();
        let mut table = table(&host, bbm);
        let before = (sizes(&table), host.live.get());
        let log = start(&mut table, range(GIB + 0x7000, 64 * MIB), mechanism);
        for n in 0..64 {
            guest_store(&table, GIB + n * MIB + 0x8000).unwrap();
        }
        table.split(range(GIB + 20 * MIB, 8 * MIB), LeafSize::Page).unwrap();
        table.stop_log_and_collapse(log).unwrap();
        assert_eq!((sizes(&table), host.live.get()), before, "{mechanism:?} {bbm:?}");
        assert_eq!(guest_store(&table, GIB + 0x9000), Ok(0));
    }
}

#[test]
fn an_ended_log_opens_lazily() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let log = start(&mut table, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    guest_store(&table, GIB).unwrap();
    table.stop_log_keeping_pages(log).unwrap();
    let frames = host.live.get();
    assert_eq!(guest_store(&table, GIB + 3 * MIB), Ok(1));
    assert_eq!((guest_store(&table, GIB + 2 * MIB), host.live.get()), (Ok(0), frames), "opened whole, without a split");
}

#[test]
fn clear_protects_the_chosen_pages_and_nothing_between() {
    for mechanism in PRECISE {
        let host = Host::new();
        let mut table = table(&host, BbmLevel::Level2);
        let mut log = start(&mut table, range(GIB, 4 * MIB), mechanism);
        let all: Vec<u64> = (0..200).map(|n| GIB + 0x1000 * n).collect();
        all.iter().for_each(|&ipa| assert!(guest_store(&table, ipa).is_ok()));
        let chosen = [all[3], all[100], all[199], GIB + 3 * MIB];
        clear(&table, &mut log, &chosen);
        let mut left: BTreeSet<u64> = all.iter().copied().collect();
        chosen.iter().for_each(|page| {
            left.remove(page);
        });
        assert_eq!(peek(&table, &log), left, "{mechanism:?}");
        if mechanism == Mechanism::WriteProtect {
            assert_eq!(store(&table, all[100]), Access::Fault(Status::Permission));
            assert_eq!(store(&table, all[99]), Access::Done);
        }
        guest_store(&table, all[3]).unwrap();
        left.insert(all[3]);
        assert_eq!(harvest(&table, &mut log), left);
    }
}

#[test]
fn all_dirty_reports_everything_once_and_protects_what_is_cleared() {
    for mechanism in PRECISE {
        let host = Host::new();
        let mut table = table(&host, BbmLevel::Level2);
        let logged = range(GIB + 0x1000, 6 * MIB);
        let options = LogOptions { mechanism, all_dirty: true };
        let mut log = table.start_log(logged, storage(logged), options).unwrap();
        assert_eq!(guest_store(&table, GIB + 3 * MIB), Ok(0), "nothing is protected yet");
        // A part of a writable block: it is split, and only these pages are protected.
        clear(&table, &mut log, &[GIB + 2 * MIB + 0x4000]);
        assert_eq!(guest_store(&table, GIB + 2 * MIB + 0x5000), Ok(0));
        let got = harvest(&table, &mut log);
        assert_eq!(got.len(), 6 * 256 - 1, "{mechanism:?}");
        assert!(!got.contains(&(GIB + 2 * MIB + 0x4000)));
        assert_eq!(harvest(&table, &mut log), BTreeSet::new());
        guest_store(&table, GIB + 4 * MIB + 0x4000).unwrap();
        assert_eq!(harvest(&table, &mut log), [GIB + 4 * MIB + 0x4000].into());
    }
}

#[test]
fn blocks_marked_by_hardware_report_all_their_pages() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 8 * MIB), Mechanism::HardwareBlock);
    assert_eq!(guest_store(&table, GIB + 3 * MIB), Ok(0));
    // Splitting keeps what the block's bit said.
    table.split(range(GIB + 2 * MIB, 4 * MIB), LeafSize::Page).unwrap();
    assert_eq!(host.count(Event::ReadOnlyWindow), 2);
    assert_eq!(harvest(&table, &mut log).len(), 512);
    assert_eq!(guest_store(&table, GIB + 3 * MIB), Ok(0));
    assert_eq!(harvest(&table, &mut log), [GIB + 3 * MIB].into());
    assert_eq!(guest_store(&table, GIB + 7 * MIB), Ok(0));
    assert_eq!(harvest(&table, &mut log).len(), 512);
}

/// All pages of a block are cleared at once; for a part of them the block is split, and the others stay dirty.
#[test]
fn blocks_marked_by_hardware_are_cleared_whole_or_in_part() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 8 * MIB), Mechanism::HardwareBlock);
    for block in [0, 2, 4] {
        assert_eq!(guest_store(&table, GIB + block * MIB), Ok(0));
    }
    let frames = host.live.get();
    let first: Vec<u64> = (0..512).map(|n| GIB + n * 0x1000).collect();
    clear(&table, &mut log, &first);
    assert_eq!((peek(&table, &log).len(), host.live.get()), (1024, frames), "cleared whole, without a split");
    clear(&table, &mut log, &[GIB + 2 * MIB + 0x3000, GIB + 4 * MIB, GIB + 6 * MIB]);
    assert_eq!((peek(&table, &log).len(), host.live.get()), (1022, frames + 2), "two blocks split, the clean one not");
    // What was cleared is marked again by the next store, and what was not is still writable.
    assert_eq!(guest_store(&table, GIB + 2 * MIB + 0x3000), Ok(0));
    let dirty = harvest(&table, &mut log);
    assert_eq!(dirty.len(), 1023);
    assert!(!dirty.contains(&(GIB + 4 * MIB)) && dirty.contains(&(GIB + 4 * MIB + 0x1000)));
    // Where memory runs out, more is reported again, and nothing is lost.
    assert_eq!(guest_store(&table, GIB + 6 * MIB), Ok(0));
    host.limit.set(host.live.get());
    clear(&table, &mut log, &[GIB + 6 * MIB]);
    assert_eq!(harvest(&table, &mut log).len(), 512);
}

#[test]
fn no_memory_costs_precision_and_nothing_else() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    table.split(range(GIB, GIB), LeafSize::Block2M).unwrap();
    let mut log = start(&mut table, range(GIB, 8 * MIB), Mechanism::WriteProtect);
    host.limit.set(host.live.get());
    assert_eq!(guest_store(&table, GIB + 3 * MIB + 0x2000), Ok(1));
    assert_eq!(host.count(Event::PrecisionLost), 1);
    let block: BTreeSet<u64> = (0..512).map(|n| GIB + 2 * MIB + n * 0x1000).collect();
    assert_eq!(harvest(&table, &mut log), block);
    assert_eq!(harvest(&table, &mut log), BTreeSet::new());
    host.limit.set(usize::MAX);
    assert_eq!(guest_store(&table, GIB + 3 * MIB + 0x2000), Ok(1));
    assert_eq!(harvest(&table, &mut log), [GIB + 3 * MIB + 0x2000].into());
}

#[test]
fn denied_pages_stay_denied_and_come_back_tracked() {
    for mechanism in PRECISE {
        let host = Host::new();
        let mut table = table(&host, BbmLevel::Level2);
        let mut log = start(&mut table, range(GIB, 4 * MIB), mechanism);
        let page = GIB + 0x3000;
        guest_store(&table, page).unwrap();
        table.protect(range(page, 0x2000), Permissions::READ_EXECUTE).unwrap();
        assert_eq!(guest_store(&table, page), Err(Outcome::Denied));
        assert_eq!(harvest(&table, &mut log), [page].into(), "what was dirty before stays dirty");
        table.protect(range(page, 0x2000), Permissions::ALL).unwrap();
        assert_eq!(harvest(&table, &mut log), BTreeSet::new());
        guest_store(&table, page + 0x1000).unwrap();
        assert_eq!(harvest(&table, &mut log), [page + 0x1000].into(), "{mechanism:?}");
    }
}

#[test]
fn memory_mapped_into_a_log_is_dirty_and_then_tracked() {
    for mechanism in PRECISE {
        let host = Host::new();
        let mut table = table(&host, BbmLevel::Level2);
        let hole = range(GIB + 2 * MIB, 4 * MIB);
        table.unmap(hole).unwrap();
        let mut log = start(&mut table, range(GIB + MIB, 2 * MIB), mechanism);
        table.map(hole, PhysAddr(hole.start().0), Attributes::RAM).unwrap();
        assert_eq!(harvest(&table, &mut log).len(), 256, "{mechanism:?}");
        guest_store(&table, GIB + 2 * MIB + 0x1000).unwrap();
        assert_eq!(harvest(&table, &mut log), [GIB + 2 * MIB + 0x1000].into(), "{mechanism:?}");
        assert_eq!(guest_store(&table, GIB + 4 * MIB), Ok(0), "not in the log");
    }
}

#[test]
fn writes_of_the_hypervisor_count() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    table.mark_written(range(GIB + 4 * MIB - 0x1000, 0x2000));
    assert_eq!(harvest(&table, &mut log), [GIB + 4 * MIB - 0x1000].into());
}

#[test]
fn disjoint_logs_run_side_by_side() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let (a, b) = (range(GIB, MIB), range(GIB + MIB, MIB));
    let mut first = start(&mut table, a, Mechanism::WriteProtect);
    let mut second = start(&mut table, b, Mechanism::HardwarePage);
    guest_store(&table, GIB + MIB - 0x1000).unwrap();
    guest_store(&table, GIB + MIB).unwrap();
    assert_eq!(harvest(&table, &mut first), [GIB + MIB - 0x1000].into());
    table.stop_log_and_collapse(first).unwrap();
    guest_store(&table, GIB + MIB + 0x1000).unwrap();
    assert_eq!(harvest(&table, &mut second), [GIB + MIB, GIB + MIB + 0x1000].into());
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: false };
    let overlap = table.start_log(range(GIB, GIB), storage(range(GIB, GIB)), options);
    assert_eq!(overlap.err(), Some(Error::LogOverlap { range: b }));
    table.stop_log_and_collapse(second).unwrap();
    assert_eq!(sizes(&table).len(), 1);
}

#[test]
fn what_a_log_refuses() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: false };
    let small = table.start_log(range(GIB, GIB), storage(range(GIB, MIB)), options);
    assert_eq!(small.err(), Some(Error::BitmapTooSmall { needed: 4096 + 8 + 1 }));
    let logs: Vec<Log> =
        (0..LOGS as u64).map(|n| start(&mut table, range(GIB + n * MIB, MIB), options.mechanism)).collect();
    let many = table.start_log(range(GIB + 100 * MIB, MIB), storage(range(0, MIB)), options);
    assert_eq!(many.err(), Some(Error::TooManyLogs));
    let mut words = vec![0; 64];
    let mut wrong = PageSet::new(Layout::new(range(GIB, 2 * MIB)), &mut words).unwrap();
    assert!(matches!(table.peek(&logs[0], &mut wrong), Err(Error::WrongSet { .. })));
    logs.into_iter().for_each(|log| assert!(table.stop_log_and_collapse(log).is_some()));
    table.admit(table.config().features.with_hardware_update(HardwareUpdate::None)).unwrap();
    let hardware = LogOptions { mechanism: Mechanism::HardwarePage, all_dirty: false };
    assert_eq!(
        table.start_log(range(GIB, MIB), storage(range(GIB, MIB)), hardware).err(),
        Some(Error::NoHardwareDirtyState)
    );
}

#[test]
fn freezing_stops_every_access_and_thawing_restores_it() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    guest_store(&table, GIB + 0x1000).unwrap();
    let (frames, before, vttbr) = (host.live.get(), sizes(&table), table.vttbr());
    assert!(!table.is_frozen());
    table.freeze().unwrap();
    table.freeze().unwrap();
    assert!(table.is_frozen());
    assert_eq!(load(&table, GIB + MIB), Access::Fault(Status::Translation));
    assert_eq!(guest_store(&table, GIB + 0x1000), Err(Outcome::Frozen));
    assert_eq!(table.vttbr(), vttbr);
    assert_eq!(sizes(&table), before, "the engine works on as ever");
    assert_eq!(harvest(&table, &mut log), [GIB + 0x1000].into());
    table.thaw();
    assert_eq!(host.live.get(), frames);
    assert_eq!(guest_store(&table, GIB + 0x1000), Ok(1));
    assert_eq!(harvest(&table, &mut log), [GIB + 0x1000].into());
    table.thaw();
    host.limit.set(host.live.get());
    assert_eq!(table.freeze(), Err(Error::OutOfMemory { ipa: Ipa(0) }));
    assert_eq!(load(&table, GIB), Access::Done);
}
