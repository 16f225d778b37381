//! The guest's own stage 1, as far as the fault path has to do with it: which IPA a VA has, and which a PE may take it for.

use crate::event::{Access, Form, Invalidation};
use crate::tlb::{MAX_PES, Mask};
use rustc_hash::FxHashMap;

/// What the guest's tables say of one page of VA.
#[derive(Clone, Debug, Default)]
struct Page {
    /// The IPA now.
    now: Option<u64>,
    /// IPAs that it had, and when it had them last.
    before: Vec<(u64, u64)>,
}

/// One VMID's stage 1. A VA that the guest never mapped is its own IPA, as while stage 1 is off.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage1 {
    pages: FxHashMap<u64, Page>,
    /// By PE and page of VA: when the last invalidation of that VA was issued, of those that are complete.
    dropped: FxHashMap<(u8, u64), u64>,
    /// The same, of all VAs.
    all_dropped: [u64; MAX_PES],
    /// PEs that have taken a conflict abort, for which VA, and when: only the ALL forms are sure to end it (R_BLRKC, R_GRVDR).
    pub conflicts: Vec<(u8, u64, u64)>,
}

impl Stage1 {
    /// The IPA of `va` in the guest's tables.
    pub fn translate(&self, va: u64) -> Option<u64> {
        match self.pages.get(&(va >> 12)) {
            Some(page) => page.now,
            None => Some(va & !0xfff),
        }
    }

    /// The guest changes its tables.
    pub fn map(&mut self, va: u64, ipa: Option<u64>, now: u64) {
        let old = self.translate(va);
        let page = self.pages.entry(va >> 12).or_default();
        page.before.extend(old.map(|old| (old, now)));
        page.now = ipa.map(|ipa| ipa & !0xfff);
    }

    pub fn dropped(&self, pe: u8, va: u64) -> u64 {
        self.dropped.get(&(pe, va >> 12)).map_or(0, |&at| at).max(self.all_dropped[usize::from(pe)])
    }

    /// The IPAs that a PE may take `va` for: that in the tables, and those that nothing has taken from its TLB.
    pub fn possible(&self, pe: u8, va: u64) -> Vec<u64> {
        let since = self.dropped(pe, va);
        let old = self.pages.get(&(va >> 12)).into_iter().flat_map(|page| &page.before);
        let mut all: Vec<u64> =
            self.translate(va).into_iter().chain(old.filter(|old| old.1 > since).map(|old| old.0)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// An invalidation that was issued at `at` is complete on `pes`.
    pub fn complete(&mut self, pes: Mask, at: u64, invalidation: &Invalidation) {
        for pe in (0..MAX_PES as u8).filter(|pe| pes & 1 << pe != 0) {
            match invalidation.form {
                Form::Va(va) => {
                    let known = self.dropped.entry((pe, va >> 12)).or_default();
                    *known = at.max(*known);
                }
                Form::VmallE1 | Form::VmallS12E1 => {
                    let known = &mut self.all_dropped[usize::from(pe)];
                    *known = at.max(*known);
                }
                _ => {}
            }
            if invalidation.form == Form::VmallS12E1 {
                self.conflicts.retain(|&(other, _, since)| other != pe || since > at);
            }
        }
    }
}

/// An access of a PE that was refused, and what has become of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    pub space: usize,
    pub va: u64,
    pub access: Access,
    /// The engine has answered, and sent the guest back to it.
    pub answered: bool,
    /// Another PE has changed the page's entries since, or had not ordered what it had changed.
    pub excused: bool,
}
