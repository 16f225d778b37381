//! TLB invalidations: what they reach, from their issue to their completion (D8.17).

use crate::event::{Form, Invalidation};
use crate::memory::FrameId;
use crate::state::{Issued, State};
use crate::tlb::{Held, Key, MAX_PES, Mask, Stale};
use crate::translation::{Translation, is_leaf, is_table};
use crate::verdict::Verdict;
use core::ops::Range;
use stage2::{Dsb, Scope};

impl State {
    /// An invalidation is issued. It acts when a DSB of the same PE has completed it.
    pub fn issue(&mut self, pe: u8, invalidation: Invalidation) {
        self.stats.count_tlbi(&invalidation);
        if let Some(what) = self.malformed(&invalidation) {
            let range = invalidation.stage2_range(self.setup.granule).unwrap_or(0..1 << 52);
            self.report(Verdict::Invalidation, range, None, what);
        }
        let at = self.history.now();
        self.pes[pe as usize].issued.push(Issued { at, early: None, invalidation });
        if let (Some(range), Some(running)) =
            (invalidation.stage2_range(self.setup.granule), &mut self.pes[pe as usize].running)
        {
            running.invalidations.push((at, range));
        }
    }

    fn malformed(&self, invalidation: &Invalidation) -> Option<String> {
        if invalidation.form == Form::OtherRegime {
            return None;
        }
        let Some(space) = self.spaces.iter().find(|space| space.vmid == invalidation.vmid) else {
            return Some(format!("no table has VMID {}", invalidation.vmid));
        };
        let end = 1u64 << space.ipa_bits;
        match invalidation.form {
            Form::Ipa(ipa) if ipa >= end => Some(format!("{ipa:#x} lies outside of the IPA space")),
            Form::Range { base, unit, .. } if self.setup.granule.base(base, unit) >= end => {
                Some(format!("BaseADDR for {base:#x} means an address outside of the IPA space"))
            }
            Form::Range { granule, .. } if granule != self.setup.granule.page => {
                Some(format!("TG is for pages of {} bytes", 1u64 << granule))
            }
            Form::Range { base, unit, .. } if base & ((1 << unit) - 1) != 0 => {
                Some(format!("BaseADDR {base:#x} is no multiple of what it is counted in"))
            }
            Form::Range { scale, num, .. } if scale > 3 || num > 31 => {
                Some(format!("SCALE {scale} and NUM {num} do not fit their fields of 2 and 5 bits"))
            }
            Form::Range { base, .. } => invalidation.hint.and_then(|level| {
                let unaligned = base & ((1 << self.setup.granule.shift(level)) - 1) != 0;
                unaligned.then(|| format!("BaseADDR {base:#x} is not aligned to the level of its hint"))
            }),
            _ => None,
        }
    }

    /// A DSB completes the invalidations that its PE has issued: DSB ISH all, DSB NSH the local ones, DSB ISHST none
    /// (R_PSMWS).
    pub fn complete_invalidations(&mut self, pe: u8, barrier: Dsb) {
        let completes = |issued: &Issued| match barrier {
            Dsb::Ish => true,
            Dsb::Nsh => issued.invalidation.scope == Scope::Local,
            Dsb::IshSt => false,
        };
        let mut issued = core::mem::take(&mut self.pes[pe as usize].issued);
        let last = issued.last().map_or(0, |issued| issued.at);
        let now = self.history.now();
        // The entries themselves go in time. What may land late is an access that used one, which is here an entry that is
        // held on: those that combine stages, which the forms for stage 2 alone leave in any case.
        let lands_late = |issued: &mut Issued| {
            let form = matches!(issued.invalidation.form, Form::VmallE1 | Form::VmallS12E1);
            let late = form && completes(issued) && issued.invalidation.scope == Scope::Broadcast;
            late && issued.early.replace(issued.early.unwrap_or(now)).is_none_or(|early| last <= early)
        };
        let late: Vec<_> = issued.iter_mut().map(|issued| self.setup.early_dsb && lands_late(issued)).collect();
        let mut late = late.into_iter();
        let (complete, open): (Vec<_>, Vec<_>) =
            issued.into_iter().partition(|issued| late.next() != Some(true) && completes(issued));
        self.pes[pe as usize].issued = open;
        for Issued { at, invalidation, .. } in complete {
            let Some(number) = self.spaces.iter().position(|space| space.vmid == invalidation.vmid) else { continue };
            let pes = match invalidation.scope {
                Scope::Broadcast => self.all_pes(),
                Scope::Local => 1 << pe,
            };
            self.stage1[number].complete(pes, at, &invalidation);
            if self.tlbs[number].is_empty() {
                continue;
            }
            match invalidation.form {
                Form::Ipa(_) | Form::Range { .. } => self.drop_stage2(number, pes, at, &invalidation),
                Form::VmallE1 => self.drop_combined(number, pes, at),
                Form::VmallS12E1 => self.drop_everything(number, pes, at),
                // Combined entries under any other VA stay, and any other may be an alias: see `stage1.rs`.
                Form::Va(_) | Form::OtherRegime => {}
            }
        }
    }

    /// IPAS2E1 and RIPAS2E1: entries of stage 2 that translate any address of the range, and the walk caches on the way
    /// there. An entry that a walk could still bring back after the issue stays.
    fn drop_stage2(&mut self, number: usize, pes: Mask, issued_at: u64, invalidation: &Invalidation) {
        let Some(range) = invalidation.stage2_range(self.setup.granule) else { return };
        let hit: Vec<Key> = self.tlbs[number].overlapping(&range).map(|(key, _)| key).collect();
        for key in hit {
            let Some(&stale) = self.tlbs[number].get(key) else { continue };
            if stale.tlb & pes == 0 || !stale.hidden_before(issued_at) {
                continue;
            }
            if let Some(what) = missed_by_hint(&stale, invalidation) {
                self.report(Verdict::Invalidation, stale.span.range(), None, what);
                continue;
            }
            self.lose_stage2(number, key, stale, pes, &range);
        }
    }

    /// PEs lose an entry of stage 2 to an invalidation of `range`; what they combined from it stays.
    fn lose_stage2(&mut self, number: usize, key: Key, stale: Stale, pes: Mask, range: &Range<u64>) {
        let lost = stale.tlb & pes;
        let now = self.history.now();
        let Some(entry) = self.tlbs[number].get_mut(key) else { return };
        entry.tlb &= !lost;
        for pe in (0..MAX_PES).filter(|pe| lost & 1 << pe != 0) {
            entry.gone_at[pe] = now;
        }
        let left = (entry.tlb, entry.combined);
        self.tlbs[number].note_combined_only(key);
        if let Held::Table(id) = stale.held {
            if !stale.span.is_inside(range) {
                self.hold_contents(number, id, &Stale { tlb: lost, combined: lost, ..stale }, Some(range));
            }
            self.count_ways((stale.tlb, stale.combined), left, id);
        }
    }

    /// VMALLE1: combined entries, unless the entry of stage 2 that they come from could still be held after the issue.
    fn drop_combined(&mut self, number: usize, pes: Mask, issued_at: u64) {
        for key in self.tlbs[number].take_combined_only() {
            let Some(entry) = self.tlbs[number].get_mut(key) else { continue };
            let before = (entry.tlb, entry.combined);
            for pe in (0..MAX_PES).filter(|pe| pes & 1 << pe != 0) {
                if entry.tlb & 1 << pe == 0 && entry.gone_at[pe] < issued_at {
                    entry.combined &= !(1 << pe);
                }
            }
            let entry = *entry;
            self.forget_if_gone(number, key, before, &entry);
            if entry.combined & !entry.tlb != 0 {
                self.tlbs[number].note_combined_only(key);
            }
        }
    }

    /// VMALLS12E1: everything of the VMID.
    fn drop_everything(&mut self, number: usize, pes: Mask, issued_at: u64) {
        for key in self.tlbs[number].keys() {
            let Some(entry) = self.tlbs[number].get_mut(key) else { continue };
            if !entry.hidden_before(issued_at) {
                continue;
            }
            let before = (entry.tlb, entry.combined);
            entry.tlb &= !pes;
            entry.combined &= !pes;
            let entry = *entry;
            self.forget_if_gone(number, key, before, &entry);
        }
    }

    fn forget_if_gone(&mut self, number: usize, key: Key, before: (Mask, Mask), entry: &Stale) {
        if let Held::Table(id) = entry.held {
            self.count_ways(before, (entry.tlb, entry.combined), id);
        }
        if entry.is_gone() && entry.visible == 0 {
            self.tlbs[number].remove(key);
        }
    }

    /// The entries of a table that is reachable no more become entries of their own, as far as they lie outside of
    /// `except`: they may have been cached one by one, by the PEs that held the table. Since it was hidden no walk from a
    /// root has found them, so an invalidation issued since then drops them too.
    fn hold_contents(&mut self, number: usize, id: FrameId, table: &Stale, except: Option<&Range<u64>>) {
        let Some(place) = self.memory.frame(id).place else { return };
        for index in 0..place.shape.entries() {
            let span = place.entry(index);
            if except.is_some_and(|range| span.is_inside(range)) {
                continue;
            }
            let value = self.memory.frame(id).values[index];
            let new = |held, span| Stale { held, span, visible: 0, ..*table };
            if is_leaf(place.shape, place.level, value) {
                if except.is_some_and(|range| span.overlaps(range)) {
                    continue;
                }
                let leaf = new(Held::Leaf(Translation::of(place.shape, place.level, span, value)), span);
                let run = Translation::of_run(place.shape, place.level, span, value)
                    .filter(|run| except.is_none_or(|range| !run.span.overlaps(range)))
                    .map(|run| new(Held::Leaf(run), run.span));
                for stale in core::iter::once(leaf).chain(run) {
                    let key = self.hold(number, stale);
                    self.tlbs[number].note_combined_only(key);
                }
            } else if is_table(place.level, value)
                && let Some(child) = self.memory.find(place.shape.address(value))
            {
                match except.filter(|range| span.overlaps(range)) {
                    Some(range) => self.hold_contents(number, child, table, Some(range)),
                    None => {
                        let stale = new(Held::Table(child), span);
                        let key = self.hold(number, stale);
                        self.tlbs[number].note_combined_only(key);
                    }
                }
            }
        }
    }

    /// Before the contents of a frame change that nothing leads to: combined entries may be left of what it held.
    pub fn settle_ghosts(&mut self, id: FrameId) {
        let above: Vec<FrameId> = self.memory.chain(id).filter(|&id| self.memory.frame(id).ghosts > 0).collect();
        for id in above {
            let Some(place) = self.memory.frame(id).place else { continue };
            let ghosts: Vec<(Key, Stale)> = self.tlbs[place.space]
                .overlapping(&place.span().range())
                .filter(|(_, stale)| stale.held == Held::Table(id) && stale.tlb == 0)
                .map(|(key, &stale)| (key, stale))
                .collect();
            for (key, stale) in ghosts {
                self.hold_contents(place.space, id, &stale, None);
                self.count_ways((stale.tlb, stale.combined), (0, 0), id);
                self.tlbs[place.space].remove(key);
            }
        }
    }
}

/// Why an invalidation leaves out an entry in its range (R_SQXYZ): its hint names another level, or it is a last-level
/// form and the entry belongs to a walk cache.
fn missed_by_hint(stale: &Stale, invalidation: &Invalidation) -> Option<String> {
    match (stale.held, invalidation.hint) {
        (Held::Leaf(leaf), Some(hint)) if leaf.level != hint => {
            Some(format!("the hint of {invalidation} leaves out {leaf}"))
        }
        (Held::Table(_), Some(_)) => {
            Some(format!("{invalidation} with a hint leaves the walk cache for {}", stale.span))
        }
        (Held::Table(_), None) if invalidation.last_level => {
            Some(format!("{invalidation}, a last-level form, leaves the walk cache for {}", stale.span))
        }
        _ => None,
    }
}
