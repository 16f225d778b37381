//! What a partition asks for: memory transaction descriptors, checked as far as they can be without a look at any state.
//!
//! Every error is the one that the protocol's table for the call names (DEN0140, chapter on the ABIs).

use crate::Partition;
use crate::layout::IPA_BITS;
use arm_ffa::FfaError::{self, Denied, InvalidParameters, NoMemory};
use arm_ffa::memory_management::{
    Cacheability, ConstituentMemRegion, DataAccessPerm, Handle, InstuctionAccessPerm, MemAccessPerm,
    MemRegionAttributes, MemRegionSecurity, MemRelinquishDesc, MemTransactionDesc, MemTransactionFlags, MemType,
    Shareability,
};
use arrayvec::ArrayVec;
use stage2::{Ipa, IpaRange, PAGE_SIZE, Permissions};

/// Address ranges in one transaction.
pub const MAX_RANGES: usize = 8;

/// Ranges that one transaction moves, in the order of the descriptor.
pub type Ranges = ArrayVec<IpaRange, MAX_RANGES>;

/// What becomes of the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The receiver owns it.
    Donate,
    /// The borrower has it, the owner can't access it.
    Lend,
    /// Both have it.
    Share,
}

impl Kind {
    /// The transaction type in the flags of a retrieve request and of its response.
    const fn flags(self) -> u32 {
        match self {
            Kind::Donate => MemTransactionFlags::TYPE_DONATE,
            Kind::Lend => MemTransactionFlags::TYPE_LEND,
            Kind::Share => MemTransactionFlags::TYPE_SHARE,
        }
    }
}

/// The only memory that is moved: Secure, Normal, write-back, inner shareable.
const NORMAL: MemType = MemType::Normal { cacheability: Cacheability::WriteBack, shareability: Shareability::Inner };

/// FFA_MEM_DONATE, FFA_MEM_LEND or FFA_MEM_SHARE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Which of the three.
    pub kind: Kind,
    /// The owner.
    pub sender: Partition,
    /// Whom it is for.
    pub receiver: Partition,
    /// The memory.
    pub ranges: Ranges,
    /// Whether the receiver may write.
    pub writable: bool,
    /// The memory is zeroed before it is offered.
    pub zero: bool,
    /// The sender's word for the transaction, which the receiver must repeat.
    pub tag: u64,
}

impl Offer {
    /// Reads a descriptor that `caller` sent.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS for a descriptor that contradicts itself or the call; DENIED for memory that is not Normal;
    /// NO_MEMORY for more ranges than there is room for.
    pub fn parse(kind: Kind, caller: Partition, bytes: &[u8]) -> Result<Self, FfaError> {
        let (header, mut receivers, ranges) = MemTransactionDesc::unpack(bytes)?;
        if header.sender_id != caller.id() || header.handle != Handle(0) {
            return Err(InvalidParameters);
        }
        check_attributes(kind, header.mem_region_attr)?;
        let zero = header.flags.0 & MemTransactionFlags::ZERO_MEMORY != 0;
        if header.flags.0 & !MemTransactionFlags::ZERO_MEMORY != 0 || zero && kind == Kind::Share {
            return Err(InvalidParameters);
        }
        let receiver = receivers.next().ok_or(InvalidParameters)??;
        if receivers.next().is_some() {
            // There is one other partition, and a list names nobody twice.
            return Err(InvalidParameters);
        }
        let to = Partition::from_id(receiver.endpoint_id).filter(|to| *to != caller).ok_or(InvalidParameters)?;
        // Instruction access is for the receiver to ask for; data access is for the lender to limit.
        let writable = match (kind, receiver.data_access) {
            (Kind::Donate, DataAccessPerm::NotSpecified) => true,
            (Kind::Lend | Kind::Share, DataAccessPerm::ReadOnly) => false,
            (Kind::Lend | Kind::Share, DataAccessPerm::ReadWrite) => true,
            _ => return Err(InvalidParameters),
        };
        if receiver.instr_access != InstuctionAccessPerm::NotSpecified || receiver.flags != 0 || zero && !writable {
            return Err(InvalidParameters);
        }
        let ranges = parse_ranges(ranges.ok_or(InvalidParameters)?)?;
        Ok(Self { kind, sender: caller, receiver: to, ranges, writable, zero, tag: header.tag })
    }

    /// Writes the answer to a retrieve request, whose `permissions` were granted; returns its length. `buffer` is a page.
    pub fn write_response(&self, handle: Handle, permissions: Permissions, buffer: &mut [u8]) -> usize {
        let ranges: ArrayVec<ConstituentMemRegion, MAX_RANGES> = self
            .ranges
            .iter()
            .map(|range| ConstituentMemRegion { address: range.start().0, page_cnt: range.pages() as u32 })
            .collect();
        let access = MemAccessPerm {
            endpoint_id: self.receiver.id(),
            instr_access: match permissions.execute.at(false) {
                true => InstuctionAccessPerm::Executable,
                false => InstuctionAccessPerm::NotExecutable,
            },
            data_access: match permissions.write {
                true => DataAccessPerm::ReadWrite,
                false => DataAccessPerm::ReadOnly,
            },
            flags: 0,
        };
        let zeroed = if self.zero { MemTransactionFlags::ZERO_MEMORY } else { 0 };
        let header = MemTransactionDesc {
            sender_id: self.sender.id(),
            mem_region_attr: MemRegionAttributes { security: MemRegionSecurity::Secure, mem_type: NORMAL },
            flags: MemTransactionFlags(self.kind.flags() | zeroed),
            handle,
            tag: self.tag,
        };
        header.pack(&ranges, &[access], buffer)
    }
}

/// Lent and donated memory keeps its attributes, so none may be given; shared memory's must be what it is mapped with.
fn check_attributes(kind: Kind, attributes: MemRegionAttributes) -> Result<(), FfaError> {
    match (kind, attributes.mem_type, attributes.security) {
        (_, _, MemRegionSecurity::NonSecure) => Err(InvalidParameters),
        (_, MemType::Device(_), _) => Err(Denied),
        (Kind::Donate | Kind::Lend, MemType::NotSpecified, _) => Ok(()),
        (Kind::Share, mem_type, _) if mem_type == NORMAL => Ok(()),
        _ => Err(InvalidParameters),
    }
}

/// Whole pages inside the IPA space, none of them twice.
fn parse_ranges(
    constituents: impl Iterator<Item = Result<ConstituentMemRegion, arm_ffa::memory_management::Error>>,
) -> Result<Ranges, FfaError> {
    let mut ranges = Ranges::new();
    for constituent in constituents {
        let ConstituentMemRegion { address, page_cnt } = constituent?;
        let range =
            IpaRange::from_size(Ipa(address), u64::from(page_cnt) * PAGE_SIZE).map_err(|_| InvalidParameters)?;
        if range.end().0 > 1 << IPA_BITS || ranges.iter().any(|other| other.intersection(range).is_some()) {
            return Err(InvalidParameters);
        }
        ranges.try_push(range).map_err(|_| NoMemory)?;
    }
    if ranges.is_empty() { Err(InvalidParameters) } else { Ok(ranges) }
}

/// FFA_MEM_RETRIEVE_REQ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What is to be retrieved.
    pub handle: Handle,
    sender: u16,
    flags: u32,
    tag: u64,
    access: DataAccessPerm,
    instructions: InstuctionAccessPerm,
}

impl Request {
    /// Reads a descriptor that `caller` sent.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS.
    pub fn parse(caller: Partition, bytes: &[u8]) -> Result<Self, FfaError> {
        let (header, mut receivers, ranges) = MemTransactionDesc::unpack(bytes)?;
        let receiver = receivers.next().ok_or(InvalidParameters)??;
        // The SPM picks the address (the one that the memory has at the sender), so none may be asked for.
        if receiver.endpoint_id != caller.id() || receiver.flags != 0 || receivers.next().is_some() || ranges.is_some()
        {
            return Err(InvalidParameters);
        }
        let MemTransactionDesc { sender_id: sender, flags, handle, tag, .. } = header;
        let (access, instructions) = (receiver.data_access, receiver.instr_access);
        Ok(Self { handle, sender, flags: flags.0, tag, access, instructions })
    }

    /// What the receiver of `offer` gets: what it asks for, if the offer and the kind of transaction allow it.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS if it describes another transaction; DENIED if it asks for more than it may have.
    pub fn permissions(&self, offer: &Offer) -> Result<Permissions, FfaError> {
        const TYPE: u32 = MemTransactionFlags::TYPE_DONATE;
        let (kind, flags) = (self.flags & TYPE, self.flags & !TYPE);
        if self.sender != offer.sender.id()
            || self.tag != offer.tag
            || kind != 0 && kind != offer.kind.flags()
            || flags & !MemTransactionFlags::ZERO_MEMORY != 0
        {
            return Err(InvalidParameters);
        }
        if flags != 0 && !offer.zero {
            // Zeroed memory is expected, but the sender did not ask for it.
            return Err(Denied);
        }
        let (access, instructions) = (self.access, self.instructions);
        if offer.kind == Kind::Donate {
            // An owner has all permissions here, and can't ask for fewer.
            let fewer = access == DataAccessPerm::ReadOnly || instructions == InstuctionAccessPerm::NotExecutable;
            return if fewer { Err(InvalidParameters) } else { Ok(Permissions::ALL) };
        }
        let write = match access {
            DataAccessPerm::NotSpecified => offer.writable,
            DataAccessPerm::ReadOnly => false,
            DataAccessPerm::ReadWrite => true,
        };
        let execute = instructions == InstuctionAccessPerm::Executable;
        // Shared memory is never executed, and borrowed memory either written or executed.
        if write && !offer.writable || execute && (write || offer.kind == Kind::Share) {
            return Err(Denied);
        }
        Ok(Permissions { read: true, write, execute: execute.into() })
    }
}

/// FFA_MEM_RELINQUISH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relinquishment {
    /// What is given back.
    pub handle: Handle,
    /// It is zeroed first.
    pub zero: bool,
}

impl Relinquishment {
    /// Reads a descriptor that `caller` sent.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS.
    pub fn parse(caller: Partition, bytes: &[u8]) -> Result<Self, FfaError> {
        let (MemRelinquishDesc { handle, flags }, mut endpoints) = MemRelinquishDesc::unpack(bytes)?;
        let zero = flags & MemTransactionFlags::ZERO_MEMORY != 0;
        if endpoints.next() != Some(caller.id())
            || endpoints.next().is_some()
            || flags & !MemTransactionFlags::ZERO_MEMORY != 0
        {
            return Err(InvalidParameters);
        }
        Ok(Self { handle, zero })
    }
}
