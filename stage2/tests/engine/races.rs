//! Two PEs at once, at the one moment that matters. Each of these has been wrong once.
//!
//! The oracle's scheduler goes through all moments; here each known bad one has a name.

use crate::dirty::{GIB, MIB, harvest, range, start, storage, table};
use crate::host::{Host, guest_store};
use stage2::descriptor::bits;
use stage2::fault::Status;
use stage2::features::HardwareUpdate;
use stage2::*;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

fn host() -> &'static Host {
    Box::leak(Box::new(Host::new()))
}

fn write_fault(ipa: u64, status: Status) -> Abort {
    Abort { status, write: true, execute: false, stage1_walk: false, el0: false, ipa: Ipa(ipa), va: ipa }
}

fn start_dirty(table: &mut Stage2<&Host>, range: IpaRange) -> Log {
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: true };
    table.start_log(range, storage(range), options).unwrap()
}

#[test]
fn a_page_opened_while_its_block_is_protected_keeps_its_mark() {
    let host = host();
    let mut table = table(host, BbmLevel::Level2);
    table.split(range(GIB, GIB), LeafSize::Block2M).unwrap();
    let mut log = start_dirty(&mut table, range(GIB, 4 * MIB));
    let page = GIB + 0x15_3000;
    let table = Rc::new(table);
    let other = table.clone();
    host.interrupt(
        |old, new| old & bits::WRITE != 0 && new & bits::WRITE == 0,
        move || assert!(guest_store(&other, page).is_ok_and(|faults| faults > 0)),
    );
    assert_eq!(harvest(&table, &mut log).len(), 1024);
    let faults = guest_store(&table, page).unwrap();
    assert!(faults > 0 || harvest(&table, &mut log).contains(&page), "the page is writable, and not marked");
}

#[test]
fn a_dirty_page_that_is_denied_meanwhile_is_in_the_harvest() {
    let host = host();
    let mut table = table(host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::HardwarePage);
    let page = GIB + 0x3000;
    guest_store(&table, page).unwrap();
    let table = Rc::new(table);
    let other = table.clone();
    let seen = Rc::new(std::cell::RefCell::new(BTreeSet::new()));
    let report = seen.clone();
    host.interrupt(
        |old, new| old & bits::DBM != 0 && new & bits::DBM == 0,
        move || *report.borrow_mut() = harvest(&other, &mut log),
    );
    table.protect(range(page, 0x1000), Permissions::READ_EXECUTE).unwrap();
    assert_eq!(*seen.borrow(), [page].into());
}

#[test]
fn a_harvest_invalidates_what_an_open_batch_has_denied() {
    for (mechanism, all_dirty) in [(Mechanism::HardwarePage, false), (Mechanism::WriteProtect, true)] {
        let host = host();
        let mut table = table(host, BbmLevel::Level2);
        table.split(range(GIB, GIB), LeafSize::Block2M).unwrap();
        let logged = range(GIB, 2 * MIB);
        let mut log = table.start_log(logged, storage(logged), LogOptions { mechanism, all_dirty }).unwrap();
        guest_store(&table, GIB).unwrap();
        let mut batch = table.batch();
        batch.protect(logged, Permissions::READ_EXECUTE).unwrap();
        let before = host.tlbis.get();
        assert!(harvest(&table, &mut log).contains(&GIB));
        assert!(host.tlbis.get() > before, "{mechanism:?}: still writable through an old entry");
        batch.finish();
    }
}

#[test]
fn the_second_to_deny_does_not_return_before_the_first_has_invalidated() {
    let host = host();
    let table = table(host, BbmLevel::Level2);
    let mut batch = table.batch();
    batch.protect(range(GIB, GIB), Permissions::READ).unwrap();
    let before = host.tlbis.get();
    table.protect(range(GIB, GIB), Permissions::READ).unwrap();
    assert!(host.tlbis.get() > before);
    batch.finish();
    let before = host.tlbis.get();
    table.protect(range(GIB, GIB), Permissions::READ).unwrap();
    assert_eq!(host.tlbis.get(), before, "with nothing under way there is nothing to invalidate");
}

#[test]
fn spurious_faults_with_progress_between_them_are_not_stuck() {
    let host = host();
    let mut table = table(host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    let mut second_pe = FaultHistory::new();
    for round in 0..100 {
        guest_store(&table, GIB).unwrap();
        let outcome = table.fault(&write_fault(GIB, Status::Permission), &mut second_pe);
        assert_eq!(outcome, Outcome::Retry, "round {round}");
        harvest(&table, &mut log);
    }
    let again = |n: usize, history: &mut FaultHistory| {
        (0..n).map(|_| table.fault(&write_fault(2 * GIB - 0x1000, Status::Translation), history)).last()
    };
    assert_eq!(again(64, &mut second_pe), Some(Outcome::Retry));
    assert_eq!(again(1, &mut second_pe), Some(Outcome::Stuck), "64 in a row with nothing changed are");
    assert_eq!(host.count(Event::EscalateVmallE1), 1);
}

#[test]
fn a_harvest_that_has_ended_is_under_way_no_more() {
    let host = host();
    let mut table = table(host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    let denied = range(GIB + 8 * MIB, 2 * MIB);
    table.protect(denied, Permissions::READ).unwrap();
    for dirty in [false, true] {
        if dirty {
            guest_store(&table, GIB).unwrap();
        }
        harvest(&table, &mut log);
        let before = host.tlbis.get();
        table.protect(denied, Permissions::READ).unwrap();
        assert_eq!(host.tlbis.get(), before, "nobody's invalidation is to be waited for");
    }
}

#[test]
fn what_changes_nothing_is_no_progress_between_spurious_faults() {
    let host = host();
    let mut table = table(host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    let open = 2 * GIB - 0x1000;
    for idle in 0..2 {
        let mut second_pe = FaultHistory::new();
        let mut outcomes = (0..100).map(|_| {
            match idle {
                0 => table.protect(range(GIB + 8 * MIB, 2 * MIB), Attributes::RAM.permissions).unwrap(),
                _ => table.clear_from(&mut log, &[]).unwrap(),
            }
            table.fault(&write_fault(open, Status::Permission), &mut second_pe)
        });
        assert_eq!(outcomes.position(|outcome| outcome == Outcome::Stuck), Some(64), "idle operation {idle}");
    }
}

#[test]
fn faults_in_break_windows_are_not_stuck() {
    let host = host();
    let mut table = table(host, BbmLevel::Level0);
    let mut second_pe = FaultHistory::new();
    for round in 0..100 {
        table.split(range(GIB, GIB), LeafSize::Block2M).unwrap();
        let outcome = table.fault(&write_fault(GIB, Status::Translation), &mut second_pe);
        assert_eq!(outcome, Outcome::Retry, "round {round}");
        table.collapse(range(GIB, GIB)).unwrap();
    }
}

#[test]
fn opening_a_run_after_a_log_opens_all_of_it() {
    let host = host();
    let mut table = table(host, BbmLevel::Level2);
    table.split(range(GIB, GIB), LeafSize::Contiguous64K).unwrap();
    let log = start(&mut table, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    table.stop_log_keeping_pages(log).unwrap();
    guest_store(&table, GIB + 0x5000).unwrap();
    let run: Vec<_> = (0..16).map(|n| table.walk(Ipa(GIB + n * 0x1000)).unwrap()).collect();
    assert!(run.iter().all(|leaf| leaf.size == LeafSize::Contiguous64K && !leaf.write_protected), "{run:?}");
}

#[test]
fn a_collapse_that_ends_inside_of_a_run_opens_all_of_it_or_nothing() {
    for (size, bytes) in [(LeafSize::Contiguous64K, 0x1000), (LeafSize::Contiguous32M, 2 * MIB)] {
        let host = host();
        let mut table = table(host, BbmLevel::Level2);
        table.split(range(GIB, GIB), size).unwrap();
        let log = start(&mut table, range(GIB, 64 * MIB), Mechanism::WriteProtect);
        table.stop_log_keeping_pages(log).unwrap();
        table.collapse(range(GIB + 3 * bytes, 2 * bytes)).unwrap();
        let held: Vec<_> = (0..16).map(|n| table.walk(Ipa(GIB + n * bytes)).unwrap().write_protected).collect();
        assert!(held.iter().all(|&one| one == held[0]), "members of one run with different permissions: {held:?}");
        table.collapse(range(GIB, GIB)).unwrap();
        assert!(table.leaves(range(GIB, GIB)).all(|leaf| !leaf.write_protected));
    }
}

#[test]
fn mapping_across_the_bounds_of_a_log_is_all_or_nothing() {
    let host = host();
    let mut table = table(host, BbmLevel::Level2);
    table.unmap(range(GIB, GIB)).unwrap();
    let _log = start(&mut table, range(GIB + 4 * MIB + 0x1000, MIB), Mechanism::WriteProtect);
    let frames = host.live.get();
    let mut needed = 0;
    loop {
        host.limit.set(frames + needed);
        if table.map(range(GIB, GIB), PhysAddr(GIB), Attributes::RAM).is_ok() {
            break;
        }
        assert_eq!(host.live.get(), frames, "{needed} frames: leaked");
        assert_eq!(table.leaves(range(GIB, GIB)).count(), 0, "{needed} frames: partly mapped");
        needed += 1;
    }
    assert_eq!(host.live.get(), frames + needed);
}

#[test]
fn a_weaker_cpu_is_refused_while_hardware_logs() {
    let host = host();
    let mut table = table(host, BbmLevel::Level2);
    let log = start(&mut table, range(GIB, 4 * MIB), Mechanism::HardwarePage);
    let weaker = table.config().features.with_hardware_update(HardwareUpdate::None);
    assert_eq!(table.admit(weaker), Err(Error::NoHardwareDirtyState));
    table.stop_log_keeping_pages(log).unwrap();
    let weaker = weaker.with_lse(false);
    assert!(table.config().features.lse, "the table's PEs have it, and the one that comes may execute this");
    table.admit(weaker).unwrap();
    assert_eq!(host.lse_runs.get(), 0);
    assert!(table.leaves(range(GIB, GIB)).all(|leaf| !leaf.hardware_tracked));
    let narrow = weaker.with_pa_bits(32);
    assert_eq!(table.admit(narrow), Err(Error::BadIpaSize { bits: 36 }));
    assert_eq!(Stage2::new(host, table.config().with_ipa_bits(40)).err(), Some(Error::BadIpaSize { bits: 40 }));
}

#[test]
fn a_cpu_that_marks_too_is_admitted_while_hardware_logs() {
    let host = host();
    let mut table = table(host, BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::HardwarePage);
    let same = table.config().features;
    table.admit(same.with_bbm(BbmLevel::Level0)).unwrap();
    assert_eq!(table.bbm_level(), BbmLevel::Level0);
    guest_store(&table, GIB + 0x3000).unwrap();
    assert_eq!(harvest(&table, &mut log), [GIB + 0x3000].into(), "the log goes on");
}

#[test]
fn unmapping_keeps_what_hardware_has_marked() {
    let mut table = table(host(), BbmLevel::Level2);
    let mut log = start(&mut table, range(GIB, 4 * MIB), Mechanism::HardwarePage);
    guest_store(&table, GIB + 0x3000).unwrap();
    table.unmap(range(GIB + 0x3000, 0x1000)).unwrap();
    assert_eq!(harvest(&table, &mut log), [GIB + 0x3000].into());
}

#[test]
fn a_log_of_another_table_ends_nothing() {
    let host = host();
    let (mut first, mut second) = (table(host, BbmLevel::Level2), table(host, BbmLevel::Level2));
    let log = start(&mut first, range(GIB, 4 * MIB), Mechanism::WriteProtect);
    let mut other = start(&mut second, range(GIB + 8 * MIB, 4 * MIB), Mechanism::WriteProtect);
    assert!(second.stop_log_keeping_pages(log).is_none());
    guest_store(&second, GIB + 8 * MIB).unwrap();
    assert_eq!(harvest(&second, &mut other), [GIB + 8 * MIB].into());
}

#[test]
fn what_reports_nothing_new_leaves_the_words_of_its_bitmap_to_others() {
    // Two bits of one word: a page that is reported again and again, and a bit that another thread sets and clears.
    const OTHERS: u64 = 1 << 63;
    const CHANGES: u64 = 20_000_000;
    let mut table = table(host(), BbmLevel::Level2);
    let log = start(&mut table, range(GIB, 0x1000), Mechanism::WriteProtect);
    guest_store(&table, GIB).unwrap();
    let bitmap = [AtomicU64::new(0)];
    assert_eq!(table.peek_into(&log, &bitmap), Ok(1));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for n in 0..CHANGES {
                let before = bitmap[0].fetch_xor(OTHERS, Relaxed);
                assert_eq!(before, 1 | (n % 2 * OTHERS), "the last of {n} changes is lost");
            }
        });
        while !other.is_finished() {
            assert_eq!(table.peek_into(&log, &bitmap), Ok(0));
        }
        other.join().expect("no change of the other's is lost");
    });
}
