//! Dirty logs: which pages the guest has written, by write protection or by hardware dirty state.
//!
//! The log is a bitmap, one bit a page, beside the table. Descriptors hold no more than what the hardware needs: writable,
//! or held back. What holds throughout, for a log by write protection: **a leaf of the range that lets writes through has
//! its pages marked, or a fault handler on its way to marking them.** First writable, then marked: the other order would
//! let a harvest take the mark, find nothing to protect, and leave a writable page that nobody will mark again.

use crate::address::{Ipa, IpaRange};
use crate::clean::Close;
use crate::descriptor::bits;
use crate::error::Error;
use crate::geometry::LeafSize;
use crate::invalidate::Pending;
use crate::marks::Marks;
use crate::page_set::Layout;
use crate::platform::{Maintenance, TableMemory};
use crate::table::Stage2;
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
    pub(crate) short: bool,
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
    pub(crate) fn is_clean(&self) -> bool {
        !self.mechanism.is_hardware() && self.marks.is_empty()
    }

    /// Refuses a bitmap that has no room for all pages.
    #[inline(always)]
    pub(crate) fn check_room(&self, bitmap: &[AtomicU64]) -> Result<(), Error> {
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

    /// What is known of `log`, if it is one of this table's.
    #[inline(always)]
    pub(crate) fn of(&self, log: &Log) -> Option<&Tracked> {
        let tracked = &self.entries[log.index % LOGS];
        (tracked.marks.place() == log.place).then_some(tracked)
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
}
