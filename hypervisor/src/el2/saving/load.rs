//! A guest on its way out of the store.

use crate::el2::base::registers;
use crate::el2::guest_memory::GuestMemory;
use crate::el2::mediation::hold;
use crate::el2::saving;
use crate::el2::saving::error::{NO_MEMORY, copy};
use crate::el2::saving::pages::{self, Room, as_bytes, as_bytes_mut};
use crate::el2::saving::send::DEVICE;
use crate::el2::saving::store::{Failure, Store};
use alloc::vec::Vec;
use hypervisor_abi::saved::{
    BLOCK_BYTES, Checksum, Damage, End, Error, Fact, Header, Kind, Order, Run, facts, first_difference, items, runs,
};
use stage2::{Ipa, IpaRange, PAGE_SIZE};

/// What has come so far.
pub struct Loader {
    order: Order,
    /// What devices had, by their address: they get it once memory is right, for they go by what lies there.
    devices: Vec<(u64, Vec<u8>)>,
    /// Something was wrong: what memory holds is of no use.
    failed: bool,
    /// The hash of all memory, once all has come and it is right.
    hash: Option<u64>,
}

/// What is needed to take a guest in.
pub struct Place<'p> {
    /// Where it comes from.
    pub store: &'p mut Store,
    /// Room of EL2's own.
    pub room: &'p mut Room,
    /// Where it goes to.
    pub memory: &'static GuestMemory,
    /// What this machine is.
    pub facts: &'p [Fact],
}

impl Loader {
    /// Nothing has come.
    pub const fn new() -> Self {
        Self { order: Order::after_tool(), devices: Vec::new(), failed: false, hash: None }
    }

    /// The hash of all memory, if all has come.
    pub const fn hash(&self) -> Option<u64> {
        self.hash
    }

    /// Takes in the records up to `end`, in bytes. Returns the pages that came with them.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, or with this machine. Nothing can be loaded after that.
    ///
    /// # Safety
    ///
    /// The guest does not run, and nobody else uses its memory.
    pub unsafe fn load(
        &mut self,
        place: &mut Place<'_>,
        end: u64,
        ranges: impl Iterator<Item = IpaRange>,
        pause: impl FnMut(),
    ) -> Result<u64, Failure> {
        if self.failed {
            return Err(Failure::Said("what was loaded before was damaged: start the machine anew"));
        }
        self.failed = true;
        // SAFETY: the caller's promise.
        let pages = unsafe { self.load_up_to(place, end / BLOCK_BYTES, ranges, pause) }?;
        self.failed = false;
        Ok(pages)
    }

    /// # Safety
    ///
    /// See [`Loader::load`].
    unsafe fn load_up_to(
        &mut self,
        place: &mut Place<'_>,
        end: u64,
        ranges: impl Iterator<Item = IpaRange>,
        mut pause: impl FnMut(),
    ) -> Result<u64, Failure> {
        let mut pages = 0;
        while self.order.block() < end && !self.order.is_over() {
            pause();
            let block = self.order.block();
            let error = |damage| Failure::File(Error { block, damage });
            place.store.read(block, as_bytes_mut(core::slice::from_mut(place.room.header)))?;
            let header = Header::decode(place.room.header).map_err(error)?;
            self.order.accept(&header)?;
            if self.order.block() > end {
                return Err(error(Damage::CutOff));
            }
            if header.kind == Kind::Pages {
                // SAFETY: the caller's promise.
                let checksum = unsafe { place.take_pages(block, &mut pages) }?;
                if checksum != header.checksum {
                    return Err(error(Damage::Payload));
                }
                continue;
            }
            place.read_payload(block, &header)?;
            match header.kind {
                Kind::Machine => place.compare(&header)?,
                Kind::State => place.take_state(block, &header, &mut self.devices)?,
                _ => {}
            }
        }
        if self.order.is_over() && self.hash.is_none() {
            let [first, ..] = place.room.payload;
            let end = End::of(first);
            if end.records != self.order.number() {
                let block = self.order.block() - 2;
                return Err(Failure::File(Error { block, damage: Damage::Records(end.records) }));
            }
            saving::is_whole()?;
            if self.devices.len() != hold::count() {
                return Err(Failure::Said("the file has other devices than this machine"));
            }
            // SAFETY: the caller's promise.
            let here = unsafe { pages::hash_all(ranges, pause) };
            if here != end.hash {
                return Err(Failure::Memory { saved: end.hash, here });
            }
            for (address, state) in &self.devices {
                hold::restore(*address, state)?;
            }
            // Instructions have come, too: no CPU has an older one in its cache.
            registers::invalidate_instruction_caches();
            self.hash = Some(here);
        }
        Ok(pages)
    }
}

impl Place<'_> {
    /// Reads the pages of the record whose header is in the room straight to where they belong. Returns their checksum.
    ///
    /// # Safety
    ///
    /// See [`Loader::load`].
    unsafe fn take_pages(&mut self, block: u64, pages: &mut u64) -> Result<u64, Failure> {
        // Before any is touched: all are the guest's.
        let is_ram = |run: &Run| {
            let range = IpaRange::new(Ipa(run.start()), Ipa(run.end()));
            range.is_ok_and(|range| self.memory.is_ram_range(range))
        };
        if let Some(run) = runs(self.room.header).find(|run| !is_ram(run)) {
            return Err(Failure::File(Error { block, damage: Damage::NotRam(run) }));
        }
        let mut checksum = Checksum::new();
        let mut next = block + 1;
        for run in runs(self.room.header) {
            if run.zero {
                // SAFETY: the guest's RAM, as was just found, and by the caller's promise nobody else's now.
                unsafe { clear(run) };
                continue;
            }
            // SAFETY: as above.
            self.store.read(next, unsafe { pages::bytes_mut(run) })?;
            next += run.count;
            *pages += run.count;
            for number in 0..run.count {
                // SAFETY: as above.
                checksum.add(unsafe { pages::page(run.start() + number * PAGE_SIZE) });
            }
            registers::clean_to_memory(run.start() as usize, (run.count * PAGE_SIZE) as usize);
        }
        Ok(checksum.value())
    }

    /// Reads the payload of a record that has no pages into the room, and checks it.
    fn read_payload(&mut self, block: u64, header: &Header) -> Result<(), Failure> {
        let blocks = header.blocks() as usize;
        let payload = self.room.payload.get_mut(..blocks).filter(|payload| !payload.is_empty());
        let payload = payload.ok_or(Failure::File(Error { block, damage: Damage::Impossible }))?;
        self.store.read(block + 1, as_bytes_mut(payload))?;
        let mut checksum = Checksum::new();
        payload.iter().for_each(|block| checksum.add(block));
        if checksum.value() == header.checksum {
            Ok(())
        } else {
            Err(Failure::File(Error { block, damage: Damage::Payload }))
        }
    }

    /// Compares the machine in the room with this one.
    fn compare(&self, header: &Header) -> Result<(), Failure> {
        let saved = facts(self.room.payload.as_flattened(), header.bytes);
        first_difference(saved, self.facts.iter().copied())
            .map_or(Ok(()), |difference| Err(Failure::Differs(difference)))
    }

    /// Gives the state in the room to those that it belongs to; that of devices to `devices`.
    fn take_state(&self, block: u64, header: &Header, devices: &mut Vec<(u64, Vec<u8>)>) -> Result<(), Failure> {
        let payload = as_bytes(&self.room.payload[..]).get(..header.bytes as usize).unwrap_or_default();
        for item in items(payload) {
            let (item, bytes) = item.ok_or(Failure::File(Error { block, damage: Damage::Impossible }))?;
            match bytes.split_first_chunk() {
                Some((address, state)) if item == DEVICE => {
                    let address = u64::from_le_bytes(*address);
                    if state.len() > hold::STATE_BYTES || devices.iter().any(|&(other, _)| other == address) {
                        return Err(Failure::Said("the file has a device twice, or more of it than there is"));
                    }
                    devices.try_reserve(1).map_err(|_| NO_MEMORY)?;
                    devices.push((address, copy(state)?));
                }
                _ => saving::apply(item, bytes)?,
            }
        }
        Ok(())
    }
}

/// Makes a run of pages zero. Those that are zero stay untouched: a host gives memory only to what is written.
///
/// # Safety
///
/// It is RAM of the guest's, and nobody else uses it.
unsafe fn clear(run: Run) {
    for number in 0..run.count {
        let address = run.start() + number * PAGE_SIZE;
        // SAFETY: the caller's promise.
        if pages::is_zero(unsafe { pages::page(address) }) {
            continue;
        }
        // SAFETY: the caller's promise.
        unsafe { pages::bytes_mut(Run { page: address / PAGE_SIZE, count: 1, zero: true }) }.fill(0);
        registers::clean_to_memory(address as usize, PAGE_SIZE as usize);
    }
}
