//! Dirty logs of a [`Checked`] table.

use crate::checked::Checked;
use crate::event::{Operation, OperationKind};
use core::sync::atomic::{AtomicU64, Ordering};
use stage2::{Error, Granule, Ipa, IpaRange, Log, LogOptions, Maintenance, PageSet, TableMemory};

/// The pages of `log` whose bits are set in a plain bitmap: a bit a page, from the start of the log's first block on.
pub fn pages_of<'b, G: Granule>(log: &Log<G>, bitmap: &'b [AtomicU64]) -> impl Iterator<Item = Ipa> + use<'b, G> {
    let range = log.range();
    // Words begin with 512 pages.
    let base = range.start().align_down(512 * G::BYTES);
    let bits = (0u64..).zip(bitmap).flat_map(|(n, word)| {
        let word = word.load(Ordering::Relaxed);
        (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| 64 * n + bit)
    });
    bits.map(move |bit| base.offset(bit * G::BYTES)).filter(move |&page| range.contains(page))
}

impl<P: TableMemory + Maintenance, G: Granule> Checked<'_, P, G> {
    /// [`Stage2::start_log`](stage2::Stage2::start_log).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn start_log(
        &mut self,
        range: IpaRange,
        storage: &'static [AtomicU64],
        options: LogOptions,
    ) -> Result<Log<G>, Error> {
        let stage2 = &mut self.stage2;
        let operation = Operation::over(OperationKind::Start, range);
        self.model.operation(operation, || stage2.start_log(range, storage, options))
    }

    /// [`Stage2::harvest`](stage2::Stage2::harvest); what it adds to `report` is judged. `report` is emptied first.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn harvest(&self, log: &mut Log<G>, report: &mut PageSet<'_, G>) -> Result<(), Error> {
        report.clear();
        self.model.operation(Operation::over(OperationKind::Harvest, log.range()), || {
            let result = self.stage2.harvest(log, report);
            self.tell_pages(report);
            result
        })
    }

    /// [`Stage2::clear`](stage2::Stage2::clear).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn clear(&self, log: &mut Log<G>, set: &PageSet<'_, G>) -> Result<(), Error> {
        self.model.operation(Operation::over(OperationKind::Clear, log.range()), || {
            self.tell_pages(set);
            self.stage2.clear(log, set)
        })
    }

    /// [`Stage2::harvest_into`](stage2::Stage2::harvest_into); all bits that are set afterwards count as reported.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn harvest_into(&self, log: &mut Log<G>, bitmap: &[AtomicU64]) -> Result<u64, Error> {
        self.model.operation(Operation::over(OperationKind::Harvest, log.range()), || {
            let result = self.stage2.harvest_into(log, bitmap);
            self.tell_bits(log, bitmap);
            result
        })
    }

    /// [`Stage2::clear_from`](stage2::Stage2::clear_from).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn clear_from(&self, log: &mut Log<G>, bitmap: &[AtomicU64]) -> Result<(), Error> {
        self.model.operation(Operation::over(OperationKind::Clear, log.range()), || {
            self.tell_bits(log, bitmap);
            self.stage2.clear_from(log, bitmap)
        })
    }

    /// [`Stage2::peek`](stage2::Stage2::peek), which may change nothing that a walk can read. `report` is emptied first.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn peek(&self, log: &Log<G>, report: &mut PageSet<'_, G>) -> Result<(), Error> {
        report.clear();
        self.model.operation(Operation::over(OperationKind::Other, log.range()), || self.stage2.peek(log, report))
    }

    /// [`Stage2::stop_log_keeping_pages`](stage2::Stage2::stop_log_keeping_pages), which may change nothing either.
    pub fn stop_log_keeping_pages(&mut self, log: Log<G>) -> Option<&'static [AtomicU64]> {
        self.model.begin(Operation::over(OperationKind::End, log.range()));
        let storage = self.stage2.stop_log_keeping_pages(log);
        self.model.finish(true);
        storage
    }

    /// The pages of the log whose bits are set.
    fn tell_bits(&self, log: &Log<G>, bitmap: &[AtomicU64]) {
        let mut words = vec![0; log.layout().words()];
        let Some(mut set) = PageSet::new(log.layout(), &mut words) else { return };
        pages_of(log, bitmap).for_each(|page| set.insert(page));
        self.tell_pages(&set);
    }

    fn tell_pages(&self, set: &PageSet<'_, G>) {
        let mut open: Option<IpaRange> = None;
        let tell = |range: Option<IpaRange>| range.into_iter().for_each(|range| self.model.pages(range));
        set.for_each(|page| {
            let grown = open.filter(|o| o.end() == page).map_or(page, |o| o.start());
            if grown == page {
                tell(open);
            }
            open = IpaRange::new(grown, page.offset(G::BYTES)).ok();
        });
        tell(open);
    }

    /// [`Stage2::stop_log_and_collapse`](stage2::Stage2::stop_log_and_collapse).
    pub fn stop_log_and_collapse(&mut self, log: Log<G>) -> Option<&'static [AtomicU64]> {
        self.model.begin(Operation::over(OperationKind::Stop, log.range()));
        let storage = self.stage2.stop_log_and_collapse(log);
        self.model.finish(true);
        storage
    }
}
