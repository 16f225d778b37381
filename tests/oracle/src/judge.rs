//! Judgements on each write of a descriptor: sizes, contents, order, and what hardware may do to it meanwhile.

use crate::change::{Change, How};
use crate::memory::FrameId;
use crate::state::State;
use crate::tlb::{Held, Stale};
use crate::translation::{Resize, Translation, is_leaf, is_table};
use crate::verdict::Verdict;
use core::ops::Range;
use stage2::{BbmLevel, Descriptor, Level};

/// The first pair of each kind that an entry makes with a new descriptor.
#[derive(Default)]
struct Pairs {
    resized: Option<(Translation, Translation)>,
    resized_early: Option<(Translation, Translation)>,
    differs: Option<(Translation, Translation)>,
}

impl State {
    /// Judges a write against everything that PEs may hold.
    pub fn judge(&mut self, change: &Change) {
        if change.how != How::Hardware {
            self.judge_hardware_dirty_state(change);
        }
        if is_leaf(change.place.shape, change.place.level, change.new)
            && !change.place.shape.has_leaves(change.place.level)
        {
            let what = format!("a block at level {}, which the granule does not have", change.place.level as u8);
            self.report(Verdict::Contract, change.span.range(), None, what);
        }
        if Descriptor(change.new).is_valid() {
            self.judge_against_held(change);
            self.judge_against_run(change);
        }
    }

    /// Whether a change of size needs break-before-make (R_KFLJB, R_KHRBC).
    fn needs_break(&self, resize: Resize) -> bool {
        match self.level() {
            BbmLevel::Level0 => true,
            BbmLevel::Level1 => resize == Resize::Level,
            BbmLevel::Level2 | BbmLevel::Level3 => false,
        }
    }

    fn judge_against_held(&mut self, change: &Change) {
        let space = change.place.space;
        if self.tlbs[space].is_empty() {
            return;
        }
        let new_run = change
            .new_leaf()
            .and_then(|_| Translation::of_run(change.place.shape, change.place.level, change.span, change.new));
        let reach = new_run.map_or(change.span, |run| run.span).range();
        let held: Vec<Stale> = self.tlbs[space].overlapping(&reach).map(|(_, &stale)| stale).collect();
        for stale in held {
            let pairs = self.pairs(&stale, change, new_run, &reach);
            self.judge_pairs(change, &stale, &pairs);
        }
    }

    /// What `stale` and the new descriptor may make a PE hold at once.
    fn pairs(&self, stale: &Stale, change: &Change, new_run: Option<Translation>, reach: &Range<u64>) -> Pairs {
        let mut pairs = Pairs::default();
        let mut compare = |old: &Translation, new: &Translation| {
            if let Some(resize) = old.resized(new) {
                pairs.resized.get_or_insert((*old, *new));
                if self.needs_break(resize) {
                    pairs.resized_early.get_or_insert((*old, *new));
                }
            }
            if old.differs(new) {
                pairs.differs.get_or_insert((*old, *new));
            }
        };
        let mut against_new = |old: &Translation| {
            if let Some(new) = change.new_leaf() {
                if old.span.overlaps(&change.span.range()) {
                    compare(old, &new);
                }
                if let Some(run) = new_run {
                    compare(old, &run);
                }
            } else if let (Some(child), Some(place)) =
                (change.new_table(&self.memory), change.place.child(change.index))
            {
                self.memory.leaves(child, place, &old.span.range(), &mut |_, new, _| compare(old, &new));
            }
        };
        match stale.held {
            Held::Leaf(old) => against_new(&old),
            Held::Table(id) if Some(id) == change.new_table(&self.memory) => {}
            Held::Table(id) => {
                if let Some(place) = self.memory.frame(id).place {
                    self.memory.leaves(id, place, reach, &mut |_, old, _| against_new(&old));
                }
            }
        }
        pairs
    }

    fn judge_pairs(&mut self, change: &Change, stale: &Stale, pairs: &Pairs) {
        let range = change.span.range();
        let with = |(old, new): (Translation, Translation)| format!("{old}, which {stale} may hold, and now {new}");
        match (self.level(), pairs.resized) {
            (BbmLevel::Level0, Some(pair)) => self.report(Verdict::Size, range.clone(), None, with(pair)),
            (BbmLevel::Level1 | BbmLevel::Level2, Some(_)) => self.stats.possible_conflicts += 1,
            _ => {}
        }
        if let Some(pair) = pairs.differs {
            self.report(Verdict::Translation, range.clone(), None, with(pair));
        }
        let early = pairs.differs.or(pairs.resized_early).map(with).or_else(|| self.changes_kind_early(change, stale));
        if let Some(what) = early {
            self.report(Verdict::EarlyMake, range, None, what);
        }
    }

    /// A block where a table was or the other way round, though the old one may be held: even a table without any leaf
    /// needs the break where sizes may not change directly.
    fn changes_kind_early(&self, change: &Change, stale: &Stale) -> Option<String> {
        let nt = |leaf: Translation| self.level() == BbmLevel::Level1 && leaf.has_nt();
        if self.level() >= BbmLevel::Level2 {
            return None;
        }
        match stale.held {
            Held::Table(_) if stale.span == change.span && change.new_leaf().is_some_and(|new| !nt(new)) => {
                Some(format!("a block, while {stale} may hold the table in its walk cache"))
            }
            Held::Leaf(old)
                if old.level == change.place.level && is_table(change.place.level, change.new) && !nt(old) =>
            {
                Some(format!("a table, while {stale} may hold {old}"))
            }
            _ => None,
        }
    }

    /// Members of a run may be cached as one, so a new member is held together with its mates.
    fn judge_against_run(&mut self, change: &Change) {
        let Change { frame, index, place, span, new, .. } = *change;
        if place.level == Level::L0 {
            return;
        }
        let run = place.run();
        let first = index - index % run;
        let mine = is_leaf(place.shape, place.level, new).then(|| Translation::of(place.shape, place.level, span, new));
        let my_run = mine.and_then(|_| Translation::of_run(place.shape, place.level, span, new));
        for mate in first..first + run {
            let value = self.memory.frame(frame).values[mate];
            if mate == index || !Descriptor(value).is_valid() {
                continue;
            }
            if !Descriptor(value).is_contiguous() && my_run.is_none() {
                continue;
            }
            let mate_leaf = is_leaf(place.shape, place.level, value)
                .then(|| Translation::of(place.shape, place.level, place.entry(mate), value));
            let mate_run =
                mate_leaf.and_then(|_| Translation::of_run(place.shape, place.level, place.entry(mate), value));
            let resized = mate_run.is_some() != my_run.is_some();
            let clash = [(mate_run, mine), (my_run, mate_leaf)]
                .into_iter()
                .find(|pair| matches!(pair, (Some(run), Some(leaf)) if run.differs(leaf)));
            if resized && mate_leaf.is_some() {
                match self.level() {
                    BbmLevel::Level0 => {
                        let what = format!("a contiguous run with plain members: {span} and {}", place.entry(mate));
                        self.report(Verdict::Size, span.run().range(), None, what);
                    }
                    BbmLevel::Level1 | BbmLevel::Level2 => self.stats.possible_conflicts += 1,
                    BbmLevel::Level3 => {}
                }
            }
            if let Some((Some(run), Some(leaf))) = clash {
                let what = format!("members of one run that do not fit: {run}, and {leaf}");
                self.report(Verdict::Translation, span.run().range(), None, what);
            }
            if resized || clash.is_some() {
                return; // One mate says it all.
            }
        }
    }

    /// Hardware may mark a descriptor with DBM at any moment (R_PQJJR).
    fn judge_hardware_dirty_state(&mut self, change: &Change) {
        if !self.setup.hardware_dirty {
            return;
        }
        let old = change.old_leaf();
        let range = change.span.range();
        let running = self.pes[change.pe as usize].running.as_ref();
        // Where the mapping itself goes, its dirty state goes with it: the log is told that all of the range is written.
        let ends = !Descriptor(change.new).is_valid() && running.is_some_and(|running| running.may_unmap(change.span));
        if let (How::Store, Some(leaf), false) = (change.how, old.filter(Translation::has_dbm), ends) {
            let what = format!("a plain store over {leaf}, which hardware may mark dirty meanwhile");
            return self.report(Verdict::Dirty, range, None, what);
        }
        let resizes = match (old, change.new_leaf()) {
            (Some(old), Some(new)) => old.resized(&new).is_some(),
            (_, Some(_)) => Descriptor(change.old).is_valid(),
            (Some(_), None) => Descriptor(change.new).is_valid(),
            _ => false,
        };
        if !resizes {
            return;
        }
        let tracked = old.filter(Translation::has_dbm).or_else(|| self.held_with_dbm(change));
        if let Some(leaf) = tracked {
            let what = format!("a change of size while hardware may mark {leaf} dirty (R_RTBRL)");
            self.report(Verdict::Dirty, range, None, what);
        }
    }

    /// An entry that hardware may mark, under the descriptor that was replaced.
    fn held_with_dbm(&self, change: &Change) -> Option<Translation> {
        let range = change.span.range();
        let in_table = |id: FrameId| {
            let mut found = None;
            if let Some(place) = self.memory.frame(id).place {
                self.memory.leaves(id, place, &range, &mut |_, leaf, _| {
                    if leaf.has_dbm() {
                        found.get_or_insert(leaf);
                    }
                });
            }
            found
        };
        self.tlbs[change.place.space].overlapping(&range).find_map(|(_, stale)| match stale.held {
            Held::Leaf(leaf) => leaf.has_dbm().then_some(leaf),
            Held::Table(id) => in_table(id),
        })
    }

    /// A VMID whose old entries were never invalidated is given to another table.
    pub fn judge_reused_vmid(&mut self, number: usize) {
        let Some((_, &stale)) = self.tlbs[number].overlapping(&(0..1 << 52)).next() else { return };
        let vmid = self.spaces[number].vmid;
        let what = format!("VMID {vmid} has a new table, while {stale} may hold entries of the old one");
        self.report(Verdict::Stale, stale.span.range(), None, what);
    }
}
