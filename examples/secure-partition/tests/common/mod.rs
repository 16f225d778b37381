//! The SPM's service on a host: real tables on some platform, memory from the heap, and calls as a partition makes them.
#![allow(dead_code, reason = "each test program uses its own part")]

use arm_ffa::interface_args::{RxTxAddr, SuccessArgs};
use arm_ffa::memory_management::{
    Cacheability, ConstituentMemRegion, DataAccessPerm, Handle, InstuctionAccessPerm, MemAccessPerm, MemReclaimFlags,
    MemRegionAttributes, MemRegionSecurity, MemRelinquishDesc, MemTransactionDesc, MemType, Shareability,
};
use arm_ffa::{FfaError, Interface};
use secure_partition::Partition;
use secure_partition::descriptor::Kind;
use secure_partition::layout::{self, MEMORY};
use secure_partition::relayer::Machine;
use secure_partition::service::{self, REGISTERS, Service, VERSION, World};
use secure_partition::tables::Tables;
use stage2::pool::StaticPool;
use stage2::*;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Table frames from a pool; instructions do nothing.
pub struct Host {
    pub pool: Box<StaticPool<1>>,
    pub counters: Counters,
    /// Allocations that succeed from now on.
    pub left: Cell<usize>,
}

impl Host {
    pub fn new() -> Self {
        Self { pool: Box::new(StaticPool::new()), counters: Counters::new(), left: Cell::new(usize::MAX) }
    }
}

// SAFETY: frames come from the pool, are used for nothing else, and mapped where they are.
unsafe impl FrameAllocator for &Host {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        self.left.set(self.left.get().checked_sub(1)?);
        self.pool.allocate(frames)
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.pool.free(first, frames) };
    }
}

// SAFETY: no hardware walks these tables.
unsafe impl Maintenance for &Host {
    fn dsb(&self, _: Dsb) {}
    fn isb(&self) {}
    fn tlbi(&self, _: Vmid, _: Tlbi) {}
    fn counters(&self) -> &Counters {
        &self.counters
    }
}

pub fn features(bbm: BbmLevel) -> Features {
    Features::MINIMAL.with_pa_bits(40).with_bbm(bbm).with_tlbi_range(true).with_vmid_bits(16).with_lse(true)
}

pub const VMIDS: [u16; 2] = [1, 2];

pub fn vmids() -> [Vmid; 2] {
    VMIDS.map(|vmid| Vmid::new(vmid).unwrap())
}

/// Memory that is there when it is touched, and zero at first.
#[derive(Default)]
pub struct Memory(RefCell<HashMap<u64, [u8; 4096]>>);

impl Memory {
    pub fn page<T>(&self, page: Ipa, use_it: impl FnOnce(&mut [u8; 4096]) -> T) -> T {
        assert!(MEMORY.contains(page) && page.is_aligned(PAGE_SIZE), "the SPM touches {page}");
        use_it(self.0.borrow_mut().entry(page.0).or_insert([0; 4096]))
    }
}

/// What the service sees, with the tables on platform `P`.
pub struct Board<P> {
    pub tables: Tables<P>,
    pub memory: Memory,
}

impl<P: TableMemory + Maintenance> Machine for Board<P> {
    fn set_access(
        &self,
        partition: Partition,
        ranges: &[IpaRange],
        before: Permissions,
        after: Permissions,
    ) -> Result<(), Error> {
        self.tables.set_access(partition, ranges, before, after)
    }

    fn collapse(&self, partition: Partition, ranges: &[IpaRange]) {
        self.tables.collapse(partition, ranges);
    }

    fn zero(&self, range: IpaRange) {
        zero(&self.memory, range);
    }
}

impl<P: TableMemory + Maintenance> World for Board<P> {
    fn read(&self, page: Ipa, into: &mut [u8; 4096]) {
        self.memory.page(page, |bytes| *into = *bytes);
    }

    fn write(&self, page: Ipa, from: &[u8]) {
        self.memory.page(page, |bytes| bytes[..from.len()].copy_from_slice(from));
    }
}

pub fn zero(memory: &Memory, range: IpaRange) {
    for n in 0..range.pages() {
        memory.page(range.start().offset(n * PAGE_SIZE), |bytes| bytes.fill(0));
    }
}

/// A world whose tables the test may look at.
pub trait Bench: World {
    type Platform: TableMemory + Maintenance;
    fn tables(&self) -> &Tables<Self::Platform>;
    fn memory(&self) -> &Memory;
}

impl<P: TableMemory + Maintenance> Bench for Board<P> {
    type Platform = P;
    fn tables(&self) -> &Tables<P> {
        &self.tables
    }
    fn memory(&self) -> &Memory {
        &self.memory
    }
}

pub const NORMAL: MemRegionAttributes = MemRegionAttributes {
    security: MemRegionSecurity::Secure,
    mem_type: MemType::Normal { cacheability: Cacheability::WriteBack, shareability: Shareability::Inner },
};

/// An offer's descriptor, to be spoilt.
#[derive(Clone)]
pub struct OfferOf {
    pub kind: Kind,
    pub header: MemTransactionDesc,
    pub access: Vec<MemAccessPerm>,
    pub ranges: Vec<ConstituentMemRegion>,
}

impl OfferOf {
    pub fn new(sender: Partition, kind: Kind, ranges: &[(u64, u32)], writable: bool) -> Self {
        let data_access = match (kind, writable) {
            (Kind::Donate, _) => DataAccessPerm::NotSpecified,
            (_, true) => DataAccessPerm::ReadWrite,
            (_, false) => DataAccessPerm::ReadOnly,
        };
        let mem_region_attr = if kind == Kind::Share { NORMAL } else { MemRegionAttributes::default() };
        let header =
            MemTransactionDesc { sender_id: sender.id(), mem_region_attr, tag: 7, ..MemTransactionDesc::default() };
        let access = vec![MemAccessPerm { endpoint_id: sender.other().id(), data_access, ..MemAccessPerm::default() }];
        let ranges = ranges.iter().map(|&(address, page_cnt)| ConstituentMemRegion { address, page_cnt }).collect();
        Self { kind, header, access, ranges }
    }

    pub fn call(&self, total_len: u32, frag_len: u32) -> Interface {
        match self.kind {
            Kind::Donate => Interface::MemDonate { total_len, frag_len, buf: None },
            Kind::Lend => Interface::MemLend { total_len, frag_len, buf: None },
            Kind::Share => Interface::MemShare { total_len, frag_len, buf: None },
        }
    }
}

/// A receiver's wish, to be spoilt.
#[derive(Clone, Copy)]
pub struct Wish {
    pub handle: Handle,
    pub sender: u16,
    pub receiver: u16,
    pub tag: u64,
    pub flags: u32,
    pub data_access: DataAccessPerm,
    pub instr_access: InstuctionAccessPerm,
}

impl Wish {
    pub fn of(sender: Partition, handle: Handle) -> Self {
        Self {
            handle,
            sender: sender.id(),
            receiver: sender.other().id(),
            tag: 7,
            flags: 0,
            data_access: DataAccessPerm::NotSpecified,
            instr_access: InstuctionAccessPerm::NotSpecified,
        }
    }
}

/// Calls as partitions make them: through registers and buffers.
pub struct Calls<'s, W>(pub &'s Service<W>);

impl<W: Bench> Calls<'_, W> {
    pub fn raw(&self, caller: Partition, call: &Interface) -> Result<SuccessOr, FfaError> {
        let mut registers = [0; REGISTERS];
        call.to_regs(VERSION, &mut registers);
        let call = service::decode(&registers)?;
        match self.0.call(caller, &call) {
            Interface::Error { error_code, .. } => Err(error_code),
            Interface::Success { args: SuccessArgs::Args32(args), .. } => Ok(SuccessOr::Args(args)),
            other => Ok(SuccessOr::Other(other)),
        }
    }

    pub fn register_buffers(&self) {
        for partition in Partition::ALL {
            let addr = RxTxAddr::Addr64 { rx: layout::rx_buffer(partition).0, tx: layout::tx_buffer(partition).0 };
            self.raw(partition, &Interface::RxTxMap { addr, page_cnt: 1 }).unwrap();
        }
    }

    pub fn tx<T>(&self, caller: Partition, write: impl FnOnce(&mut [u8]) -> T) -> T {
        self.0.world().memory().page(layout::tx_buffer(caller), |bytes| write(bytes))
    }

    pub fn send(&self, caller: Partition, offer: &OfferOf) -> Result<Handle, FfaError> {
        let length = self.tx(caller, |bytes| offer.header.pack(&offer.ranges, &offer.access, bytes)) as u32;
        let SuccessOr::Args([low, high, ..]) = self.raw(caller, &offer.call(length, length))? else {
            panic!("an offer returns a handle");
        };
        Ok(Handle::from([low, high]))
    }

    pub fn retrieve(&self, caller: Partition, wish: &Wish) -> Result<Vec<ConstituentMemRegion>, FfaError> {
        let access = MemAccessPerm {
            endpoint_id: wish.receiver,
            instr_access: wish.instr_access,
            data_access: wish.data_access,
            flags: 0,
        };
        let header = MemTransactionDesc {
            sender_id: wish.sender,
            handle: wish.handle,
            tag: wish.tag,
            flags: arm_ffa::memory_management::MemTransactionFlags(wish.flags),
            ..MemTransactionDesc::default()
        };
        let length = self.tx(caller, |bytes| {
            let length = header.pack(&[], &[access], bytes) - 16;
            // No memory is described: a composite offset of 0.
            bytes[52..56].fill(0);
            length as u32
        });
        let call = Interface::MemRetrieveReq { total_len: length, frag_len: length, buf: None };
        let SuccessOr::Other(Interface::MemRetrieveResp { total_len, .. }) = self.raw(caller, &call)? else {
            panic!("a retrieval returns a descriptor");
        };
        let ranges = self.0.world().memory().page(layout::rx_buffer(caller), |bytes| {
            let (_, _, ranges) = MemTransactionDesc::unpack(&bytes[..total_len as usize]).unwrap();
            ranges.unwrap().map(Result::unwrap).collect()
        });
        self.raw(caller, &Interface::RxRelease { vm_id: 0 }).unwrap();
        Ok(ranges)
    }

    pub fn relinquish(&self, caller: Partition, handle: Handle) -> Result<(), FfaError> {
        self.tx(caller, |bytes| MemRelinquishDesc { handle, flags: 0 }.pack(&[caller.id()], bytes));
        self.raw(caller, &Interface::MemRelinquish).map(drop)
    }

    pub fn reclaim(&self, caller: Partition, handle: Handle) -> Result<(), FfaError> {
        self.raw(caller, &Interface::MemReclaim { handle, flags: MemReclaimFlags::default() }).map(drop)
    }

    /// What a partition may do with a page.
    pub fn permissions(&self, partition: Partition, page: u64) -> Permissions {
        let leaf = self.0.world().tables().of(partition).read().walk(Ipa(page)).expect("all memory is mapped");
        assert_eq!(leaf.output.0 + (page - leaf.ipa.0), page, "memory stays where it is");
        leaf.attributes.permissions
    }

    /// All that a call could change, but for the contents of memory.
    pub fn state(&self) -> String {
        let tables = Partition::ALL.map(|partition| {
            let table = self.0.world().tables().of(partition).read();
            let leaves: Vec<Leaf> = table.leaves(MEMORY).collect();
            format!("{:?} {leaves:?}", table.census())
        });
        self.0.with_relayer(|relayer| format!("{relayer:?} {tables:?}"))
    }
}

#[derive(Debug)]
pub enum SuccessOr {
    Args([u32; 6]),
    Other(Interface),
}

/// A page that a partition can spare.
pub fn spare(partition: Partition, page: u64) -> u64 {
    layout::spare(partition).start().0 + page * PAGE_SIZE
}

pub const KINDS: [Kind; 3] = [Kind::Donate, Kind::Lend, Kind::Share];
pub const READ: Permissions = Permissions::READ;
pub const READ_WRITE: Permissions = Permissions::READ_WRITE;
pub const ALL: Permissions = Permissions::ALL;
pub const NONE: Permissions = Permissions::NONE;

pub fn fresh_service(host: &Host) -> Service<Board<Mapped<&Host>>> {
    let tables = Tables::new([Mapped::new(host); 2], vmids(), features(BbmLevel::Level2)).unwrap();
    Service::new(Board { tables, memory: Memory::default() })
}

/// Runs a test on a fresh service with both partitions' buffers registered, and checks that all comes back.
pub fn with_service(test: impl FnOnce(&Calls<'_, Board<Mapped<&Host>>>, &Host)) {
    let host = Host::new();
    let service = fresh_service(&host);
    let calls = Calls(&service);
    calls.register_buffers();
    let (state, frames) = (calls.state(), host.pool.available());
    test(&calls, &host);
    let serial = |state: &str| state[..state.rfind("serial").unwrap_or(0)].to_owned();
    assert_eq!(serial(&calls.state()), serial(&state), "memory is not back where it was");
    assert_eq!(host.pool.available(), frames, "frames are missing");
    assert_eq!(host.counters.get(Event::InvalidWindow), 0);
}
