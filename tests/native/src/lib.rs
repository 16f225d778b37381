//! A platform for timing: frames from one block of memory, instructions that do nothing.
//!
//! What is left is the engine's own work: loads, stores and compare-exchanges of descriptors. It says nothing about
//! barriers, TLBs or faults, which a host has not.

use stage2::features::HardwareUpdate;
use stage2::platform::{Dsb, Slot, TableMemory, Tlbi};
use stage2::*;
use std::alloc::{alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static COUNTERS: &'static Counters = Box::leak(Box::new(Counters::new()));
}

/// Bytes of a GiB.
pub const GIB: u64 = 1 << 30;
/// Tables that 1 GiB of pages takes: one of level 2, 512 of level 3.
pub const TABLES: u64 = 513;

/// The first `gib` GiB.
///
/// # Panics
///
/// If `gib` is 0.
#[must_use]
pub fn range(gib: u64) -> IpaRange {
    IpaRange::from_size(Ipa(0), gib * GIB).expect("whole gibibytes are a range")
}

/// A table of a CPU that has everything, with `gib` GiB mapped in the largest leaves.
///
/// # Panics
///
/// If the arena is too small.
#[must_use]
pub fn table(arena: &Arena, gib: u64, hardware_dirty: bool) -> Stage2<&Arena> {
    let features = Features::MINIMAL
        .with_pa_bits(40)
        .with_bbm(BbmLevel::Level2)
        .with_hardware_update(HardwareUpdate::DirtyState)
        .with_tlbi_range(true)
        .with_vmid_bits(16)
        .with_lse(true);
    let config = Config::new(Vmid::new(1).expect("1 is a VMID"), features).with_hardware_dirty(hardware_dirty);
    let mut table = Stage2::new(arena, config).expect("the arena holds the root");
    table.map(range(gib), PhysAddr(0), Attributes::RAM).expect("the arena holds the tables");
    table
}

/// Starts a log of the first `gib` GiB. Its bitmap is never given back.
///
/// # Panics
///
/// If that memory is in a log already.
pub fn start_log(table: &mut Stage2<&Arena>, gib: u64, mechanism: Mechanism) -> Log {
    let words = Layout::new(range(gib)).words();
    let storage = Box::leak((0..words).map(|_| AtomicU64::new(0)).collect());
    table.start_log(range(gib), storage, LogOptions { mechanism, all_dirty: false }).expect("nothing else is logged")
}

/// The exclusive or of `words` words from `bytes` on.
///
/// # Safety
///
/// That memory can be read, and nobody writes to it meanwhile.
#[must_use]
pub unsafe fn read_words(bytes: *const u8, words: usize) -> u64 {
    // SAFETY: the caller's promise.
    let words = unsafe { std::slice::from_raw_parts(bytes.cast::<u64>(), words) };
    words.iter().fold(0, |sum, word| sum ^ word)
}

/// A block of memory that frames are taken from in order; freed frames are used again first.
#[derive(Debug)]
pub struct Arena {
    memory: *mut u8,
    layout: std::alloc::Layout,
    next: AtomicU64,
    /// The stack of free frames: the first one's number plus one in the lower half, and how often it has changed in the
    /// upper, so that a frame that has come back in between is noticed.
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
        let layout = std::alloc::Layout::from_size_align(frames * PAGE_SIZE as usize, 16 * PAGE_SIZE as usize)
            .expect("a multiple of the page size is a layout");
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        assert!(!memory.is_null(), "no memory for {frames} frames");
        for frame in 0..frames {
            // SAFETY: inside the block that was just allocated.
            unsafe { memory.wrapping_add(frame * PAGE_SIZE as usize).write_volatile(1) };
        }
        Self { memory, layout, next: AtomicU64::new(0), free: AtomicU64::new(0) }
    }

    /// The block, for reading or writing the same bytes in another way.
    #[must_use]
    pub fn bytes(&self) -> (*mut u8, usize) {
        (self.memory, self.layout.size())
    }

    /// Bytes of the frames that this thread has taken and not given back, of any arena.
    #[must_use]
    pub fn bytes_in_use() -> u64 {
        COUNTERS.with(|counters| (counters.get(Event::FrameAllocated) - counters.get(Event::FrameFreed)) * PAGE_SIZE)
    }

    fn cell(slot: Slot) -> &'static AtomicU64 {
        // SAFETY: slots lie in frames of an arena, which the benchmark keeps while it uses the table.
        unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(slot.address().0 as usize)) }
    }
}

/// The free stack's head, once `number` is on top.
fn changed(head: u64, number: u64) -> u64 {
    ((head >> 32) + 1) << 32 | u64::from(number as u32)
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
        let base = self.memory.expose_provenance() as u64;
        let mut head = self.free.load(Ordering::Acquire);
        while frames == 1 && head as u32 != 0 {
            let frame = PhysAddr(base + (head as u32 - 1) as u64 * PAGE_SIZE);
            let next = Arena::cell(Slot { table: frame, index: 0 }).load(Ordering::Relaxed);
            match self.free.compare_exchange(head, changed(head, next), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(frame),
                Err(other) => head = other,
            }
        }
        let bytes = frames as u64 * PAGE_SIZE;
        let offset = self.next.fetch_add(bytes, Ordering::Relaxed);
        (offset + bytes <= self.layout.size() as u64).then(|| PhysAddr(base + offset))
    }

    #[inline]
    unsafe fn free(&self, first: PhysAddr, _frames: usize) {
        let number = (first.0 - self.memory.expose_provenance() as u64) / PAGE_SIZE + 1;
        let cell = Arena::cell(Slot { table: first, index: 0 });
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            cell.store(u64::from(head as u32), Ordering::Relaxed);
            match self.free.compare_exchange(head, changed(head, number), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(other) => head = other,
            }
        }
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
