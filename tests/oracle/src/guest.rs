//! A guest's accesses through its own stage 1: whether one that the table allows gets through in the end.
//!
//! What is judged elsewhere is that nobody may do *too much*: there any VA may be behind a combined entry, so `VAAE1` takes
//! none away for sure. Here it is the other way round. The adversary wants an access to fail, and uses each entry that
//! refuses it: one of stage 2, or one that was combined from it under the access's VA and that no `VAAE1` of this VA, issued
//! when the entry of stage 2 was gone already, has taken. An access that is refused is a stage-2 fault. When that has been
//! answered, nothing that the PE may hold refuses the access any more, unless the table does (verdict 11).

use crate::change::Change;
use crate::event::{Access, Action};
use crate::span::{intersection, page};
use crate::stage1::Trial;
use crate::state::State;
use crate::tlb::{Held, Stale};
use crate::translation::Translation;
use crate::verdict::Verdict;
use stage2::descriptor::bits;
use stage2::fault::Status;
use stage2::{Abort, BbmLevel, Ipa, Level};

/// Why a PE may not let an access through.
struct Refusal {
    status: Status,
    ipa: u64,
    /// What refuses, where it is something older than the table.
    old: Option<String>,
}

impl State {
    /// The guest of a VMID maps `va` to `ipa` from now on. Its own invalidation is another event.
    pub fn guest_maps(&mut self, vmid: u16, va: u64, ipa: Option<u64>) {
        let Some(number) = self.spaces.iter().position(|space| space.vmid == vmid) else { return };
        let now = self.history.now();
        self.stage1[number].map(va, ipa, now);
        for pe in &mut self.pes {
            pe.trial = pe.trial.filter(|trial| trial.space != number || trial.va >> 12 != va >> 12);
        }
    }

    /// The guest's access to `va` on `pe`. It fails if anything that the PE may hold refuses it. Its event is in the history
    /// already.
    ///
    /// An access that the guest's own tables refuse is none of stage 2's business, and counts as done.
    pub fn guest_access(&mut self, pe: u8, vmid: u16, va: u64, access: Access) -> Result<(), Abort> {
        let Some(number) = self.spaces.iter().position(|space| space.vmid == vmid) else { return Ok(()) };
        let Some(ipa) = self.stage1[number].translate(va) else { return Ok(()) };
        let table = self.refused_by_table(number, ipa, access);
        let Some(refusal) = self.refusal(pe, number, va, access).or(table) else {
            self.pes[usize::from(pe)].trial = None;
            if access == Access::Write {
                self.guest_write(pe, ipa);
            }
            return Ok(());
        };
        let known = self.pes[usize::from(pe)].trial;
        let same = known.filter(|t| t.space == number && t.va >> 12 == va >> 12 && t.access == access);
        if let (Some(old), Some(Trial { answered: true, excused: false, .. })) = (&refusal.old, same) {
            let what = format!(
                "PE{pe} faults again at VA {va:#x} after its fault was answered, though the table allows it: {old}"
            );
            self.report(Verdict::Progress, page(self.setup.granule, Ipa(refusal.ipa)), None, what);
        }
        if same.is_some_and(|trial| trial.answered && trial.excused) {
            self.order_elsewhere(pe, &page(self.setup.granule, Ipa(refusal.ipa)));
        }
        let excused = self.is_unordered_elsewhere(pe, refusal.ipa);
        if refusal.status == Status::Conflict {
            let now = self.history.now();
            self.stage1[number].conflicts.push((pe, va >> 12, now));
        }
        self.pes[usize::from(pe)].trial = Some(Trial { space: number, va, access, answered: false, excused });
        let Refusal { status, ipa, .. } = refusal;
        let el0 = access == Access::ExecuteAtEl0;
        let (write, execute) = (access == Access::Write, access == Access::Execute || el0);
        Err(Abort { status, write, execute, stage1_walk: false, el0, ipa: Ipa(ipa), va })
    }

    /// The fault handler of `pe` returns.
    pub fn note_answer(&mut self, pe: u8) {
        if let Some(trial) = &mut self.pes[usize::from(pe)].trial {
            trial.answered = true;
        }
    }

    /// A descriptor changes that other PEs wait for.
    pub fn disturb_trials(&mut self, change: &Change) {
        // A member of a run may be cached for all of it.
        let in_run = (change.old | change.new) & bits::CONTIGUOUS != 0 && change.place.level != Level::L0;
        let span = if in_run { change.span.run() } else { change.span };
        for pe in 0..self.pes.len() {
            let Some(trial) = self.pes[pe].trial.filter(|_| pe != usize::from(change.pe)) else { continue };
            let ipa = self.stage1[trial.space].translate(trial.va);
            if change.place.space == trial.space
                && ipa.is_none_or(|ipa| span.overlaps(&page(change.place.shape, Ipa(ipa))))
            {
                self.pes[pe].trial = Some(Trial { excused: true, ..trial });
            }
        }
    }

    fn allows(&self, leaf: &Translation, access: Access) -> bool {
        match access {
            Access::Read => leaf.reads(),
            Access::Execute => leaf.executes(false),
            Access::ExecuteAtEl0 => leaf.executes(true),
            // What may be marked is checked against memory, whatever else the entry says (R_PQJJR).
            Access::Write => {
                leaf.writes() || self.setup.hardware_dirty && leaf.has_dbm() && leaf.value & bits::ACCESS != 0
            }
        }
    }

    /// What a walk of the table as it is makes of an access.
    fn refused_by_table(&self, number: usize, ipa: u64, access: Access) -> Option<Refusal> {
        let status = match self.spaces[number].translate(&self.memory, number, ipa) {
            None => Status::Translation,
            Some((_, leaf, _)) if !self.allows(&leaf, access) => Status::Permission,
            Some(_) => return None,
        };
        Some(Refusal { status, ipa, old: None })
    }

    /// What a PE may hold that refuses an access: two entries at once, or one that is older than the table.
    fn refusal(&self, pe: u8, number: usize, va: u64, access: Access) -> Option<Refusal> {
        let possible = self.stage1[number].possible(pe, va);
        if self.stage1[number].conflicts.iter().any(|&(other, page, _)| other == pe && page == va >> 12) {
            let old = Some("no invalidation of all of the VMID has ended the TLB conflict".into());
            return Some(Refusal { status: Status::Conflict, ipa: *possible.first()?, old });
        }
        let conflicts = self.setup.conflicts && matches!(self.level(), BbmLevel::Level1 | BbmLevel::Level2);
        possible.iter().find_map(|&ipa| {
            let now = self.spaces[number].translate(&self.memory, number, ipa).map(|(_, leaf, _)| leaf);
            let table_allows = now.as_ref().is_some_and(|now| self.allows(now, access));
            let range = page(self.setup.granule, Ipa(ipa));
            self.tlbs[number].overlapping(&range).find_map(|(_, stale)| {
                let walk = stale.tlb & 1 << pe != 0;
                if !walk && !self.is_combined(stale, pe, number, va) {
                    return None;
                }
                let leaves = self.leaves_of(stale, &range);
                let how = if walk { "" } else { ", combined with stage 1" };
                let text = |leaf: &Translation| Some(format!("it may hold {leaf}{how}")).filter(|_| table_allows);
                if let Some((old, _)) = conflicts
                    .then(|| leaves.first().zip(now.as_ref()).filter(|(old, now)| old.resized(now).is_some()))
                    .flatten()
                {
                    return Some(Refusal { status: Status::Conflict, ipa, old: text(old) });
                }
                if let Some(old) = leaves.iter().find(|leaf| !self.allows(leaf, access)) {
                    return Some(Refusal { status: Status::Permission, ipa, old: text(old) });
                }
                let hole = walk && leaves.is_empty() && matches!(stale.held, Held::Table(_));
                let old = || Some("it may hold a way into a table without the page".into()).filter(|_| table_allows);
                hole.then(|| Refusal { status: Status::Translation, ipa, old: old() })
            })
        })
    }

    /// Whether a PE may hold what was combined from an entry of stage 2 under `va`.
    fn is_combined(&self, stale: &Stale, pe: u8, number: usize, va: u64) -> bool {
        let mine = 1 << pe;
        let kept = || stale.gone_at[usize::from(pe)] >= self.stage1[number].dropped(pe, va);
        stale.combined & mine != 0 && (stale.tlb & mine != 0 || kept())
    }

    /// Whether another PE's change of the page's entry is not ordered: a walk may read the old value once more.
    fn is_unordered_elsewhere(&self, pe: u8, ipa: u64) -> bool {
        let range = page(self.setup.granule, Ipa(ipa));
        self.unordered_by_others(pe).any(|(space, key)| {
            self.tlbs[space].get(key).is_some_and(|s| !intersection(&s.span.range(), &range).is_empty())
        })
    }
}

impl crate::Model {
    /// The guest of `vmid` maps the page of `va` to that of `ipa` from now on (`None`: to nothing), and invalidates nothing.
    /// What it never mapped is its own IPA.
    pub fn guest_maps(&self, vmid: stage2::Vmid, va: u64, ipa: Option<Ipa>) {
        self.apply(self.pe(), Action::GuestMaps { vmid: vmid.get(), va, ipa: ipa.map(|ipa| ipa.0) });
    }

    /// The guest's access to `va` on the executing PE, through the worst entry that the PE may hold.
    ///
    /// # Errors
    ///
    /// The stage-2 abort that it takes, with the IPA that the PE took the VA for.
    pub fn guest_access(&self, vmid: stage2::Vmid, va: u64, access: Access) -> Result<(), Abort> {
        crate::turn::before_look();
        let mut state = self.state.borrow_mut();
        let (pe, vmid) = (self.pe(), vmid.get());
        state.history.push(pe, Action::Access { vmid, va, access }, None);
        state.guest_access(pe, vmid, va, access)
    }

    /// `AT S1E1R` on `va`: the IPA that the guest's tables have now. `None` if it has none, or if the walk meets the TLB
    /// conflict that the PE has.
    #[must_use]
    pub fn address_translate(&self, vmid: stage2::Vmid, va: u64) -> Option<Ipa> {
        let state = self.state.borrow();
        let number = state.spaces.iter().position(|space| space.vmid == vmid.get())?;
        let stage1 = &state.stage1[number];
        let conflict = stage1.conflicts.iter().any(|&(pe, page, _)| pe == self.pe() && page == va >> 12);
        stage1.translate(va).filter(|_| !conflict).map(Ipa)
    }
}
