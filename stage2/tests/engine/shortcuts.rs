//! The short ways through bulk operations, and plain bitmaps: that they do what the long ways do.

use crate::dirty::{GIB, MIB, harvest, peek, range, start, storage, table};
use crate::host::{Access, Host, guest_store, store};
use stage2::fault::Status;
use stage2::*;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

fn bitmap(log: &Log) -> Vec<AtomicU64> {
    (0..log.layout().page_words()).map(|_| AtomicU64::new(0)).collect()
}

fn words(bitmap: &[AtomicU64]) -> Vec<u64> {
    bitmap.iter().map(|word| word.load(Relaxed)).collect()
}

#[test]
fn a_plain_bitmap_gains_the_pages_and_keeps_what_it_has() {
    for mechanism in [Mechanism::WriteProtect, Mechanism::HardwarePage] {
        let host = Host::new();
        let mut table = table(&host, BbmLevel::Level2);
        let mut log = start(&mut table, range(GIB + 0x1000, 4 * MIB), mechanism);
        assert_eq!(table.is_clean(&log), mechanism == Mechanism::WriteProtect);
        for page in [1, 2, 3, 63, 64, 700, 1024] {
            guest_store(&table, GIB + 0x1000 * page).unwrap();
        }
        assert!(!table.is_clean(&log));
        let seen = bitmap(&log);
        // Page 2 is there already, page 5 was not written.
        seen[0].store(1 << 2 | 1 << 5, Relaxed);
        assert_eq!(table.peek_into(&log, &bitmap(&log)), Ok(7));
        assert_eq!(table.harvest_into(&mut log, &seen), Ok(6), "{mechanism:?}");
        let mut expected = vec![0; 17];
        expected[0] = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 63;
        (expected[1], expected[10], expected[16]) = (1, 1 << (700 - 640), 1);
        assert_eq!(words(&seen), expected);
        assert_eq!(table.harvest_into(&mut log, &seen), Ok(0), "harvested already");
        let short = &seen[..16];
        assert_eq!(table.harvest_into(&mut log, short), Err(Error::BitmapTooSmall { needed: 17 }));

        guest_store(&table, GIB + 0x3000).unwrap();
        guest_store(&table, GIB + 0x4000).unwrap();
        // Bit 0 lies before the range.
        table.clear_from(&mut log, &[AtomicU64::new(1 << 3 | 1)]).unwrap();
        assert_eq!(harvest(&table, &mut log).into_iter().collect::<Vec<_>>(), [GIB + 0x4000]);
    }
}

#[test]
fn taking_a_permission_reaches_leaves_of_every_size() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    table.map(range(2 * GIB, GIB), PhysAddr(2 * GIB), Attributes::RAM).unwrap();
    table.map(range(3 * GIB + 2 * MIB, 64 * MIB), PhysAddr(3 * GIB + 2 * MIB), Attributes::RAM).unwrap();
    table.split(range(GIB, 8 * MIB), LeafSize::Page).unwrap();
    table.split(range(GIB + 64 * MIB, 4 * MIB), LeafSize::Contiguous64K).unwrap();
    table.split(range(GIB + 128 * MIB, 64 * MIB), LeafSize::Block2M).unwrap();
    table.unmap(range(GIB + 3 * MIB, MIB)).unwrap();
    let all = range(GIB + 0x5000, 3 * GIB - 0x5000);
    let read_only = |leaf: Leaf| leaf.attributes.permissions == Permissions::READ_EXECUTE;
    for _ in 0..2 {
        table.protect(all, Permissions::READ_EXECUTE).unwrap();
        assert!(table.leaves(all).all(read_only));
        assert_eq!(table.walk(Ipa(GIB + 0x4000)).unwrap().attributes.permissions, Permissions::ALL);
        assert_eq!(table.walk(Ipa(GIB + 3 * MIB)), None);
    }
    assert!(!table.grants_writes(range(GIB + 0x4000, 0x2000)) && table.grants_writes(range(GIB + 0x4000, 0x1000)));
    // What may not even be read has to gain something.
    table.protect(range(GIB + 0x5000, 0x1000), Permissions::NONE).unwrap();
    table.protect(range(GIB, 4 * MIB), Permissions::READ_EXECUTE).unwrap();
    assert!(table.leaves(range(GIB, 4 * MIB)).all(read_only));
    table.protect(range(GIB, GIB), Permissions::ALL).unwrap();
    assert!(table.leaves(range(GIB, GIB)).all(|leaf| leaf.attributes == Attributes::RAM));
}

/// Whatever the leaves: page by page, the range loses the permission and nothing else does.
#[test]
fn taking_a_permission_stops_at_edges_inside_leaves() {
    let ranges = [
        (0x5000, 3 * MIB),
        (0x1000, 0x2000),
        (2 * MIB, 2 * MIB + 0x1000),
        (0, 40 * MIB + 0x3000),
        (0x1_0000, 0x2_1000),
        (3 * MIB, 6 * MIB),
        (4 * MIB, 36 * MIB),
        (0x1_0000, 0x3_0000),
        (2 * MIB, 8 * MIB),
    ];
    for bbm in [BbmLevel::Level0, BbmLevel::Level2] {
        for size in LeafSize::DESCENDING {
            for (start, end) in ranges {
                let host = Host::new();
                let table = table(&host, bbm);
                table.split(range(GIB, 64 * MIB), size).unwrap();
                table.protect(range(GIB + start, end - start), Permissions::READ_EXECUTE).unwrap();
                for offset in (0..48 * MIB).step_by(0x1000) {
                    let leaf = table.walk(Ipa(GIB + offset)).expect("everything stays mapped");
                    let cut = |edge: u64| leaf.range().start().0 < GIB + edge && GIB + edge < leaf.range().end().0;
                    assert!(!cut(start) && !cut(end), "a run or block with two permissions: {leaf:?}");
                    let inside = (start..end).contains(&offset);
                    assert_eq!(
                        leaf.attributes.permissions.write, !inside,
                        "{bbm:?} {size:?} {start:#x} {end:#x} {offset:#x}"
                    );
                }
            }
        }
    }
}

/// Without memory for a split at an edge, the leaves between the edges stay as they are, too.
#[test]
fn a_permission_that_cannot_be_taken_at_an_edge_is_taken_nowhere() {
    for (start, end) in [(MIB, 5 * MIB), (2 * MIB, 5 * MIB), (MIB, 4 * MIB)] {
        let host = Host::new();
        let table = table(&host, BbmLevel::Level2);
        table.split(range(GIB, 64 * MIB), LeafSize::Block2M).unwrap();
        table.split(range(GIB + 2 * MIB, 2 * MIB), LeafSize::Page).unwrap();
        host.limit.set(host.live.get());
        let taken = table.protect(range(GIB + start, end - start), Permissions::READ_EXECUTE);
        assert!(matches!(taken, Err(Error::OutOfMemory { .. })), "{taken:?}");
        assert!(
            table.leaves(range(GIB, 64 * MIB)).all(|leaf| leaf.attributes == Attributes::RAM),
            "{start:#x} {end:#x}"
        );
    }
}

#[test]
fn taking_nothing_invalidates_nothing() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let pages = range(GIB, 2 * MIB);
    table.split(pages, LeafSize::Page).unwrap();
    table.protect(pages, Permissions::READ_EXECUTE).unwrap();
    let events = [Event::TlbiRangeBroadcast, Event::TlbiIpaBroadcast, Event::TlbiVmallE1Broadcast];
    let before = events.map(|event| host.count(event));
    assert_eq!(before, [1, 0, 1]);
    table.protect(pages, Permissions::READ_EXECUTE).unwrap();
    assert_eq!(events.map(|event| host.count(event)), before);
    table.collapse(range(GIB, GIB)).unwrap();
    assert!(table.leaves(pages).all(|leaf| !leaf.attributes.permissions.write));
}

#[test]
fn one_page_that_differs_keeps_a_table() {
    for index in [0, 1, 15, 16, 255, 511] {
        let host = Host::new();
        let mut table = table(&host, BbmLevel::Level2);
        table.split(range(GIB, 2 * MIB), LeafSize::Page).unwrap();
        let page = range(GIB + 0x1000 * index, 0x1000);
        table.protect(page, Permissions::READ).unwrap();
        let collapses = host.count(Event::Collapse2M);
        table.collapse(range(GIB, 2 * MIB)).unwrap();
        assert_eq!(host.count(Event::Collapse2M), collapses, "page {index}");
        assert_eq!(table.walk(page.start()).unwrap().attributes.permissions, Permissions::READ);
        table.protect(page, Permissions::ALL).unwrap();
        table.collapse(range(GIB, 2 * MIB)).unwrap();
        assert_eq!(host.count(Event::Collapse2M), collapses + 1, "page {index}");
    }
}

#[test]
fn the_short_way_of_a_first_write_is_for_held_pages_of_a_log() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let logged = range(GIB + 2 * MIB, 4 * MIB);
    let (page, block, outside) = (GIB + 2 * MIB, GIB + 4 * MIB, GIB + 8 * MIB);
    let mut log = start(&mut table, logged, Mechanism::WriteProtect);
    table.split(range(page, 2 * MIB), LeafSize::Page).unwrap();
    table.protect(range(page + 0x3000, 0x1000), Permissions::READ).unwrap();
    let mut history = FaultHistory::new();
    let mut first_write = |table: &Stage2<&Host>, ipa: u64| table.first_write(Ipa(ipa), ipa, &mut history);

    // A held block, a denied page, a page of no log, nothing at all, and past the end: left to `fault`, uncounted.
    for ipa in [block, page + 0x3000, outside, 3 * GIB, 1 << 40] {
        assert!(!first_write(&table, ipa), "{ipa:#x}");
    }
    assert_eq!(host.count(Event::FaultPermission), 0);
    assert_eq!(peek(&table, &log), BTreeSet::new());

    assert!(first_write(&table, page + 0x1008));
    assert_eq!(store(&table, page + 0x1008), Access::Done);
    assert_eq!(host.count(Event::FaultPermission), 1);
    assert_eq!(harvest(&table, &mut log), BTreeSet::from([page + 0x1000]));
    assert!(first_write(&table, page + 0x1000), "held again");
    assert!(!first_write(&table, page + 0x1000), "open");

    // A store that faulted before the table was frozen: its page is opened and marked, and the store does not land.
    harvest(&table, &mut log);
    table.freeze().unwrap();
    assert!(first_write(&table, page + 0x2000));
    assert_eq!(store(&table, page + 0x2000), Access::Fault(Status::Translation));
    table.thaw();
    assert_eq!(store(&table, page + 0x2000), Access::Done);
    assert_eq!(harvest(&table, &mut log), BTreeSet::from([page + 0x2000]));
}

#[test]
fn the_short_way_into_a_block_splits_it_and_opens_one_page() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let logged = range(GIB + 2 * MIB, 8 * MIB);
    let (block, denied, pages, outside) = (GIB + 2 * MIB, GIB + 4 * MIB, GIB + 6 * MIB, GIB + 12 * MIB);
    let open = range(GIB + 16 * MIB, 2 * MIB);
    let mut log = start(&mut table, logged, Mechanism::WriteProtect);
    table.split(range(pages, 2 * MIB), LeafSize::Page).unwrap();
    table.protect(range(denied, 2 * MIB), Permissions::READ).unwrap();
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: true };
    let _all_dirty = table.start_log(open, storage(open), options).unwrap();
    let mut history = FaultHistory::new();
    let mut first_write = |table: &Stage2<&Host>, ipa: u64| table.first_write_to_block(Ipa(ipa), ipa, &mut history);

    // A denied block, a table of pages, a block of no log, one that is open, nothing at all, past the end; and a block without memory for its
    // table, or of a frozen one: left to `fault`, uncounted, and nothing is split.
    let census = table.census();
    for ipa in [denied, pages, outside, open.start().0, 3 * GIB, 1 << 40] {
        assert!(!first_write(&table, ipa), "{ipa:#x}");
    }
    host.limit.set(host.live.get());
    assert!(!first_write(&table, block));
    host.limit.set(usize::MAX);
    table.freeze().unwrap();
    assert!(!first_write(&table, block));
    table.thaw();
    assert_eq!((table.census(), host.count(Event::FaultPermission)), (census, 0));
    assert_eq!(peek(&table, &log), BTreeSet::new());

    assert!(first_write(&table, block + 0x5008));
    assert_eq!(store(&table, block + 0x5008), Access::Done);
    assert_eq!(host.count(Event::FaultPermission), 1);
    assert_eq!(table.census().tables, census.tables + 1);
    assert_eq!(store(&table, block + 0x4000), Access::Fault(Status::Permission), "its neighbours stay held back");
    assert!(!first_write(&table, block + 0x4000), "no block any more");
    assert_eq!(harvest(&table, &mut log), BTreeSet::from([block + 0x5000]));
}

/// Full words and full blocks have ways of their own; half of one has been reported before.
#[test]
fn full_blocks_and_words_are_counted_and_protected_as_single_pages_are() {
    const PAGES: u64 = 3 * 512;
    let start_of_log = GIB + 2 * MIB;
    // 64 MiB and 256 MiB: with one summary above the blocks, and with two.
    for bytes in [64 * MIB, 256 * MIB] {
        let host = Host::new();
        let mut table = table(&host, BbmLevel::Level2);
        let mut log = start(&mut table, range(start_of_log, bytes), Mechanism::WriteProtect);
        let bitmap = bitmap(&log);
        let bit = |page: u64| bitmap[page as usize / 64].load(Relaxed) >> (page % 64) & 1 != 0;
        // A whole block; all but one page of the next, so that seven of its words are full; one page of the third.
        let written = |page: u64| page < 512 || (512..1024).contains(&page) && page != 700 || page == 1100;
        for round in 0..3 {
            for page in (0..PAGES).filter(|&page| written(page)) {
                guest_store(&table, start_of_log + page * 0x1000).unwrap();
            }
            match round {
                // All is new.
                0 => {}
                // Nothing is.
                1 => (0..PAGES).for_each(|page| assert_eq!(bit(page), written(page), "page {page}")),
                // Half of the first word is there, and a page that nobody has written.
                _ => {
                    bitmap.iter().for_each(|word| word.store(0, Relaxed));
                    bitmap[0].store(u64::MAX << 32, Relaxed);
                    bitmap[700 / 64].store(1 << (700 % 64), Relaxed);
                }
            }
            let expected = [1024, 0, 1024 - 32][round];
            assert_eq!(table.harvest_into(&mut log, &bitmap), Ok(expected), "{bytes:#x}, round {round}");
            for page in (0..PAGES).filter(|&page| written(page)) {
                assert!(bit(page), "page {page}");
                let address = start_of_log + page * 0x1000;
                assert_eq!(store(&table, address), Access::Fault(Status::Permission), "page {page} is protected");
            }
        }
        assert!(table.is_clean(&log));
        assert!(bit(700));
        // Nothing of the marks is left.
        bitmap.iter().for_each(|word| word.store(0, Relaxed));
        guest_store(&table, start_of_log + 0x5000).unwrap();
        assert_eq!(table.harvest_into(&mut log, &bitmap), Ok(1), "{bytes:#x}");
    }
}

/// The bitmap's memory is shared with whoever gave it: what is written there may make a harvest wrong, but not unsound.
#[test]
fn a_bitmap_that_somebody_else_has_written_leads_nowhere_else() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let logged = range(GIB, 2 * MIB);
    let words = storage(range(GIB, 8 * MIB));
    let own = Layout::new(logged).words();
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: false };
    let mut log = table.start_log(logged, &words[..own], options).unwrap();
    words[own + 3].store(0xff, Relaxed);
    // The summary says that the second block has marks. There is none.
    words[own - 1].store(2, Relaxed);
    let seen = bitmap(&log);
    assert_eq!(table.harvest_into(&mut log, &seen), Ok(0));
    assert_eq!(words[own + 3].load(Relaxed), 0xff);
}

#[test]
fn the_epoch_changes_with_what_is_mapped_granted_or_logged_and_with_nothing_else() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let mut last = table.epoch();
    let mut changed = |table: &Stage2<&Host>, what: &str, expected: bool| {
        assert_eq!(table.epoch() != last, expected, "{what}");
        last = table.epoch();
    };
    table.map(range(4 * GIB, 2 * MIB), PhysAddr(4 * GIB), Attributes::RAM).unwrap();
    changed(&table, "map", true);
    table.protect(range(4 * GIB, 2 * MIB), Permissions::READ).unwrap();
    changed(&table, "protect", true);
    table.unmap(range(4 * GIB, 2 * MIB)).unwrap();
    changed(&table, "unmap", true);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    changed(&table, "the start of a log", true);
    table.split(range(GIB, 2 * MIB), LeafSize::Page).unwrap();
    guest_store(&table, GIB).unwrap();
    harvest(&table, &mut log);
    changed(&table, "a split, a first write, a harvest", false);
    table.stop_log_keeping_pages(log).unwrap();
    changed(&table, "the end of a log", true);
    table.collapse(range(GIB, GIB)).unwrap();
    changed(&table, "a collapse", false);
}

#[test]
fn what_software_has_marked_in_a_hardware_log_is_counted_once() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::HardwarePage);
    let seen = bitmap(&log);
    table.mark_written(range(GIB + 0x3000, 0x2000));
    guest_store(&table, GIB + 0x9000).unwrap();
    assert_eq!(table.harvest_into(&mut log, &seen), Ok(3));
    assert_eq!(words(&seen)[0], 1 << 3 | 1 << 4 | 1 << 9);
    seen.iter().for_each(|word| word.store(0, Relaxed));
    assert_eq!(table.harvest_into(&mut log, &seen), Ok(0));
}

#[test]
fn a_full_block_and_an_open_leaf_are_reported_whole() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let block: BTreeSet<u64> = (0..512).map(|page| GIB + page * 0x1000).collect();
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    for &page in &block {
        guest_store(&table, page).unwrap();
    }
    assert_eq!(harvest(&table, &mut log), block);

    // A leaf of 2 MiB that nobody has split: its first mark has it protected and reported, and no page counts twice.
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: true };
    let open = range(GIB + 8 * MIB, 2 * MIB);
    let mut log = table.start_log(open, storage(open), options).unwrap();
    let seen = bitmap(&log);
    assert_eq!(table.harvest_into(&mut log, &seen), Ok(512));
    assert_eq!(table.harvest_into(&mut log, &seen), Ok(0));
}
