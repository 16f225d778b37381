//! Does operations on a checked table and on the reference, and compares the two.

use super::logs::LogUnderTest;
use super::operations::{Change, Op, VIRTUAL};
use super::{Machine, range, units, vmid};
use stage2::fault::Status;
use stage2::*;
use stage2_oracle::{Access, Action, Checked, CheckedBatch, Form, Invalidation, Model, Reference};

/// Where the guest maps its RAM once more.
const VIRTUAL_BASE: u64 = 0x7f00_0000_0000;

/// A table with everything that is known about it from outside.
pub struct Driver<'m, G: Granule = Granule4K> {
    pub model: &'m Model,
    pub machine: Machine,
    pub table: Checked<'m, &'m Model, G>,
    pub reference: Reference,
    histories: [FaultHistory; 2],
    /// Pages of IPA that the guest has mapped each of its virtual pages to since it last told its TLBs.
    virtual_pages: [Vec<u64>; VIRTUAL],
    pub(super) logs: Vec<LogUnderTest<G>>,
}

impl<'m> Driver<'m> {
    /// With the 4 KiB granule.
    pub fn new(model: &'m Model, machine: Machine) -> Self {
        Self::with_granule(model, machine)
    }
}

impl<'m, G: Granule> Driver<'m, G> {
    /// A table with two GiB of RAM or more around the middle.
    pub fn with_granule(model: &'m Model, machine: Machine) -> Self {
        let table = Checked::with_granule(model, model, machine.config()).expect("a table");
        let mut driver = Self {
            model,
            machine,
            table,
            reference: Reference::new(),
            histories: [FaultHistory::new(); 2],
            virtual_pages: Default::default(),
            logs: Vec::new(),
        };
        (0..VIRTUAL).for_each(|n| _ = driver.remap(n, machine.middle::<G>() + n as u64 * G::BYTES, true));
        driver.step(&Op::Map(driver.everything(), 0, Attributes::RAM));
        driver
    }

    pub fn everything(&self) -> IpaRange {
        let (middle, large) = (self.machine.middle::<G>(), units::<G>().large);
        range(middle - large, middle + large)
    }

    /// Does one operation; everything that can be checked is.
    pub fn step(&mut self, op: &Op) {
        let touched = self.apply(op);
        self.model.assert_clean();
        if let Some(difference) = self.reference.difference(self.model, vmid(), touched) {
            panic!("after {op:?}: {difference}");
        }
    }

    fn apply(&mut self, op: &Op) -> IpaRange {
        match *op {
            Op::Map(range, offset, attributes) => {
                let output = PhysAddr(range.start().0 + offset);
                self.table.map(range, output, attributes).expect("memory for a map");
                self.reference.map(range, output, attributes);
                range
            }
            Op::Unmap(range) => {
                self.table.unmap(range).expect("memory for an unmap");
                self.reference.unmap(range);
                range
            }
            Op::Protect(range, permissions) => {
                self.table.protect(range, permissions).expect("memory for a protect");
                self.reference.protect(range, permissions);
                range
            }
            Op::Split(range, size) => {
                self.table.split(range, size).expect("memory for a split");
                self.check_sizes(range, size);
                range
            }
            Op::Collapse(range) => {
                self.table.collapse(range).expect("a collapse takes no memory");
                range
            }
            Op::Batch(ref changes) => {
                let do_all = |batch: &mut CheckedBatch<'_, &Model, G>| {
                    changes.iter().try_for_each(|&change| match change {
                        Change::Protect(range, permissions) => batch.protect(range, permissions),
                        Change::Split(range, size) => batch.split(range, size),
                    })
                };
                self.table.batch(do_all).expect("memory for a batch");
                for &change in changes {
                    match change {
                        Change::Protect(range, permissions) => self.reference.protect(range, permissions),
                        Change::Split(range, size) => self.check_sizes(range, size),
                    }
                }
                let start = changes.iter().map(|c| c.range().start()).min().expect("a batch of something");
                let end = changes.iter().map(|c| c.range().end()).max().expect("a batch of something");
                range(start.0, end.0)
            }
            Op::Store(ipa) => self.store(ipa),
            Op::Spurious(ipa) => self.spurious(Ipa(ipa)),
            Op::Start(range, mechanism, all_dirty) => self.start(range, mechanism, all_dirty),
            Op::Remap(n, ipa, told) => self.remap(n, ipa, told),
            Op::Access(pe, n, access) => self.access(pe, n, access),
            Op::Beside(pages, mechanism, all_dirty) => self.start_beside(pages, mechanism, all_dirty),
            Op::Harvest(n) => self.harvest(n),
            Op::HarvestInto(n, noise) => self.harvest_into(n, noise),
            Op::Peek(n) => self.peek(n),
            Op::Clear(n, ref pages) => self.clear(n, pages),
            Op::ClearFrom(n, ref pages) => self.clear_from(n, pages),
            Op::Stop(n) => self.stop(n),
            Op::End(n) => self.end(n),
            Op::FreezeAndThaw => {
                self.table.freeze().expect("memory for a freeze");
                assert!(self.model.mappings(vmid(), self.everything()).is_empty(), "frozen, and something is mapped");
                self.table.thaw();
                self.hot()
            }
        }
    }

    /// Where most operations are.
    pub(super) fn hot(&self) -> IpaRange {
        let (middle, block) = (self.machine.middle::<G>(), units::<G>().block);
        range(middle - 10 * block, middle + 10 * block)
    }

    /// A load faults that the table may well allow.
    fn spurious(&mut self, ipa: Ipa) -> IpaRange {
        let abort = Abort {
            status: Status::Permission,
            write: false,
            execute: false,
            stage1_walk: false,
            el0: false,
            ipa,
            va: 0,
        };
        let outcome = self.table.fault(&abort, &mut self.histories[0]);
        let expected = match self.reference.at(ipa) {
            None => Outcome::Unmapped,
            Some((_, attributes)) if !attributes.permissions.read => Outcome::Denied,
            Some(_) => Outcome::Retry,
        };
        assert_eq!(outcome, expected, "a spurious fault at {ipa}");
        range(ipa.0, ipa.0 + G::BYTES)
    }

    fn check_sizes(&self, range: IpaRange, size: LeafSize) {
        for leaf in self.table.stage2().leaves(range) {
            assert!(leaf.size <= size, "{leaf:?} is left after a split of {range} to {size:?}");
        }
    }

    fn store(&mut self, ipa: u64) -> IpaRange {
        let outcome = self.table.store(Ipa(ipa), &mut self.histories[0]);
        let expected = match self.reference.at(Ipa(ipa)) {
            None => Err(Outcome::Unmapped),
            Some((_, attributes)) if !attributes.permissions.write => Err(Outcome::Denied),
            Some(_) => Ok(()),
        };
        // An entry that was never invalidated may let a store through that the table would let through as well.
        assert_eq!(outcome, expected, "a guest's store to {ipa:#x}");
        if outcome.is_ok() {
            self.note_written(ipa);
        }
        range(ipa, ipa + G::BYTES)
    }

    /// The guest changes its own tables; if it does that properly, it tells its TLBs.
    fn remap(&mut self, n: usize, ipa: u64, told: bool) -> IpaRange {
        let va = VIRTUAL_BASE + n as u64 * PAGE_SIZE;
        self.model.guest_maps(vmid(), va, Some(Ipa(ipa)));
        if told {
            let invalidation = Invalidation::of(vmid(), Tlbi::VaLocal { va });
            debug_assert_eq!(invalidation.form, Form::Va(va));
            self.model.apply(0, Action::Tlbi(Invalidation { scope: Scope::Broadcast, ..invalidation }));
            self.model.settle();
            self.virtual_pages[n].clear();
        }
        self.virtual_pages[n].push(ipa);
        self.hot()
    }

    /// An access through the guest's own tables has the outcome that the table says, of the page that it maps now, or of one
    /// that it mapped before and has not told its TLBs about.
    fn access(&mut self, pe: u8, n: usize, access: Access) -> IpaRange {
        self.model.set_pe(pe);
        let va = VIRTUAL_BASE + n as u64 * PAGE_SIZE;
        let outcome = self.table.access(va, access, &mut self.histories[usize::from(pe)]);
        self.model.set_pe(0);
        let expected = |ipa: u64| match self.reference.at(Ipa(ipa)) {
            None => Err(Outcome::Unmapped),
            Some((_, attributes)) => {
                let Permissions { read, write, execute } = attributes.permissions;
                let granted = match access {
                    Access::Read => read,
                    Access::Write => write,
                    Access::Execute => execute.at(false),
                    Access::ExecuteAtEl0 => execute.at(true),
                };
                if granted { Ok(()) } else { Err(Outcome::Denied) }
            }
        };
        let mapped = &self.virtual_pages[n];
        assert!(mapped.iter().any(|&ipa| outcome == expected(ipa)), "{access:?} at {mapped:#x?}: {outcome:?}");
        let ipa = mapped[mapped.len() - 1];
        if outcome.is_ok() && access == Access::Write {
            self.note_written(ipa);
        }
        range(ipa, ipa + G::BYTES)
    }

    /// The whole table is as the reference says; everything unmapped, only the root is left, and then not even that.
    pub fn finish(mut self) {
        while !self.logs.is_empty() {
            self.stop(0);
        }
        let everything = self.everything();
        if let Some(difference) = self.reference.difference(self.model, vmid(), everything) {
            panic!("at the end: {difference}");
        }
        self.table.release();
        self.model.assert_clean();
        assert_eq!(self.model.frames_in_use(), 0, "frames are leaked");
    }
}
