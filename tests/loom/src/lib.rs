//! The engine's two doors, opened onto loom: descriptors that several threads use are loom's atomics, so that each
//! interleaving is tried, with every value that the orderings allow a load to return.
//!
//! A table that is filled is one cell of loom's: a thread that loads a descriptor of it must come after the fill, by
//! what it has loaded on its way there. A publication without release, or a walk without acquire, is a race that loom
//! reports.

pub mod marked;
pub mod sync;

// The hypervisor's lock around the table, with loom's atomics.
#[path = "../../../hypervisor/src/reader_lock.rs"]
pub mod reader_lock;

/// The engine's dirty bitmap, with loom's atomics, and what it needs. (Its own unit tests are not among this crate's:
/// they have no model around them.)
macro_rules! of_the_engine {
    ($folder:ident $at:literal { $($name:ident $path:literal)* } $($sync:ident)?) => {
        #[path = $at]
        mod $folder {
            $(
                #[path = $path]
                #[allow(dead_code, reason = "the dirty bitmap needs a part of it")]
                pub mod $name;
            )*
            $(pub use crate::$sync;)?
        }
    };
}

of_the_engine! { arch "../../../stage2/src/arch" {
    address "address.rs"
    attributes "attributes.rs"
    bits "bits.rs"
    error "error.rs"
    geometry "geometry.rs"
    granule "granule.rs"
    range "range.rs"
} }
of_the_engine! { bitmap "../../../stage2/src/bitmap" {
    dirty_bitmap "dirty_bitmap.rs"
    page_set "page_set.rs"
} sync }

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread::ThreadId;
use stage2::geometry::ENTRIES;
use stage2::{Counters, Dsb, Maintenance, PAGE_SIZE, PhysAddr, Slot, TableMemory, Tlbi, Vmid};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64 as PlainAtomic;

/// Where the frames seem to lie.
const BASE: u64 = 0x8000_0000;

/// One table.
struct Frame {
    /// Stands for all that a fill writes.
    filled: UnsafeCell<()>,
    /// Descriptors that several threads use.
    shared: Vec<(usize, AtomicU64, AtomicU64)>,
    /// The others, which loom has no need to look at.
    plain: Vec<PlainAtomic>,
}

/// Frames, and a record of which are in use.
pub struct Machine {
    frames: Vec<Frame>,
    used: Mutex<BTreeSet<usize>>,
    counters: Counters,
    late: bool,
    /// Plain stores of each thread that have not come to memory, in their order.
    stores: Mutex<Vec<(ThreadId, Slot, u64)>>,
}

// SAFETY: `filled` is loom's, and reports any use that is not ordered; the rest is atomics and a mutex.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

impl core::fmt::Debug for Machine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Machine").field("used", &self.used).finish_non_exhaustive()
    }
}

impl Machine {
    /// So many frames. Several threads use the descriptors with these indices, in whichever table.
    #[must_use]
    pub fn new(frames: usize, shared: &[usize]) -> Self {
        let frame = || Frame {
            filled: UnsafeCell::new(()),
            shared: shared.iter().map(|&index| (index, AtomicU64::new(0), AtomicU64::new(0))).collect(),
            plain: (0..ENTRIES).map(|_| PlainAtomic::new(0)).collect(),
        };
        Self {
            frames: (0..frames).map(|_| frame()).collect(),
            used: Mutex::default(),
            counters: Counters::new(),
            late: false,
            stores: Mutex::default(),
        }
    }

    /// The same, but a thread's plain stores come to memory at its next fence or read-modify-write, the last one first.
    /// Loom itself has a load return older values, but never a read-modify-write come before a store that was executed.
    #[must_use]
    pub fn with_late_stores(self) -> Self {
        Self { late: true, ..self }
    }

    /// All that the calling thread has stored comes to memory.
    pub fn drain(&self) {
        while let Some((slot, value)) = self.take_store(|_| true) {
            self.frame(slot.table).settle(slot.index, value);
        }
    }

    /// The last store of the calling thread's that `which` picks and that has not come to memory.
    fn take_store(&self, which: impl Fn(Slot) -> bool) -> Option<(Slot, u64)> {
        let me = loom::thread::current().id();
        let mut stores = self.stores.lock().ok()?;
        let at = stores.iter().rposition(|&(thread, slot, _)| thread == me && which(slot))?;
        let (_, slot, value) = stores.remove(at);
        Some((slot, value))
    }

    /// What the calling thread has stored in `slot`, if it has not come to memory.
    fn own_store(&self, slot: Slot) -> Option<u64> {
        if !self.late {
            return None;
        }
        let me = loom::thread::current().id();
        let stores = self.stores.lock().ok()?;
        stores.iter().find(|&&(thread, other, _)| thread == me && other == slot).map(|&(.., value)| value)
    }

    /// How many frames the engine has.
    ///
    /// # Panics
    ///
    /// If a thread has panicked with the lock.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.used.lock().expect("nobody panics with it").len()
    }

    fn frame(&self, table: PhysAddr) -> &Frame {
        &self.frames[((table.0 - BASE) / PAGE_SIZE) as usize]
    }
}

impl Frame {
    fn shared(&self, index: usize) -> Option<&AtomicU64> {
        self.shared.iter().find(|(at, ..)| *at == index).map(|(_, atomic, turns)| {
            turns.fetch_add(1, Ordering::Relaxed);
            atomic
        })
    }

    /// A store that has been on its way. Loom would let it come between another thread's read-modify-write and what
    /// that has read, and lose it; as a read-modify-write itself it comes last.
    fn settle(&self, index: usize, value: u64) {
        match self.shared(index) {
            Some(atomic) => _ = atomic.swap(value, Ordering::Relaxed),
            None => self.plain[index].store(value, Ordering::Relaxed),
        }
    }

    fn set(&self, index: usize, value: u64) {
        match self.shared(index) {
            Some(atomic) => atomic.store(value, Ordering::Relaxed),
            None => self.plain[index].store(value, Ordering::Relaxed),
        }
    }
}

// SAFETY: a frame is given out once until it is freed; no hardware walks it. Read-modify-writes are AcqRel, loads
// Acquire, stores Relaxed, as on AArch64.
unsafe impl TableMemory for Machine {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        let mut used = self.used.lock().expect("nobody panics with it");
        let free = |first: &usize| (*first..first + frames).all(|frame| !used.contains(&frame));
        let first = (0..=self.frames.len().checked_sub(frames)?).step_by(frames).find(free)?;
        used.extend(first..first + frames);
        Some(PhysAddr(BASE + first as u64 * PAGE_SIZE))
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        let first = ((first.0 - BASE) / PAGE_SIZE) as usize;
        let mut used = self.used.lock().expect("nobody panics with it");
        assert!((first..first + frames).all(|frame| used.remove(&frame)), "frame {first} is freed twice");
    }

    unsafe fn load(&self, slot: Slot) -> u64 {
        if let Some(value) = self.own_store(slot) {
            return value;
        }
        let frame = self.frame(slot.table);
        // SAFETY: nothing is read: loom checks that every fill comes before this.
        frame.filled.with(|_| ());
        match frame.shared(slot.index) {
            Some(atomic) => atomic.load(Ordering::Acquire),
            None => frame.plain[slot.index].load(Ordering::SeqCst),
        }
    }

    unsafe fn store(&self, slot: Slot, value: u64) {
        if !self.late {
            return self.frame(slot.table).set(slot.index, value);
        }
        // Stores to one place stay in their order (coherence).
        if let Some((_, earlier)) = self.take_store(|other| other == slot) {
            self.frame(slot.table).settle(slot.index, earlier);
        }
        let me = loom::thread::current().id();
        self.stores.lock().expect("nobody panics with it").push((me, slot, value));
    }

    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        self.drain();
        let frame = self.frame(slot.table);
        frame.filled.with(|_| ());
        match frame.shared(slot.index) {
            Some(atomic) => atomic.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ()),
            None => {
                let plain = &frame.plain[slot.index];
                plain.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ())
            }
        }
    }

    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        while let Some((slot, value)) = self.take_store(|slot| slot.table == table) {
            self.frame(table).settle(slot.index, value);
        }
        let frame = self.frame(table);
        // Loom reports a fill of a table that somebody reads, or has read, without an order between the two.
        frame.filled.with_mut(|_| ());
        for index in 0..ENTRIES {
            frame.set(index, first.wrapping_add(step.wrapping_mul(index as u64)));
        }
    }
}

// SAFETY: no hardware walks these tables; a DSB is at least a fence.
unsafe impl Maintenance for Machine {
    fn dsb(&self, _: Dsb) {
        self.drain();
        fence(Ordering::SeqCst);
    }

    fn isb(&self) {}

    fn tlbi(&self, _: Vmid, _: Tlbi) {}

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn wait(&self) {
        // Stores come to memory in the end, whatever their thread does.
        self.drain();
        loom::thread::yield_now();
    }
}
