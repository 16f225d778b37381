//! Making pages clean: what the start of a log, a harvest and a clear do to descriptors, for logs by write protection
//! and by hardware.

use crate::arch::address::{Ipa, IpaRange, PhysAddr};
use crate::arch::descriptor::bits;
use crate::arch::geometry::{LeafSize, Level};
use crate::arch::granule::Granule;
use crate::bitmap::dirty_bitmap::{BlockMarks, EachBlock};
use crate::bitmap::logs::DirtyLog;
use crate::bitmap::page_set::{BLOCK_WORDS, PageSet, WORD_PAGES, span_of};
use crate::bitmap::sink::{Pages, Sink};
use crate::dirty::WRITABLE;
use crate::platform::counters::Event;
use crate::platform::{Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::spare::SpareTables;
use crate::table::tlb::Pending;

/// Protects pages that were taken from the marks of a log by write protection. Remembers the table of the 2 MiB it is
/// in, since pages come in ascending order.
pub(crate) struct WriteProtector<'t, P: TableMemory + Maintenance, G: Granule> {
    table: &'t Stage2<P, G>,
    dirty_log: &'t DirtyLog<G>,
    block: Ipa,
    pages: Slot,
}

impl<'t, P: TableMemory + Maintenance, G: Granule> WriteProtector<'t, P, G> {
    #[inline(always)]
    pub(crate) fn new(table: &'t Stage2<P, G>, dirty_log: &'t DirtyLog<G>) -> Self {
        Self { table, dirty_log, block: NO_BLOCK, pages: Slot { table: PhysAddr(0), index: 0 } }
    }

    /// Protects the pages of `taken`, which lie in word `word`, and no others but what is in `wanted`.
    #[inline(always)]
    pub(crate) fn protect(&mut self, word: usize, taken: u64, wanted: &impl Pages, pending: &mut Pending) {
        let ipa = self.dirty_log.bitmap.layout.word_ipa(word);
        let block = ipa.align_down(LeafSize::Block2M.bytes_of::<G>());
        if block != self.block {
            // A page in a log by write protection is busy only while a break for an erratum lasts, which keeps what is taken.
            let Some(pages) = self.table.page_slot(ipa) else {
                self.block = NO_BLOCK;
                if let Some(range) = protect_block(self.table, self.dirty_log, word, taken, Some(wanted)).range() {
                    pending.add(range);
                }
                return;
            };
            (self.block, self.pages) = (block, pages);
        }
        pending.add(match taken {
            u64::MAX => protect_all(self.table, self.pages, ipa, WORD_PAGES),
            _ => protect_pages(self.table, self.pages, ipa, taken),
        });
    }
}

/// Takes marks of a log by write protection, reports their pages, and protects them.
pub(crate) struct Harvest<'h, 't, P: TableMemory + Maintenance, G: Granule, R> {
    pub(crate) table: &'t Stage2<P, G>,
    pub(crate) dirty_log: &'t DirtyLog<G>,
    pub(crate) report: &'h mut R,
    /// Pages that the report has counted.
    pub(crate) added: u64,
    /// From the first page that was protected to the last. What lies between is invalidated with them, by one range
    /// TLBI, or where there is none by one for all of the VMID; combined entries go in any case.
    pub(crate) span: Span,
}

/// What a harvest invalidates: nothing, or a range that grows upwards.
pub(crate) struct Span {
    start: Ipa,
    end: Ipa,
}

impl Span {
    pub(crate) const NOTHING: Self = Self { start: Ipa(u64::MAX), end: Ipa(0) };

    #[inline(always)]
    pub(crate) fn add(&mut self, range: IpaRange) {
        self.start = self.start.min(range.start());
        self.end = self.end.max(range.end());
    }

    #[inline(always)]
    pub(crate) fn pending(&self) -> Pending {
        match self.end {
            Ipa(0) => Pending::new(),
            end => Pending::of(IpaRange::new_unchecked(self.start, end)),
        }
    }
}

impl<P: TableMemory + Maintenance, G: Granule, R: Sink<G>> EachBlock for Harvest<'_, '_, P, G, R> {
    #[inline(always)]
    fn block(&mut self, marks: BlockMarks<'_>) {
        let layout = &self.dirty_log.bitmap.layout;
        let first_word = marks.first_word();
        // A page in a log by write protection is busy only while a break for an erratum lasts, which keeps what is taken.
        let Some(pages) = self.table.page_slot(layout.word_ipa(first_word)) else {
            return self.leaf(marks);
        };
        if marks.take_if_full() {
            self.added += self.report.insert_block(first_word);
            let ipa = layout.word_ipa(first_word);
            self.span.add(protect_all(self.table, pages, ipa, BLOCK_WORDS * WORD_PAGES));
            return;
        }
        for (word, taken) in marks.marked::<true>() {
            self.added += self.report.insert_word(word, taken);
            self.span.add(protect_pages(self.table, pages, layout.word_ipa(word), taken));
        }
    }
}

impl<P: TableMemory + Maintenance, G: Granule, R: Sink<G>> Harvest<'_, '_, P, G, R> {
    /// [`EachBlock::block`] where there was no table of pages.
    #[inline(always)]
    fn leaf(&mut self, marks: BlockMarks<'_>) {
        for (word, taken) in marks.marked::<true>() {
            self.added += self.report.insert_word(word, taken);
            let protected = protect_block(self.table, self.dirty_log, word, taken, None::<&PageSet<'_, G>>);
            if let Protected::Leaf(range) = protected {
                // Its other marks are left to be taken in their turn: by then a handler may have made a page writable
                // anew, and a mark may be taken only before its leaf is protected, never after.
                self.added += self.report.insert_range(range);
            }
            if let Some(range) = protected.range() {
                self.span.add(range);
            }
        }
    }
}

/// No address of a block.
const NO_BLOCK: Ipa = Ipa(u64::MAX);

/// Protects the pages of `taken`, the first of which would be at `ipa`, in the table of pages that `slot` lies in.
/// Returns what is to be invalidated: from the first page to the last, since what lies between costs no further TLBI.
#[inline(always)]
fn protect_pages<P: TableMemory + Maintenance, G: Granule>(
    table: &Stage2<P, G>,
    slot: Slot,
    ipa: Ipa,
    taken: u64,
) -> IpaRange {
    if taken == u64::MAX {
        return protect_word(table, slot, ipa);
    }
    let first = Level::L3.index_of::<G>(ipa);
    let (mut left, mut count) = (taken, 0);
    while left != 0 {
        let page = left.trailing_zeros();
        left &= left - 1;
        count += 1;
        let slot = Slot { index: first + page as usize, ..slot };
        // SAFETY: the slot lies in a reachable table of pages, which stays while this has `&Stage2`.
        unsafe { table.platform.fetch_clear(slot, bits::WRITE) };
    }
    table.platform.counters().add(Event::DescriptorWrite, count);
    span_of::<G>(ipa, taken)
}

/// All pages of one word. Out of line: the loops over words in which few pages are dirty get along with fewer
/// registers.
#[cold]
#[inline(never)]
fn protect_word<P: TableMemory + Maintenance, G: Granule>(table: &Stage2<P, G>, slot: Slot, ipa: Ipa) -> IpaRange {
    protect_all(table, slot, ipa, WORD_PAGES)
}

/// Protects `count` adjacent pages, the first of which is at `ipa`, in the table of pages that `slot` lies in. Returns
/// what is to be invalidated.
#[inline(always)]
fn protect_all<P: TableMemory + Maintenance, G: Granule>(
    table: &Stage2<P, G>,
    slot: Slot,
    ipa: Ipa,
    count: usize,
) -> IpaRange {
    table.platform.counters().add(Event::DescriptorWrite, count as u64);
    let first = Slot { index: Level::L3.index_of::<G>(ipa), ..slot };
    // SAFETY: as in `protect_pages`.
    unsafe { table.platform.clear_run::<false>(first, count, bits::WRITE, table.config.features.lse) };
    IpaRange::new_unchecked(ipa, ipa.offset(count as u64 * G::BYTES))
}

/// What [`protect_block`] has done, and the range that is to be invalidated.
#[derive(Clone, Copy)]
enum Protected {
    /// Protected the pages, or found them protected.
    Pages(IpaRange),
    /// Protected a whole leaf.
    Leaf(IpaRange),
    /// Marked the pages again: there was no memory to protect them alone.
    Nothing,
}

impl Protected {
    #[inline(always)]
    fn range(self) -> Option<IpaRange> {
        match self {
            Self::Pages(range) | Self::Leaf(range) => Some(range),
            Self::Nothing => None,
        }
    }
}

/// The pages lie in a leaf larger than a page: one that never had its first write (then it is protected still), or one
/// that is writable whole, because memory ran out or the log started all dirty (then all its pages are marked). With
/// `wanted`, nothing else may be protected.
#[cold]
#[inline(never)]
fn protect_block<P: TableMemory + Maintenance, G: Granule>(
    table: &Stage2<P, G>,
    dirty_log: &DirtyLog<G>,
    word: usize,
    taken: u64,
    wanted: Option<&impl Pages>,
) -> Protected {
    let marks = &dirty_log.bitmap;
    let ipa = marks.layout.word_ipa(word);
    let mut reserve = SpareTables::none(table);
    loop {
        // A part of the word may lie before the range, in another leaf.
        let inside = ipa.max(dirty_log.range.start());
        let entry = table.lookup_stable(inside);
        if entry.level == Level::L3 {
            return Protected::Pages(protect_pages(table, entry.slot, ipa, taken));
        }
        if !entry.is_leaf() || !entry.value.is_writable() {
            // Another PE may have protected it and not invalidated yet.
            return Protected::Pages(marks.layout.span(word, taken));
        }
        let whole = wanted.is_none_or(|set| set.contains_range(entry.range()));
        if whole && !entry.value.is_contiguous() {
            if table.replace(entry.slot, entry.value.0, entry.value.0 & !WRITABLE).is_err() {
                continue;
            }
            return Protected::Leaf(entry.range());
        }
        let plain = [Some(entry.range()), None];
        if table.split_leaf(&entry, &plain, &mut reserve).is_err() {
            marks.mark_word(word, taken);
            return Protected::Nothing;
        }
    }
}
