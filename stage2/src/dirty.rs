//! Dirty logs: which pages the guest has written, by write protection or by hardware dirty state.
//!
//! The log is a bitmap, one bit a page, beside the table. Descriptors hold no more than what the hardware needs: writable,
//! or held back. What holds throughout, for a log by write protection: **a leaf of the range that lets writes through has
//! its pages marked, or a fault handler on its way to marking them.** First writable, then marked: the other order would
//! let a harvest take the mark, find nothing to protect, and leave a writable page that nobody will mark again.

use crate::address::{Ipa, IpaRange};
use crate::clean::{CleanSet, Cleaner, Close, Harvest, Scan, Span};
use crate::counters::Event;
use crate::descriptor::bits;
use crate::error::Error;
use crate::geometry::{LeafSize, Level};
use crate::invalidate::Pending;
use crate::marks::{BlockMarks, EachBlock, Marks};
use crate::page_set::{Layout, PageSet, Pages, Report, SharedBitmap};
use crate::platform::{Maintenance, Slot, TableMemory};
use crate::reserve::Reserve;
use crate::table::Stage2;
use crate::walk::Entry;
use core::sync::atomic::AtomicU64;

/// Logs that one table can have at a time.
pub const LOGS: usize = if cfg!(feature = "small") { 2 } else { 8 };

/// How writes are noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// Leaves are made read-only; the first write to a page faults, and splits the leaf down to that page. To split all
    /// of them before the first write, call [`Stage2::split`] after the start, in pieces as large as may be.
    WriteProtect,
    /// Hardware marks pages (FEAT_HAFDBS); no write faults. All leaves are split to pages at the start.
    HardwarePage,
    /// Hardware marks blocks of 2 MiB, and all pages of a marked block are reported. [`Stage2::split`] refines what is
    /// worth it.
    HardwareBlock,
}

impl Mechanism {
    pub(crate) const fn is_hardware(self) -> bool {
        !matches!(self, Mechanism::WriteProtect)
    }
}

/// How a log starts: [`Stage2::start_log`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// How writes are noticed.
    pub mechanism: Mechanism,
    /// Every page counts as dirty at first, and none is protected before its first harvest.
    pub all_dirty: bool,
}

/// A running log. There is one of these for each, so that one PE at a time harvests it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the log runs until it is given to `stop_log`"]
pub struct Log {
    index: usize,
    range: IpaRange,
    /// Where its bitmap is ([`Marks::place`]): tells it from the logs of other tables.
    place: usize,
}

impl Log {
    /// The range that is logged.
    #[must_use]
    pub const fn range(&self) -> IpaRange {
        self.range
    }

    /// The layout that sets of the log's pages have.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::new(self.range)
    }
}

/// What the table knows of a log. A place that is not in use has no pages, so that nothing lies in its range.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) range: IpaRange,
    pub(crate) mechanism: Mechanism,
    /// By write protection, of no more memory than [`Marks::is_flat`] is for: its harvest is short.
    short: bool,
    pub(crate) marks: Marks,
}

impl Tracked {
    const NONE: Self =
        Self { range: IpaRange::NOTHING, mechanism: Mechanism::WriteProtect, short: false, marks: Marks::NONE };

    fn is_used(&self) -> bool {
        !self.range.is_nothing()
    }

    /// Whether there is nothing to report, as far as one load tells: never of a log by hardware, whose leaves have to be
    /// looked at.
    #[inline(always)]
    fn is_clean(&self) -> bool {
        !self.mechanism.is_hardware() && self.marks.is_empty()
    }

    /// Refuses a bitmap that has no room for all pages.
    #[inline(always)]
    fn check_room(&self, bitmap: &[AtomicU64]) -> Result<(), Error> {
        let needed = self.marks.layout.page_words();
        if bitmap.len() < needed { Err(Error::BitmapTooSmall { needed }) } else { Ok(()) }
    }
}

/// The logs of a table.
#[derive(Debug)]
pub(crate) struct Logs {
    entries: [Tracked; LOGS],
    /// One more than the index of the last entry in use: the fault path looks no further.
    used: usize,
}

impl Logs {
    pub(crate) const fn new() -> Self {
        Self { entries: [Tracked::NONE; LOGS], used: 0 }
    }

    /// The log that `ipa` lies in.
    #[inline(always)]
    pub(crate) fn at(&self, ipa: Ipa) -> Option<&Tracked> {
        self.in_use().iter().find(|tracked| tracked.range.contains(ipa))
    }

    /// All logs, and perhaps places that are not in use.
    #[inline(always)]
    fn in_use(&self) -> &[Tracked] {
        self.entries.get(..self.used).unwrap_or(&self.entries)
    }

    pub(crate) fn any_hardware(&self) -> bool {
        self.in_use().iter().any(|tracked| tracked.is_used() && tracked.mechanism.is_hardware())
    }

    /// Whether `range` is touched by no log.
    #[inline(always)]
    pub(crate) fn spare(&self, range: IpaRange) -> bool {
        for tracked in self.in_use() {
            if tracked.range.intersection(range).is_some() {
                return false;
            }
        }
        true
    }

    /// Whether a leaf of `range` would reach over the bounds of a log.
    pub(crate) fn cut(&self, range: IpaRange) -> bool {
        self.in_range(range).any(|tracked| !tracked.range.covers(range))
    }

    /// All logs that `range` has pages of.
    #[inline(always)]
    pub(crate) fn in_range(&self, range: IpaRange) -> impl Iterator<Item = &Tracked> {
        self.in_use().iter().filter(move |tracked| tracked.range.intersection(range).is_some())
    }
}

/// The bits that let a leaf's writes through unnoticed.
pub(crate) const OPEN: u64 = bits::WRITE | bits::DBM;

impl<P: TableMemory + Maintenance> Stage2<P> {
    /// Starts a log of the pages of `range`. Its bitmap is kept in `storage`, which needs [`Layout::words`] words and must
    /// belong to no other log.
    ///
    /// Leaves that reach over the range's bounds are split there. Permission changes need no break-before-make; with
    /// FEAT_BBM level 2 nothing else does. Cost: one compare-exchange a leaf and one invalidation; for
    /// [`Mechanism::HardwarePage`] also a table for each 2 MiB.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`]; [`Error::LogOverlap`]; [`Error::TooManyLogs`]; [`Error::BitmapTooSmall`];
    /// [`Error::NoHardwareDirtyState`]; [`Error::OutOfMemory`]. Every leaf translates and allows what it did before; a
    /// hardware log that runs out of memory may leave leaves split, which [`Stage2::collapse`] mends.
    pub fn start_log(
        &mut self,
        range: IpaRange,
        storage: &'static [AtomicU64],
        options: LogOptions,
    ) -> Result<Log, Error> {
        self.check(range)?;
        if let Some(other) = self.logs.in_range(range).next() {
            return Err(Error::LogOverlap { range: other.range });
        }
        if options.mechanism.is_hardware() && !self.has_hardware_dirty_state() {
            return Err(Error::NoHardwareDirtyState);
        }
        let layout = Layout::new(range);
        let marks = Marks::new(layout, storage).ok_or(Error::BitmapTooSmall { needed: layout.words() })?;
        let index = self.logs.entries.iter().position(|tracked| !tracked.is_used()).ok_or(Error::TooManyLogs)?;
        self.under_way.note_grants();
        let mut reserve = self.reserve_edges(range, |_| true)?;
        self.split_edges(range, |_| true, &mut reserve)?;
        drop(reserve);
        match options.mechanism {
            Mechanism::WriteProtect => {}
            Mechanism::HardwarePage => self.split(range, LeafSize::Page)?,
            Mechanism::HardwareBlock => self.split(range, LeafSize::Block2M)?,
        }
        if options.all_dirty {
            marks.mark_range(range);
        }
        self.hardware_logged |= options.mechanism.is_hardware();
        let mut close = Close { options, pending: Pending::new() };
        // Where nothing but the two bits goes, they go all at once.
        let short = options.mechanism == Mechanism::WriteProtect && !options.all_dirty && !cfg!(feature = "small");
        if !short || !self.take(range, OPEN, &mut close.pending) {
            self.visit(range, &mut close)?;
        }
        self.complete(&close.pending);
        let log = Log { index, range, place: marks.place() };
        let short = !cfg!(feature = "small") && !options.mechanism.is_hardware() && marks.is_flat();
        self.logs.entries[index] = Tracked { range, mechanism: options.mechanism, short, marks };
        self.logs.used = self.logs.used.max(index + 1);
        Ok(log)
    }

    /// Ends a log and gives its bitmap's memory back. Leaves become as large and as open as they were: see
    /// [`Stage2::collapse`], whose cost this has.
    ///
    /// What has been marked since the last harvest is lost with the log; [`Stage2::harvest`] first.
    pub fn stop_log(&mut self, log: Log) -> Option<&'static [AtomicU64]> {
        let range = log.range();
        let storage = self.end_log(log);
        // The edges were split at the start, so their blocks are put together again too. `check` has passed at the start.
        let bytes = LeafSize::Block1G.bytes();
        let end = range.end().offset(bytes - 1).align_down(bytes).min(self.geometry.range().end());
        let _ = self.collapse(IpaRange::trusted(range.start().align_down(bytes), end));
        storage
    }

    /// Ends a log and nothing more: pages that are write-protected stay so until their first write, which opens the leaf
    /// they are in, or until [`Stage2::collapse`]. Costs the same for any range.
    pub fn end_log(&mut self, log: Log) -> Option<&'static [AtomicU64]> {
        let entry = self.logs.entries.get_mut(log.index)?;
        if entry.marks.place() != log.place {
            return None;
        }
        self.under_way.note_grants();
        entry.range = IpaRange::NOTHING;
        let words = entry.marks.take_words();
        while self.logs.in_use().last().is_some_and(|last| !last.is_used()) {
            self.logs.used -= 1;
        }
        Some(words)
    }

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
        let mut report = SharedBitmap::new(&tracked.marks.layout, bitmap);
        let unfinished = self.under_way.begin_taking();
        let mut harvest = Harvest { table: self, tracked, report: &mut report, added: 0, span: Span::NOTHING };
        for block in tracked.marks.take_flat() {
            harvest.block(block);
        }
        self.complete_announced(&harvest.span.pending());
        drop(unfinished);
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
        self.complete_announced(&harvest.span.pending());
        drop(unfinished);
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
        self.complete_announced(&pending);
        drop(unfinished);
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
        self.complete_announced(&pending);
        drop(unfinished);
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
        self.complete_announced(&pending);
        drop(unfinished);
        Ok(())
    }

    /// Whether all of `range` is mapped, and writes are granted by its owner.
    #[must_use]
    #[inline(always)]
    pub fn grants_writes(&self, range: IpaRange) -> bool {
        if self.check(range).is_err() {
            return false;
        }
        let mut ipa = range.start();
        while ipa < range.end() {
            let entry = self.lookup_settled(ipa);
            if !entry.is_leaf() || entry.value.0 & bits::WRITE_GRANTED == 0 {
                return false;
            }
            ipa = entry.range().end();
        }
        true
    }

    /// A number that grows with every change of what is mapped, granted or logged: while it stays, so does what
    /// [`Stage2::grants_writes`] and [`Stage2::is_logged`] say of any range. One load.
    #[must_use]
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.under_way.grants()
    }

    /// Whether any page of `range` is in a log.
    #[must_use]
    #[inline(always)]
    pub fn is_logged(&self, range: IpaRange) -> bool {
        !self.logs.spare(range)
    }

    /// Marks the pages of `range` in every log that has them: for writes that somebody else than the guest's own CPUs
    /// makes to its memory, such as the hypervisor. Call it after the write.
    #[inline(always)]
    pub fn mark_written(&self, range: IpaRange) {
        // Mostly no log has any of them, which is told without a call.
        if self.is_logged(range) {
            self.mark_logged(range);
        }
    }

    #[inline(never)]
    fn mark_logged(&self, range: IpaRange) {
        for tracked in self.logs.in_range(range) {
            tracked.marks.mark_range(range);
        }
    }

    /// Marks the pages of `range` in the logs whose dirty state is in descriptors, before these go.
    pub(crate) fn mark_hardware_written(&self, range: IpaRange) {
        for tracked in self.logs.in_range(range).filter(|tracked| tracked.mechanism.is_hardware()) {
            tracked.marks.mark_range(range);
        }
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
        let tracked = &self.logs.entries[log.index % LOGS];
        (tracked.marks.place() == log.place).then_some(tracked).ok_or(Error::WrongSet { range: log.range })
    }

    /// The first write to a leaf whose writes are held back. `entry` is what the walk found.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn open_for_write(&self, entry: Entry, ipa: Ipa) {
        let Some(tracked) = self.logs.at(ipa) else {
            // A log has ended: the leaf is opened whole. If another PE was first, the guest finds out by trying again.
            if entry.is_run_member() {
                self.change_run(&entry, |leaf| if leaf & bits::WRITE_GRANTED != 0 { leaf | bits::WRITE } else { leaf });
            } else {
                let _ = self.replace(entry.slot, entry.value.0, entry.value.0 | bits::WRITE);
            }
            return;
        };
        if entry.level == Level::L3 && !entry.value.is_contiguous() {
            return self.open_page(entry.slot, entry.value.0, ipa, tracked);
        }
        self.split_for_write(entry, ipa, tracked);
    }

    /// Opens one page that is held back, and then marks it: in the other order a harvest in between would lose the mark.
    #[inline(always)]
    pub(crate) fn open_page(&self, slot: Slot, value: u64, ipa: Ipa, tracked: &Tracked) {
        // Lost races (the page was opened, denied, or protected again) end in another fault, or in none.
        let _ = self.replace(slot, value, value | bits::WRITE);
        tracked.marks.mark(ipa);
    }

    /// Splits the leaf around `ipa` down to pages that are all held back, then opens the one.
    #[inline(never)]
    fn split_for_write(&self, mut entry: Entry, ipa: Ipa, tracked: &Tracked) {
        let mut reserve = Reserve::none(self);
        while entry.value.is_write_protected() {
            if entry.level == Level::L3 && !entry.value.is_contiguous() {
                let _ = self.replace(entry.slot, entry.value.0, entry.value.0 | bits::WRITE);
                break;
            }
            let plain = [Some(entry.range()), None];
            if self.split_leaf(&entry, &plain, &mut reserve).is_err() {
                // No memory: the guest goes on, at the price of precision.
                let _ = self.replace(entry.slot, entry.value.0, entry.value.0 | bits::WRITE);
                tracked.marks.mark_range(entry.range());
                self.count(Event::PrecisionLost);
                return;
            }
            entry = self.lookup_settled(ipa);
        }
        tracked.marks.mark(ipa);
    }
}
