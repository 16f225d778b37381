//! Harvest, peek and clear: what has been written is reported, and what has been reported is made clean.

use crate::arch::error::Error;
use crate::arch::granule::Granule;
use crate::bitmap::dirty_bitmap::{BlockMarks, EachBlock};
use crate::bitmap::logs::{DirtyLog, Log};
use crate::bitmap::page_set::{Layout, PageSet};
use crate::bitmap::sink::{Pages, SharedBitmap, Sink};
use crate::dirty::hardware::{ClearDirty, Scan};
use crate::dirty::write_protect::{Harvest, Span, WriteProtector};
use crate::platform::{Maintenance, TableMemory};
use crate::table::Stage2;
use crate::table::tlb::Pending;
use core::sync::atomic::AtomicU64;

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Adds all pages to `report` that were written since the last harvest, and starts anew. When this returns, no PE
    /// can write any of them unnoticed, so what is copied then is what the next harvest counts from.
    ///
    /// A write whose fault handler runs at the same time may be in this harvest or in the next. When every mark must be
    /// seen, for a last copy with the guest stopped, call it while no PE is in [`Stage2::fault`] or
    /// [`Stage2::protect`].
    ///
    /// Cost: for write protection by the number of dirty pages; for hardware one load for each leaf. One invalidation.
    ///
    /// # Errors
    ///
    /// [`Error::WrongSet`] if `report` has another layout than the log.
    pub fn harvest(&self, log: &mut Log<G>, report: &mut PageSet<'_, G>) -> Result<(), Error> {
        let dirty_log = self.dirty_log(log, report.layout())?;
        if dirty_log.is_clean() { Ok(()) } else { self.harvest_log(dirty_log, report).map(drop) }
    }

    /// [`Stage2::harvest`] into a plain bitmap, a bit a page as in [`PageSet::bitmap`]: the pages' bits are set, all
    /// others are left as they are. Returns how many bits were set that were not set before.
    ///
    /// The bitmap may be memory that others use at the same time, such as a guest's: nothing but the bitmap depends on
    /// what is in it. They look at it after this has returned, as for [`Stage2::harvest`].
    ///
    /// # Errors
    ///
    /// [`Error::WrongSet`] if it is no log of this table's; [`Error::BitmapTooSmall`] if there are fewer words than
    /// [`Layout::page_words`].
    #[cfg_attr(not(feature = "small"), inline(always))]
    pub fn harvest_into(&self, log: &mut Log<G>, bitmap: &[AtomicU64]) -> Result<u64, Error> {
        let dirty_log = self.dirty_log_of(log)?;
        dirty_log.check_room(bitmap)?;
        if cfg!(feature = "small") || !dirty_log.short {
            return if dirty_log.is_clean() { Ok(0) } else { self.harvest_any_into(dirty_log, bitmap) };
        }
        if dirty_log.bitmap.is_empty() {
            return Ok(0);
        }
        // A second body for the sake of the instruction budget: with the one for bitmaps of any depth, a harvest that
        // finds one page takes 402 instructions on AArch64, with this one 296.
        let mut report = SharedBitmap::new(&dirty_log.bitmap.layout, bitmap);
        let unfinished = self.in_flight.begin_revocation();
        let mut harvest = Harvest { table: self, dirty_log, report: &mut report, added: 0, span: Span::NOTHING };
        for block in dirty_log.bitmap.take_flat() {
            harvest.block(block);
        }
        self.finish(&harvest.span.pending(), unfinished);
        Ok(harvest.added)
    }

    #[inline(never)]
    fn harvest_any_into(&self, dirty_log: &DirtyLog<G>, bitmap: &[AtomicU64]) -> Result<u64, Error> {
        self.harvest_log(dirty_log, &mut SharedBitmap::new(&dirty_log.bitmap.layout, bitmap))
    }

    /// Whether a harvest has nothing to report, as far as one load tells: never for a log by hardware, whose leaves a
    /// harvest has to look at.
    #[must_use]
    #[inline(always)]
    pub fn is_clean(&self, log: &Log<G>) -> bool {
        self.dirty_log_of(log).is_ok_and(DirtyLog::is_clean)
    }

    #[inline(always)]
    fn harvest_log(&self, dirty_log: &DirtyLog<G>, report: &mut impl Sink<G>) -> Result<u64, Error> {
        if dirty_log.mechanism.is_hardware() {
            return self.harvest_hardware(dirty_log, report);
        }
        let unfinished = self.in_flight.begin_revocation();
        let mut harvest = Harvest { table: self, dirty_log, report, added: 0, span: Span::NOTHING };
        dirty_log.bitmap.each_block::<true>(&mut harvest);
        self.finish(&harvest.span.pending(), unfinished);
        Ok(harvest.added)
    }

    #[inline(never)]
    fn harvest_hardware(&self, dirty_log: &DirtyLog<G>, report: &mut impl Sink<G>) -> Result<u64, Error> {
        let (mut span, mut added) = (Span::NOTHING, 0);
        let unfinished = self.in_flight.begin_revocation();
        dirty_log.bitmap.each_block::<true>(&mut |marks: BlockMarks<'_>| {
            for (word, bits) in marks.marked::<true>() {
                added += report.insert_word(word, bits);
                // Marked by software, such as a deny whose invalidation may not be complete.
                span.add(dirty_log.bitmap.layout.span(word, bits));
            }
        });
        let mut scan = Scan { report, span, clean: true, added };
        self.visit(dirty_log.range, &mut scan)?;
        self.finish(&scan.span.pending(), unfinished);
        Ok(scan.added)
    }

    /// Adds all pages to `report` that a harvest would report now, and changes nothing.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::harvest`].
    pub fn peek(&self, log: &Log<G>, report: &mut PageSet<'_, G>) -> Result<(), Error> {
        let dirty_log = self.dirty_log(log, report.layout())?;
        self.peek_log(dirty_log, report).map(drop)
    }

    /// [`Stage2::peek`] into a plain bitmap: see [`Stage2::harvest_into`].
    ///
    /// # Errors
    ///
    /// As for [`Stage2::harvest_into`].
    pub fn peek_into(&self, log: &Log<G>, bitmap: &[AtomicU64]) -> Result<u64, Error> {
        let dirty_log = self.dirty_log_of(log)?;
        dirty_log.check_room(bitmap)?;
        self.peek_log(dirty_log, &mut SharedBitmap::new(&dirty_log.bitmap.layout, bitmap))
    }

    fn peek_log(&self, dirty_log: &DirtyLog<G>, report: &mut impl Sink<G>) -> Result<u64, Error> {
        let mut added = 0;
        dirty_log.bitmap.each_block::<false>(&mut |marks: BlockMarks<'_>| {
            for (word, bits) in marks.marked::<false>() {
                added += report.insert_word(word, bits);
            }
        });
        if dirty_log.mechanism.is_hardware() {
            let mut scan = Scan { report, span: Span::NOTHING, clean: false, added: 0 };
            self.visit(dirty_log.range, &mut scan)?;
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
    pub fn clear(&self, log: &mut Log<G>, set: &PageSet<'_, G>) -> Result<(), Error> {
        let dirty_log = self.dirty_log(log, set.layout())?;
        self.clear_log(dirty_log, set)
    }

    /// [`Stage2::clear`] of the pages whose bits are set in a plain bitmap, which may be shorter than the log's.
    ///
    /// The bitmap may be memory that others use at the same time: which pages are cleared is then up to them.
    ///
    /// # Errors
    ///
    /// [`Error::WrongSet`] if it is no log of this table's.
    #[cfg_attr(not(feature = "small"), inline(always))]
    pub fn clear_from(&self, log: &mut Log<G>, bitmap: &[AtomicU64]) -> Result<(), Error> {
        let dirty_log = self.dirty_log_of(log)?;
        self.clear_log(dirty_log, &SharedBitmap::new(&dirty_log.bitmap.layout, bitmap))
    }

    #[inline(always)]
    fn clear_log(&self, dirty_log: &DirtyLog<G>, set: &impl Pages) -> Result<(), Error> {
        if dirty_log.mechanism.is_hardware() {
            return self.clear_hardware(dirty_log, set);
        }
        let mut pending = Pending::new();
        let unfinished = self.in_flight.begin_revocation();
        let mut protector = WriteProtector::new(self, dirty_log);
        set.each_word(|word, bits| {
            let taken = dirty_log.bitmap.take_word(word, bits);
            if taken != 0 {
                protector.protect(word, taken, set, &mut pending);
            }
        });
        self.finish(&pending, unfinished);
        Ok(())
    }

    #[inline(never)]
    fn clear_hardware(&self, dirty_log: &DirtyLog<G>, set: &impl Pages) -> Result<(), Error> {
        let mut pending = Pending::new();
        let unfinished = self.in_flight.begin_revocation();
        set.each_word(|word, bits| {
            let taken = dirty_log.bitmap.take_word(word, bits);
            if taken != 0 {
                pending.add(dirty_log.bitmap.layout.span(word, taken));
            }
        });
        let mut clean = ClearDirty { table: self, dirty_log, set, pending: &mut pending };
        set.each_word(|word, bits| clean.word(word, bits & dirty_log.bitmap.layout.mask(word, dirty_log.range)));
        self.finish(&pending, unfinished);
        Ok(())
    }

    /// The log's entry, if a set with `layout` is a set of its pages.
    #[inline(always)]
    fn dirty_log(&self, log: &Log<G>, layout: &Layout<G>) -> Result<&DirtyLog<G>, Error> {
        let dirty_log = self.dirty_log_of(log)?;
        if dirty_log.bitmap.layout == *layout { Ok(dirty_log) } else { Err(Error::WrongSet { range: layout.range() }) }
    }

    /// The log's entry.
    #[inline(always)]
    fn dirty_log_of(&self, log: &Log<G>) -> Result<&DirtyLog<G>, Error> {
        self.logs.of(log).ok_or(Error::WrongSet { range: log.range() })
    }
}
