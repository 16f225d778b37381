//! Everything that must be refused, tried on the real thing: each gets the error that the specification names, and nothing
//! changes. (What the SPM's own tests on a host try besides is more than this.)

use crate::ffa;
use crate::home::{Home, checked};
use crate::pages;
use crate::transfer::{self, Constituents, NORMAL, OfferOf, Wish};
use arm_ffa::FfaError::{self, Busy, Denied, InvalidParameters, NoMemory, NotSupported};
use arm_ffa::interface_args::{DirectMsgArgs, MsgWaitFlags, RxTxAddr};
use arm_ffa::memory_management::{
    Cacheability, ConstituentMemRegion, DataAccessPerm, DeviceMemAttributes, Handle, InstuctionAccessPerm,
    MemAccessPerm, MemRegionAttributes, MemTransactionFlags, MemType, Shareability,
};
use arm_ffa::partition_info::PartitionInfoGetFlags;
use arm_ffa::{FuncId, Interface, Uuid};
use secure_partition::descriptor::{Kind, MAX_RANGES};
use secure_partition::layout;
use secure_partition::work::{Answer, Failure};
use stage2::{Ipa, IpaRange, PAGE_SIZE};

const TAG: u64 = 0x5eed;

/// Counts trials, and stops at the first that does not end as it must.
struct Trials(u64);

impl Trials {
    fn expect<T>(&mut self, error: FfaError, result: Result<T, FfaError>) -> Result<(), Answer> {
        self.0 += 1;
        match result {
            Err(found) if found == error => Ok(()),
            Err(found) => {
                let code = found as i32;
                Err(Answer::Failed(Failure::Refusal, self.0 | u64::from(code as u32) << 32))
            }
            Ok(_) => Err(Answer::Failed(Failure::Refusal, self.0)),
        }
    }
}

/// Tries all.
pub fn try_all(home: &Home) -> Result<Answer, Answer> {
    let mut trials = Trials(0);
    // Four pages of this partition's first block, filled so that a change would show.
    let start = layout::spare(home.partition).start();
    let Ok(range) = IpaRange::from_size(start, 4 * PAGE_SIZE) else {
        return Err(Answer::Failed(Failure::Order, start.0));
    };
    pages::fill(&[range], TAG);
    offers(home, start, &mut trials)?;
    retrievals(home, range, &mut trials)?;
    calls(home, &mut trials)?;
    pages::check(&[range], Some(TAG))?;
    Ok(Answer::Done([trials.0, 0, 0, 0]))
}

const fn pages_at(start: Ipa, page: u64, page_cnt: u32) -> ConstituentMemRegion {
    ConstituentMemRegion { address: start.0 + page * PAGE_SIZE, page_cnt }
}

/// FFA_MEM_DONATE, FFA_MEM_LEND, FFA_MEM_SHARE.
fn offers(home: &Home, start: Ipa, trials: &mut Trials) -> Result<(), Answer> {
    let at = |address, page_cnt| ConstituentMemRegion { address, page_cnt };
    let peer = layout::spare(home.partition.other()).start();
    let end = layout::memory(home.partition).end();
    for kind in [Kind::Donate, Kind::Lend, Kind::Share] {
        let memory: [(FfaError, &[ConstituentMemRegion]); 14] = [
            // Overlap, whole and in part.
            (InvalidParameters, &[pages_at(start, 0, 1), pages_at(start, 0, 1)]),
            (InvalidParameters, &[pages_at(start, 0, 2), pages_at(start, 3, 1), pages_at(start, 1, 2)]),
            // Unaligned, empty, out of the IPA space, past the end of all addresses.
            (InvalidParameters, &[at(start.0 + 8, 1)]),
            (InvalidParameters, &[pages_at(start, 0, 0)]),
            (InvalidParameters, &[at(1 << layout::IPA_BITS, 1)]),
            (InvalidParameters, &[at((1 << layout::IPA_BITS) - PAGE_SIZE, 2)]),
            (InvalidParameters, &[at(!0xfff, 1)]),
            (InvalidParameters, &[]),
            // Another's, partly another's, nobody's, the program, the SPM.
            (Denied, &[at(peer.0, 1)]),
            (Denied, &[at(end.0 - PAGE_SIZE, 2)]),
            (Denied, &[at(0x1000, 1)]),
            (Denied, &[at(layout::PROGRAM.start().0, 1)]),
            (Denied, &[pages_at(start, 0, 1), at(0x4040_0000, 1)]),
            // A device.
            (Denied, &[at(layout::DEVICE.start().0, 1)]),
        ];
        for (error, ranges) in memory {
            trials.expect(error, OfferOf::new(home, kind, ranges, true, TAG).send(home))?;
        }
        // The buffers that the SPM uses.
        for buffer in [layout::rx_buffer(home.partition), layout::tx_buffer(home.partition)] {
            trials.expect(Denied, OfferOf::new(home, kind, &[at(buffer.0, 1)], true, TAG).send(home))?;
        }
        // More ranges than there is room for, and more than a buffer holds.
        let many = |count: u64| (0..count).map(|n| pages_at(start, 2 * n, 1)).collect::<Constituents>();
        trials.expect(NoMemory, OfferOf::new(home, kind, &many(MAX_RANGES as u64 + 1), true, TAG).send(home))?;
        let huge = many(300);
        let fragment = Some(PAGE_SIZE as u32);
        trials.expect(NoMemory, OfferOf { fragment, ..OfferOf::new(home, kind, &huge, true, TAG) }.send(home))?;

        let one = [pages_at(start, 0, 1)];
        let good = OfferOf::new(home, kind, &one, true, TAG);
        let with = |change: &dyn Fn(&mut OfferOf<'_>)| {
            let mut offer = good.clone();
            change(&mut offer);
            offer.send(home)
        };
        trials.expect(InvalidParameters, with(&|offer| offer.fragment = Some(48)))?;
        trials.expect(InvalidParameters, with(&|offer| offer.header.sender_id = home.partition.other().id()))?;
        trials.expect(InvalidParameters, with(&|offer| offer.header.handle = Handle(1)))?;
        trials.expect(InvalidParameters, with(&|offer| offer.header.flags = MemTransactionFlags(1 << 1)))?;
        for receiver in [home.partition.id(), 0x8003, 0] {
            trials.expect(InvalidParameters, with(&|offer| offer.access[0].endpoint_id = receiver))?;
        }
        let twice = |offer: &mut OfferOf<'_>| {
            let first: MemAccessPerm = offer.access[0];
            offer.access.push(first);
        };
        trials.expect(InvalidParameters, with(&twice))?;
        let executable = InstuctionAccessPerm::Executable;
        trials.expect(InvalidParameters, with(&|offer| offer.access[0].instr_access = executable))?;
        let device = MemType::Device(DeviceMemAttributes::DevnGnRE);
        let device = MemRegionAttributes { mem_type: device, ..NORMAL };
        trials.expect(Denied, with(&|offer| offer.header.mem_region_attr = device))?;
        let uncached = MemType::Normal { cacheability: Cacheability::NonCacheable, shareability: Shareability::Inner };
        let uncached = MemRegionAttributes { mem_type: uncached, ..NORMAL };
        trials.expect(InvalidParameters, with(&|offer| offer.header.mem_region_attr = uncached))?;
    }
    Ok(())
}

/// FFA_MEM_RETRIEVE_REQ, FFA_MEM_RELINQUISH, FFA_MEM_RECLAIM: by the wrong one, at the wrong time. The other partition's part
/// is in the moves: it is the same code.
fn retrievals(home: &Home, range: IpaRange, trials: &mut Trials) -> Result<(), Answer> {
    let described = transfer::constituents(&[range]);
    for kind in [Kind::Donate, Kind::Lend, Kind::Share] {
        let offer = OfferOf::new(home, kind, &described, true, TAG);
        let handle = checked(offer.send(home), transfer::function(kind))?;
        // Offered already, in whole and in part.
        trials.expect(Denied, offer.send(home))?;
        let part = [pages_at(range.start(), 3, 2)];
        trials.expect(Denied, OfferOf::new(home, Kind::Lend, &part, true, TAG).send(home))?;
        // It was not offered to its owner, and was not retrieved.
        let (data_access, instr_access) = (DataAccessPerm::NotSpecified, InstuctionAccessPerm::NotSpecified);
        let wish = Wish { handle, sender: home.partition, tag: TAG, data_access, instr_access };
        trials.expect(InvalidParameters, wish.retrieve(home))?;
        trials.expect(InvalidParameters, transfer::relinquish(home, handle))?;
        // No such transaction.
        for handle in [Handle(0), Handle(Handle::INVALID), Handle(handle.0 + 1), Handle(handle.0 | 1 << 63)] {
            trials.expect(InvalidParameters, transfer::reclaim(handle))?;
            trials.expect(InvalidParameters, Wish { handle, ..wish }.retrieve(home))?;
            trials.expect(InvalidParameters, transfer::relinquish(home, handle))?;
        }
        checked(transfer::reclaim(handle), FuncId::MemReclaim)?;
        trials.expect(InvalidParameters, transfer::reclaim(handle))?;
    }
    Ok(())
}

/// Calls that have nothing to do with memory, or nothing with FF-A.
fn calls(home: &Home, trials: &mut Trials) -> Result<(), Answer> {
    let message = |src_id, dst_id| {
        ffa::call(&Interface::MsgSendDirectReq { src_id, dst_id, args: DirectMsgArgs::Args64([0; 15]) })
    };
    let (own, other) = (home.partition.id(), home.partition.other().id());
    trials.expect(InvalidParameters, message(other, own))?;
    trials.expect(InvalidParameters, message(own, own))?;
    trials.expect(InvalidParameters, message(own, 0x8003))?;
    let answer = Interface::MsgSendDirectResp { src_id: own, dst_id: other, args: DirectMsgArgs::Args64([0; 15]) };
    trials.expect(InvalidParameters, ffa::call(&answer))?;
    trials.expect(Denied, ffa::call(&Interface::MsgWait { flags: MsgWaitFlags::default(), is_32bit: true }))?;
    trials.expect(NotSupported, ffa::call(&Interface::SpmIdGet).and_then(|_| ffa::call(&Interface::El3IntrHandle)))?;

    let addr = RxTxAddr::Addr64 { rx: layout::rx_buffer(home.partition).0, tx: layout::tx_buffer(home.partition).0 };
    trials.expect(Denied, ffa::call(&Interface::RxTxMap { addr, page_cnt: 1 }))?;
    trials.expect(Denied, ffa::call(&Interface::RxRelease { vm_id: 0 }))?;
    let info =
        |uuid| ffa::call(&Interface::PartitionInfoGet { uuid, flags: PartitionInfoGetFlags { count_only: false } });
    trials.expect(InvalidParameters, info(Uuid::from_u128(1)))?;
    // A full RX buffer is not written to again.
    checked(info(Uuid::nil()), FuncId::PartitionInfoGet)?;
    trials.expect(Busy, info(Uuid::nil()))?;
    checked(ffa::call(&Interface::RxRelease { vm_id: 0 }), FuncId::RxRelease)?;
    Ok(())
}
