//! Does operations on a checked table and on the reference, and compares the two.

use super::operations::Op;
use super::{GIB, MIB, Machine, range, vmid};
use core::sync::atomic::AtomicU64;
use stage2::fault::Status;
use stage2::*;
use stage2_oracle::{Checked, CheckedBatch, Model, Reference};
use std::collections::BTreeSet;

/// A table with everything that is known about it from outside.
pub struct Driver<'m> {
    pub model: &'m Model,
    pub machine: Machine,
    pub table: Checked<'m>,
    pub reference: Reference,
    history: FaultHistory,
    log: Option<LogUnderTest>,
}

struct LogUnderTest {
    log: Log,
    /// Pages that the guest has certainly written since they were last reported.
    written: BTreeSet<u64>,
}

impl<'m> Driver<'m> {
    /// A table with two GiB of RAM around the middle.
    pub fn new(model: &'m Model, machine: Machine) -> Self {
        let table = Checked::new(model, machine.config()).expect("a table");
        let mut driver =
            Self { model, machine, table, reference: Reference::new(), history: FaultHistory::new(), log: None };
        driver.step(&Op::Map(driver.everything(), 0, Attributes::RAM));
        driver
    }

    pub fn everything(&self) -> IpaRange {
        let middle = self.machine.middle();
        range(middle - GIB, middle + GIB)
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
                let do_all =
                    |batch: &mut CheckedBatch<'_, &Model>| changes.iter().try_for_each(|&(r, p)| batch.protect(r, p));
                self.table.batch(do_all).expect("memory for a batch");
                changes.iter().for_each(|&(range, permissions)| self.reference.protect(range, permissions));
                let start = changes.iter().map(|c| c.0.start()).min().expect("a batch of something");
                let end = changes.iter().map(|c| c.0.end()).max().expect("a batch of something");
                range(start.0, end.0)
            }
            Op::Store(ipa) => self.store(ipa),
            Op::Spurious(ipa) => {
                let ipa = Ipa(ipa);
                let abort =
                    Abort { status: Status::Permission, write: false, execute: false, stage1_walk: false, ipa, va: 0 };
                let outcome = self.table.fault(&abort, &mut self.history);
                let expected = match self.reference.at(ipa) {
                    None => Outcome::Unmapped,
                    Some((_, attributes)) if !attributes.permissions.read => Outcome::Denied,
                    Some(_) => Outcome::Retry,
                };
                assert_eq!(outcome, expected, "a spurious fault at {ipa}");
                range(ipa.0, ipa.0 + PAGE_SIZE)
            }
            Op::Start(range, mechanism, all_dirty) => self.start(range, mechanism, all_dirty),
            Op::Harvest => self.harvest(),
            Op::Clear(ref pages) => self.clear(pages),
            Op::Stop => self.stop(),
            Op::FreezeAndThaw => {
                self.table.freeze().expect("memory for a freeze");
                assert!(self.model.mappings(vmid(), self.everything()).is_empty(), "frozen, and something is mapped");
                self.table.thaw();
                self.hot()
            }
        }
    }

    /// Where most operations are.
    fn hot(&self) -> IpaRange {
        let middle = self.machine.middle();
        range(middle - 20 * MIB, middle + 20 * MIB)
    }

    fn check_sizes(&self, range: IpaRange, size: LeafSize) {
        for leaf in self.table.stage2().leaves(range) {
            assert!(leaf.size <= size, "{leaf:?} is left after a split of {range} to {size:?}");
        }
    }

    fn store(&mut self, ipa: u64) -> IpaRange {
        let outcome = self.table.store(Ipa(ipa), &mut self.history);
        let expected = match self.reference.at(Ipa(ipa)) {
            None => Err(Outcome::Unmapped),
            Some((_, attributes)) if !attributes.permissions.write => Err(Outcome::Denied),
            Some(_) => Ok(()),
        };
        // An entry that was never invalidated may let a store through that the table would let through as well.
        assert_eq!(outcome, expected, "a guest's store to {ipa:#x}");
        if let (Ok(()), Some(log)) = (outcome, &mut self.log)
            && log.log.range().contains(Ipa(ipa))
        {
            log.written.insert(ipa);
        }
        range(ipa, ipa + PAGE_SIZE)
    }

    fn start(&mut self, range: IpaRange, mechanism: Mechanism, all_dirty: bool) -> IpaRange {
        if self.log.is_some() {
            self.stop();
        }
        let words = stage2::Layout::new(range).words();
        let storage: Vec<AtomicU64> = (0..words).map(|_| AtomicU64::new(0)).collect();
        let options = LogOptions { mechanism, all_dirty };
        let log = self.table.start_log(range, storage.leak(), options).expect("memory for a log");
        self.log = Some(LogUnderTest { log, written: BTreeSet::new() });
        range
    }

    fn harvest(&mut self) -> IpaRange {
        let hot = self.hot();
        let Some(LogUnderTest { log, written }) = &mut self.log else { return hot };
        let mut words = vec![0; log.layout().words()];
        let mut report = PageSet::new(log.layout(), &mut words).expect("words enough");
        self.table.harvest(log, &mut report).expect("a harvest");
        if let Some(missed) = written.iter().find(|&&page| !report.contains(Ipa(page))) {
            panic!("the guest wrote {missed:#x}, and the harvest does not say so");
        }
        written.clear();
        log.range()
    }

    fn clear(&mut self, pages: &[u64]) -> IpaRange {
        let hot = self.hot();
        let Some(LogUnderTest { log, written }) = &mut self.log else { return hot };
        let mut words = vec![0; log.layout().words()];
        let mut set = PageSet::new(log.layout(), &mut words).expect("words enough");
        for &page in pages {
            set.insert(Ipa(page));
            written.remove(&page);
        }
        self.table.clear(log, &set).expect("a clear");
        log.range()
    }

    pub fn stop(&mut self) -> IpaRange {
        let hot = self.hot();
        let Some(LogUnderTest { log, .. }) = self.log.take() else { return hot };
        let range = log.range();
        if let Some(storage) = self.table.stop_log_and_collapse(log) {
            // SAFETY: `start` leaked this very slice, and the engine has given it back.
            drop(unsafe { Box::from_raw(core::ptr::from_ref(storage).cast_mut()) });
        }
        range
    }

    /// The whole table is as the reference says; everything unmapped, only the root is left, and then not even that.
    pub fn finish(mut self) {
        self.stop();
        let everything = self.everything();
        if let Some(difference) = self.reference.difference(self.model, vmid(), everything) {
            panic!("at the end: {difference}");
        }
        self.table.release();
        self.model.assert_clean();
        assert_eq!(self.model.frames_in_use(), 0, "frames are leaked");
    }
}
