//! Logs by hardware dirty state: what hardware has marked is found, and made clean.

use crate::arch::address::{Ipa, IpaRange, PAGE_SIZE};
use crate::arch::descriptor::{Descriptor, bits};
use crate::arch::error::Error;
use crate::arch::geometry::Level;
use crate::bitmap::logs::DirtyLog;
use crate::bitmap::page_set::span_of;
use crate::bitmap::sink::{Pages, Sink};
use crate::platform::{Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::spare::SpareTables;
use crate::table::tlb::Pending;
use crate::table::walk::{Entry, Next, Visitor};

/// Finds what hardware has marked, and makes it clean if asked to.
pub(crate) struct Scan<'s, R> {
    pub(crate) report: &'s mut R,
    pub(crate) pending: &'s mut Pending,
    pub(crate) clean: bool,
    /// Pages that the report has counted.
    pub(crate) added: u64,
}

impl<P: TableMemory + Maintenance, R: Sink> Visitor<P> for Scan<'_, R> {
    #[inline(always)]
    fn entry(&mut self, table: &Stage2<P>, entry: &Entry, part: IpaRange) -> Result<Next, Error> {
        // Writable without DBM is a leaf that was mapped after the start: dirty until it is tracked.
        if !entry.is_leaf() || entry.value.0 & bits::WRITE == 0 {
            return Ok(Next::Continue);
        }
        if self.clean {
            if table.replace(entry.slot, entry.value.0, cleaned(entry.value)).is_err() {
                return Ok(Next::Retry);
            }
            // An entry that is cached as dirty never marks again.
            self.pending.add(part);
        }
        self.added += self.report.insert_range(part);
        Ok(Next::Continue)
    }

    #[inline(always)]
    fn enter(&mut self, table: &Stage2<P>, entry: &Entry, part: IpaRange) -> Result<bool, Error> {
        if entry.level != Level::L2 {
            return Ok(true);
        }
        let mut ipa = part.start();
        while ipa < part.end() {
            let first = Slot { table: entry.value.address(), index: Level::L3.index(ipa) };
            let left = (part.end().0 - ipa.0) / PAGE_SIZE;
            let count = (GROUP - first.index % GROUP).min(left as usize);
            self.pages(table, first, ipa, count);
            ipa = ipa.offset(count as u64 * PAGE_SIZE);
        }
        Ok(false)
    }
}

/// Pages that are looked at together: most are clean, and one comparison tells of all. They lie in one word of a
/// bitmap.
const GROUP: usize = 16;

impl<R: Sink> Scan<'_, R> {
    /// [`Visitor::entry`] for `count` pages from the one at `ipa` on, of one group.
    #[inline(always)]
    fn pages<P: TableMemory + Maintenance>(&mut self, table: &Stage2<P>, first: Slot, ipa: Ipa, count: usize) {
        let slot = |n| Slot { index: first.index + n, ..first };
        let any = |n: usize| (0..n).fold(0, |any, n| any | table.load(slot(n)));
        // A number that the compiler knows lets it do without a loop.
        let any = if count == GROUP { any(GROUP) } else { any(count) };
        if any & (bits::WRITE | bits::BUSY) == 0 {
            return;
        }
        // Which pages to look at closely: no branch for the others.
        let marked = |n| u64::from(table.load(slot(n)) & (bits::WRITE | bits::BUSY) != 0) << n;
        let mut left = (0..count).fold(0u64, |left, n| left | marked(n));
        let mut dirty = 0u64;
        while left != 0 {
            let n = left.trailing_zeros() as usize;
            left &= left - 1;
            loop {
                let value = Descriptor(table.load(slot(n)));
                if value.is_busy(Level::L3) {
                    table.wait_for(slot(n), Level::L3);
                } else if !value.is_valid() || value.0 & bits::WRITE == 0 {
                    break;
                } else if !self.clean || table.replace(slot(n), value.0, cleaned(value)).is_ok() {
                    dirty |= 1 << n;
                    break;
                }
            }
        }
        if dirty == 0 {
            return;
        }
        if self.clean {
            // An entry that is cached as dirty never marks again.
            self.pending.add(span_of(ipa, dirty));
        }
        self.added += self.report.insert_pages(ipa, dirty);
    }
}

/// A leaf whose next write hardware marks. Only a compare-exchange to it (never load, then store) can't lose the mark.
fn cleaned(leaf: Descriptor) -> u64 {
    leaf.0 & !bits::WRITE | bits::DBM
}

/// Cleans chosen pages of a log by hardware.
pub(crate) struct ClearDirty<'s, S, P: TableMemory + Maintenance> {
    pub(crate) table: &'s Stage2<P>,
    pub(crate) dirty_log: &'s DirtyLog,
    pub(crate) set: &'s S,
    pub(crate) pending: &'s mut Pending,
}

impl<S: Pages, P: TableMemory + Maintenance> ClearDirty<'_, S, P> {
    pub(crate) fn word(&mut self, word: usize, mut wanted: u64) {
        let start = self.dirty_log.bitmap.layout.word_ipa(word);
        while wanted != 0 {
            let page = wanted.trailing_zeros();
            wanted &= wanted - 1;
            self.page(start.offset(u64::from(page) * PAGE_SIZE));
        }
    }

    fn page(&mut self, ipa: Ipa) {
        let table = self.table;
        let mut reserve = SpareTables::none(table);
        loop {
            let entry = table.lookup_stable(ipa);
            if !entry.is_leaf() || entry.value.0 & bits::WRITE == 0 {
                return;
            }
            if entry.level != Level::L3 && !self.set.contains_range(entry.range()) {
                if table.split_leaf(&entry, &[None; 2], &mut reserve).is_err() {
                    // It stays dirty: reported once more, never missed.
                    return;
                }
                continue;
            }
            if table.replace(entry.slot, entry.value.0, cleaned(entry.value)).is_ok() {
                self.pending.add(entry.range());
                return;
            }
        }
    }
}
