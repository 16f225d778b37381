//! Logs by hardware dirty state: what hardware has marked is found, and made clean.

use crate::arch::address::{Ipa, IpaRange};
use crate::arch::descriptor::{Descriptor, bits};
use crate::arch::error::Error;
use crate::arch::geometry::Level;
use crate::arch::granule::Granule;
use crate::bitmap::logs::DirtyLog;
use crate::bitmap::page_set::span_of;
use crate::bitmap::sink::{Pages, Sink};
use crate::dirty::write_protect::Span;
use crate::platform::counters::Event;
use crate::platform::{GROUP, Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::spare::SpareTables;
use crate::table::tlb::Pending;
use crate::table::walk::{Entry, Next, Visitor};

/// Finds what hardware has marked, and makes it clean if asked to.
pub(crate) struct Scan<'s, R> {
    pub(crate) report: &'s mut R,
    /// What has been made clean. An entry that is cached as dirty never marks again.
    pub(crate) span: Span,
    pub(crate) clean: bool,
    /// Pages that the report has counted.
    pub(crate) added: u64,
}

impl<P: TableMemory + Maintenance, G: Granule, R: Sink<G>> Visitor<P, G> for Scan<'_, R> {
    #[inline(always)]
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error> {
        // Writable without DBM is a leaf that was mapped after the start: dirty until it is tracked.
        if !entry.is_leaf() || entry.value.0 & bits::WRITE == 0 {
            return Ok(Next::Continue);
        }
        if self.clean {
            if table.replace(entry.slot, entry.value.0, cleaned(entry.value)).is_err() {
                return Ok(Next::Retry);
            }
            self.span.add(part);
        }
        self.added += self.report.insert_range(part);
        Ok(Next::Continue)
    }

    #[inline(always)]
    fn enter(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<bool, Error> {
        if entry.level != Level::L2 {
            return Ok(true);
        }
        let (first, count) = (Level::L3.index_of::<G>(part.start()), (part.bytes() >> G::SHIFT) as usize);
        for group in first / GROUP..(first + count).div_ceil(GROUP) {
            let start = group * GROUP;
            // Which of the group's pages lie in the part.
            let (skip, end) = (first.max(start) - start, (first + count - start).min(GROUP));
            let wanted = u64::MAX >> (64 - (end - skip)) << skip;
            let slot = Slot { table: entry.value.address_of::<G>(), index: start };
            self.pages(table, slot, entry.ipa.offset(start as u64 * G::BYTES), wanted);
        }
        Ok(false)
    }
}

impl<R> Scan<'_, R> {
    /// [`Visitor::entry`] for those of a group's pages that have a bit in `wanted`. The group begins at `first` and `ipa`.
    #[inline(always)]
    fn pages<P: TableMemory + Maintenance, G: Granule>(
        &mut self,
        table: &Stage2<P, G>,
        first: Slot,
        ipa: Ipa,
        wanted: u64,
    ) where
        R: Sink<G>,
    {
        // SAFETY: as for all descriptors (`table.rs`): a group of a reachable table of pages.
        let marked = unsafe { table.platform.group_with::<true>(first, bits::WRITE | bits::BUSY) };
        let mut left = u64::from(marked) & wanted;
        let (mut dirty, mut changed) = (0u64, 0);
        while left != 0 {
            let n = left.trailing_zeros() as usize;
            left &= left - 1;
            let slot = Slot { index: first.index + n, ..first };
            let mut value = Descriptor(table.load(slot));
            loop {
                if value.is_busy(Level::L3) {
                    table.wait_for(slot, Level::L3);
                    value = Descriptor(table.load(slot));
                    continue;
                }
                if !value.is_valid() || value.0 & bits::WRITE == 0 {
                    break;
                }
                if self.clean {
                    // SAFETY: as for all descriptors.
                    if let Err(found) = unsafe { table.platform.compare_exchange(slot, value.0, cleaned(value)) } {
                        value = Descriptor(found);
                        continue;
                    }
                    changed += 1;
                }
                dirty |= 1 << n;
                break;
            }
        }
        if dirty == 0 {
            return;
        }
        if self.clean {
            table.platform.counters().add(Event::DescriptorWrite, changed);
            self.span.add(span_of::<G>(ipa, dirty));
        }
        self.added += self.report.insert_pages(ipa, dirty);
    }
}

/// A leaf whose next write hardware marks. Only a compare-exchange to it (never load, then store) can't lose the mark.
fn cleaned(leaf: Descriptor) -> u64 {
    leaf.0 & !bits::WRITE | bits::DBM
}

/// Cleans chosen pages of a log by hardware.
pub(crate) struct ClearDirty<'s, S, P: TableMemory + Maintenance, G: Granule> {
    pub(crate) table: &'s Stage2<P, G>,
    pub(crate) dirty_log: &'s DirtyLog<G>,
    pub(crate) set: &'s S,
    pub(crate) pending: &'s mut Pending,
}

impl<S: Pages, P: TableMemory + Maintenance, G: Granule> ClearDirty<'_, S, P, G> {
    pub(crate) fn word(&mut self, word: usize, mut wanted: u64) {
        let start = self.dirty_log.bitmap.layout.word_ipa(word);
        while wanted != 0 {
            let page = wanted.trailing_zeros();
            wanted &= wanted - 1;
            self.page(start.offset(u64::from(page) * G::BYTES));
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
