//! What each operation may do to a leaf, by its kind and the range that it was asked for.

use crate::change::Change;
use crate::event::OperationKind;
use crate::running::Running;
use crate::span::{Span, plain};
use crate::state::State;
use crate::translation::{Translation, is_busy};
use crate::verdict::Verdict;
use core::ops::Range;
use stage2::Descriptor;
use stage2::descriptor::bits;

/// What an operation may do to the permissions of a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum May {
    /// What it was asked for.
    Set,
    /// Open it, close it or leave it to hardware, for a log. What its owner grants stays.
    Track,
    /// Nothing.
    Keep,
}

impl Running {
    /// What the operation may do to a leaf.
    fn may(&self, leaf: &Translation) -> May {
        use OperationKind::{Batch, Clear, Collapse, Fault, Harvest, Map, Protect, Start, Stop};
        let span = leaf.span;
        let cached = if leaf.is_contiguous() { span.run() } else { span };
        let asked = self.operation.range.map_or(0..1 << 52, plain);
        let whole = |asked: &Range<u64>| span.is_inside(asked);
        let (what, granted) = match self.operation.kind {
            Map | Protect => (May::Set, whole(&asked)),
            Batch => (May::Set, self.pages.iter().any(whole)),
            Harvest | Start => (May::Track, whole(&asked)),
            Clear => (May::Track, self.pages.iter().any(whole)),
            // What a log that has ended left closed is opened, whole: by a fault, with all of a run; by a collapse; by
            // the end of the log, which collapses all that was split for it.
            Fault => (May::Track, cached.overlaps(&asked)),
            Collapse => (May::Track, span.overlaps(&asked)),
            Stop => (May::Track, span.overlaps(&around(&asked, self.largest))),
            _ => (May::Keep, true),
        };
        if granted { what } else { May::Keep }
    }

    /// Whether the operation may leave the leaf at `span` out of the table.
    pub fn may_unmap(&self, span: Span) -> bool {
        use OperationKind::{Freeze, Map, Release, Unmap};
        match self.operation.kind {
            Map | Unmap => self.operation.range.is_none_or(|range| span.is_inside(&plain(range))),
            Freeze | Release => true,
            _ => false,
        }
    }

    /// Whether the operation may let the leaf at `span` lead elsewhere.
    pub fn may_map(&self, span: Span) -> bool {
        self.operation.kind == OperationKind::Map && self.may_unmap(span)
    }

    /// Whether the operation may have been asked both to take rights from the leaf at `span` and to give them back.
    pub fn may_give_back(&self, span: Span) -> bool {
        let changes = self.pages.iter().filter(|pages| span.is_inside(pages)).count();
        self.operation.kind == OperationKind::Batch && changes > 1
    }
}

/// The leaves of the largest size that have a part of `range`.
fn around(range: &Range<u64>, bytes: u64) -> Range<u64> {
    range.start / bytes * bytes..range.end.next_multiple_of(bytes)
}

impl State {
    /// A leaf whose permissions a change has changed that was not asked to, for [`State::judge_outside`]: a step on the
    /// way may do so. What no step may is judged at once.
    pub fn changes_outside(&mut self, change: &Change) -> Option<(Span, Translation)> {
        const PERMISSIONS: u64 =
            bits::READ | bits::WRITE | bits::NO_EXECUTE | bits::EXECUTE_APART | bits::DBM | bits::WRITE_GRANTED;
        let (old, _) = (change.old_leaf()?, change.new_leaf()?);
        let running = self.pes[change.pe as usize].running.as_ref()?;
        if (change.old ^ change.new) & PERMISSIONS == 0 {
            return None;
        }
        let may = running.may(&old);
        let owners = Descriptor(change.old).attributes() != Descriptor(change.new).attributes();
        if may == May::Track && owners {
            let what = format!("{} changes what the owner of {old} grants", running.operation);
            self.report(Verdict::Contract, change.span.range(), None, what);
        }
        // From a busy mark on, the entry is a step of the engine's.
        let first = !is_busy(change.place.level, change.old);
        (first && may == May::Keep).then_some((change.span, old))
    }

    /// Leaves that an operation of `pe` was not asked to change, and did on its way, are as they were, unless another PE was
    /// asked to change them at the same time.
    pub fn judge_outside(&mut self, pe: u8, running: &Running) {
        let may = Translation::rights;
        for (span, before) in &running.outside {
            let mut found = None;
            for number in 0..self.spaces.len() {
                self.spaces[number].leaves(&self.memory, number, &span.range(), &mut |_, now, _| {
                    let at = now.span.base;
                    let set = || running.set_meanwhile.iter().any(|range| range.contains(&at));
                    let others = || set() || self.is_at_work(pe, at, running);
                    if may(before) != may(&now) && running.may(&now) == May::Keep && !others() {
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
}
