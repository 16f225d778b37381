//! The engine's two doors to the machine, opened onto the model.

use crate::event::{Action, Invalidation};
use crate::model::Model;
use crate::turn::{self, before_act, before_look};
use stage2::{Counters, Dsb, Maintenance, PhysAddr, Slot, TableMemory, Tlbi, Vmid};

// SAFETY: the model gives out each frame once until it is freed, and no hardware walks its tables; the model itself reads
// and writes whole descriptors, one event at a time.
unsafe impl TableMemory for &Model {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        before_act();
        self.take_frames(frames)
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        self.drain();
        before_act();
        self.apply(self.pe(), Action::Free { first, frames });
    }

    unsafe fn load(&self, slot: Slot) -> u64 {
        before_look();
        self.read(slot)
    }

    unsafe fn store(&self, slot: Slot, value: u64) {
        before_act();
        self.put(slot, value);
    }

    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // Ordered on both sides: what was stored before is seen before.
        self.drain();
        before_act();
        self.exchange(slot, old, new)
    }

    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        // One event for all: nobody sees the table yet, or the model says that somebody does.
        self.drain_table(table.align_down(self.setup().granule.bytes()));
        before_act();
        self.apply(self.pe(), Action::Fill { table, first, step });
    }
}

// SAFETY: the model does with each call what its documentation says, to the TLBs that it models, and for the VMID given.
unsafe impl Maintenance for &Model {
    fn dsb(&self, barrier: Dsb) {
        self.drain();
        before_act();
        self.apply(self.pe(), Action::Dsb(barrier));
    }

    fn isb(&self) {
        self.apply(self.pe(), Action::Isb);
    }

    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        before_act();
        self.apply(self.pe(), Action::Tlbi(Invalidation::of(vmid, tlbi)));
    }

    fn counters(&self) -> &Counters {
        // The engine counts right after it has changed something, so this is a scheduling point between that and what it
        // keeps in memory of its own, such as a dirty log's bitmap.
        before_look();
        self.counters_here()
    }

    fn wait(&self) {
        // Stores come to memory in the end, whatever their PE does; this one may be what the other waits for. And the other
        // may have gone on meanwhile: look again first.
        if !self.drain() {
            turn::wait();
        }
    }
}
