//! A platform whose events are recorded, around any other one.

use crate::events::{Barrier, Invalidation, Record};
use stage2::{Counters, Dsb, Maintenance, PhysAddr, Scope, Slot, TableMemory, Tlbi, Vmid};

/// Where records are kept, in the order in which their events happen.
///
/// # Safety
///
/// The engine acts on what [`Recorder::load`] returns: it is what the last call of `act` returned.
pub unsafe trait Recorder {
    /// Does what is an event, and keeps its record, if there is one, before any PE does the next.
    fn ordered<R>(&self, act: impl FnOnce() -> R, record: impl FnOnce(&R) -> Option<Record>) -> R;

    /// The same for what stores descriptors: until this PE executes a barrier, loads by others may be events.
    fn stored<R>(&self, act: impl FnOnce() -> R, record: impl FnOnce(&R) -> Option<Record>) -> R;

    /// Loads a descriptor. It is an event if it may be one that another PE has not ordered yet.
    fn load(&self, act: impl Fn() -> u64, record: impl FnOnce(u64) -> Record) -> u64;

    /// Keeps the record of what has just been done.
    fn push(&self, record: Record);

    /// The VMID that the executing PE's invalidations are for, whatever the engine means.
    fn held_vmid(&self) -> u16;
}

/// `P`, with a record of each of its events in `R`.
#[derive(Debug)]
pub struct Recorded<P, R> {
    platform: P,
    recorder: R,
}

impl<P, R> Recorded<P, R> {
    /// Records what `platform` does.
    pub const fn new(platform: P, recorder: R) -> Self {
        Self { platform, recorder }
    }
}

// SAFETY: `platform` does all of it, once, as its own implementation promises; a recorder returns what was loaded.
unsafe impl<P: TableMemory, R: Recorder> TableMemory for Recorded<P, R> {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        let allocate = || self.platform.allocate(frames);
        self.recorder.ordered(allocate, |first| first.map(|first| Record::allocate(first.0, frames)))
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        // SAFETY: the caller's promise.
        let free = || unsafe { self.platform.free(first, frames) };
        self.recorder.ordered(free, |()| Some(Record::free(first.0, frames)));
    }

    unsafe fn load(&self, slot: Slot) -> u64 {
        // SAFETY: the caller's promise.
        let load = || unsafe { self.platform.load(slot) };
        self.recorder.load(load, |value| Record::load(slot.table.0, slot.index, value))
    }

    unsafe fn store(&self, slot: Slot, value: u64) {
        // SAFETY: the caller's promise.
        let store = || unsafe { self.platform.store(slot, value) };
        self.recorder.stored(store, |()| Some(Record::store(slot.table.0, slot.index, value)));
    }

    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the caller's promise.
        let exchange = || unsafe { self.platform.compare_exchange(slot, old, new) };
        // One that changes nothing tells the oracle nothing.
        let changed = |done: &Result<(), u64>| done.is_ok() && old != new;
        let record = || Record::exchange(slot.table.0, slot.index, old, new);
        self.recorder.stored(exchange, |done| changed(done).then(record))
    }

    unsafe fn fetch_clear(&self, slot: Slot, mask: u64) -> u64 {
        // SAFETY: the caller's promise.
        let clear = || unsafe { self.platform.fetch_clear(slot, mask) };
        let record = |old: &u64| Record::exchange(slot.table.0, slot.index, *old, old & !mask);
        self.recorder.stored(clear, |old| (old & mask != 0).then(|| record(old)))
    }

    unsafe fn clear_run<const SEE: bool>(&self, first: Slot, count: usize, mask: u64, _: bool) -> u64 {
        // One by one, since each is an event.
        let slots = (first.index..first.index + count).map(|index| Slot { index, ..first });
        // SAFETY: the caller's promise.
        slots.fold(0, |seen, slot| seen | unsafe { self.fetch_clear(slot, mask) })
    }

    unsafe fn is_filled(&self, table: PhysAddr, first: u64, step: u64) -> bool {
        // SAFETY: the caller's promise. No other PE writes the table, so there is nothing to tell.
        unsafe { self.platform.is_filled(table, first, step) }
    }

    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        // SAFETY: the caller's promise.
        let fill = || unsafe { self.platform.fill(table, first, step) };
        self.recorder.stored(fill, |()| Some(Record::fill(table.0, first, step)));
    }
}

// SAFETY: `platform` does all of it, as its own implementation promises.
unsafe impl<P: Maintenance, R: Recorder> Maintenance for Recorded<P, R> {
    fn dsb(&self, barrier: Dsb) {
        let kind = match barrier {
            Dsb::IshSt => Barrier::IshSt,
            Dsb::Ish => Barrier::Ish,
            Dsb::Nsh => Barrier::Nsh,
        };
        self.recorder.ordered(|| self.platform.dsb(barrier), |()| Some(Record::barrier(kind)));
    }

    fn isb(&self) {
        self.platform.isb();
        self.recorder.push(Record::isb());
    }

    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        let is_broadcast = |scope| scope == Scope::Broadcast;
        let invalidation = match tlbi {
            Tlbi::Ipa { ipa, scope } => Invalidation::Ipas2E1 { ipa: ipa.0, broadcast: is_broadcast(scope) },
            // A hypervisor that keeps events has one granule: 4 KiB.
            Tlbi::Range { base, scale, num, granule: _, unit: _ } => {
                Invalidation::Ripas2E1 { base: base.0, scale, num }
            }
            Tlbi::VaLocal { va } => Invalidation::Vaae1 { va },
            Tlbi::VmallE1(scope) => Invalidation::VmallE1 { broadcast: is_broadcast(scope) },
            Tlbi::VmallS12E1(scope) => Invalidation::VmallS12E1 { broadcast: is_broadcast(scope) },
            // A form that there is no record for yet: the oracle misses the invalidation, and says so.
            _ => return self.platform.tlbi(vmid, tlbi),
        };
        let record = || Record::tlbi(self.recorder.held_vmid(), invalidation);
        self.recorder.ordered(|| self.platform.tlbi(vmid, tlbi), |()| Some(record()));
    }

    fn counters(&self) -> &Counters {
        self.platform.counters()
    }

    fn wait(&self) {
        self.platform.wait();
    }
}
