//! Operations: what has to hold when the engine returns.

use crate::event::{Operation, OperationKind};
use crate::memory::FrameId;
use crate::span::{Span, intersection, plain};
use crate::state::{Busy, Change, State};
use crate::tlb::{Held, Stale};
use crate::translation::{Translation, is_leaf, noticed};
use crate::verdict::Verdict;
use core::ops::Range;
use rustc_hash::FxHashMap;
use stage2::descriptor::bits;
use stage2::{BbmLevel, Descriptor, Level, Slot};

/// A time in which an address could not be translated, or not used as before.
#[derive(Clone, Debug)]
struct Window {
    frame: FrameId,
    span: Span,
    old: u64,
    /// What was mapped; for a table at level 0, where windows are only counted, its first leaf.
    leaves: Vec<Translation>,
}

/// An operation that has begun and not returned.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub operation: Operation,
    pub number: u64,
    /// What it was asked for, or reports, page by page.
    pub pages: Vec<Range<u64>>,
    /// What it has changed.
    pub touched: Vec<Range<u64>>,
    /// Stage-2 invalidations that it has issued: when, and for what.
    pub invalidations: Vec<(u64, Range<u64>)>,
    /// What fault handlers have changed that returned while it ran.
    pub meanwhile: Vec<Range<u64>>,
    runs: Vec<(FrameId, usize)>,
    /// By descriptor: invalid for a time.
    windows: FxHashMap<(FrameId, usize), Window>,
    /// By descriptor: valid all the time, but not with all the rights of this leaf.
    restricted: FxHashMap<(FrameId, usize), Translation>,
    /// Bits that it took from entries which other PEs had marked busy.
    taken_early: Vec<(Change, Option<Busy>)>,
    /// Leaves whose permissions it changed although they do not lie in its range.
    outside: Vec<(Span, Translation)>,
}

impl Running {
    /// Whether the operation was asked to change the permissions of the leaf at `span`.
    fn may_change(&self, span: Span) -> bool {
        use OperationKind::{Clear, Collapse, Harvest, Protect, Split};
        let Some(asked) = self.operation.range.map(plain) else { return true };
        match self.operation.kind {
            Protect | Harvest => span.is_inside(&asked),
            // A collapse opens what a log that has ended left closed.
            Split => false,
            Clear => self.pages.iter().any(|pages| span.is_inside(pages)),
            Collapse => span.overlaps(&asked),
            _ => true,
        }
    }
}

impl State {
    /// An operation begins. Its event is in the history already.
    pub fn begin(&mut self, pe: u8, operation: Operation) {
        self.operations += 1;
        let number = self.operations;
        let before = self.pes[pe as usize].running.replace(Running {
            operation,
            number,
            pages: Vec::new(),
            touched: Vec::new(),
            invalidations: Vec::new(),
            meanwhile: Vec::new(),
            runs: Vec::new(),
            windows: FxHashMap::default(),
            restricted: FxHashMap::default(),
            taken_early: Vec::new(),
            outside: Vec::new(),
        });
        assert!(before.is_none(), "PE{pe} began {operation} inside of another operation");
    }

    /// A write that a walk may see is part of the PE's operation.
    pub fn note_in_operation(&mut self, change: &Change) {
        let Change { pe, frame, index, place, span, old, new, .. } = *change;
        if self.pes[pe as usize].running.is_none() {
            return;
        }
        self.note_permission_window(change);
        let opens = self.opens_window(change);
        let outside = self.changes_outside(change);
        let mut rewritten = false;
        if let Some(running) = &mut self.pes[pe as usize].running {
            let in_run = (old | new) & bits::CONTIGUOUS != 0 && place.level != Level::L0;
            let range = if in_run { span.run().range() } else { span.range() };
            match running.touched.last_mut() {
                Some(last) if last.start <= range.start && range.start <= last.end => {
                    last.end = last.end.max(range.end)
                }
                _ => running.touched.push(range),
            }
            let run = (frame, index / 16);
            if place.level != Level::L0 && running.runs.last() != Some(&run) {
                running.runs.push(run);
            }
            rewritten = running.windows.get(&(frame, index)).is_some_and(|window| window.old == new);
            if let Some(window) = opens {
                running.windows.insert((frame, index), window);
            }
            if let Some(outside) = outside
                && !running.outside.iter().any(|(span, _)| *span == outside.0)
            {
                running.outside.push(outside);
            }
        }
        if rewritten {
            let what = format!("the entry was broken and is written again as it was, {new:#x}");
            self.report(Verdict::Window, span.range(), None, what);
        }
    }

    /// An operation takes bits from an entry that another PE has marked busy.
    pub fn note_taken_early(&mut self, change: &Change, mark: Option<Busy>) {
        if let Some(running) = &mut self.pes[change.pe as usize].running {
            running.taken_early.push((*change, mark));
        }
    }

    /// Bits that were taken from a busy entry are gone when the operation returns, and the entry's owner, who may write over
    /// it, has been waited for.
    fn judge_taken_early(&mut self, running: &Running) {
        for &(Change { frame, index, place, span, old, new, .. }, mark) in &running.taken_early {
            let (value, taken) = (self.memory.frame(frame).values[index], old & !new);
            let range = span.range();
            let others = self.pes.iter().filter_map(|pe| pe.running.as_ref());
            let granted =
                others.filter(|other| other.operation.kind.sets_permissions()).flat_map(|other| &other.touched);
            let what = if self.mark_on(frame, index, place, value) == mark {
                "is busy still, so that what was taken from it may come back"
            } else if granted.clone().any(|other| span.overlaps(other)) {
                continue;
            } else {
                let mut left = 0;
                let mut look = |_, _, slot: Slot| {
                    let id = self.memory.find(slot.table);
                    left |= id.map_or(0, |id| self.memory.frame(id).values[slot.index]) & taken;
                };
                for (number, space) in self.spaces.iter().enumerate() {
                    space.leaves(&self.memory, number, &range, &mut look);
                }
                if left == 0 {
                    continue;
                }
                "has got back what was taken from it while another PE had marked it busy"
            };
            let what = format!("{} returns, and {span} {what}", running.operation);
            self.report(Verdict::Contract, range, None, what);
        }
    }

    /// A walk that would have found something may end in a fault from now on.
    fn opens_window(&mut self, change: &Change) -> Option<Window> {
        let Change { frame, index, place, span, old, new, .. } = *change;
        let new_nt = change.new_leaf().is_some_and(|leaf| leaf.has_nt());
        let fault = match self.level() {
            // nT means nothing to hardware without FEAT_BBML1, and is the way to change sizes with it (R_MRRPW).
            BbmLevel::Level0 => !Descriptor(new).is_valid(),
            BbmLevel::Level1 => {
                self.stats.nt_windows += u64::from(new_nt);
                !Descriptor(new).is_valid()
            }
            BbmLevel::Level2 | BbmLevel::Level3 => !Descriptor(new).is_valid() || new_nt,
        };
        if !fault || !Descriptor(old).is_valid() {
            return None;
        }
        let mut leaves = Vec::from_iter(change.old_leaf());
        if let (Some(child), Some(below)) = (change.old_table(&self.memory), place.child(index)) {
            let all = self.level() > BbmLevel::Level0;
            self.memory.leaves(child, below, &span.range(), &mut |_, leaf, _| {
                if all || leaves.is_empty() {
                    leaves.push(leaf);
                }
            });
        }
        Some(Window { frame, span, old, leaves })
    }

    /// Reads, fetches or untracked writes that an operation takes away and gives back fault in between.
    fn note_permission_window(&mut self, change: &Change) {
        let (Some(old), Some(new)) = (change.old_leaf(), change.new_leaf()) else { return };
        let Change { pe, frame, index, span, .. } = *change;
        let may = |t: &Translation| [t.reads(), t.executes(), t.writes()];
        let lost = |from: &Translation, to: &Translation| {
            // The moment of read-only that hardware dirty state needs is no such window.
            let tracked = from.has_dbm() || to.has_dbm();
            let [r, x, w] = core::array::from_fn(|i| may(from)[i] && !may(to)[i]);
            r || x || (w && !tracked)
        };
        let running = self.pes[pe as usize].running.as_mut();
        // What a batch takes away and gives back again it may have been asked for.
        let Some(running) = running.filter(|running| running.operation.kind != OperationKind::Batch) else { return };
        if lost(&old, &new) {
            running.restricted.entry((frame, index)).or_insert(old);
            return;
        }
        let full = running.restricted.get(&(frame, index));
        if full.is_some_and(|full| lost(full, &old) && !lost(full, &new)) {
            self.judge_window(span, "its permissions were gone for a time");
        }
    }

    fn judge_window(&mut self, span: Span, how: &str) {
        if self.level() == BbmLevel::Level0 {
            self.stats.invalid_windows += 1;
        } else {
            self.report(Verdict::Window, span.range(), None, format!("{span} is mapped before and after, but {how}"));
        }
    }

    /// A permission change of a leaf that the operation was not asked to change.
    fn changes_outside(&self, change: &Change) -> Option<(Span, Translation)> {
        const PERMISSIONS: u64 = bits::READ | bits::WRITE | bits::NO_EXECUTE | bits::DBM | bits::WRITE_GRANTED;
        let (old, _) = (change.old_leaf()?, change.new_leaf()?);
        let running = self.pes[change.pe as usize].running.as_ref()?;
        // From a busy mark on, the entry is a step of the engine's.
        let first = !Descriptor(change.old).is_busy(change.place.level);
        let outside = first && !running.may_change(change.span) && (change.old ^ change.new) & PERMISSIONS != 0;
        outside.then_some((change.span, old))
    }

    /// The engine returns: everything that it started is to be complete. Its event is in the history already.
    pub fn finish(&mut self, pe: u8, ok: bool) {
        let Some(running) = self.pes[pe as usize].running.take() else { return };
        for range in &running.touched {
            // Where another operation is at work on the same addresses, they are judged when that one returns.
            if !self.defer(range) {
                self.judge_stale(range, &running);
            }
        }
        if running.operation.kind == OperationKind::Fault {
            for other in self.pes.iter_mut().filter_map(|pe| pe.running.as_mut()) {
                other.meanwhile.extend_from_slice(&running.touched);
            }
        }
        self.judge_runs(&running);
        self.judge_windows(&running, ok);
        self.judge_outside(&running);
        self.judge_taken_early(&running);
        match running.operation.kind {
            OperationKind::Freeze if ok => self.frozen = true,
            OperationKind::Thaw if ok => self.frozen = false,
            _ => {}
        }
        self.judge_leaks(running.operation.kind);
        self.finish_log(pe, &running);
    }

    /// Hands a range over to another operation that has changed something in it. Whether there is one.
    fn defer(&mut self, range: &Range<u64>) -> bool {
        let others = self.pes.iter_mut().filter_map(|pe| pe.running.as_mut());
        for other in others {
            if other.touched.iter().any(|touched| !intersection(touched, range).is_empty()) {
                other.touched.push(range.clone());
                return true;
            }
        }
        false
    }

    /// Nothing that may be held allows more than the table does now.
    fn judge_stale(&mut self, range: &Range<u64>, running: &Running) {
        for number in 0..self.spaces.len() {
            let held: Vec<Stale> = self.tlbs[number].overlapping(range).map(|(_, &stale)| stale).collect();
            for stale in held {
                let mut found = None;
                let mut look = |old: &Translation| {
                    if found.is_none() {
                        found = self.allowed_too_much(number, old, range).map(|what| (*old, what));
                    }
                };
                match stale.held {
                    Held::Leaf(old) => look(&old),
                    Held::Table(id) => {
                        if let Some(place) = self.memory.frame(id).place {
                            self.memory.leaves(id, place, range, &mut |_, old, _| look(&old));
                        }
                    }
                }
                if let Some((old, (at, what))) = found {
                    self.report_stale(&stale, &old, at, &what, running);
                }
            }
        }
    }

    fn report_stale(&mut self, stale: &Stale, old: &Translation, at: u64, what: &str, running: &Running) {
        let page = at..at + 4096;
        let text = format!("{stale} may hold {old}, which allows {what} at {at:#x}");
        self.report(Verdict::Stale, page.clone(), None, text);
        let mut late = running.invalidations.iter().filter(|(issued, _)| stale.hidden_before(*issued)).peekable();
        if stale.tlb != 0 && late.peek().is_some() && late.all(|(_, range)| !stale.span.overlaps(range)) {
            let text = format!("the invalidations of {} do not cover {}", running.operation, stale.span);
            self.report(Verdict::Invalidation, page, None, text);
        }
    }

    /// What an entry lets the guest do in `range` that the table does not: the first address, and what.
    fn allowed_too_much(&self, number: usize, old: &Translation, range: &Range<u64>) -> Option<(u64, String)> {
        let wanted = intersection(&old.span.range(), range);
        let mut at = wanted.start;
        while at < wanted.end {
            let Some((span, now, _)) = self.spaces[number].translate(&self.memory, number, at) else {
                return Some((at, "any access, while nothing is mapped".into()));
            };
            if let Some(more) = old.allows_more_than(&now) {
                return Some((at, format!("{more}, while the table says {now}")));
            }
            at = span.end();
        }
        None
    }

    /// A run that an operation leaves has sixteen members that agree (D8.7.1).
    fn judge_runs(&mut self, running: &Running) {
        // Hardware may mark one member only (R_JKCXG).
        const PER_MEMBER: u64 = bits::ADDRESS | bits::ACCESS;
        for &(id, run) in &running.runs {
            let busy_elsewhere =
                self.pes.iter().filter_map(|pe| pe.running.as_ref()).any(|r| r.runs.contains(&(id, run)));
            let frame = self.memory.frame(id);
            let Some(place) = frame.place else { continue };
            let members = &frame.values[run * 16..run * 16 + 16];
            let is_member = |v: &u64| is_leaf(place.level, *v) && Descriptor(*v).is_contiguous();
            let Some(&one) = members.iter().find(|v| is_member(v)) else { continue };
            if busy_elsewhere || !frame.allocated || !self.memory.is_linked(id) {
                continue;
            }
            let span = place.entry(run * 16).run();
            if !members.iter().all(is_member) {
                let what = format!("some of the sixteen members of the run {span} are not contiguous");
                self.report(Verdict::Size, span.range(), None, what);
                continue;
            }
            let ignored = PER_MEMBER | if one & bits::DBM != 0 { bits::WRITE } else { 0 };
            let odd = members.iter().find(|&&v| noticed(v ^ one) & !ignored != 0).copied();
            if let Some(odd) = odd {
                let what = format!("members of the run {span} differ: {one:#x} and {odd:#x}");
                self.report(Verdict::Stale, span.range(), None, what);
            }
        }
    }

    /// Addresses that were mapped before and are mapped now were to be mapped all the time.
    fn judge_windows(&mut self, running: &Running, ok: bool) {
        for window in running.windows.values() {
            let Some(place) = self.memory.frame(window.frame).place else { continue };
            for leaf in &window.leaves {
                let now = self.spaces[place.space].translate(&self.memory, place.space, leaf.span.base);
                match now {
                    // Mapping a range anew may break what is not mapped alike, its permissions included.
                    Some((_, _, slot)) if running.operation.kind == OperationKind::Map && !self.alike(window, slot) => {
                    }
                    Some((_, now, _)) if !leaf.differs(&now) => {
                        self.judge_window(window.span, "a walk could end in a fault in between");
                        break;
                    }
                    None if !ok => {
                        let what = format!("{} failed and left a hole where {leaf} was", running.operation);
                        self.report(Verdict::Window, window.span.range(), None, what);
                        break;
                    }
                    _ => {}
                }
            }
        }
    }

    /// Whether the leaf that a window was opened on has the owner's attributes that the one in `slot` has.
    fn alike(&self, window: &Window, slot: Slot) -> bool {
        let now = self.memory.find(slot.table).map(|id| self.memory.frame(id).values[slot.index]);
        now.is_some_and(|now| Descriptor(now).attributes() == Descriptor(window.old).attributes())
    }

    /// Leaves that an operation was not asked to change, and did on its way, are as they were.
    fn judge_outside(&mut self, running: &Running) {
        let may = |t: &Translation| [t.reads(), t.executes(), t.writes() || t.has_dbm()];
        for (span, before) in &running.outside {
            let mut found = None;
            for number in 0..self.spaces.len() {
                self.spaces[number].leaves(&self.memory, number, &span.range(), &mut |at, now, _| {
                    if may(before) != may(&now) && !running.may_change(at) {
                        found.get_or_insert(now);
                    }
                });
            }
            if let Some(now) = found {
                let what = format!("{} changed {before} to {now}, which it was not asked for", running.operation);
                self.report(Verdict::Contract, span.range(), None, what);
            }
        }
    }

    /// When no operation runs, each allocated frame is a table that something leads to.
    fn judge_leaks(&mut self, kind: OperationKind) {
        if kind == OperationKind::New || self.frozen || self.pes.iter().any(|pe| pe.running.is_some()) {
            return;
        }
        for id in self.memory.take_unattached() {
            let address = self.memory.frame(id).address;
            let range = self.memory.frame(id).place.map_or(0..1 << 48, |place| place.span().range());
            let what = format!("the frame {:#x} is leaked: no table, and not given back", address.0);
            self.report(Verdict::Contract, range, Some(address), what);
        }
    }
}
