//! A host platform: frames from the heap, instructions that do nothing but get counted by the engine.

use stage2::platform::{Dsb, Slot, TableMemory, Tlbi, Vmid};
use stage2::{Counters, Event, Maintenance, PhysAddr};
use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Frames from the heap, at most `limit` of them.
pub struct Host {
    pub counters: Counters,
    pub live: Cell<usize>,
    pub limit: Cell<usize>,
}

impl Host {
    pub fn new() -> Self {
        Self { counters: Counters::new(), live: Cell::new(0), limit: Cell::new(usize::MAX) }
    }

    pub fn count(&self, event: Event) -> u64 {
        self.counters.get(event)
    }

    fn layout(frames: usize) -> Layout {
        Layout::from_size_align(frames * 4096, frames * 4096).expect("a frame count is a power of two")
    }
}

fn cell(slot: Slot) -> &'static AtomicU64 {
    assert!(slot.index < 512);
    // SAFETY: the engine gives slots in live frames only; the test keeps them alive.
    unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(slot.address().0 as usize)) }
}

// SAFETY: frames come from the heap and are used for nothing else; accesses are atomic.
unsafe impl TableMemory for &Host {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        if self.live.get() + frames > self.limit.get() {
            return None;
        }
        self.live.set(self.live.get() + frames);
        // SAFETY: the size is not zero.
        let memory = unsafe { alloc(Host::layout(frames)) };
        assert!(!memory.is_null());
        Some(PhysAddr(memory.expose_provenance() as u64))
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        self.live.set(self.live.get() - frames);
        // SAFETY: allocated above with the same layout.
        unsafe { dealloc(std::ptr::with_exposed_provenance_mut(first.0 as usize), Host::layout(frames)) };
    }

    unsafe fn load(&self, slot: Slot) -> u64 {
        cell(slot).load(Ordering::Acquire)
    }

    unsafe fn store(&self, slot: Slot, value: u64) {
        cell(slot).store(value, Ordering::Relaxed);
    }

    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        cell(slot).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
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
