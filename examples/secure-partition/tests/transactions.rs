//! Memory transactions, each step seen in both partitions' tables; and everything that must be refused.

mod common;

use Partition::{First, Second};
use arm_ffa::FfaError::{self, Busy, Denied, InvalidParameters, NoMemory, NotSupported};
use arm_ffa::interface_args::RxTxAddr;
use arm_ffa::memory_management::{
    DataAccessPerm, DeviceMemAttributes, Handle, InstuctionAccessPerm, MemRegionAttributes, MemRegionSecurity,
    MemTransactionFlags, MemType,
};
use arm_ffa::partition_info::PartitionInfoGetFlags;
use arm_ffa::{FuncId, Interface, Uuid};
use common::*;
use secure_partition::descriptor::{Kind, MAX_RANGES};
use secure_partition::layout::{self, MEMORY};
use secure_partition::relayer::MAX_TRANSACTIONS;
use secure_partition::service::{REGISTERS, Service, decode};
use secure_partition::tables::Tables;
use secure_partition::{Partition, work::Random};
use stage2::{BbmLevel, Event, Ipa, LeafSize, PAGE_SIZE, Permissions};

const KINDS: [Kind; 3] = [Kind::Donate, Kind::Lend, Kind::Share];
const READ: Permissions = Permissions::READ;
const READ_WRITE: Permissions = Permissions::READ_WRITE;
const ALL: Permissions = Permissions::ALL;
const NONE: Permissions = Permissions::NONE;

fn service(host: &Host) -> Service<Board<&Host>> {
    let tables = Tables::new([host, host], vmids(), features(BbmLevel::Level2)).unwrap();
    Service::new(Board { tables, memory: Memory::default() })
}

/// Runs a test on a fresh service with both partitions' buffers registered, and checks that all comes back.
fn with_service(test: impl FnOnce(&Calls<'_, Board<&Host>>, &Host)) {
    let host = Host::new();
    let service = service(&host);
    let calls = Calls(&service);
    calls.register_buffers();
    let (state, frames) = (calls.state(), host.pool.available());
    test(&calls, &host);
    let serial = |state: &str| state[..state.rfind("serial").unwrap_or(0)].to_owned();
    assert_eq!(serial(&calls.state()), serial(&state), "memory is not back where it was");
    assert_eq!(host.pool.available(), frames, "frames are missing");
    assert_eq!(host.counters.get(Event::InvalidWindow), 0);
}

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

/// Everything that can be wrong with an offer, and the error for it.
fn bad_offers() -> Vec<(&'static str, FfaError, OfferOf)> {
    let (a, b) = (spare(First, 0), spare(First, 1));
    let end = layout::memory(First).end().0;
    let space = 1 << layout::IPA_BITS;
    let mut bad = Vec::new();
    for kind in KINDS {
        let memory = |what, error, ranges: &[(u64, u32)]| (what, error, OfferOf::new(First, kind, ranges, true));
        bad.extend([
            memory("the same page twice", InvalidParameters, &[(a, 1), (a, 1)]),
            memory("overlap in part", InvalidParameters, &[(a, 2), (spare(First, 9), 1), (b, 2)]),
            memory("not page-aligned", InvalidParameters, &[(a + 8, 1)]),
            memory("no pages", InvalidParameters, &[(a, 1), (b, 0)]),
            memory("no ranges", InvalidParameters, &[]),
            memory("past the IPA space", InvalidParameters, &[(space, 1)]),
            memory("over the end of the IPA space", InvalidParameters, &[(space - PAGE_SIZE, 2)]),
            memory("over the end of all addresses", InvalidParameters, &[(!0xfff, 1)]),
            memory("the other partition's", Denied, &[(spare(Second, 0), 1)]),
            memory("partly the other partition's", Denied, &[(end - PAGE_SIZE, 2)]),
            memory("nobody's", Denied, &[(0x1000, 1)]),
            memory("just before memory", Denied, &[(MEMORY.start().0 - PAGE_SIZE, 2)]),
            memory("the program", Denied, &[(layout::PROGRAM.start().0, 1)]),
            memory("a device's", Denied, &[(layout::DEVICE.start().0, 1)]),
            memory("good, then bad", Denied, &[(a, 1), (layout::DEVICE.start().0, 1)]),
            memory("the RX buffer", Denied, &[(layout::rx_buffer(First).0, 1)]),
            memory("the TX buffer", Denied, &[(layout::tx_buffer(First).0, 1)]),
        ]);
        let many: Vec<(u64, u32)> = (0..=MAX_RANGES as u64).map(|n| (spare(First, 2 * n), 1)).collect();
        bad.push(memory("too many ranges", NoMemory, &many));

        let mut with = |what, error, change: &dyn Fn(&mut OfferOf)| {
            let mut offer = OfferOf::new(First, kind, &[(a, 1)], true);
            change(&mut offer);
            bad.push((what, error, offer));
        };
        with("another sender", InvalidParameters, &|o| o.header.sender_id = Second.id());
        with("a handle", InvalidParameters, &|o| o.header.handle = Handle(1));
        with("time slicing", InvalidParameters, &|o| o.header.flags = MemTransactionFlags(2));
        with("a transaction type", InvalidParameters, &|o| o.header.flags = MemTransactionFlags(1 << 3));
        with("to itself", InvalidParameters, &|o| o.access[0].endpoint_id = First.id());
        with("to nobody", InvalidParameters, &|o| o.access[0].endpoint_id = 0x8003);
        with("to the Normal world", InvalidParameters, &|o| o.access[0].endpoint_id = 0);
        with("to one twice", InvalidParameters, &|o| o.access.push(o.access[0]));
        with("executable", InvalidParameters, &|o| o.access[0].instr_access = InstuctionAccessPerm::Executable);
        with("non-retrieval borrower", InvalidParameters, &|o| o.access[0].flags = 1);
        let device = MemRegionAttributes { mem_type: MemType::Device(DeviceMemAttributes::DevnGnRE), ..NORMAL };
        with("as a device", Denied, &|o| o.header.mem_region_attr = device);
        let non_secure = MemRegionAttributes { security: MemRegionSecurity::NonSecure, ..NORMAL };
        with("as Non-secure", InvalidParameters, &|o| o.header.mem_region_attr = non_secure);
        let wrong_access = if kind == Kind::Donate { DataAccessPerm::ReadWrite } else { DataAccessPerm::NotSpecified };
        with("data access", InvalidParameters, &|o| o.access[0].data_access = wrong_access);
        let wrong_type = if kind == Kind::Share { MemRegionAttributes::default() } else { NORMAL };
        with("attributes", InvalidParameters, &|o| o.header.mem_region_attr = wrong_type);
    }
    let zero = MemTransactionFlags(MemTransactionFlags::ZERO_MEMORY);
    for (kind, writable) in [(Kind::Share, true), (Kind::Lend, false)] {
        let mut offer = OfferOf::new(First, kind, &[(a, 1)], writable);
        offer.header.flags = zero;
        bad.push(("zeroed for nothing", InvalidParameters, offer));
    }
    bad
}

#[test]
fn bad_offers_get_their_error_and_change_nothing() {
    with_service(|calls, _| {
        let before = calls.state();
        let bad = bad_offers();
        assert!(bad.len() > 90);
        for (what, error, offer) in bad {
            assert_eq!(calls.send(First, &offer), Err(error), "{:?}: {what}", offer.kind);
            assert_eq!(calls.state(), before, "{:?}: {what}", offer.kind);
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
fn bad_requests_get_their_error_and_change_nothing() {
    use DataAccessPerm::ReadWrite;
    use InstuctionAccessPerm::{Executable, NotExecutable};
    with_service(|calls, _| {
        for kind in KINDS {
            let offer = OfferOf::new(First, kind, &[(spare(First, 1), 2)], false);
            let handle = calls.send(First, &offer).unwrap();
            let before = calls.state();
            let good = Wish::of(First, handle);
            let writer = Wish { data_access: ReadWrite, ..good };
            let mut bad = vec![
                ("a sender's handle", First, good, InvalidParameters),
                ("in another's name", Second, Wish { receiver: First.id(), ..good }, InvalidParameters),
                ("another sender", Second, Wish { sender: Second.id(), ..good }, InvalidParameters),
                ("another tag", Second, Wish { tag: 8, ..good }, InvalidParameters),
                ("no such handle", Second, Wish { handle: Handle(handle.0 ^ 1), ..good }, InvalidParameters),
                ("an old handle", Second, Wish { handle: Handle(handle.0 - 256), ..good }, InvalidParameters),
                ("time slicing", Second, Wish { flags: 2, ..good }, InvalidParameters),
                ("zeroed", Second, Wish { flags: 1, ..good }, Denied),
            ];
            for other in KINDS.into_iter().filter(|other| *other != kind) {
                let flags = match other {
                    Kind::Share => 1 << 3,
                    Kind::Lend => 2 << 3,
                    Kind::Donate => 3 << 3,
                };
                bad.push(("another type", Second, Wish { flags, ..good }, InvalidParameters));
            }
            match kind {
                Kind::Donate => {
                    bad.push((
                        "less than all",
                        Second,
                        Wish { instr_access: NotExecutable, ..good },
                        InvalidParameters,
                    ));
                }
                Kind::Lend => bad.push(("to write", Second, writer, Denied)),
                Kind::Share => {
                    bad.push(("to write", Second, writer, Denied));
                    bad.push(("to execute", Second, Wish { instr_access: Executable, ..good }, Denied));
                }
            }
            for (what, caller, wish, error) in bad {
                assert_eq!(calls.retrieve(caller, &wish), Err(error), "{kind:?}: {what}");
                assert_eq!(calls.state(), before, "{kind:?}: {what}");
            }
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
    let service = service(&host);
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

#[test]
fn a_full_rx_buffer_stops_a_retrieval_before_it_begins() {
    with_service(|calls, _| {
        let offer = OfferOf::new(First, Kind::Lend, &[(spare(First, 0), 1)], true);
        let handle = calls.send(First, &offer).unwrap();
        let flags = PartitionInfoGetFlags { count_only: false };
        calls.raw(Second, &Interface::PartitionInfoGet { uuid: Uuid::nil(), flags }).unwrap();
        assert_eq!(calls.retrieve(Second, &Wish::of(First, handle)), Err(Busy));
        assert_eq!(calls.permissions(Second, spare(First, 0)), NONE);
        calls.raw(Second, &Interface::RxRelease { vm_id: 0 }).unwrap();
        calls.reclaim(First, handle).unwrap();
    });
}

#[test]
fn descriptors_in_pieces_are_refused() {
    with_service(|calls, _| {
        let offer = OfferOf::new(First, Kind::Lend, &[(spare(First, 0), 1)], true);
        let length = calls.tx(First, |bytes| offer.header.pack(&offer.ranges, &offer.access, bytes)) as u32;
        for (total, fragment, error) in [
            (length, length - 16, InvalidParameters),
            (length - 16, length, InvalidParameters),
            (length - 16, length - 16, InvalidParameters),
            (0, 0, InvalidParameters),
            (8192, 4096, NoMemory),
            (8192, 8192, InvalidParameters),
        ] {
            let result = calls.raw(First, &offer.call(total, fragment)).map(drop);
            assert_eq!(result, Err(error), "{fragment} of {total} bytes");
        }
    });
}

#[test]
fn what_is_not_served_says_so() {
    with_service(|calls, _| {
        let mut registers = [0; REGISTERS];
        for function in [0, 0x8400_0000, 0x8400_0050, 0x8400_00ff, u64::MAX] {
            registers[0] = function;
            assert_eq!(decode(&registers), Err(NotSupported), "{function:#x}");
        }
        // Reclaim with flags that do not exist: an argument that the decoder itself refuses.
        registers[0] = FuncId::MemReclaim as u64;
        registers[3] = 0xff;
        assert_eq!(decode(&registers), Err(InvalidParameters));
        assert!(matches!(calls.raw(First, &Interface::El3IntrHandle), Err(NotSupported)));
        assert!(matches!(calls.raw(First, &Interface::IdGet), Ok(SuccessOr::Args([0x8001, ..]))));
        assert!(matches!(calls.raw(Second, &Interface::IdGet), Ok(SuccessOr::Args([0x8002, ..]))));
    });
}

/// Random bytes as descriptors, random registers as calls: every answer is an answer, and nobody gets at anything that is
/// not theirs. What random calls do reach is checked by asking for everything back at the end.
#[test]
fn nonsense_is_survived() {
    with_service(|calls, _| {
        let mut random = Random::new(0xbad);
        let mut handles = Vec::new();
        for _ in 0..100_000 {
            let caller = Partition::ALL[random.below(2) as usize];
            // A good descriptor with a few bytes changed finds more than noise does.
            let page = spare(caller, random.below(32));
            let kind = KINDS[random.below(3) as usize];
            let offer = OfferOf::new(caller, kind, &[(page, 1)], true);
            let length = calls.tx(caller, |bytes| {
                let length = offer.header.pack(&offer.ranges, &offer.access, bytes);
                for _ in 0..random.below(3) {
                    bytes[random.below(length as u64) as usize] = random.next_number() as u8;
                }
                length as u32
            });
            let total_len = if random.below(8) == 0 { random.next_number() as u32 } else { length };
            let mut registers = [0; REGISTERS];
            offer.call(total_len, total_len).to_regs(secure_partition::service::VERSION, &mut registers);
            if random.below(8) == 0 {
                registers[0] = 0x8400_0060 + random.below(0x40);
            }
            if random.below(8) == 0 {
                registers[1 + random.below(7) as usize] = random.next_number() >> random.below(64);
            }
            let Ok(call) = decode(&registers) else { continue };
            if matches!(call, Interface::RxTxUnmap { .. } | Interface::RxTxMap { .. }) {
                continue;
            }
            if let Ok(SuccessOr::Args([low, high, ..])) = calls.raw(caller, &call) {
                handles.push((caller, Handle::from([low, high])));
            }
            if let Some((owner, handle)) = handles.pop_if(|_| random.below(2) == 0) {
                let _ = calls.reclaim(owner, handle);
            }
        }
        assert!(!handles.is_empty());
        for partition in Partition::ALL {
            let _ = calls.raw(partition, &Interface::RxRelease { vm_id: 0 });
        }
        for (owner, handle) in handles {
            let _ = calls.reclaim(owner, handle);
        }
        assert_eq!(calls.0.with_relayer(|relayer| relayer.pending()), 0);
    });
}
