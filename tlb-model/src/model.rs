//! A PE's TLBs and its walker.

use crate::counts::{Counts, ENTRY_SIZES, Kind, LINE};
use crate::invalidate::Invalidation;
use crate::memory::{Memory, Problem};
use crate::registers::Registers;
use crate::sizes::Sizes;
use crate::tlb::{Entry, Tlb};
use crate::walker::{Translation, Walker};
use std::collections::HashSet;

/// An exception level whose accesses are translated by both stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// EL0.
    El0 = 0,
    /// EL1.
    El1 = 1,
}

/// An access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// What it does.
    pub kind: Kind,
    /// Who does it.
    pub level: Level,
    /// The virtual address; it may have a tag.
    pub va: u64,
}

/// What translated an access, and to which physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The level-1 TLB.
    L1(u64),
    /// The level-2 TLB.
    L2(u64),
    /// A walk.
    Walk(u64),
}

/// A PE.
#[derive(Debug, Clone)]
pub struct Core {
    registers: Registers,
    /// For data, and for instructions.
    l1: [Tlb; 2],
    l2: Tlb,
    walker: Walker,
    counts: Counts,
    lines: HashSet<u64>,
}

impl Core {
    /// A PE that knows no translation.
    #[must_use]
    pub fn new(sizes: Sizes) -> Self {
        Self {
            registers: Registers::default(),
            l1: [Tlb::new(sizes.l1), Tlb::new(sizes.l1)],
            l2: Tlb::new(sizes.l2),
            walker: Walker::new(sizes),
            counts: Counts::default(),
            lines: HashSet::new(),
        }
    }

    /// What translates.
    #[must_use]
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Takes over the PE's registers. What was cached with a stage on is not used with it off, nor the other way round; the
    /// model keeps no entries of two VMIDs.
    pub fn set_registers(&mut self, registers: Registers) {
        let regime = |of: &Registers| (of.has_stage1(), of.has_stage2(), of.vmid());
        if regime(&registers) != regime(&self.registers) {
            self.retain(|_| false);
            self.walker.forget_all();
        }
        self.registers = registers;
    }

    /// An access that the PE has made.
    ///
    /// # Errors
    /// If there is no translation; that is counted, and the TLBs stay as they are.
    pub fn access(&mut self, access: Access, memory: &impl Memory) -> Result<Answer, Problem> {
        let at = access.level as usize;
        let by_kind = match access.kind {
            Kind::Fetch => &mut self.counts.fetches,
            Kind::Load => &mut self.counts.loads,
            Kind::Store => &mut self.counts.stores,
        };
        by_kind[at] += 1;
        let va = self.registers.untagged(access.va);
        let asid = self.registers.asid();
        let [data, instructions] = &mut self.l1;
        let l1 = if access.kind == Kind::Fetch { instructions } else { data };
        if let Some(entry) = l1.find(va, asid) {
            return Ok(Answer::L1(entry.physical(va)));
        }
        self.counts.l1_misses[at] += 1;
        if let Some(entry) = self.l2.find(va, asid) {
            l1.insert(entry);
            return Ok(Answer::L2(entry.physical(va)));
        }
        self.counts.walks[at] += 1;
        let walked = self.walker.walk(&self.registers, memory, va);
        let [stage1, stage2] = self.walker.reads.by_stage;
        self.counts.stage1_references[at] += stage1;
        self.counts.stage2_references[at] += stage2;
        self.lines.extend(self.walker.reads.addresses.iter().map(|address| address / LINE));
        let Translation { pa, shift, not_global } = walked.inspect_err(|_| self.counts.failed += 1)?;
        let entry = Entry { va: va & (u64::MAX << shift), pa, shift, asid: not_global.then_some(asid) };
        if let Some(size) = ENTRY_SIZES.iter().position(|&size| size == shift) {
            self.counts.entries[size] += 1;
        }
        self.l2.insert(entry);
        l1.insert(entry);
        Ok(Answer::Walk(entry.physical(va)))
    }

    /// An invalidation that reaches the PE.
    pub fn invalidate(&mut self, what: Invalidation) {
        self.counts.invalidations += 1;
        match what {
            Invalidation::All => {
                self.retain(|_| false);
                self.walker.forget_all();
            }
            Invalidation::Stage1 => {
                self.retain(|_| false);
                self.walker.forget_stage1(None, 0, u64::MAX);
            }
            Invalidation::Asid(asid) => {
                self.retain(|entry| entry.asid != Some(asid));
                self.walker.forget_stage1(Some(asid), 0, u64::MAX);
            }
            Invalidation::Addresses { start, last, asid, leaves_only } => {
                self.retain(|entry| {
                    let is_other = asid.is_some() && entry.asid.is_some() && entry.asid != asid;
                    let end = entry.va | ((1 << entry.shift) - 1);
                    is_other || entry.va > last || end < start
                });
                if !leaves_only {
                    self.walker.forget_stage1(asid, start, last);
                }
            }
            Invalidation::Ipas { start, last, leaves_only } => self.walker.forget_stage2(start, last, leaves_only),
        }
    }

    fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        let [data, instructions] = &mut self.l1;
        [data, instructions, &mut self.l2].into_iter().for_each(|tlb| tlb.retain(&keep));
    }

    /// What was counted since the last [`Core::start_counting`].
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { table_lines: self.lines.len() as u64, ..self.counts }
    }

    /// Counts from nothing. The TLBs keep what they know.
    pub fn start_counting(&mut self) {
        self.counts = Counts::default();
        self.lines.clear();
    }
}
