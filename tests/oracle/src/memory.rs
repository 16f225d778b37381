//! Table frames: their descriptors, what leads to them, and software's own walks.

use crate::shape::Shape;
use crate::span::{Span, intersection};
use crate::translation::{Translation, is_leaf, is_table};
use core::cell::Cell;
use core::ops::Range;
use rustc_hash::FxHashMap;
use stage2::{Level, PhysAddr, Slot};

/// Where the pool of table frames begins. Tests map nothing there.
const POOL: u64 = 0xe0_0000_0000;
/// And where addresses have 52 bits: no less than two of the highest four are set, in either place that a descriptor has for
/// them.
const HIGH_POOL: u64 = POOL | 0xd << 48;
/// What fresh frames hold: a valid leaf of no memory that anybody mapped. "The contents may be anything."
const POISON: u64 = 0x0000_dead_b000_07ff;

/// Index of a frame in [`Memory`].
pub(crate) type FrameId = u32;

/// What a table translates, known from the first time that something leads to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// Index of the address space.
    pub space: usize,
    pub shape: Shape,
    pub level: Level,
    pub base: u64,
}

impl Place {
    pub fn span(self) -> Span {
        Span::table(self.shape, self.level, self.base)
    }

    pub fn entry(self, index: usize) -> Span {
        Span::entry(self.shape, self.level, self.base, index)
    }

    /// What the table behind entry `index` translates.
    pub fn child(self, index: usize) -> Option<Place> {
        let level = self.level.below()?;
        Some(Place { level, base: self.entry(index).base, ..self })
    }

    /// Descriptors in a contiguous run of this table's level.
    pub fn run(self) -> usize {
        1 << self.shape.run_shift(self.shape.shift(self.level))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub address: PhysAddr,
    pub values: Box<[u64]>,
    written: Box<[u64]>,
    pub allocated: bool,
    /// Frames of 4 KiB of the allocation that this table is the first of; 0 for the others.
    pub group: usize,
    pub place: Option<Place>,
    /// The descriptor in memory that leads here.
    pub parent: Option<(FrameId, u16)>,
    pub is_root: bool,
    /// Entries of walk caches that lead here though nothing in memory does.
    pub walkers: u32,
    /// Combined entries may be left of what was mapped here, when no walk cache leads here any more.
    pub ghosts: u32,
    /// PEs that have written descriptors here, while nothing led here, and not yet executed a DSB.
    pub unordered: u16,
}

impl Frame {
    pub fn is_written(&self) -> bool {
        self.written.iter().all(|&word| word == u64::MAX)
    }

    pub fn set(&mut self, index: usize, value: u64) -> u64 {
        self.written[index / 64] |= 1 << (index % 64);
        core::mem::replace(&mut self.values[index], value)
    }
}

/// All frames.
#[derive(Debug)]
pub(crate) struct Memory {
    frames: Vec<Frame>,
    by_address: FxHashMap<u64, FrameId>,
    /// The last one found: most accesses stay in one table.
    last: Cell<(u64, FrameId)>,
    /// Single frames of the pool that were used and given back.
    free: Vec<FrameId>,
    pool_end: u64,
    in_use: usize,
    limit: usize,
    shape: Shape,
    /// Allocated frames that nothing in memory leads to.
    unattached: Vec<FrameId>,
}

impl Memory {
    pub fn new(limit: usize, shape: Shape) -> Self {
        Self {
            frames: Vec::new(),
            by_address: FxHashMap::default(),
            last: Cell::new((u64::MAX, 0)),
            free: Vec::new(),
            pool_end: if shape.address_bits() == 52 { HIGH_POOL } else { POOL },
            in_use: 0,
            limit,
            shape,
            unattached: Vec::new(),
        }
    }

    pub fn frame(&self, id: FrameId) -> &Frame {
        &self.frames[id as usize]
    }

    pub fn frame_mut(&mut self, id: FrameId) -> &mut Frame {
        &mut self.frames[id as usize]
    }

    pub fn find(&self, address: PhysAddr) -> Option<FrameId> {
        let (known, id) = self.last.get();
        if known == address.0 {
            return Some(id);
        }
        let id = *self.by_address.get(&address.0)?;
        self.last.set((address.0, id));
        Some(id)
    }

    pub fn in_use(&self) -> usize {
        self.in_use
    }

    pub fn limit_to(&mut self, frames: usize) {
        self.limit = frames;
    }

    /// The frames that nothing leads to; they are not told of again.
    pub fn take_unattached(&mut self) -> Vec<FrameId> {
        core::mem::take(&mut self.unattached)
    }

    /// So many frames of 4 KiB of the pool. The one given back last is given out first: what still leads there is found out.
    pub fn allocate(&mut self, frames: usize) -> Option<PhysAddr> {
        let tables = frames / self.shape.frames();
        if self.in_use + tables > self.limit || !frames.is_power_of_two() || tables == 0 {
            return None;
        }
        let first = match self.free.pop().filter(|_| tables == 1) {
            Some(id) => self.frame(id).address,
            None => {
                let bytes = frames as u64 * 4096;
                let first = self.pool_end.next_multiple_of(bytes);
                self.pool_end = first + bytes;
                PhysAddr(first)
            }
        };
        self.adopt(first, frames);
        Some(first)
    }

    /// Takes frames as allocated, wherever they are. Returns whether none of them was in use.
    pub fn adopt(&mut self, first: PhysAddr, frames: usize) -> bool {
        let mut fresh = true;
        let (bytes, entries) = (self.shape.bytes(), self.shape.entries());
        for n in 0..frames / self.shape.frames() {
            let address = first.offset(n as u64 * bytes);
            let id = *self.by_address.entry(address.0).or_insert_with(|| {
                let id = self.frames.len() as FrameId;
                self.frames.push(Frame {
                    address,
                    values: vec![POISON; entries].into(),
                    written: vec![0; entries / 64].into(),
                    allocated: false,
                    group: 0,
                    place: None,
                    parent: None,
                    is_root: false,
                    walkers: 0,
                    ghosts: 0,
                    unordered: 0,
                });
                id
            });
            let frame = self.frame_mut(id);
            fresh &= !frame.allocated;
            frame.written.fill(0);
            frame.values.fill(POISON);
            frame.group = if n == 0 { frames } else { 0 };
            (frame.place, frame.parent, frame.is_root, frame.unordered) = (None, None, false, 0);
            if !core::mem::replace(&mut frame.allocated, true) {
                self.in_use += 1;
                self.unattached.push(id);
            }
        }
        fresh
    }

    /// Takes a frame back. The PE that had it must know that nothing leads to it: see the caller.
    pub fn release(&mut self, id: FrameId, single: bool) {
        let frame = self.frame_mut(id);
        let children = frame.place.is_some_and(|place| place.level != Level::L3);
        frame.allocated = false;
        (frame.place, frame.parent, frame.is_root) = (None, None, false);
        if children {
            for index in 0..self.shape.entries() {
                let value = self.frame(id).values[index];
                if value & 3 == 3
                    && let Some(child) = self.find(self.shape.address(value))
                {
                    self.detach(child, (id, index as u16));
                }
            }
        }
        self.frame_mut(id).values.fill(POISON);
        self.unattached.retain(|&other| other != id);
        self.in_use -= 1;
        if single {
            self.free.push(id);
        }
    }

    /// Notes that the descriptor `parent` leads to the frame.
    pub fn attach(&mut self, id: FrameId, parent: Option<(FrameId, u16)>, place: Place) {
        let frame = self.frame_mut(id);
        frame.parent = parent;
        frame.is_root = parent.is_none();
        frame.place = Some(place);
        self.unattached.retain(|&other| other != id);
    }

    /// Notes that the descriptor `parent` leads there no more. The frame's place stays known: walk caches may lead there.
    pub fn detach(&mut self, id: FrameId, parent: (FrameId, u16)) {
        let frame = self.frame_mut(id);
        if frame.parent == Some(parent) {
            frame.parent = None;
            if frame.allocated {
                self.unattached.push(id);
            }
        }
    }

    /// A root is one no more.
    pub fn unroot(&mut self, id: FrameId) {
        let frame = self.frame_mut(id);
        if core::mem::replace(&mut frame.is_root, false) && frame.allocated {
            self.unattached.push(id);
        }
    }

    /// Whether a walk may come to the frame, from a root or from a walk cache.
    pub fn is_reachable(&self, id: FrameId) -> bool {
        self.chain(id).any(|id| {
            let frame = self.frame(id);
            frame.is_root || frame.walkers > 0
        })
    }

    /// Whether something in memory leads from a root to the frame.
    pub fn is_linked(&self, id: FrameId) -> bool {
        self.chain(id).any(|id| self.frame(id).is_root)
    }

    /// All frames in use, with their descriptors.
    pub fn snapshot(&self) -> Vec<(PhysAddr, Box<[u64]>)> {
        let used = self.frames.iter().filter(|frame| frame.allocated);
        used.map(|frame| (frame.address, frame.values.clone())).collect()
    }

    /// The frame, the table that leads to it, the one that leads to that, …
    pub fn chain(&self, id: FrameId) -> impl Iterator<Item = FrameId> + '_ {
        // Tables are at most four levels deep; a cycle made by a bad trace ends there too.
        core::iter::successors(Some(id), |&id| self.frame(id).parent.map(|(parent, _)| parent)).take(5)
    }

    pub fn slot(&self, id: FrameId, index: usize) -> Slot {
        Slot { table: self.frame(id).address, index }
    }

    /// The leaves in memory that overlap `range`, in the table `id` at `place` and below.
    pub fn leaves(&self, id: FrameId, place: Place, range: &Range<u64>, each: &mut dyn FnMut(Span, Translation, Slot)) {
        let wanted = intersection(range, &place.span().range());
        if wanted.is_empty() {
            return;
        }
        let shift = place.shape.shift(place.level);
        let (first, last) = ((wanted.start - place.base) >> shift, (wanted.end - 1 - place.base) >> shift);
        for index in first as usize..=last as usize {
            let value = self.frame(id).values[index];
            if is_leaf(place.shape, place.level, value) {
                let span = place.entry(index);
                each(span, Translation::of(place.shape, place.level, span, value), self.slot(id, index));
            } else if is_table(place.level, value)
                && let (Some(below), Some(child)) = (place.child(index), self.find(self.shape.address(value)))
            {
                self.leaves(child, below, range, each);
            }
        }
    }
}

/// One VMID's walks.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub vmid: u16,
    pub ipa_bits: u8,
    pub start_level: Level,
    pub shape: Shape,
    pub roots: Vec<FrameId>,
}

impl Space {
    /// The place of the root's frame number `n`.
    pub fn root_place(&self, space: usize, n: usize) -> Place {
        let level = self.start_level;
        Place { space, shape: self.shape, level, base: (n as u64) << self.shape.table_shift(level) }
    }

    /// The leaves of the whole table that overlap `range`.
    pub fn leaves(
        &self,
        memory: &Memory,
        number: usize,
        range: &Range<u64>,
        each: &mut dyn FnMut(Span, Translation, Slot),
    ) {
        for (n, &root) in self.roots.iter().enumerate() {
            memory.leaves(root, self.root_place(number, n), range, each);
        }
    }

    /// The leaf that translates `ipa`, and where its descriptor is.
    pub fn translate(&self, memory: &Memory, number: usize, ipa: u64) -> Option<(Span, Translation, Slot)> {
        let n = (ipa >> self.shape.table_shift(self.start_level)) as usize;
        let mut id = *self.roots.get(n)?;
        let mut place = self.root_place(number, n);
        loop {
            let index = ((ipa - place.base) >> place.shape.shift(place.level)) as usize;
            let value = memory.frame(id).values[index];
            if is_leaf(place.shape, place.level, value) {
                let span = place.entry(index);
                return Some((span, Translation::of(place.shape, place.level, span, value), memory.slot(id, index)));
            }
            if !is_table(place.level, value) {
                return None;
            }
            place = place.child(index)?;
            id = memory.find(self.shape.address(value))?;
        }
    }
}
