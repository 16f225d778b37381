//! A log begins and ends, and what the table tells of what is logged.

use crate::arch::address::IpaRange;
use crate::arch::descriptor::{Descriptor, bits};
use crate::arch::error::Error;
use crate::arch::geometry::{LeafSize, Level};
use crate::arch::granule::Granule;
use crate::bitmap::dirty_bitmap::DirtyBitmap;
use crate::bitmap::logs::{DirtyLog, Log, LogOptions, Mechanism};
use crate::bitmap::page_set::Layout;
use crate::dirty::WRITABLE;
use crate::platform::{Maintenance, TableMemory};
use crate::table::Stage2;
use crate::table::spare::SpareTables;
use crate::table::tlb::Pending;
use crate::table::walk::{Entry, Next, Visitor};
use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Starts a log of the pages of `range`. Its bitmap is kept in `storage`, which needs [`Layout::words`] words and
    /// must belong to no other log.
    ///
    /// Leaves that reach over the range's bounds are split there. Permission changes need no break-before-make; with
    /// FEAT_BBM level 2 nothing else does. Cost: one compare-exchange a leaf and one invalidation; for
    /// [`Mechanism::HardwarePage`] also a table for each 2 MiB.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`]; [`Error::LogOverlap`]; [`Error::TooManyLogs`]; [`Error::BitmapTooSmall`];
    /// [`Error::NoHardwareDirtyState`]; [`Error::OutOfMemory`]. Every leaf translates and allows what it did before; a
    /// hardware log that runs out of memory may leave leaves split, as it would at its end, which [`Stage2::collapse`]
    /// mends.
    pub fn start_log(
        &mut self,
        range: IpaRange,
        storage: &'static [AtomicU64],
        options: LogOptions,
    ) -> Result<Log<G>, Error> {
        self.check(range)?;
        if let Some(other) = self.logs.in_range(range).next() {
            return Err(Error::LogOverlap { range: other.range });
        }
        if options.mechanism.is_hardware() && !self.has_hardware_dirty_state() {
            return Err(Error::NoHardwareDirtyState);
        }
        let layout = Layout::with_granule(range);
        let marks = DirtyBitmap::new(layout, storage).ok_or(Error::BitmapTooSmall { needed: layout.words() })?;
        let index = self.logs.entries.iter().position(|dirty_log| !dirty_log.is_used()).ok_or(Error::TooManyLogs)?;
        self.in_flight.advance_epoch();
        let mut reserve = self.reserve_edges(range, |_| true)?;
        self.split_edges(range, |_| true, &mut reserve)?;
        drop(reserve);
        match options.mechanism {
            Mechanism::WriteProtect => {}
            // Its blocks are split as they are given to hardware.
            Mechanism::HardwarePage => {}
            Mechanism::HardwareBlock => self.split(range, LeafSize::Block2M)?,
        }
        if options.all_dirty {
            marks.mark_range(range);
        }
        self.hardware_logged |= options.mechanism.is_hardware();
        let mut close = StartProtect { options, pending: Pending::new(), spare: SpareTables::none(self) };
        // Where nothing but the two bits goes, they go all at once.
        let short = options.mechanism == Mechanism::WriteProtect && !options.all_dirty && !cfg!(feature = "small");
        let closed = if short && self.revoke_bits(range, WRITABLE, &mut close.pending) {
            Ok(())
        } else {
            self.visit(range, &mut close)
        };
        // Also where memory has run out: a later log takes what is left to hardware for invalidated.
        self.complete(&close.pending);
        drop(close);
        closed?;
        let log = Log { index, range, id: marks.id(), granule: PhantomData };
        let short = !cfg!(feature = "small") && !options.mechanism.is_hardware() && marks.is_flat();
        self.logs.entries[index] = DirtyLog { range, mechanism: options.mechanism, short, bitmap: marks };
        self.logs.used = self.logs.used.max(index + 1);
        Ok(log)
    }

    /// Ends a log and gives its bitmap's memory back. Leaves become as large and as writable as they were: see
    /// [`Stage2::collapse`], whose cost this has.
    ///
    /// What has been marked since the last harvest is lost with the log; [`Stage2::harvest`] first.
    pub fn stop_log_and_collapse(&mut self, log: Log<G>) -> Option<&'static [AtomicU64]> {
        let range = log.range();
        let storage = self.stop_log_keeping_pages(log);
        // The edges were split at the start, so their blocks are put together again too. `check` has passed at the
        // start.
        let bytes = self.config.largest.bytes_of::<G>();
        let end = range.end().offset(bytes - 1).align_down(bytes).min(self.geometry.range().end());
        let _ = self.collapse(IpaRange::new_unchecked(range.start().align_down(bytes), end));
        storage
    }

    /// Ends a log and nothing more: pages that are write-protected stay so until their first write, which makes the
    /// leaf writable they are in, or until [`Stage2::collapse`]. Costs the same for any range.
    pub fn stop_log_keeping_pages(&mut self, log: Log<G>) -> Option<&'static [AtomicU64]> {
        let entry = self.logs.entries.get_mut(log.index)?;
        if entry.bitmap.id() != log.id {
            return None;
        }
        self.in_flight.advance_epoch();
        entry.range = IpaRange::NOTHING;
        let words = entry.bitmap.take_words();
        while self.logs.in_use().last().is_some_and(|last| !last.is_used()) {
            self.logs.used -= 1;
        }
        Some(words)
    }

    /// Whether any page of `range` is in a log.
    #[must_use]
    #[inline(always)]
    pub fn is_logged(&self, range: IpaRange) -> bool {
        !self.logs.none_in(range)
    }

    /// Marks the pages of `range` in every log that has them: for writes that others than the guest's own CPUs make
    /// to its memory, such as the hypervisor. Call it after the write.
    #[inline(always)]
    pub fn mark_written(&self, range: IpaRange) {
        self.logs.mark_written(range);
    }
}

/// Takes the rights from all leaves of a range whose log starts.
pub(crate) struct StartProtect<'t, P: TableMemory + Maintenance, G: Granule> {
    pub(crate) options: LogOptions,
    pub(crate) pending: Pending,
    /// Frames for the tables of pages that hardware marks.
    pub(crate) spare: SpareTables<'t, P, G>,
}

impl<P: TableMemory + Maintenance, G: Granule> StartProtect<'_, P, G> {
    /// What the leaf is while the log runs.
    #[inline(always)]
    fn logged(&self, leaf: Descriptor) -> Descriptor {
        let mut new = match self.options.mechanism.is_hardware() {
            true => leaf.0 & !bits::WRITE | bits::DBM,
            false => leaf.0 & !WRITABLE,
        };
        if self.options.all_dirty {
            new |= bits::WRITE;
        }
        Descriptor(new)
    }

    /// Splits a leaf that is larger than a page, for hardware to mark pages. A block of 2 MiB becomes pages that are left to
    /// hardware from the first moment: the table that appears then is the last word, and no page is looked at twice.
    fn split(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error> {
        let plain = [Some(entry.range()), None];
        // One with DBM has dirty state, which the pages take over first (R_RTBRL).
        let at_once = !cfg!(feature = "small")
            && entry.level == Level::L2
            && entry.value.0 & (bits::WRITE_GRANTED | bits::DBM) == bits::WRITE_GRANTED
            && part == entry.range();
        let children = at_once.then(|| self.logged(entry.value));
        if !table.split_leaf_to(entry, children, &plain, &mut self.spare)? || !at_once {
            return Ok(Next::Retry);
        }
        if entry.value.is_writable() {
            // A PE that holds the block writable would not mark.
            self.pending.add(part);
        }
        Ok(Next::Continue)
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Visitor<P, G> for StartProtect<'_, P, G> {
    #[inline(always)]
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error> {
        let leaf = entry.value;
        if !entry.is_leaf() {
            return Ok(Next::Continue);
        }
        let hardware = self.options.mechanism.is_hardware();
        if leaf.is_contiguous() && (hardware || self.options.all_dirty) {
            // Hardware marks any one member of a run (R_JKCXG), and a part of a run can't be protected. Read-only runs
            // too: writes may be granted while the log runs.
            table.split_run(entry);
            return Ok(Next::Retry);
        }
        if self.options.mechanism == Mechanism::HardwarePage && entry.level != Level::L3 {
            return self.split(table, entry, part);
        }
        if leaf.0 & bits::WRITE_GRANTED == 0 {
            return Ok(Next::Continue);
        }
        let new = self.logged(leaf).0;
        if new == leaf.0 {
            return Ok(Next::Continue);
        }
        if table.replace(entry.slot, leaf.0, new).is_err() {
            return Ok(Next::Retry);
        }
        if leaf.is_writable() && (hardware || !self.options.all_dirty || leaf.has_dbm()) {
            // An entry that is cached as writable would neither fault nor mark. One with DBM, from a log by hardware that has
            // ended, may be held by no PE when the leaf's size changes (R_RTBRL), and from now on the descriptor does not tell.
            self.pending.add(part);
        }
        Ok(Next::Continue)
    }
}
