//! The driver's dirty logs: up to two at once, with what the guest has certainly written.

use super::driver::Driver;
use super::range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stage2::*;
use stage2_oracle::checked_logs::pages_of;
use std::collections::BTreeSet;

/// Logs at once.
const MOST: usize = 2;

pub struct LogUnderTest<G: Granule> {
    log: Log<G>,
    /// Pages that the guest has certainly written since they were last reported.
    written: BTreeSet<u64>,
    /// Pages that a look has shown since.
    seen: BTreeSet<u64>,
}

/// A bitmap for the pages of `log`.
fn bitmap<G: Granule>(log: &Log<G>, word: u64) -> Vec<AtomicU64> {
    (0..log.layout().page_words()).map(|_| AtomicU64::new(word)).collect()
}

fn loaded(bitmap: &[AtomicU64]) -> Vec<u64> {
    bitmap.iter().map(|word| word.load(Relaxed)).collect()
}

impl<G: Granule> LogUnderTest<G> {
    /// What was written, or was seen already, is reported.
    fn check(&mut self, how: &str, reported: &dyn Fn(u64) -> bool) -> IpaRange {
        for (what, pages) in [("wrote", &mut self.written), ("was seen to have written", &mut self.seen)] {
            if let Some(missed) = pages.iter().find(|&&page| !reported(page)) {
                panic!("the guest {what} {missed:#x}, and {how} does not say so");
            }
            pages.clear();
        }
        self.log.range()
    }

    fn forget(&mut self, pages: &[u64]) {
        for page in pages {
            self.written.remove(page);
            self.seen.remove(page);
        }
    }
}

impl<G: Granule> Driver<'_, G> {
    /// A store of the guest's has come to memory.
    pub(super) fn note_written(&mut self, ipa: u64) {
        for log in self.logs.iter_mut().filter(|log| log.log.range().contains(Ipa(ipa))) {
            log.written.insert(ipa & !(G::BYTES - 1));
        }
    }

    pub(super) fn start(&mut self, range: IpaRange, mechanism: Mechanism, all_dirty: bool) -> IpaRange {
        let words = Layout::<G>::with_granule(range).words();
        let storage: &'static [AtomicU64] = (0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
        let options = LogOptions { mechanism, all_dirty };
        while let Some(n) = self.logs.iter().position(|log| log.log.range().intersection(range).is_some()) {
            let other = self.logs[n].log.range();
            let refused = self.table.start_log(range, storage, options).map(drop);
            assert!(matches!(refused, Err(Error::LogOverlap { .. })), "a log of {range} beside {other}: {refused:?}");
            self.stop(n);
        }
        if self.logs.len() == MOST {
            self.stop(0);
        }
        let log = self.table.start_log(range, storage, options).expect("memory for a log");
        self.logs.push(LogUnderTest { log, written: BTreeSet::new(), seen: BTreeSet::new() });
        range
    }

    /// A log of `pages` that begins where another one ends: mostly inside of one block.
    pub(super) fn start_beside(&mut self, pages: u64, mechanism: Mechanism, all_dirty: bool) -> IpaRange {
        let hot = self.hot();
        let Some(first) = self.logs.last() else { return hot };
        let start = first.log.range().end().0;
        if start + pages * G::BYTES > self.everything().end().0 {
            return hot;
        }
        self.start(range(start, start + pages * G::BYTES), mechanism, all_dirty)
    }

    fn with_log(&mut self, n: usize, act: impl FnOnce(&mut Self, &mut LogUnderTest<G>) -> IpaRange) -> IpaRange {
        if self.logs.is_empty() {
            return self.hot();
        }
        let n = n % self.logs.len();
        let mut log = self.logs.remove(n);
        let touched = act(self, &mut log);
        self.logs.insert(n, log);
        touched
    }

    pub(super) fn harvest(&mut self, n: usize) -> IpaRange {
        self.with_log(n, |driver, log| {
            let mut words = vec![0; log.log.layout().words()];
            let mut report = PageSet::new(log.log.layout(), &mut words).expect("words enough");
            driver.table.harvest(&mut log.log, &mut report).expect("a harvest");
            log.check("the harvest", &|page| report.contains(Ipa(page)))
        })
    }

    /// What is in the bitmap stays there, and makes no difference to what is reported.
    pub(super) fn harvest_into(&mut self, n: usize, noise: u64) -> IpaRange {
        self.with_log(n, |driver, log| {
            let bitmap = bitmap(&log.log, noise);
            let added = driver.table.harvest_into(&mut log.log, &bitmap).expect("a harvest");
            let words = loaded(&bitmap);
            assert!(words.iter().all(|word| word & noise == noise), "bits are gone that were set before");
            let new: u64 = words.iter().map(|word| u64::from((word & !noise).count_ones())).sum();
            assert_eq!(added, new, "bits that are said to be new");
            let all: BTreeSet<u64> = pages_of(&log.log, &bitmap).map(|page| page.0).collect();
            log.check("the bitmap", &|page| all.contains(&page))
        })
    }

    /// A look reports what a harvest would, and changes nothing.
    pub(super) fn peek(&mut self, n: usize) -> IpaRange {
        self.with_log(n, |driver, log| {
            let before = (!driver.machine.hardware_dirty).then(|| driver.model.snapshot());
            let mut words = vec![0; log.log.layout().words()];
            let mut report = PageSet::new(log.log.layout(), &mut words).expect("words enough");
            driver.table.peek(&log.log, &mut report).expect("a look");
            assert!(before.is_none_or(|before| before == driver.model.snapshot()), "a look changes the table");
            if let Some(missed) = log.written.iter().find(|&&page| !report.contains(Ipa(page))) {
                panic!("the guest wrote {missed:#x}, and a look does not show it");
            }
            report.for_each(|page| _ = log.seen.insert(page.0));
            log.log.range()
        })
    }

    pub(super) fn clear(&mut self, n: usize, pages: &[u64]) -> IpaRange {
        self.with_log(n, |driver, log| {
            let mut words = vec![0; log.log.layout().words()];
            let mut set = PageSet::new(log.log.layout(), &mut words).expect("words enough");
            pages.iter().for_each(|&page| set.insert(Ipa(page)));
            log.forget(pages);
            driver.table.clear(&mut log.log, &set).expect("a clear");
            log.log.range()
        })
    }

    /// A plain bitmap has bits for pages that are not in the log, too: from the start of its first block on.
    pub(super) fn clear_from(&mut self, n: usize, pages: &[u64]) -> IpaRange {
        self.with_log(n, |driver, log| {
            let bitmap = bitmap(&log.log, 0);
            let base = log.log.range().start().align_down(512 * G::BYTES).0;
            for page in pages.iter().filter(|&&page| page >= base) {
                let bit = (page - base) / G::BYTES;
                if let Some(word) = bitmap.get((bit / 64) as usize) {
                    word.fetch_or(1 << (bit % 64), Relaxed);
                }
            }
            log.forget(pages);
            driver.table.clear_from(&mut log.log, &bitmap).expect("a clear");
            log.log.range()
        })
    }

    pub fn stop(&mut self, n: usize) -> IpaRange {
        self.finish_log(n, |driver, log| driver.table.stop_log_and_collapse(log))
    }

    /// The log ends, and nothing else does: no leaf changes.
    pub(super) fn end(&mut self, n: usize) -> IpaRange {
        self.finish_log(n, |driver, log| driver.table.stop_log_keeping_pages(log))
    }

    fn finish_log(
        &mut self,
        n: usize,
        act: impl FnOnce(&mut Self, Log<G>) -> Option<&'static [AtomicU64]>,
    ) -> IpaRange {
        if self.logs.is_empty() {
            return self.hot();
        }
        let LogUnderTest { log, .. } = self.logs.remove(n % self.logs.len());
        let range = log.range();
        let storage = act(self, log).expect("the log's own words");
        // SAFETY: `start` leaked this very slice, and the engine has given it back.
        drop(unsafe { Box::from_raw(core::ptr::from_ref(storage).cast_mut()) });
        range
    }
}
