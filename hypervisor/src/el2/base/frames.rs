//! Frames for stage-2 tables, and memory for the CPUs' areas.
//!
//! A table is allocated while a guest waits for a block to be split, so this is a list threaded through the free frames
//! and a mark behind which nothing was given out yet: a handful of instructions either way. Tables of several frames have a
//! list of their own, so that what was one table is one again.

use hypervisor::granule;
use hypervisor::range::PhysRange;
use spin::Mutex;
use stage2::{PAGE_SIZE, PhysAddr};

/// The pool. Memory is identity mapped: a frame's address is where EL2 reaches it.
pub struct Frames(Mutex<State>);

struct State {
    /// First frame never given out.
    next: u64,
    end: u64,
    /// Address of the first free frame below `next`, whose first word has the address of the second one; 0 ends it.
    free: u64,
    /// The same for tables of [`granule::FRAMES`] frames, where that is more than one.
    tables: u64,
    /// For tests of what happens without memory: how many requests are met before the next `refuse` are not.
    meet: u64,
    refuse: u64,
    refused: u64,
}

/// The value of [`State::meet`] outside of those tests.
const ALWAYS: u64 = u64::MAX;

/// Whether a table is more than one frame.
const TABLES: bool = granule::FRAMES > 1;

/// All of the hypervisor's spare memory.
pub static FRAMES: Frames = Frames(Mutex::new(State::new(0, 0)));

impl Frames {
    /// Hands over `memory`: whole frames, mapped, used by nothing else, ever.
    ///
    /// # Safety
    ///
    /// What it says above; called once.
    pub unsafe fn init(&self, memory: PhysRange) {
        *self.0.lock() = State::new(memory.start(), memory.end());
    }

    /// `count` adjacent frames, aligned to `alignment` frames, a power of two; or nothing when there are none. The
    /// contents may be anything.
    #[inline]
    pub fn allocate(&self, count: u64, alignment: u64) -> Option<PhysAddr> {
        let mut state = self.0.lock();
        if state.meet != ALWAYS && !state.meets() {
            return None;
        }
        if count == 1 && state.free != 0 {
            let frame = state.free;
            // SAFETY: a frame in the list is in nobody else's hands, and its first word is the link.
            state.free = unsafe { (frame as *const u64).read() };
            return Some(PhysAddr(frame));
        }
        if TABLES && count == granule::FRAMES && state.tables != 0 {
            let table = state.tables;
            // SAFETY: a table in the list is in nobody else's hands, and its first word is the link.
            state.tables = unsafe { (table as *const u64).read() };
            return Some(PhysAddr(table));
        }
        // `next` is the address of a frame: one alone is aligned.
        let first =
            if alignment == 1 { state.next } else { state.next.checked_next_multiple_of(alignment * PAGE_SIZE)? };
        let end = first.checked_add(count * PAGE_SIZE)?;
        if end > state.end {
            return None;
        }
        while state.next < first {
            let skipped = state.next;
            state.next += PAGE_SIZE;
            state.push(skipped);
        }
        state.next = end;
        Some(PhysAddr(first))
    }

    /// Meets the next `meet` requests and refuses the `refuse` after these. Returns how many were refused since this was
    /// called last.
    pub fn refuse(&self, meet: u64, refuse: u64) -> u64 {
        let mut state = self.0.lock();
        state.meet = if refuse == 0 { ALWAYS } else { meet.min(ALWAYS - 1) };
        state.refuse = refuse;
        core::mem::take(&mut state.refused)
    }

    /// Takes back `count` adjacent frames.
    ///
    /// # Safety
    ///
    /// They were allocated here, all at once, and nothing uses them any more.
    #[inline]
    pub unsafe fn free(&self, first: PhysAddr, count: u64) {
        // What is a multiple of a table's size, and aligned to it, is tables: the root is several.
        let whole = TABLES && ((first.0 / PAGE_SIZE) | count).is_multiple_of(granule::FRAMES);
        let unit = if whole { granule::FRAMES } else { 1 };
        let mut state = self.0.lock();
        for number in 0..count / unit {
            let place = first.0 + number * unit * PAGE_SIZE;
            if whole {
                state.push_table(place);
            } else {
                state.push(place);
            }
        }
    }
}

impl State {
    const fn new(next: u64, end: u64) -> Self {
        Self { next, end, free: 0, tables: 0, meet: ALWAYS, refuse: 0, refused: 0 }
    }

    /// Whether the request that has come is one of those that are met.
    #[cold]
    fn meets(&mut self) -> bool {
        if self.meet > 0 {
            self.meet -= 1;
            return true;
        }
        self.refused += 1;
        self.refuse -= 1;
        if self.refuse == 0 {
            self.meet = ALWAYS;
        }
        false
    }

    fn push_table(&mut self, table: u64) {
        // SAFETY: as in `push`, of the table's first frame.
        unsafe { (table as *mut u64).write(self.tables) };
        self.tables = table;
    }

    fn push(&mut self, frame: u64) {
        // SAFETY: the frame lies in the pool's memory and is in nobody's hands.
        unsafe { (frame as *mut u64).write(self.free) };
        self.free = frame;
    }
}
