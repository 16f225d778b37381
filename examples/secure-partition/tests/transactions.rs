//! Memory transactions, each step seen in both partitions' tables.

mod common;

use Partition::{First, Second};
use arm_ffa::FfaError::{self, Busy, Denied, InvalidParameters, NoMemory};
use arm_ffa::interface_args::RxTxAddr;
use arm_ffa::memory_management::{DataAccessPerm, Handle, InstuctionAccessPerm, MemTransactionFlags};
use arm_ffa::partition_info::PartitionInfoGetFlags;
use arm_ffa::{Interface, Uuid};
use common::*;
use secure_partition::Partition;
use secure_partition::descriptor::Kind;
use secure_partition::layout::{self, MEMORY};
use secure_partition::relayer::MAX_TRANSACTIONS;
use stage2::{Event, Ipa, LeafSize, Permissions};

#[test]
fn each_kind_of_transaction_gives_and_takes_what_it_should() {
    for (kind, writable, owner_meanwhile, borrowed) in [
        (Kind::Lend, true, NONE, READ_WRITE),
        (Kind::Lend, false, NONE, READ),
        (Kind::Share, true, ALL, READ_WRITE),
        (Kind::Share, false, ALL, READ),
    ] {
        with_service(|calls, host| {
            let pages = [spare(First, 3), spare(First, 4), spare(First, 9)];
            let neighbours = [spare(First, 2), spare(First, 5), spare(First, 8), spare(First, 10)];
            let seen = |partition| pages.map(|page| calls.permissions(partition, page));
            let offer = OfferOf::new(First, kind, &[(pages[0], 2), (pages[2], 1)], writable);

            let handle = calls.send(First, &offer).unwrap();
            assert_eq!((seen(First), seen(Second)), ([owner_meanwhile; 3], [NONE; 3]), "{kind:?}");
            let ranges = calls.retrieve(Second, &Wish::of(First, handle)).unwrap();
            assert_eq!(ranges, offer.ranges);
            assert_eq!((seen(First), seen(Second)), ([owner_meanwhile; 3], [borrowed; 3]), "{kind:?}");
            for page in neighbours {
                assert_eq!((calls.permissions(First, page), calls.permissions(Second, page)), (ALL, NONE));
            }
            assert!(host.counters.get(Event::Split2M) > 0, "part of a block was moved");
            calls.relinquish(Second, handle).unwrap();
            assert_eq!((seen(First), seen(Second)), ([owner_meanwhile; 3], [NONE; 3]), "{kind:?}");
            calls.reclaim(First, handle).unwrap();
            assert_eq!((seen(First), seen(Second)), ([ALL; 3], [NONE; 3]), "{kind:?}");
            let leaf = calls.0.world().tables.of(First).read().walk(Ipa(pages[0])).unwrap();
            assert_eq!(leaf.size, LeafSize::Block2M, "reclaim makes it a block again");
        });
    }
}

#[test]
fn a_donation_is_for_good_and_can_be_taken_back_until_it_is_retrieved() {
    with_service(|calls, _| {
        let page = spare(First, 0);
        let there = OfferOf::new(First, Kind::Donate, &[(page, 1)], true);
        let handle = calls.send(First, &there).unwrap();
        assert_eq!((calls.permissions(First, page), calls.permissions(Second, page)), (NONE, NONE));
        calls.reclaim(First, handle).unwrap();
        assert_eq!(calls.permissions(First, page), ALL);

        let handle = calls.send(First, &there).unwrap();
        calls.retrieve(Second, &Wish::of(First, handle)).unwrap();
        assert_eq!((calls.permissions(First, page), calls.permissions(Second, page)), (NONE, ALL));
        assert_eq!(calls.reclaim(First, handle), Err(InvalidParameters), "it is over");
        assert_eq!(calls.relinquish(Second, handle), Err(InvalidParameters));
        assert_eq!(calls.send(First, &there), Err(Denied), "not the owner any more");

        let back = OfferOf::new(Second, Kind::Donate, &[(page, 1)], true);
        let handle = calls.send(Second, &back).unwrap();
        calls.retrieve(First, &Wish::of(Second, handle)).unwrap();
    });
}

#[test]
fn a_whole_block_moves_without_a_split() {
    with_service(|calls, host| {
        let block = MEMORY.start().0 + LeafSize::Block2M.bytes();
        let offer = OfferOf::new(First, Kind::Lend, &[(block, 512)], true);
        let handle = calls.send(First, &offer).unwrap();
        calls.retrieve(Second, &Wish::of(First, handle)).unwrap();
        assert_eq!(host.counters.get(Event::Split2M), 0);
        calls.relinquish(Second, handle).unwrap();
        calls.reclaim(First, handle).unwrap();
    });
}

#[test]
fn what_is_to_be_zeroed_is_zero() {
    with_service(|calls, _| {
        let (page, next) = (Ipa(spare(First, 0)), Ipa(spare(First, 1)));
        let memory = &calls.0.world().memory;
        for zeroed in [false, true] {
            memory.page(page, |bytes| bytes.fill(0xaa));
            memory.page(next, |bytes| bytes.fill(0xaa));
            let mut offer = OfferOf::new(First, Kind::Lend, &[(page.0, 1)], true);
            offer.header.flags = MemTransactionFlags(u32::from(zeroed));
            let handle = calls.send(First, &offer).unwrap();
            let wish = Wish { flags: 1, ..Wish::of(First, handle) };
            let expected = if zeroed { Ok(()) } else { Err(Denied) };
            assert_eq!(calls.retrieve(Second, &wish).map(drop), expected, "a receiver that relies on it");
            if !zeroed {
                calls.retrieve(Second, &Wish::of(First, handle)).unwrap();
            }
            let byte = if zeroed { 0 } else { 0xaa };
            memory.page(page, |bytes| assert!(bytes.iter().all(|b| *b == byte)));
            memory.page(next, |bytes| assert!(bytes.iter().all(|b| *b == 0xaa)));
            calls.relinquish(Second, handle).unwrap();
            calls.reclaim(First, handle).unwrap();
        }
    });
}

#[test]
fn a_page_is_in_one_transaction_at_a_time() {
    with_service(|calls, _| {
        for first in KINDS {
            let offer = OfferOf::new(First, first, &[(spare(First, 4), 4)], true);
            let handle = calls.send(First, &offer).unwrap();
            let before = calls.state();
            for second in KINDS {
                for (page, count) in [(4, 4), (3, 2), (7, 5), (0, 16)] {
                    let again = OfferOf::new(First, second, &[(spare(First, page), count)], true);
                    assert_eq!(calls.send(First, &again), Err(Denied), "{first:?}, then {second:?}");
                }
            }
            assert_eq!(calls.state(), before);
            calls.reclaim(First, handle).unwrap();
        }
    });
}

#[test]
fn steps_come_in_their_order() {
    with_service(|calls, _| {
        for kind in [Kind::Lend, Kind::Share] {
            let offer = OfferOf::new(First, kind, &[(spare(First, 1), 2)], true);
            let handle = calls.send(First, &offer).unwrap();
            let offered = calls.state();
            assert_eq!(calls.relinquish(Second, handle), Err(Denied), "before it is retrieved");
            assert_eq!(calls.relinquish(First, handle), Err(InvalidParameters), "by its owner");
            assert_eq!(calls.reclaim(Second, handle), Err(InvalidParameters), "by its borrower");
            assert_eq!(calls.state(), offered);

            calls.retrieve(Second, &Wish::of(First, handle)).unwrap();
            let retrieved = calls.state();
            assert_eq!(calls.retrieve(Second, &Wish::of(First, handle)), Err(Denied), "twice");
            assert_eq!(calls.reclaim(First, handle), Err(Denied), "while it is retrieved");
            assert_eq!(calls.state(), retrieved);

            calls.relinquish(Second, handle).unwrap();
            assert_eq!(calls.relinquish(Second, handle), Err(Denied), "twice");
            calls.retrieve(Second, &Wish::of(First, handle)).unwrap();
            calls.relinquish(Second, handle).unwrap();
            calls.reclaim(First, handle).unwrap();
            assert_eq!(calls.reclaim(First, handle), Err(InvalidParameters), "twice");
        }
    });
}

#[test]
fn borrowed_memory_is_executed_only_where_it_may_be() {
    with_service(|calls, _| {
        let offer = OfferOf::new(First, Kind::Lend, &[(spare(First, 1), 1)], true);
        let handle = calls.send(First, &offer).unwrap();
        let good = Wish::of(First, handle);
        let execute = InstuctionAccessPerm::Executable;
        let both = Wish { instr_access: execute, ..good };
        assert_eq!(calls.retrieve(Second, &both), Err(Denied), "written and executed");
        let wish = Wish { instr_access: execute, data_access: DataAccessPerm::ReadOnly, ..good };
        calls.retrieve(Second, &wish).unwrap();
        assert_eq!(calls.permissions(Second, spare(First, 1)), Permissions::READ_EXECUTE);
        calls.relinquish(Second, handle).unwrap();
        calls.reclaim(First, handle).unwrap();
    });
}

#[test]
fn frames_that_run_out_at_any_point_leave_everything_as_it_was() {
    with_service(|calls, host| {
        // Two ranges in two blocks: each call splits up to two leaves.
        let block = LeafSize::Block2M.bytes();
        let ranges = [(spare(First, 1), 2), (layout::memory(First).start().0 + block + 0x5000, 3)];
        let offer = OfferOf::new(First, Kind::Lend, &ranges, true);
        let mut failures = 0;
        let mut try_with_less = |call: &mut dyn FnMut() -> Result<(), FfaError>| {
            for left in 0.. {
                let before = calls.state();
                host.left.set(left);
                let result = call();
                host.left.set(usize::MAX);
                match result {
                    Ok(()) => break,
                    Err(error) => assert_eq!(error, NoMemory),
                }
                assert_eq!(calls.state(), before, "{left} frames");
                failures += 1;
            }
        };
        let mut handle = Handle(0);
        try_with_less(&mut || calls.send(First, &offer).map(|new| handle = new));
        try_with_less(&mut || calls.retrieve(Second, &Wish::of(First, handle)).map(drop));
        try_with_less(&mut || calls.relinquish(Second, handle));
        try_with_less(&mut || calls.reclaim(First, handle));
        assert_eq!(failures, 4, "two frames to lend, two to retrieve");
    });
}

#[test]
fn there_is_an_end_to_transactions() {
    with_service(|calls, _| {
        let offer = |n| OfferOf::new(First, Kind::Share, &[(spare(First, n), 1)], true);
        let handles: Vec<Handle> =
            (0..MAX_TRANSACTIONS as u64).map(|n| calls.send(First, &offer(n)).unwrap()).collect();
        assert_eq!(calls.send(First, &offer(100)), Err(NoMemory));
        for handle in handles {
            calls.reclaim(First, handle).unwrap();
        }
    });
}

#[test]
fn buffers_are_given_out_once_and_filled_when_they_are_empty() {
    let host = Host::new();
    let service = fresh_service(&host);
    let calls = Calls(&service);
    let offer = OfferOf::new(First, Kind::Lend, &[(spare(First, 0), 1)], true);
    assert_eq!(calls.send(First, &offer), Err(InvalidParameters), "no buffers yet");
    let map = |rx: u64, tx: u64, page_cnt| {
        calls.raw(First, &Interface::RxTxMap { addr: RxTxAddr::Addr64 { rx, tx }, page_cnt }).map(drop)
    };
    let (rx, tx) = (spare(First, 0), spare(First, 1));
    for (rx, tx, pages) in [
        (rx, rx, 1),
        (rx, tx, 0),
        (rx, tx, 2),
        (rx + 8, tx, 1),
        (rx, spare(Second, 0), 1),
        (spare(Second, 0), tx, 1),
        (0x1000, tx, 1),
        (!0xfff, tx, 1),
    ] {
        assert_eq!(map(rx, tx, pages), Err(InvalidParameters), "{rx:#x} {tx:#x} {pages}");
    }
    assert_eq!(map(rx, tx, 1), Ok(()));
    assert_eq!(map(spare(First, 2), spare(First, 3), 1), Err(Denied), "a second time");
    assert_eq!(calls.send(First, &offer), Err(InvalidParameters), "what the buffer holds is nothing");
    let info = |count_only| {
        let flags = PartitionInfoGetFlags { count_only };
        calls.raw(First, &Interface::PartitionInfoGet { uuid: Uuid::nil(), flags })
    };
    assert!(matches!(info(true), Ok(SuccessOr::Args([2, 0, ..]))));
    assert!(matches!(info(false), Ok(SuccessOr::Args([2, 24, ..]))));
    assert!(matches!(info(false), Err(Busy)));
    assert!(calls.raw(First, &Interface::RxRelease { vm_id: 0 }).is_ok());
    assert!(matches!(calls.raw(First, &Interface::RxRelease { vm_id: 0 }), Err(Denied)));
    assert!(calls.raw(First, &Interface::RxTxUnmap { id: 0 }).is_ok());
    assert!(matches!(calls.raw(First, &Interface::RxTxUnmap { id: 0 }), Err(InvalidParameters)));
    assert_eq!(map(spare(First, 2), spare(First, 3), 1), Ok(()));
}
