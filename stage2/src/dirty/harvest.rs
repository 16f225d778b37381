//! Harvest, peek and clear: what has been written is reported, and what has been reported is made clean.

use crate::arch::error::Error;
use crate::bitmap::dirty_bitmap::{BlockMarks, EachBlock};
use crate::bitmap::logs::{Log, Tracked};
use crate::bitmap::page_set::{Layout, PageSet};
use crate::bitmap::sink::{Pages, Report, SharedBitmap};
use crate::dirty::hardware::{CleanSet, Scan};
use crate::dirty::write_protect::{Cleaner, Harvest, Span};
use crate::platform::{Maintenance, TableMemory};
use crate::table::Stage2;
use crate::table::tlb::Pending;
use core::sync::atomic::AtomicU64;

impl<P: TableMemory + Maintenance> Stage2<P> {
    /// Adds all pages to `report` that were written since the last harvest, and starts anew. When this returns, no PE can
    /// write any of them unnoticed, so what is copied then is what the next harvest counts from.
    ///
    /// A write whose fault handler runs at the same time may be in this harvest or in the next. When every mark must be
    /// seen, for a last copy with the guest stopped, call it while nobody is in [`Stage2::fault`] or [`Stage2::protect`].
    ///
    /// Cost: for write protection by the number of dirty pages; for hardware one load for each leaf. One invalidation.
    ///
    /// # Errors
    ///
    /// [`Error::WrongSet`] if `report` has another layout than the log.
    pub fn harvest(&self, log: &mut Log, report: &mut PageSet<'_>) -> Result<(), Error> {
        let tracked = self.tracked(log, report.layout())?;
        if tracked.is_clean() { Ok(()) } else { self.harvest_tracked(tracked, report).map(drop) }
    }

    /// [`Stage2::harvest`] into a plain bitmap, a bit a page as in [`PageSet::bitmap`]: the pages' bits are set, all others
    /// are left as they are. Returns how many bits were set that were not set before.
    ///
    /// The bitmap may be memory that others use at the same time, such as a guest's: nothing but the bitmap depends on what
    /// is in it. They look at it after this has returned, as for [`Stage2::harvest`].
    ///
    /// # Errors
    ///
    /// [`Error::WrongSet`] if it is no log of this table's; [`Error::BitmapTooSmall`] if there are fewer words than
    /// [`Layout::page_words`].
    #[cfg_attr(not(feature = "small"), inline(always))]
    pub fn harvest_into(&self, log: &mut Log, bitmap: &[AtomicU64]) -> Result<u64, Error> {
        let tracked = self.tracked_by(log)?;
        tracked.check_room(bitmap)?;
        if cfg!(feature = "small") || !tracked.short {
            return if tracked.is_clean() { Ok(0) } else { self.harvest_any_into(tracked, bitmap) };
        }
        if tracked.marks.is_empty() {
            return Ok(0);
        }
        // A second body for the sake of the instruction budget: with the one for bitmaps of any depth, a harvest that finds
        // one page takes 402 instructions on AArch64, with this one 296.
        let mut report = SharedBitmap::new(&tracked.marks.layout, bitmap);
        let unfinished = self.under_way.begin_taking();
        let mut harvest = Harvest { table: self, tracked, report: &mut report, added: 0, span: Span::NOTHING };
        for block in tracked.marks.take_flat() {
            harvest.block(block);
        }
        self.finish(&harvest.span.pending(), unfinished);
        Ok(harvest.added)
    }

    #[inline(never)]
    fn harvest_any_into(&self, tracked: &Tracked, bitmap: &[AtomicU64]) -> Result<u64, Error> {
        self.harvest_tracked(tracked, &mut SharedBitmap::new(&tracked.marks.layout, bitmap))
    }

    /// Whether a harvest has nothing to report, as far as one load tells: never for a log by hardware, whose leaves a
    /// harvest has to look at.
    #[must_use]
    #[inline(always)]
    pub fn is_clean(&self, log: &Log) -> bool {
        self.tracked_by(log).is_ok_and(Tracked::is_clean)
    }

    #[inline(always)]
    fn harvest_tracked(&self, tracked: &Tracked, report: &mut impl Report) -> Result<u64, Error> {
        if tracked.mechanism.is_hardware() {
            return self.harvest_hardware(tracked, report);
        }
        let unfinished = self.under_way.begin_taking();
        let mut harvest = Harvest { table: self, tracked, report, added: 0, span: Span::NOTHING };
        tracked.marks.each_block::<true>(&mut harvest);
        self.finish(&harvest.span.pending(), unfinished);
        Ok(harvest.added)
    }

    #[inline(never)]
    fn harvest_hardware(&self, tracked: &Tracked, report: &mut impl Report) -> Result<u64, Error> {
        let mut pending = Pending::new();
        let unfinished = self.under_way.begin_taking();
        let mut added = 0;
        tracked.marks.each_block::<true>(&mut |marks: BlockMarks<'_>| {
            for (word, bits) in marks.marked::<true>() {
                added += report.insert_word(word, bits);
                // Marked by software, such as a deny whose invalidation may not be complete.
                pending.add(tracked.marks.layout.span(word, bits));
            }
        });
        let mut scan = Scan { report, pending: &mut pending, clean: true, added: 0 };
        self.visit(tracked.range, &mut scan)?;
        added += scan.added;
        self.finish(&pending, unfinished);
        Ok(added)
    }

    /// Adds all pages to `report` that a harvest would report now, and changes nothing.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::harvest`].
    pub fn peek(&self, log: &Log, report: &mut PageSet<'_>) -> Result<(), Error> {
        let tracked = self.tracked(log, report.layout())?;
        self.peek_tracked(tracked, report).map(drop)
    }

    /// [`Stage2::peek`] into a plain bitmap: see [`Stage2::harvest_into`].
    ///
    /// # Errors
    ///
    /// As for [`Stage2::harvest_into`].
    pub fn peek_into(&self, log: &Log, bitmap: &[AtomicU64]) -> Result<u64, Error> {
        let tracked = self.tracked_by(log)?;
        tracked.check_room(bitmap)?;
        self.peek_tracked(tracked, &mut SharedBitmap::new(&tracked.marks.layout, bitmap))
    }

    fn peek_tracked(&self, tracked: &Tracked, report: &mut impl Report) -> Result<u64, Error> {
        let mut added = 0;
        tracked.marks.each_block::<false>(&mut |marks: BlockMarks<'_>| {
            for (word, bits) in marks.marked::<false>() {
                added += report.insert_word(word, bits);
            }
        });
        if tracked.mechanism.is_hardware() {
            let mut pending = Pending::new();
            let mut scan = Scan { report, pending: &mut pending, clean: false, added: 0 };
            self.visit(tracked.range, &mut scan)?;
            added += scan.added;
        }
        Ok(added)
    }

    /// Makes the pages of `set` count as clean, and protects these and no others, whatever lies between them. Copy the
    /// pages after this has returned.
    ///
    /// Where part of a writable block is to be protected the block is split; if there is no memory for that, its pages
    /// stay dirty.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::harvest`].
    pub fn clear(&self, log: &mut Log, set: &PageSet<'_>) -> Result<(), Error> {
        let tracked = self.tracked(log, set.layout())?;
        self.clear_tracked(tracked, set)
    }

    /// [`Stage2::clear`] of the pages whose bits are set in a plain bitmap, which may be shorter than the log's.
    ///
    /// The bitmap may be memory that others use at the same time: which pages are cleared is then up to them.
    ///
    /// # Errors
    ///
    /// [`Error::WrongSet`] if it is no log of this table's.
    #[cfg_attr(not(feature = "small"), inline(always))]
    pub fn clear_from(&self, log: &mut Log, bitmap: &[AtomicU64]) -> Result<(), Error> {
        let tracked = self.tracked_by(log)?;
        self.clear_tracked(tracked, &SharedBitmap::new(&tracked.marks.layout, bitmap))
    }

    #[inline(always)]
    fn clear_tracked(&self, tracked: &Tracked, set: &impl Pages) -> Result<(), Error> {
        if tracked.mechanism.is_hardware() {
            return self.clear_hardware(tracked, set);
        }
        let mut pending = Pending::new();
        let unfinished = self.under_way.begin_taking();
        let mut cleaner = Cleaner::new(self, tracked);
        set.each_word(|word, bits| {
            let taken = tracked.marks.take_word(word, bits);
            if taken != 0 {
                cleaner.protect(word, taken, set, &mut pending);
            }
        });
        self.finish(&pending, unfinished);
        Ok(())
    }

    #[inline(never)]
    fn clear_hardware(&self, tracked: &Tracked, set: &impl Pages) -> Result<(), Error> {
        let mut pending = Pending::new();
        let unfinished = self.under_way.begin_taking();
        set.each_word(|word, bits| {
            let taken = tracked.marks.take_word(word, bits);
            if taken != 0 {
                pending.add(tracked.marks.layout.span(word, taken));
            }
        });
        let mut clean = CleanSet { table: self, tracked, set, pending: &mut pending };
        set.each_word(|word, bits| clean.word(word, bits & tracked.marks.layout.mask(word, tracked.range)));
        self.finish(&pending, unfinished);
        Ok(())
    }

    /// The log's entry, if a set with `layout` is a set of its pages.
    #[inline(always)]
    fn tracked(&self, log: &Log, layout: &Layout) -> Result<&Tracked, Error> {
        let tracked = self.tracked_by(log)?;
        if tracked.marks.layout == *layout { Ok(tracked) } else { Err(Error::WrongSet { range: layout.range() }) }
    }

    /// The log's entry.
    #[inline(always)]
    fn tracked_by(&self, log: &Log) -> Result<&Tracked, Error> {
        self.logs.of(log).ok_or(Error::WrongSet { range: log.range() })
    }
}
