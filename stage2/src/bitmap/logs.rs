//! What a table knows of its logs: which ranges are logged, how, and into which bitmap.

use crate::arch::address::{Ipa, IpaRange};
use crate::arch::error::Error;
use crate::arch::granule::{Granule, Granule4K};
use crate::bitmap::dirty_bitmap::DirtyBitmap;
use crate::bitmap::page_set::Layout;
use crate::bitmap::sync::AtomicU64;
use core::marker::PhantomData;

/// Logs that one table can have at a time.
pub const LOGS: usize = if cfg!(feature = "small") { 2 } else { 8 };

/// How writes are noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mechanism {
    /// Leaves are made read-only; the first write to a page faults, and splits the leaf down to that page. To split all
    /// of them before the first write, call [`Stage2::split`](crate::Stage2::split) after the start, in pieces as large
    /// as may be.
    WriteProtect,
    /// Hardware marks pages (FEAT_HAFDBS); no write faults. All leaves are split to pages at the start.
    HardwarePage,
    /// Hardware marks blocks of 2 MiB, and all pages of a marked block are reported.
    /// [`Stage2::split`](crate::Stage2::split) refines what is worth it.
    HardwareBlock,
}

impl Mechanism {
    pub(crate) const fn is_hardware(self) -> bool {
        !matches!(self, Mechanism::WriteProtect)
    }
}

/// How a log starts: [`Stage2::start_log`](crate::Stage2::start_log).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// How writes are noticed.
    pub mechanism: Mechanism,
    /// Every page counts as dirty at first, and none is protected before its first harvest.
    pub all_dirty: bool,
}

/// A running log. There is one of these for each, so that one PE at a time harvests it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the log runs until it is given to `stop_log_and_collapse`"]
pub struct Log<G: Granule = Granule4K> {
    pub(crate) index: usize,
    pub(crate) range: IpaRange,
    /// Where its bitmap is ([`DirtyBitmap::id`]): tells it from the logs of other tables.
    pub(crate) id: usize,
    pub(crate) granule: PhantomData<G>,
}

impl<G: Granule> Log<G> {
    /// The range that is logged.
    #[must_use]
    pub const fn range(&self) -> IpaRange {
        self.range
    }

    /// The layout that sets of the log's pages have.
    #[must_use]
    pub fn layout(&self) -> Layout<G> {
        Layout::with_granule(self.range)
    }
}

/// What the table knows of a log. A place that is not in use has no pages, so that nothing lies in its range.
#[derive(Debug)]
pub(crate) struct DirtyLog<G: Granule> {
    pub(crate) range: IpaRange,
    pub(crate) mechanism: Mechanism,
    /// By write protection, of no more memory than [`DirtyBitmap::is_flat`] is for: its harvest is short.
    pub(crate) short: bool,
    pub(crate) bitmap: DirtyBitmap<G>,
}

impl<G: Granule> DirtyLog<G> {
    const NONE: Self =
        Self { range: IpaRange::NOTHING, mechanism: Mechanism::WriteProtect, short: false, bitmap: DirtyBitmap::NONE };

    pub(crate) fn is_used(&self) -> bool {
        !self.range.is_nothing()
    }

    /// Whether there is nothing to report, as far as one load tells: never of a log by hardware, whose leaves have to
    /// be looked at.
    #[inline(always)]
    pub(crate) fn is_clean(&self) -> bool {
        !self.mechanism.is_hardware() && self.bitmap.is_empty()
    }

    /// Refuses a bitmap that has no room for all pages.
    #[inline(always)]
    pub(crate) fn check_room(&self, bitmap: &[AtomicU64]) -> Result<(), Error> {
        let needed = self.bitmap.layout.page_words();
        if bitmap.len() < needed { Err(Error::BitmapTooSmall { needed }) } else { Ok(()) }
    }
}

/// The logs of a table.
#[derive(Debug)]
pub(crate) struct Logs<G: Granule> {
    pub(crate) entries: [DirtyLog<G>; LOGS],
    /// One more than the index of the last entry in use: the fault path looks no further.
    pub(crate) used: usize,
}

impl<G: Granule> Logs<G> {
    pub(crate) const fn new() -> Self {
        Self { entries: [DirtyLog::NONE; LOGS], used: 0 }
    }

    /// What is known of `log`, if it is one of this table's.
    #[inline(always)]
    pub(crate) fn of(&self, log: &Log<G>) -> Option<&DirtyLog<G>> {
        let dirty_log = &self.entries[log.index % LOGS];
        (dirty_log.bitmap.id() == log.id).then_some(dirty_log)
    }

    /// The log that `ipa` lies in.
    #[inline(always)]
    pub(crate) fn at(&self, ipa: Ipa) -> Option<&DirtyLog<G>> {
        self.in_use().iter().find(|dirty_log| dirty_log.range.contains(ipa))
    }

    /// All logs, and perhaps places that are not in use.
    #[inline(always)]
    pub(crate) fn in_use(&self) -> &[DirtyLog<G>] {
        self.entries.get(..self.used).unwrap_or(&self.entries)
    }

    pub(crate) fn any_hardware(&self) -> bool {
        self.in_use().iter().any(|dirty_log| dirty_log.is_used() && dirty_log.mechanism.is_hardware())
    }

    /// Whether `range` is touched by no log.
    #[inline(always)]
    pub(crate) fn none_in(&self, range: IpaRange) -> bool {
        for dirty_log in self.in_use() {
            if dirty_log.range.intersection(range).is_some() {
                return false;
            }
        }
        true
    }

    /// Whether a leaf of `range` would reach over the bounds of a log.
    pub(crate) fn straddles(&self, range: IpaRange) -> bool {
        self.in_range(range).any(|dirty_log| !dirty_log.range.covers(range))
    }

    /// All logs that `range` has pages of.
    #[inline(always)]
    pub(crate) fn in_range(&self, range: IpaRange) -> impl Iterator<Item = &DirtyLog<G>> {
        self.in_use().iter().filter(move |dirty_log| dirty_log.range.intersection(range).is_some())
    }

    /// Marks the pages of `range` in every log that has them.
    #[inline(always)]
    pub(crate) fn mark_written(&self, range: IpaRange) {
        // Mostly no log has any of them, which is told without a call.
        if !self.none_in(range) {
            self.mark_logged(range);
        }
    }

    #[inline(never)]
    fn mark_logged(&self, range: IpaRange) {
        for dirty_log in self.in_range(range) {
            dirty_log.bitmap.mark_range(range);
        }
    }

    /// Marks the pages of `range` in the logs whose dirty state is in descriptors, before these go.
    pub(crate) fn mark_hardware_written(&self, range: IpaRange) {
        for dirty_log in self.in_range(range).filter(|dirty_log| dirty_log.mechanism.is_hardware()) {
            dirty_log.bitmap.mark_range(range);
        }
    }
}
