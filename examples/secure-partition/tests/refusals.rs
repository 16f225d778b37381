//! Whatever a partition can send that must be refused: its error, and nothing has changed.

mod common;

use Partition::{First, Second};
use arm_ffa::FfaError::{self, Busy, Denied, InvalidParameters, NoMemory, NotSupported};
use arm_ffa::memory_management::{
    DataAccessPerm, DeviceMemAttributes, Handle, InstuctionAccessPerm, MemRegionAttributes, MemRegionSecurity,
    MemTransactionFlags, MemType,
};
use arm_ffa::partition_info::PartitionInfoGetFlags;
use arm_ffa::{FuncId, Interface, Uuid};
use common::*;
use secure_partition::descriptor::{Kind, MAX_RANGES};
use secure_partition::layout::{self, MEMORY};
use secure_partition::service::{REGISTERS, decode};
use secure_partition::{Partition, work::Random};
use stage2::PAGE_SIZE;

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
