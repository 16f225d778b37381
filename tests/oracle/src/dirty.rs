//! Dirty logs: which pages may have been written since the last report, and whether a report says so.

use crate::change::{Change, How};
use crate::event::{Action, OperationKind};
use crate::log::Log;
use crate::running::Running;
use crate::span::{intersection, plain};
use crate::state::State;
use crate::tlb::{Held, Stale};
use crate::translation::{Translation, is_leaf};
use crate::verdict::Verdict;
use core::ops::Range;
use stage2::Slot;
use stage2::descriptor::bits;

impl State {
    /// A descriptor that lets writes through, or that says that there was one: its pages are to be reported.
    pub fn note_writable(&mut self, change: &Change) {
        if self.logs.is_empty() {
            return;
        }
        let mut writable = Vec::new();
        if let Some(leaf) = change.new_leaf() {
            writable.extend(leaf.writes().then(|| leaf.span.range()));
        } else if let (Some(child), Some(place)) = (change.new_table(&self.memory), change.place.child(change.index)) {
            self.memory.leaves(child, place, &change.span.range(), &mut |span, leaf, _| {
                writable.extend(leaf.writes().then(|| span.range()));
            });
        }
        for log in &mut self.logs {
            writable.iter().for_each(|range| log.note(range));
        }
    }

    /// A guest's write to `ipa` from `pe`, through any entry that the PE may hold. Returns whether one let it through.
    pub fn guest_write(&mut self, pe: u8, ipa: u64) -> bool {
        let page = ipa & !0xfff..(ipa & !0xfff) + 4096;
        let mut writes = false;
        for number in 0..self.spaces.len() {
            let held: Vec<Stale> = self.tlbs[number].overlapping(&page).map(|(_, &stale)| stale).collect();
            for stale in held.iter().filter(|stale| (stale.tlb | stale.combined) & 1 << pe != 0) {
                writes |= self.leaves_of(stale, &page).iter().any(Translation::writes);
            }
            let Some((_, now, slot)) = self.spaces[number].translate(&self.memory, number, page.start) else {
                continue;
            };
            if now.writes() {
                writes = true;
            } else if self.setup.hardware_dirty && now.has_dbm() && now.value & bits::ACCESS != 0 {
                self.mark_dirty(pe, slot);
                writes = true;
            }
        }
        if writes {
            self.logs.iter_mut().for_each(|log| log.note(&page));
        }
        writes
    }

    /// Hardware sets S2AP\[1\] in a descriptor with DBM, if it is still there.
    pub fn mark_dirty(&mut self, pe: u8, slot: Slot) {
        let Some(id) = self.memory.find(slot.table) else { return };
        let value = self.memory.frame(id).values[slot.index];
        let (shape, place) = (self.setup.granule, self.memory.frame(id).place);
        let is_leaf = place.is_some_and(|place| is_leaf(shape, place.level, value));
        let clean = value & (bits::DBM | bits::WRITE) == bits::DBM;
        let reachable = self.memory.is_reachable(id);
        if self.setup.hardware_dirty && clean && is_leaf && (reachable || self.frozen) {
            let value = value | bits::WRITE;
            let range = self.slot_range(id, slot.index);
            self.history.push(pe, Action::HardwareUpdate { slot, value }, range.clone());
            if reachable {
                self.write(pe, id, slot.index, value, How::Hardware);
            } else {
                // No walk reaches a frozen table: a trace that finds the mark there tells of one from before.
                self.memory.frame_mut(id).set(slot.index, value);
                let page = range.unwrap_or(0..0);
                self.logs.iter_mut().for_each(|log| log.note(&page));
            }
        }
    }

    pub fn leaves_of(&self, stale: &Stale, range: &Range<u64>) -> Vec<Translation> {
        let mut leaves = Vec::new();
        match stale.held {
            Held::Leaf(leaf) => leaves.push(leaf),
            Held::Table(id) => {
                if let Some(place) = self.memory.frame(id).place {
                    self.memory.leaves(id, place, range, &mut |_, leaf, _| leaves.push(leaf));
                }
            }
        }
        leaves
    }

    /// An operation on a dirty log has returned.
    pub fn finish_log(&mut self, pe: u8, running: &Running) {
        let Some(range) = running.operation.range.map(plain) else { return };
        match running.operation.kind {
            OperationKind::Start => {
                self.logs.push(Log::new(range.clone()));
                let number = self.logs.len() - 1;
                self.renew(number, pe, &range, running);
            }
            OperationKind::Stop | OperationKind::End => {
                self.logs.retain(|log| intersection(&log.range, &range).is_empty())
            }
            OperationKind::Harvest => {
                for number in 0..self.logs.len() {
                    self.judge_report(number, pe, &range, running);
                    self.renew(number, pe, &range, running);
                }
            }
            OperationKind::Clear => {
                for pages in &running.pages {
                    for number in 0..self.logs.len() {
                        self.renew(number, pe, pages, running);
                    }
                }
            }
            _ => {}
        }
    }

    /// Each page that may have been written is in the report, unless the next report will have it: because a fault handler
    /// that made it writable has run at the same time, or because hardware has marked its descriptor meanwhile.
    fn judge_report(&mut self, number: usize, pe: u8, range: &Range<u64>, running: &Running) {
        let log = &self.logs[number];
        let missed = log.pages(range).find(|&page| {
            let at = log.range.start + (page << 12);
            let reported = running.pages.iter().any(|pages| pages.contains(&at));
            log.is_written(page) && !reported && !self.is_at_work(pe, at, running) && !self.is_marked(at)
        });
        if let Some(page) = missed {
            let at = log.range.start + (page << 12);
            let what = format!("{at:#x} may have been written, and the report does not say so");
            self.report(Verdict::Dirty, at..at + 4096, None, what);
        }
    }

    fn is_marked(&self, at: u64) -> bool {
        let marked = |(_, leaf, _): (_, Translation, _)| leaf.has_dbm() && leaf.writes();
        self.spaces.iter().enumerate().any(|(n, space)| space.translate(&self.memory, n, at).is_some_and(marked))
    }

    /// Whether a change that may open a page is under way, or was while `running` ran: what it opens and marks may be in this
    /// report or in the next.
    pub fn is_at_work(&self, except: u8, at: u64, running: &Running) -> bool {
        use OperationKind::{Batch, Fault, Protect};
        if running.meanwhile.iter().any(|range| range.contains(&at)) {
            return true;
        }
        let others = self.pes.iter().enumerate().filter(|(pe, _)| *pe != except as usize);
        let opens = |other: &&Running| matches!(other.operation.kind, Batch | Fault | Protect);
        let mut others = others.filter_map(|(_, pe)| pe.running.as_ref()).filter(opens);
        others.any(|r| r.touched.iter().any(|range| range.contains(&at)))
    }

    /// From here on a page counts as written if an entry that may exist lets writes through. One that memory does not
    /// know of lets a write slip by after the page was copied.
    fn renew(&mut self, number: usize, pe: u8, range: &Range<u64>, running: &Running) {
        let judge = running.operation.kind != OperationKind::Start;
        let part = intersection(&self.logs[number].range, range);
        if part.is_empty() {
            return;
        }
        for page in self.logs[number].pages(&part) {
            let at = self.logs[number].range.start + (page << 12);
            let reported = running.pages.iter().any(|pages| pages.contains(&at));
            // What a fault handler has opened meanwhile is for the next report.
            if reported || !self.is_at_work(pe, at, running) {
                self.logs[number].forget(page);
            }
        }
        let mut writable = Vec::new();
        let mut loose = None;
        for space in 0..self.spaces.len() {
            self.spaces[space].leaves(&self.memory, space, &part, &mut |span, leaf, _| {
                writable.extend(leaf.writes().then(|| span.range()));
            });
            let memory_says = writable.clone();
            for (_, stale) in self.tlbs[space].overlapping(&part) {
                for leaf in self.leaves_of(stale, &part).iter().filter(|leaf| leaf.writes()) {
                    let held = intersection(&leaf.span.range(), &part);
                    let known = memory_says.iter().any(|known| known.start <= held.start && held.end <= known.end);
                    let others = || self.is_at_work(pe, held.start, running);
                    if !known && (stale.operation == running.number || !others()) {
                        loose.get_or_insert((*leaf, held.start, format!("{stale}")));
                    }
                    writable.push(held);
                }
            }
        }
        writable.iter().for_each(|range| self.logs[number].note(range));
        if let (true, Some((leaf, at, who))) = (judge, loose) {
            let what = format!("{who} may hold {leaf}, so that writes after the report are missed");
            self.report(Verdict::Dirty, at..at + 4096, None, what);
        }
    }
}
