//! A guest on its way into the store.

use crate::el2::mediation::hold;
use crate::el2::saving::Stopped;
use crate::el2::saving::pages::{self, ROOM, Room, as_bytes, as_bytes_mut};
use crate::el2::saving::store::{Failure, Store};
use hypervisor_abi::page_hash::{WORDS, page_hash};
use hypervisor_abi::saved::{
    BLOCK_BYTES, Block, Checksum, End, Fact, Header, Kind, MAX_PAGES, MAX_RUNS, Order, Run, push_item,
};

/// The item with the state of a device behind the hypervisor: the address of its registers in 8 bytes, then what
/// [`hold::save`] gives.
pub const DEVICE: u16 = 0x100;

/// What a file has so far. It outlives the requests that send parts.
pub struct Sender {
    order: Order,
    runs: [Run; MAX_RUNS],
    used: usize,
    /// Pages in the payload of the record that is being made, and their checksum.
    filled: u64,
    checksum: Checksum,
}

/// Pages that were sent, and pages that are zero.
#[derive(Clone, Copy, Default)]
pub struct Counted {
    /// In payloads.
    pub pages: u64,
    /// Named.
    pub zero_pages: u64,
}

/// What a sender writes to, and what of the guest's it may rely on.
pub struct Way<'w> {
    /// Where it goes.
    pub store: &'w mut Store,
    /// Room of EL2's own.
    pub room: &'w mut Room,
    /// The guest stands still: pages go from where they are. Otherwise they are copied first, for a page that changes on its
    /// way would have another checksum.
    pub still: bool,
}

impl Sender {
    /// Nothing was sent.
    pub const fn new() -> Self {
        let none = Run { page: 0, count: 0, zero: false };
        Self { order: Order::after_tool(), runs: [none; MAX_RUNS], used: 0, filled: 0, checksum: Checksum::new() }
    }

    /// Bytes of the file so far.
    pub const fn end(&self) -> u64 {
        self.order.block() * BLOCK_BYTES
    }

    /// Begins a file anew: what the machine is comes first.
    pub fn begin(&mut self, way: &mut Way<'_>, facts: &[Fact]) -> Result<(), Failure> {
        (self.order, self.used, self.filled, self.checksum) = (Order::after_tool(), 0, 0, Checksum::new());
        let slots = way.room.payload.as_flattened_mut().as_chunks_mut().0;
        if facts.len() > slots.len() {
            return Err(Failure::Said("the machine has more CPUs than a file has room for"));
        }
        slots.iter_mut().zip(facts).for_each(|(slot, fact)| *slot = fact.words());
        self.payload(way, Kind::Machine, facts.len() as u64 * size_of::<[u64; 2]>() as u64)
    }

    /// Sends the guest's page with this number (its address divided by 4 KiB).
    ///
    /// # Safety
    ///
    /// It is RAM of the guest's; where the guest is said to stand still, it does, up to the next [`Sender::flush`].
    pub unsafe fn page(&mut self, way: &mut Way<'_>, counted: &mut Counted, page: u64) -> Result<(), Failure> {
        let address = page * BLOCK_BYTES;
        let contents: &Block = if way.still {
            // SAFETY: the caller's promise.
            unsafe { pages::page(address) }
        } else {
            let slot = way.room.payload.get_mut(self.filled as usize).ok_or(Failure::Said("there is no room"))?;
            // SAFETY: the caller's promise.
            unsafe { pages::copy(address, slot) };
            slot
        };
        let zero = pages::is_zero(contents);
        if zero {
            counted.zero_pages += 1;
        } else {
            self.checksum.add_hash(page_hash(contents));
            self.filled += 1;
            counted.pages += 1;
        }
        match self.used.checked_sub(1).and_then(|last| self.runs.get_mut(last)) {
            Some(run) if run.page + run.count == page && run.zero == zero && run.count < Run::MAX_COUNT => {
                run.count += 1;
            }
            _ => {
                if let Some(slot) = self.runs.get_mut(self.used) {
                    *slot = Run { page, count: 1, zero };
                    self.used += 1;
                }
            }
        }
        let most = if way.still { MAX_PAGES } else { ROOM as u64 };
        // SAFETY: the caller's promise, which holds up to here.
        if self.used == MAX_RUNS || self.filled == most { unsafe { self.flush(way) } } else { Ok(()) }
    }

    /// Sends what has not filled a record.
    ///
    /// # Safety
    ///
    /// Where the guest is said to stand still, it has since the first page that was not flushed yet.
    pub unsafe fn flush(&mut self, way: &mut Way<'_>) -> Result<(), Failure> {
        let runs = self.runs.get(..self.used).unwrap_or_default();
        if runs.is_empty() {
            return Ok(());
        }
        let bytes = self.filled * BLOCK_BYTES;
        let header = Header { kind: Kind::Pages, number: self.order.number(), bytes, checksum: self.checksum.value() };
        *way.room.header = header.encode(runs);
        let mut block = self.order.block();
        way.store.write(block, as_bytes(core::slice::from_ref(way.room.header)))?;
        block += 1;
        if way.still {
            for &run in runs.iter().filter(|run| !run.zero) {
                // SAFETY: the caller's promise.
                way.store.write(block, unsafe { pages::bytes(run) })?;
                block += run.count;
            }
        } else if let Some(pages) = way.room.payload.get(..self.filled as usize).filter(|pages| !pages.is_empty()) {
            way.store.write(block, as_bytes(pages))?;
        }
        self.order.accept(&header)?;
        (self.used, self.filled, self.checksum) = (0, 0, Checksum::new());
        Ok(())
    }

    /// Sends all that a guest has besides memory, its devices being quiet, and ends the file. `hash` is that of all its memory.
    pub fn end_with(&mut self, way: &mut Way<'_>, stopped: &Stopped, hash: u64) -> Result<(), Failure> {
        let mut used = 0;
        stopped.collect(|item, bytes| self.item(way, &mut used, item as u16, bytes))?;
        let mut result = Ok(());
        let all = hold::save(|address, state| {
            let mut bytes = [0; size_of::<u64>() + hold::STATE_BYTES];
            let (place, rest) = bytes.split_at_mut(size_of::<u64>());
            place.copy_from_slice(&address.to_le_bytes());
            let Some(room) = rest.get_mut(..state.len()) else { return };
            room.copy_from_slice(state);
            let bytes = bytes.get(..size_of::<u64>() + state.len()).unwrap_or_default();
            if result.is_ok() {
                result = self.item(way, &mut used, DEVICE, bytes);
            }
        });
        result?;
        if !all {
            return Err(Failure::Said("a device behind the hypervisor is not quiet"));
        }
        self.payload(way, Kind::State, used as u64)?;
        let [first, ..] = way.room.payload;
        *first = End { records: self.order.number() + 1, hash }.block();
        self.payload(way, Kind::End, End::BYTES)?;
        way.store.flush()
    }

    /// Adds an item to the room, of which `used` bytes are; sends what is there if it is full.
    fn item(&mut self, way: &mut Way<'_>, used: &mut usize, item: u16, bytes: &[u8]) -> Result<(), Failure> {
        if push_item(as_bytes_mut(&mut way.room.payload[..]), used, item, bytes) {
            return Ok(());
        }
        self.payload(way, Kind::State, core::mem::take(used) as u64)?;
        let fits = push_item(as_bytes_mut(&mut way.room.payload[..]), used, item, bytes);
        if fits { Ok(()) } else { Err(Failure::Said("a part of the guest's state is larger than a record")) }
    }

    /// Sends a record with the first `bytes` of the room as its payload.
    fn payload(&mut self, way: &mut Way<'_>, kind: Kind, bytes: u64) -> Result<(), Failure> {
        let Room { header, payload } = &mut *way.room;
        let blocks = bytes.div_ceil(BLOCK_BYTES) as usize;
        let Some(payload) = payload.get_mut(..blocks).filter(|_| blocks > 0) else { return Ok(()) };
        let words = payload.as_flattened_mut();
        let used = (bytes / 8) as usize;
        words.get_mut(used..).unwrap_or_default().fill(0);
        let mut checksum = Checksum::new();
        payload.iter().for_each(|block| checksum.add(block));
        let record = Header { kind, number: self.order.number(), bytes, checksum: checksum.value() };
        **header = record.encode(&[]);
        way.store.write(self.order.block(), as_bytes(core::slice::from_ref(*header)))?;
        way.store.write(self.order.block() + 1, as_bytes(payload))?;
        self.order.accept(&record)?;
        Ok(())
    }
}

const _: () = assert!(size_of::<Block>() == 8 * WORDS && WORDS * 8 == BLOCK_BYTES as usize);
