//! Memory transactions, from a partition's side.

use crate::ffa;
use crate::home::{Home, checked};
use arm_ffa::memory_management::{
    Cacheability, ConstituentMemRegion, DataAccessPerm, Handle, InstuctionAccessPerm, MemAccessPerm, MemReclaimFlags,
    MemRegionAttributes, MemRelinquishDesc, MemTransactionDesc, MemTransactionFlags, MemType, Shareability,
    SuccessArgsMemOp,
};
use arm_ffa::{FfaError, FuncId, Interface};
use arrayvec::ArrayVec;
use secure_partition::Partition;
use secure_partition::descriptor::{Kind, MAX_RANGES};
use secure_partition::work::{Answer, Failure};
use stage2::{Ipa, IpaRange, PAGE_SIZE};

/// More than the SPM takes, to see it refuse.
pub type Constituents = ArrayVec<ConstituentMemRegion, 300>;
/// Memory of one transaction.
pub type Ranges = ArrayVec<IpaRange, MAX_RANGES>;

/// The attributes of all memory that is shared.
pub const NORMAL: MemRegionAttributes = MemRegionAttributes {
    security: arm_ffa::memory_management::MemRegionSecurity::Secure,
    mem_type: MemType::Normal { cacheability: Cacheability::WriteBack, shareability: Shareability::Inner },
};

/// All that an offer says; what is wrong in it is wrong on purpose.
#[derive(Clone)]
pub struct OfferOf<'r> {
    /// Donate, lend or share.
    pub kind: Kind,
    /// Header.
    pub header: MemTransactionDesc,
    /// Receivers.
    pub access: ArrayVec<MemAccessPerm, 2>,
    /// Memory.
    pub ranges: &'r [ConstituentMemRegion],
    /// How much of the descriptor is said to be in the buffer, if not all.
    pub fragment: Option<u32>,
}

impl<'r> OfferOf<'r> {
    /// An offer to the other partition that has nothing wrong.
    pub fn new(home: &Home, kind: Kind, ranges: &'r [ConstituentMemRegion], writable: bool, tag: u64) -> Self {
        let data_access = match (kind, writable) {
            (Kind::Donate, _) => DataAccessPerm::NotSpecified,
            (_, true) => DataAccessPerm::ReadWrite,
            (_, false) => DataAccessPerm::ReadOnly,
        };
        let mem_region_attr = if kind == Kind::Share { NORMAL } else { MemRegionAttributes::default() };
        let sender_id = home.partition.id();
        let header = MemTransactionDesc { sender_id, mem_region_attr, tag, ..MemTransactionDesc::default() };
        let endpoint_id = home.partition.other().id();
        let access = ArrayVec::from_iter([MemAccessPerm { endpoint_id, data_access, ..MemAccessPerm::default() }]);
        Self { kind, header, access, ranges, fragment: None }
    }

    /// FFA_MEM_DONATE, FFA_MEM_LEND or FFA_MEM_SHARE.
    pub fn send(&self, home: &Home) -> Result<Handle, FfaError> {
        let mut buffers = home.buffers();
        // A descriptor that would not fit is not written, only announced.
        let total_len = match self.ranges.len() <= 240 {
            true => self.header.pack(self.ranges, &self.access, buffers.tx()) as u32,
            false => 80 + 16 * self.ranges.len() as u32,
        };
        let frag_len = self.fragment.unwrap_or(total_len);
        let call = match self.kind {
            Kind::Donate => Interface::MemDonate { total_len, frag_len, buf: None },
            Kind::Lend => Interface::MemLend { total_len, frag_len, buf: None },
            Kind::Share => Interface::MemShare { total_len, frag_len, buf: None },
        };
        match ffa::call(&call)? {
            Interface::Success { args, .. } => {
                SuccessArgsMemOp::try_from(args).map(|args| args.handle).map_err(|_| FfaError::InvalidParameters)
            }
            _ => Err(FfaError::InvalidParameters),
        }
    }
}

/// What a receiver asks for.
#[derive(Clone, Copy)]
pub struct Wish {
    /// The transaction.
    pub handle: Handle,
    /// From whom.
    pub sender: Partition,
    /// Its tag.
    pub tag: u64,
    /// Data access.
    pub data_access: DataAccessPerm,
    /// Instruction access.
    pub instr_access: InstuctionAccessPerm,
}

impl Wish {
    /// FFA_MEM_RETRIEVE_REQ: the memory.
    pub fn retrieve(&self, home: &Home) -> Result<Ranges, FfaError> {
        let access = MemAccessPerm {
            endpoint_id: home.partition.id(),
            instr_access: self.instr_access,
            data_access: self.data_access,
            flags: 0,
        };
        let header = MemTransactionDesc {
            sender_id: self.sender.id(),
            handle: self.handle,
            tag: self.tag,
            ..MemTransactionDesc::default()
        };
        let mut buffers = home.buffers();
        // `pack` always describes memory; a request has none, so what tells where it is, is zeroed.
        let length = header.pack(&[], &[access], buffers.tx()) - 16;
        buffers.tx()[COMPOSITE_OFFSET..COMPOSITE_OFFSET + 4].fill(0);
        let (total_len, frag_len) = (length as u32, length as u32);
        let answer = ffa::call(&Interface::MemRetrieveReq { total_len, frag_len, buf: None })?;
        let Interface::MemRetrieveResp { total_len, .. } = answer else {
            return Err(FfaError::InvalidParameters);
        };
        let ranges = read_ranges(buffers.rx().get(..total_len as usize).unwrap_or_default(), self.handle);
        // Only now may the SPM write there again, for whichever context asks first.
        ffa::call(&Interface::RxRelease { vm_id: 0 })?;
        drop(buffers);
        ranges.ok_or(FfaError::InvalidParameters)
    }
}

/// Where the first receiver's descriptor says where the memory's is: behind a header of 48 bytes.
const COMPOSITE_OFFSET: usize = 48 + 4;

fn read_ranges(bytes: &[u8], handle: Handle) -> Option<Ranges> {
    let (header, _, constituents) = MemTransactionDesc::unpack(bytes).ok()?;
    if header.handle != handle || header.flags.0 & MemTransactionFlags::TYPE_DONATE == 0 {
        return None;
    }
    let mut ranges = Ranges::new();
    for constituent in constituents? {
        let ConstituentMemRegion { address, page_cnt } = constituent.ok()?;
        ranges.try_push(IpaRange::from_size(Ipa(address), u64::from(page_cnt) * PAGE_SIZE).ok()?).ok()?;
    }
    Some(ranges)
}

/// FFA_MEM_RELINQUISH.
pub fn relinquish(home: &Home, handle: Handle) -> Result<(), FfaError> {
    let mut buffers = home.buffers();
    MemRelinquishDesc { handle, flags: 0 }.pack(&[home.partition.id()], buffers.tx());
    ffa::call(&Interface::MemRelinquish).map(drop)
}

/// FFA_MEM_RECLAIM.
pub fn reclaim(handle: Handle) -> Result<(), FfaError> {
    ffa::call(&Interface::MemReclaim { handle, flags: MemReclaimFlags::default() }).map(drop)
}

/// The descriptor of ranges.
pub fn constituents(ranges: &[IpaRange]) -> ArrayVec<ConstituentMemRegion, MAX_RANGES> {
    let describe = |range: &IpaRange| ConstituentMemRegion { address: range.start().0, page_cnt: range.pages() as u32 };
    ranges.iter().take(MAX_RANGES).map(describe).collect()
}

/// The call's function ID, for a report.
pub const fn function(kind: Kind) -> FuncId {
    match kind {
        Kind::Donate => FuncId::MemDonate32,
        Kind::Lend => FuncId::MemLend32,
        Kind::Share => FuncId::MemShare32,
    }
}

/// Takes back a donation: retrieves what the other partition donates, and makes sure that it is `expected`.
pub fn take_back(home: &Home, handle: Handle, tag: u64, expected: Option<&[IpaRange]>) -> Result<Ranges, Answer> {
    let wish = Wish {
        handle,
        sender: home.partition.other(),
        tag,
        data_access: DataAccessPerm::NotSpecified,
        instr_access: InstuctionAccessPerm::NotSpecified,
    };
    let ranges = checked(wish.retrieve(home), FuncId::MemRetrieveReq32)?;
    match expected.is_none_or(|expected| *expected == ranges[..]) {
        true => Ok(ranges),
        false => Err(Answer::Failed(Failure::Descriptor, handle.0)),
    }
}
