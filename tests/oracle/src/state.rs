//! The model's state, and what each event does to it.

use crate::change::{Change, How};
use crate::event::{Action, Invalidation};
use crate::history::History;
use crate::log::Log;
use crate::memory::{FrameId, Memory, Space};
use crate::running::{Busy, Running};
use crate::setup::{Setup, Stats};
use crate::span::Span;
use crate::stage1::{Stage1, Trial};
use crate::tlb::{Held, Key, MAX_PES, Mask, Stale, Tlb};
use crate::translation::{Translation, noticed};
use crate::verdict::{Verdict, Violation};
use core::ops::Range;
use rustc_hash::FxHashMap;
use stage2::{BbmLevel, Dsb, PhysAddr, Slot};

/// Violations of one rule that are kept; more tell nothing new.
const MOST_VIOLATIONS: usize = 16;

/// A store whose old value a walk may still read.
#[derive(Clone, Copy, Debug)]
struct Unordered {
    space: usize,
    key: Key,
    writer: u8,
    /// PEs that have read what was stored, or something stored later.
    readers: Mask,
    /// Those that have stored something after that.
    carriers: Mask,
}

/// An invalidation that was issued and is not complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Issued {
    pub at: u64,
    /// When a DSB of the same PE has completed it too early.
    pub early: Option<u64>,
    pub invalidation: Invalidation,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Pe {
    pub issued: Vec<Issued>,
    /// Frames that nothing led to when this PE wrote to them.
    filled: Vec<FrameId>,
    /// Descriptors that this PE has read since it last stored one, and whose stores by other PEs are not ordered.
    read: Vec<(FrameId, u16)>,
    /// Plain stores that have not come to memory, in their order.
    pub late: Vec<(Slot, u64)>,
    pub running: Option<Running>,
    /// The last access of its guest that was refused.
    pub trial: Option<Trial>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub setup: Setup,
    pub memory: Memory,
    pub spaces: Vec<Space>,
    pub tlbs: Vec<Tlb>,
    /// By address space: the guest's own tables.
    pub stage1: Vec<Stage1>,
    pub pes: [Pe; MAX_PES],
    pub history: History,
    pub stats: Stats,
    pub violations: Vec<Violation>,
    pub logs: Vec<Log>,
    pub operations: u64,
    pub fail_allocation: Option<usize>,
    /// All tables hang on a root that no walk starts from.
    pub frozen: bool,
    pub chance: fastrand::Rng,
    /// By descriptor, in the order of the stores.
    unordered: FxHashMap<(FrameId, u16), Vec<Unordered>>,
    /// Which PE marked an entry busy, and when.
    pub busy: FxHashMap<(FrameId, u16), Busy>,
}

impl State {
    pub fn new(setup: Setup) -> Self {
        assert!((1..=MAX_PES).contains(&setup.pes), "a model has 1 to {MAX_PES} PEs");
        Self {
            memory: Memory::new(setup.frames, setup.granule),
            spaces: Vec::new(),
            tlbs: Vec::new(),
            stage1: Vec::new(),
            pes: Default::default(),
            history: History::new(setup.record),
            stats: Stats::default(),
            violations: Vec::new(),
            logs: Vec::new(),
            operations: 0,
            fail_allocation: None,
            frozen: false,
            chance: fastrand::Rng::with_seed(setup.seed),
            unordered: FxHashMap::default(),
            busy: FxHashMap::default(),
            setup,
        }
    }

    pub fn all_pes(&self) -> Mask {
        (1 << self.setup.pes) - 1
    }

    pub fn level(&self) -> BbmLevel {
        self.setup.bbm
    }

    /// Notes a violation by the last event.
    pub fn report(&mut self, verdict: Verdict, range: Range<u64>, frame: Option<PhysAddr>, what: String) {
        if !self.setup.checks.includes(verdict) {
            return;
        }
        self.stats.violations += 1;
        if self.violations.iter().filter(|v| v.verdict == verdict).count() < MOST_VIOLATIONS {
            let history = self.history.of(&range, frame);
            let event = self.history.last();
            self.violations.push(Violation { verdict, event, start: range.start, end: range.end, what, history });
        }
    }

    /// The frame of a slot that software uses; reports one that is not allocated.
    pub fn live_frame(&mut self, slot: Slot) -> Option<FrameId> {
        let id = self.memory.find(slot.table);
        match id {
            Some(id) if self.memory.frame(id).allocated && slot.index < self.setup.granule.entries() => Some(id),
            _ => {
                let what =
                    format!("software uses descriptor {} of {:#x}, no allocated frame", slot.index, slot.table.0);
                let range = id.and_then(|id| self.memory.frame(id).place).map_or(0..1 << 52, |p| p.span().range());
                self.report(Verdict::Freed, range, Some(slot.table), what);
                None
            }
        }
    }

    /// The addresses that a descriptor translates, where something leads to it.
    pub fn slot_range(&self, id: FrameId, index: usize) -> Option<Range<u64>> {
        self.memory.frame(id).place.map(|place| place.entry(index).range())
    }

    pub fn load(&mut self, pe: u8, slot: Slot) -> u64 {
        let Some(id) = self.live_frame(slot) else { return 0 };
        let value = self.memory.frame(id).values[slot.index];
        if !self.unordered.is_empty() {
            self.observe(pe, id, slot.index);
        }
        // Loads tell nothing about a violation; they are kept for a recording only.
        if self.setup.record {
            self.history.push(pe, Action::Load { slot, value }, None);
        }
        value
    }

    /// A PE that has read a value orders it with its own DSB as if it had stored it: memory is other-multi-copy atomic
    /// (B2.3), so what one other PE has read is there for all. For `DSB ISHST`, which orders no loads, it takes a store of
    /// its own in between, which the acquiring load comes before.
    fn observe(&mut self, pe: u8, frame: FrameId, index: usize) {
        let key = (frame, index as u16);
        for store in self.unordered.get_mut(&key).into_iter().flatten() {
            if store.writer != pe && store.readers & 1 << pe == 0 {
                store.readers |= 1 << pe;
                self.pes[pe as usize].read.push(key);
            }
        }
    }

    /// A store comes after everything that its PE has read.
    fn carry(&mut self, pe: u8) {
        for key in core::mem::take(&mut self.pes[pe as usize].read) {
            for store in self.unordered.get_mut(&key).into_iter().flatten() {
                store.carriers |= store.readers & 1 << pe;
            }
        }
    }

    /// Writes a descriptor. The event is in the history already.
    pub fn write(&mut self, pe: u8, frame: FrameId, index: usize, new: u64, how: How) {
        if how == How::Exchange && !self.unordered.is_empty() {
            self.observe(pe, frame, index);
        }
        if how != How::Hardware && !self.pes[pe as usize].read.is_empty() {
            self.carry(pe);
        }
        if !self.memory.is_reachable(frame) {
            self.settle_ghosts(frame);
            let data = self.memory.frame_mut(frame);
            data.set(index, new);
            if data.unordered & 1 << pe == 0 {
                data.unordered |= 1 << pe;
                self.pes[pe as usize].filled.push(frame);
            }
            return;
        }
        let Some(place) = self.memory.frame(frame).place else { return };
        let old = self.memory.frame_mut(frame).set(index, new);
        let change = Change { pe, frame, index, place, span: place.entry(index), old, new, how };
        self.judge_ownership(&change);
        if noticed(old) == noticed(new) {
            return;
        }
        self.stats.descriptor_writes += 1;
        self.displace(&change);
        self.link(&change);
        self.note_in_operation(&change);
        self.judge(&change);
        self.note_writable(&change);
        self.disturb_trials(&change);
    }

    /// What stores of other PEs have replaced that `pe`, too, may still read.
    pub fn unordered_by_others(&self, pe: u8) -> impl Iterator<Item = (usize, Key)> {
        self.unordered.values().flatten().filter(move |s| s.writer != pe).map(|s| (s.space, s.key))
    }

    /// What the old descriptor led to may be held from now on, though memory does not say it any more.
    fn displace(&mut self, change: &Change) {
        if change.how == How::Hardware {
            return; // Other PEs may go on with the clean entry (R_KLVVN).
        }
        let level = change.place.level;
        if let Some(leaf) = change.old_leaf() {
            self.hold_unordered(change, Held::Leaf(leaf), change.span);
            if let Some(run) = Translation::of_run(change.place.shape, level, change.span, change.old) {
                self.hold_unordered(change, Held::Leaf(run), run.span);
            }
        } else if let Some(child) = change.old_table(&self.memory) {
            self.memory.detach(child, (change.frame, change.index as u16));
            self.hold_unordered(change, Held::Table(child), change.span);
        }
    }

    fn hold_unordered(&mut self, change: &Change, held: Held, span: Span) {
        let space = change.place.space;
        let stale = Stale {
            held,
            span,
            tlb: self.all_pes(),
            combined: self.all_pes(),
            gone_at: [0; MAX_PES],
            visible: 1,
            hidden_at: 0,
            operation: self.pes[change.pe as usize].running.as_ref().map_or(0, |op| op.number),
            replaced_at: self.history.now(),
        };
        let key = self.hold(space, stale);
        let stores = self.unordered.entry((change.frame, change.index as u16)).or_default();
        stores.push(Unordered { space, key, writer: change.pe, readers: 0, carriers: 0 });
    }

    /// Adds to what may be held, and keeps count of the ways into frames.
    pub fn hold(&mut self, space: usize, stale: Stale) -> Key {
        let (key, before) = self.tlbs[space].insert(stale);
        if let Held::Table(id) = stale.held {
            let (tlb, combined) = before.map_or((0, 0), |b| (b.tlb, b.combined));
            let now = self.tlbs[space].get(key).map_or((0, 0), |s| (s.tlb, s.combined));
            self.count_ways((tlb, combined), now, id);
        }
        key
    }

    /// Keeps count of the ways into a frame, after what is held of it went from `before` to `now` (entries of walk
    /// caches, combined entries).
    pub fn count_ways(&mut self, before: (Mask, Mask), now: (Mask, Mask), id: FrameId) {
        let walker = |(tlb, _): (Mask, Mask)| u32::from(tlb != 0);
        let ghost = |(tlb, combined): (Mask, Mask)| u32::from(tlb == 0 && combined != 0);
        let frame = self.memory.frame_mut(id);
        frame.walkers = frame.walkers + walker(now) - walker(before);
        frame.ghosts = frame.ghosts + ghost(now) - ghost(before);
    }

    /// A barrier orders stores and completes invalidations.
    pub fn barrier(&mut self, pe: u8, barrier: Dsb) {
        if barrier != Dsb::Nsh {
            self.order_stores(pe, barrier == Dsb::Ish);
        }
        if !self.pes[pe as usize].issued.is_empty() {
            self.complete_invalidations(pe, barrier);
        }
    }

    /// After a DSB, walks read the new values of this PE's stores, and of those it has read if loads are ordered too.
    fn order_stores(&mut self, pe: u8, loads: bool) {
        for id in core::mem::take(&mut self.pes[pe as usize].filled) {
            self.memory.frame_mut(id).unordered &= !(1 << pe);
        }
        if self.unordered.is_empty() {
            return;
        }
        let me = 1 << pe;
        self.order_where(|s, _| s.writer == pe || s.carriers & me != 0 || loads && s.readers & me != 0);
    }

    /// What other PEs than `pe` have stored over entries in `range` comes to be seen, as each store does in finite time (B2.3).
    pub fn order_elsewhere(&mut self, pe: u8, range: &Range<u64>) {
        self.order_where(|s, tlbs| {
            s.writer != pe && tlbs[s.space].get(s.key).is_some_and(|stale| stale.span.overlaps(range))
        });
    }

    /// Walks read the new values of these stores from now on.
    fn order_where(&mut self, ordered: impl Fn(&Unordered, &[Tlb]) -> bool) {
        let now = self.history.now();
        let tlbs = &mut self.tlbs;
        self.unordered.retain(|_, stores| {
            // A store to the same descriptor that is ordered hides the values of earlier ones (coherence).
            let Some(last) = stores.iter().rposition(|store| ordered(store, tlbs)) else { return true };
            for store in stores.drain(..=last) {
                if let Some(stale) = tlbs[store.space].get_mut(store.key) {
                    stale.visible -= 1;
                    stale.hidden_at = stale.hidden_at.max(now);
                }
            }
            !stores.is_empty()
        });
    }
}
