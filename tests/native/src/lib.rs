//! A platform for timing: frames from one block of memory, instructions that do nothing.
//!
//! What is left is the engine's own work: loads, stores and compare-exchanges of descriptors. It says nothing about
//! barriers, TLBs or faults, which a host has not.

use stage2::platform::{Dsb, Slot, TableMemory, Tlbi, Vmid};
use stage2::{Counters, Maintenance, PAGE_SIZE, PhysAddr};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static COUNTERS: &'static Counters = Box::leak(Box::new(Counters::new()));
}

/// A block of memory that frames are taken from in order; freed frames are used again first.
#[derive(Debug)]
pub struct Arena {
    memory: *mut u8,
    layout: Layout,
    next: AtomicU64,
    free: AtomicU64,
}

// SAFETY: the memory is reached through atomic accesses, or by the one owner of a frame.
unsafe impl Sync for Arena {}
// SAFETY: as above.
unsafe impl Send for Arena {}

impl Arena {
    /// Room for `frames` frames, touched, so that no page fault of the host's is timed.
    ///
    /// # Panics
    ///
    /// If the host has no such memory.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        let layout = Layout::from_size_align(frames * PAGE_SIZE as usize, 16 * PAGE_SIZE as usize)
            .expect("a multiple of the page size is a layout");
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        assert!(!memory.is_null(), "no memory for {frames} frames");
        for frame in 0..frames {
            // SAFETY: inside the block that was just allocated.
            unsafe { memory.add(frame * PAGE_SIZE as usize).write_volatile(1) };
        }
        Self { memory, layout, next: AtomicU64::new(0), free: AtomicU64::new(0) }
    }

    /// The block, for reading or writing the same bytes in another way.
    #[must_use]
    pub fn bytes(&self) -> (*mut u8, usize) {
        (self.memory, self.layout.size())
    }

    fn cell(slot: Slot) -> &'static AtomicU64 {
        // SAFETY: slots lie in frames of an arena, which the benchmark keeps while it uses the table.
        unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(slot.address().0 as usize)) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.memory, self.layout) };
    }
}

// SAFETY: frames are given out once until they are freed; accesses are atomic but for `fill`, whose frame is the caller's.
unsafe impl TableMemory for &Arena {
    #[inline]
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        if frames == 1 {
            // A stack of free frames; the benchmarks free from one thread only, so there is no ABA problem to solve.
            let head = self.free.load(Ordering::Acquire);
            if head != 0 {
                let next = Arena::cell(Slot { table: PhysAddr(head), index: 0 }).load(Ordering::Relaxed);
                if self.free.compare_exchange(head, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    return Some(PhysAddr(head));
                }
            }
        }
        let bytes = frames as u64 * PAGE_SIZE;
        let offset = self.next.fetch_add(bytes, Ordering::Relaxed);
        let base = self.memory.expose_provenance() as u64;
        (offset + bytes <= self.layout.size() as u64).then(|| PhysAddr(base + offset))
    }

    #[inline]
    unsafe fn free(&self, first: PhysAddr, _frames: usize) {
        let cell = Arena::cell(Slot { table: first, index: 0 });
        cell.store(self.free.load(Ordering::Acquire), Ordering::Relaxed);
        self.free.store(first.0, Ordering::Release);
    }

    #[inline(always)]
    unsafe fn load(&self, slot: Slot) -> u64 {
        Arena::cell(slot).load(Ordering::Acquire)
    }

    #[inline(always)]
    unsafe fn store(&self, slot: Slot, value: u64) {
        Arena::cell(slot).store(value, Ordering::Relaxed);
    }

    #[inline(always)]
    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        Arena::cell(slot).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    #[inline(always)]
    unsafe fn fetch_clear(&self, slot: Slot, mask: u64) -> u64 {
        Arena::cell(slot).fetch_and(!mask, Ordering::AcqRel)
    }

    #[inline(always)]
    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        let entries: *mut [u64; 512] = std::ptr::with_exposed_provenance_mut(table.0 as usize);
        // SAFETY: the frame is the caller's alone until it is published, so plain stores will do; they vectorise.
        let entries = unsafe { &mut *entries };
        for (index, entry) in entries.iter_mut().enumerate() {
            *entry = first.wrapping_add(step.wrapping_mul(index as u64));
        }
    }
}

// SAFETY: no hardware walks these tables.
unsafe impl Maintenance for &Arena {
    #[inline(always)]
    fn dsb(&self, _: Dsb) {}

    #[inline(always)]
    fn isb(&self) {}

    #[inline(always)]
    fn tlbi(&self, _: Vmid, _: Tlbi) {}

    #[inline(always)]
    fn counters(&self) -> &Counters {
        COUNTERS.with(|counters| *counters)
    }
}
