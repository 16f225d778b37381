//! Operations: what has to hold when the engine returns.

use crate::change::{Change, How};
use crate::event::{Operation, OperationKind};
use crate::running::{Running, Window};
use crate::shape::Shape;
use crate::span::{Span, intersection};
use crate::state::State;
use crate::tlb::{Held, Stale};
use crate::translation::{Translation, is_busy, is_leaf, noticed};
use crate::verdict::Verdict;
use core::ops::Range;
use stage2::descriptor::bits;
use stage2::{BbmLevel, Descriptor, Level, Slot};

/// What is wrong with an address that could not be translated for a time.
enum Wrong {
    /// Just that.
    Window,
    /// It is not what it was.
    Left(Verdict, String),
}

impl State {
    /// An operation begins. Its event is in the history already.
    pub fn begin(&mut self, pe: u8, operation: Operation) {
        self.operations += 1;
        if operation.kind != OperationKind::Fault {
            self.pes[pe as usize].trial = None;
        }
        let number = self.operations;
        let before = self.pes[pe as usize].running.replace(Running::new(operation, number, self.setup.granule));
        assert!(before.is_none(), "PE{pe} began {operation} inside of another operation");
    }

    /// A write that a walk may see is part of the PE's operation.
    pub fn note_in_operation(&mut self, change: &Change) {
        let Change { pe, frame, index, place, span, old, new, .. } = *change;
        if self.pes[pe as usize].running.is_none() {
            if change.how != How::Hardware {
                let what = format!("PE{pe} changes what a walk may read, and is in no call of the engine");
                self.report(Verdict::Contract, span.range(), None, what);
            }
            return;
        }
        if change.how != How::Hardware
            && let Some(running) = &self.pes[pe as usize].running
            && running.operation.kind == OperationKind::End
        {
            let what = format!("{} changes what a walk may read", running.operation);
            self.report(Verdict::Contract, span.range(), None, what);
        }
        self.note_permission_window(change);
        let opens = self.opens_window(change);
        let now = self.history.now();
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
            let run = (frame, index / place.run());
            if place.level != Level::L0 && running.runs.last() != Some(&run) {
                running.runs.push(run);
            }
            let window = running.windows.get(&(frame, index));
            let may_break = running.may_map(span);
            rewritten =
                window.is_some_and(|window| window.old == new || !may_break && window.is_but_permissions(change));
            if let (Some(old), Some(new)) = (change.old_leaf(), change.new_leaf())
                && old.allows_more_than(&new).is_some()
            {
                running.took.push((old, new, now));
            }
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
            let what = format!("the entry was broken and is written again as it was but for permissions, {new:#x}");
            self.report(Verdict::Window, span.range(), None, what);
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
        let mut leaves = Vec::from_iter(change.old_leaf().map(|leaf| (leaf, old)));
        if let (Some(child), Some(below)) = (change.old_table(&self.memory), place.child(index)) {
            let all = self.level() > BbmLevel::Level0;
            self.memory.leaves(child, below, &span.range(), &mut |_, leaf, slot| {
                if all || leaves.is_empty() {
                    leaves.push((leaf, self.value(slot)));
                }
            });
        }
        Some(Window { frame, span, old, leaves })
    }

    /// Reads, fetches or untracked writes that an operation takes away and gives back fault in between.
    fn note_permission_window(&mut self, change: &Change) {
        let (Some(old), Some(new)) = (change.old_leaf(), change.new_leaf()) else { return };
        let Change { pe, frame, index, span, place, .. } = *change;
        let may = Translation::rights;
        let lost = |from: &Translation, to: &Translation| (0..4).any(|i| may(from)[i] && !may(to)[i]);
        let running = self.pes[pe as usize].running.as_mut();
        let Some(running) = running.filter(|running| !running.may_give_back(span)) else { return };
        // The moment of read-only that hardware dirty state needs (R_RTBRL) is no such window: writers wait for its mark.
        let held = old.has_dbm() && is_busy(place.level, change.new);
        // All but the last, which is for writes.
        let only_writes = (0..3).all(|i| !may(&old)[i] || may(&new)[i]);
        if lost(&old, &new) && (!held || !only_writes) {
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

    /// The engine returns: everything that it started is to be complete. Its event is in the history already.
    pub fn finish(&mut self, pe: u8, ok: bool) {
        let Some(running) = self.pes[pe as usize].running.take() else { return };
        for range in &running.touched {
            // Where another operation is at work on the same addresses, what is left there is judged when that one returns:
            // all but what this one took.
            if self.defer(range) {
                self.judge_taken(range, &running);
            } else {
                self.judge_stale(range, &running);
            }
        }
        if running.operation.kind == OperationKind::Fault {
            self.note_answer(pe);
            for other in self.pes.iter_mut().filter_map(|pe| pe.running.as_mut()) {
                other.meanwhile.extend_from_slice(&running.touched);
            }
        }
        if matches!(running.operation.kind, OperationKind::Batch | OperationKind::Protect) {
            for other in self.pes.iter_mut().filter_map(|pe| pe.running.as_mut()) {
                other.set_meanwhile.extend_from_slice(&running.touched);
            }
        }
        self.judge_runs(&running);
        self.judge_left_busy(pe, &running);
        self.judge_windows(&running, ok);
        self.judge_outside(pe, &running);
        self.judge_taken_early(&running);
        match running.operation.kind {
            OperationKind::Freeze if ok => self.frozen = true,
            OperationKind::Thaw if ok => self.frozen = false,
            _ => {}
        }
        self.judge_leaks(running.operation.kind);
        // A log that could not start is none.
        if ok || running.operation.kind != OperationKind::Start {
            self.finish_log(pe, &running);
        }
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

    /// Of the rights that the operation took from leaves in `range`, no entry gives any that is as old as that, whatever
    /// others are doing there: the PE that takes them invalidates.
    fn judge_taken(&mut self, range: &Range<u64>, running: &Running) {
        for (_, left, when) in running.took.iter().filter(|(old, ..)| old.span.overlaps(range)) {
            let span = left.span.range();
            for number in 0..self.spaces.len() {
                let held: Vec<Stale> = self.tlbs[number].overlapping(&span).map(|(_, &stale)| stale).collect();
                for stale in held.into_iter().filter(|stale| stale.replaced_at <= *when) {
                    let leaves = self.leaves_of(&stale, &span);
                    let too_much = leaves.into_iter().filter(|old| old.allows_more_than(left).is_some());
                    let found =
                        too_much.filter_map(|old| Some((old, self.allowed_too_much(number, &old, &span)?))).next();
                    if let Some((old, (at, what))) = found {
                        self.report_stale(&stale, &old, at, &what, running);
                    }
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
        let per_member = self.setup.granule.address_mask() | bits::ACCESS;
        for &(id, run) in &running.runs {
            let busy_elsewhere =
                self.pes.iter().filter_map(|pe| pe.running.as_ref()).any(|r| r.runs.contains(&(id, run)));
            let frame = self.memory.frame(id);
            let Some(place) = frame.place else { continue };
            let members = &frame.values[run * place.run()..(run + 1) * place.run()];
            let is_member = |v: &u64| is_leaf(place.shape, place.level, *v) && Descriptor(*v).is_contiguous();
            let Some(&one) = members.iter().find(|v| is_member(v)) else { continue };
            if busy_elsewhere || !frame.allocated || !self.memory.is_linked(id) {
                continue;
            }
            let span = place.entry(run * place.run()).run();
            if !members.iter().all(is_member) {
                let what = format!("some of the members of the run {span} are not contiguous");
                self.report(Verdict::Size, span.range(), None, what);
                continue;
            }
            let ignored = per_member | if one & bits::DBM != 0 { bits::WRITE } else { 0 };
            let odd = members.iter().find(|&&v| noticed(v ^ one) & !ignored != 0).copied();
            if let Some(odd) = odd {
                let what = format!("members of the run {span} differ: {one:#x} and {odd:#x}");
                self.report(Verdict::Stale, span.range(), None, what);
            }
        }
    }

    /// Addresses that were mapped before and are mapped now were to be mapped all the time; those that are not, or lead
    /// elsewhere, are those that the operation was asked about.
    fn judge_windows(&mut self, running: &Running, ok: bool) {
        for window in running.windows.values() {
            // The first page of each leaf and the last stand for all: an edge may lie in between.
            let pages =
                window.leaves.iter().flat_map(|leaf| [(leaf, leaf.0.span.base), (leaf, leaf.0.span.end() - 4096)]);
            let wrong = pages.filter_map(|(leaf, at)| self.judge_page(window, leaf, at, running, ok)).next();
            match wrong {
                Some(Wrong::Window) => self.judge_window(window.span, "a walk could end in a fault in between"),
                Some(Wrong::Left(verdict, what)) => {
                    self.report(verdict, window.span.range(), None, format!("{}: {what}", running.operation));
                }
                None => {}
            }
        }
    }

    /// Whether something is wrong with the page at `at`, of a leaf that could not be translated for a time.
    fn judge_page(
        &self,
        window: &Window,
        (leaf, old): &(Translation, u64),
        at: u64,
        running: &Running,
        ok: bool,
    ) -> Option<Wrong> {
        let space = self.memory.frame(window.frame).place?.space;
        let page = Span::entry(Shape::PAGE_4K, Level::L3, at, 0);
        match self.spaces[space].translate(&self.memory, space, at) {
            Some((_, now, _)) if leaf.differs(&now) => {
                let what = || Wrong::Left(Verdict::Contract, format!("{leaf} is {now} now, which was not asked for"));
                (!running.may_map(page)).then(what)
            }
            // Mapping a range anew may break what is not mapped alike, its permissions included.
            Some((.., slot)) if running.may_map(page) && !alike(*old, self.value(slot)) => None,
            Some(_) => Some(Wrong::Window),
            None if self.is_marked_busy(at) => None,
            None if !ok => Some(Wrong::Left(Verdict::Window, format!("failed and left a hole where {leaf} was"))),
            None if running.may_unmap(page) => None,
            None => Some(Wrong::Left(Verdict::Contract, format!("left a hole where {leaf} was"))),
        }
    }

    /// The descriptor in a slot.
    fn value(&self, slot: Slot) -> u64 {
        self.memory.find(slot.table).map_or(0, |id| self.memory.frame(id).values[slot.index])
    }

    /// When no operation runs, each allocated frame is a table that something leads to.
    fn judge_leaks(&mut self, kind: OperationKind) {
        if kind == OperationKind::New || self.frozen || self.pes.iter().any(|pe| pe.running.is_some()) {
            return;
        }
        for id in self.memory.take_unattached() {
            let address = self.memory.frame(id).address;
            let range = self.memory.frame(id).place.map_or(0..1 << 52, |place| place.span().range());
            let what = format!("the frame {:#x} is leaked: no table, and not given back", address.0);
            self.report(Verdict::Contract, range, Some(address), what);
        }
    }
}

/// Whether two leaves have the same attributes in their owner's eyes.
fn alike(old: u64, new: u64) -> bool {
    Descriptor(old).attributes() == Descriptor(new).attributes()
}
