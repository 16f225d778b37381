//! A host platform: frames from the heap, instructions that do nothing but get counted by the engine.

use stage2::descriptor::bits;
use stage2::fault::Status;
use stage2::platform::{Dsb, Slot, TableMemory, Tlbi, Vmid};
use stage2::{Abort, Counters, Descriptor, Event, FaultHistory, Ipa, Maintenance, Outcome, PhysAddr, Stage2};
use std::alloc::{Layout, alloc, dealloc};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

/// What another PE does at a chosen moment: when a compare-exchange from one value to another has been done.
type OtherPe = (fn(u64, u64) -> bool, Box<dyn FnOnce()>);

/// Frames from the heap, at most `limit` of them.
pub struct Host {
    pub tlbis: Cell<usize>,
    /// Runs of descriptors that were changed by instructions of FEAT_LSE.
    pub lse_runs: Cell<usize>,
    other_pe: RefCell<Option<OtherPe>>,
    pub counters: Counters,
    pub live: Cell<usize>,
    pub limit: Cell<usize>,
}

impl Host {
    pub fn new() -> Self {
        Self {
            counters: Counters::new(),
            live: Cell::new(0),
            limit: Cell::new(usize::MAX),
            tlbis: Cell::new(0),
            lse_runs: Cell::new(0),
            other_pe: RefCell::new(None),
        }
    }

    /// Has `act` done once, by another PE so to speak, right after the first change that `when` picks.
    pub fn interrupt(&self, when: fn(u64, u64) -> bool, act: impl FnOnce() + 'static) {
        *self.other_pe.borrow_mut() = Some((when, Box::new(act)));
    }

    pub fn count(&self, event: Event) -> u64 {
        self.counters.get(event)
    }

    fn layout(frames: usize) -> Layout {
        Layout::from_size_align(frames * 4096, frames * 4096).expect("a frame count is a power of two")
    }
}

fn cell(slot: Slot) -> &'static AtomicU64 {
    assert!(slot.index < 8192 && slot.table.is_aligned(4096), "{slot:?} is in no frame");
    // SAFETY: the engine gives slots in live frames only; the test keeps them alive.
    unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(slot.address().0 as usize)) }
}

/// What became of an access.
#[derive(Debug, PartialEq, Eq)]
pub enum Access {
    /// It went through.
    Done,
    /// It faulted, with this status.
    Fault(Status),
}

/// A CPU's store to `ipa`: a walk of its own, from the register's value, with hardware dirty state. No TLB.
pub fn store(table: &Stage2<&Host>, ipa: u64) -> Access {
    access(table, ipa, true)
}

/// A CPU's load from `ipa`.
pub fn load(table: &Stage2<&Host>, ipa: u64) -> Access {
    access(table, ipa, false)
}

fn access(table: &Stage2<&Host>, ipa: u64, write: bool) -> Access {
    let (mut frame, mut level) = (table.vttbr() & bits::ADDRESS, table.geometry().start_level());
    let mut index = table.geometry().root_index(Ipa(ipa));
    loop {
        let slot = Slot { table: PhysAddr(frame + (index / 512 * 4096) as u64), index: index % 512 };
        let descriptor = Descriptor(cell(slot).load(Ordering::SeqCst));
        if !descriptor.is_valid() {
            return Access::Fault(Status::Translation);
        }
        if descriptor.is_table(level) {
            frame = descriptor.address().0;
            level = level.below().expect("level 3 has no tables");
            index = level.index(Ipa(ipa));
            continue;
        }
        let allowed = if write { descriptor.is_writable() } else { descriptor.0 & bits::READ != 0 };
        if !allowed {
            return Access::Fault(Status::Permission);
        }
        if write && descriptor.has_dbm() {
            cell(slot).fetch_or(bits::WRITE, Ordering::SeqCst);
        }
        return Access::Done;
    }
}

/// A guest's store to `ipa`, with the faults that it takes on the way; their number, or what stopped it.
pub fn guest_store(table: &Stage2<&Host>, ipa: u64) -> Result<usize, Outcome> {
    let mut history = FaultHistory::new();
    for faults in 0..10 {
        match store(table, ipa) {
            Access::Done => return Ok(faults),
            // Every other page goes the short way, where there is one.
            Access::Fault(Status::Permission)
                if ipa & 0x1000 == 0 && table.first_write(Ipa(ipa), ipa, &mut history) => {}
            Access::Fault(status) => {
                let abort = Abort {
                    status,
                    write: true,
                    execute: false,
                    stage1_walk: false,
                    el0: false,
                    ipa: Ipa(ipa),
                    va: ipa,
                };
                match table.fault(&abort, &mut history) {
                    Outcome::Retry => {}
                    other => return Err(other),
                }
            }
        }
    }
    panic!("the store never came through")
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

    unsafe fn set_run(&self, first: Slot, count: usize, mask: u64, lse: bool) {
        self.lse_runs.set(self.lse_runs.get() + usize::from(lse));
        for index in first.index..first.index + count {
            cell(Slot { index, ..first }).fetch_or(mask, Ordering::SeqCst);
        }
    }

    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        let result = cell(slot).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ());
        let due = |(when, _): &OtherPe| result.is_ok() && when(old, new);
        let act = self.other_pe.borrow_mut().take_if(|other| due(other));
        if let Some((_, act)) = act {
            act();
        }
        result
    }
}

// SAFETY: no hardware walks these tables.
unsafe impl Maintenance for &Host {
    fn dsb(&self, _: Dsb) {}
    fn isb(&self) {}
    fn tlbi(&self, _: Vmid, _: Tlbi) {
        self.tlbis.set(self.tlbis.get() + 1);
    }
    fn counters(&self) -> &Counters {
        &self.counters
    }
}
