//! Collapsing: tables whose leaves translate like one large leaf become that leaf.

use crate::address::{IpaRange, PhysAddr};
use crate::counters::Event;
use crate::descriptor::{Descriptor, Kind, bits};
use crate::error::Error;
use crate::geometry::{ENTRIES, LeafSize, Level, RUN};
use crate::invalidate::Pending;
use crate::platform::{Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::unmap::Detached;
use crate::walk::{Entry, Next, Visitor};

/// Bits that may differ between leaves that are to become one: the size itself, and where hardware keeps dirty state,
/// that state.
const fn size_bits(leaf: Descriptor) -> u64 {
    if leaf.has_dbm() { bits::CONTIGUOUS | bits::WRITE } else { bits::CONTIGUOUS }
}

impl<P: TableMemory + Maintenance> Stage2<P> {
    /// Makes the leaves of `range` as large as the alignment and contiguity of their output addresses and the equality of
    /// their attributes allow, from 4 KiB up to the largest that the configuration makes. Tables that a large leaf
    /// replaces, and tables in which nothing is mapped, are freed.
    ///
    /// With FEAT_BBM level 2 no translation is ever invalid. Leaves that reach over the range's bounds stay as they are.
    /// Cost: one load a descriptor, and one invalidation for each 32 tables.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`].
    pub fn collapse(&mut self, range: IpaRange) -> Result<(), Error> {
        self.check(range)?;
        let mut detached = Detached::new(self);
        self.visit(range, &mut Collapse { range, detached: &mut detached })
    }

    /// The one leaf that entries `first..first + count` of a table amount to, without the Contiguous bit.
    #[inline(always)]
    fn uniform(&self, first: Slot, count: usize, level: Level) -> Option<Descriptor> {
        let leaf = Descriptor(self.load(first));
        let Kind::Leaf { output, .. } = leaf.kind(level) else { return None };
        let step = level.entry_bytes();
        if !output.is_aligned(count as u64 * step) {
            return None;
        }
        let ignored = size_bits(leaf);
        let mut dirty = leaf.0;
        let mut expected = leaf.0 & !ignored;
        for index in first.index..first.index + count {
            let value = self.load(Slot { index, ..first });
            if value & !ignored != expected {
                return None;
            }
            dirty |= value;
            expected = expected.wrapping_add(step);
        }
        // One dirty entry makes the whole dirty: too much is reported rather than too little.
        Some(Descriptor((leaf.0 | dirty & bits::WRITE & ignored) & !bits::CONTIGUOUS))
    }

    /// Takes write permission and DBM from all entries of a table and invalidates them (R_RTBRL); returns whether any was
    /// dirty by then. Exclusive use: writers fault and wait for the embedder's lock.
    fn hold_writes_of(&self, child: PhysAddr, range: IpaRange) -> u64 {
        let mut dirty = 0;
        for index in 0..ENTRIES {
            // SAFETY: `child` is a reachable table's frame.
            let old = unsafe { self.platform.fetch_clear(Slot { table: child, index }, bits::DBM | bits::WRITE) };
            self.count(Event::DescriptorWrite);
            dirty |= old & bits::WRITE;
        }
        self.count(Event::ReadOnlyWindow);
        self.complete(&Pending::of(range));
        dirty
    }
}

struct Collapse<'t, 'd, P: TableMemory + Maintenance> {
    range: IpaRange,
    detached: &'d mut Detached<'t, P>,
}

impl<P: TableMemory + Maintenance> Collapse<'_, '_, P> {
    /// Replaces the table at `entry` by one leaf, or by nothing if it maps nothing.
    fn fold(&mut self, table: &Stage2<P>, entry: &Entry, child: PhysAddr, below: Level) -> bool {
        let first = Slot { table: child, index: 0 };
        if Descriptor(table.load(first)).kind(below) == Kind::Invalid {
            if (1..ENTRIES).any(|index| table.load(Slot { index, ..first }) != Descriptor::INVALID.0) {
                return false;
            }
            table.overwrite(entry.slot, Descriptor::INVALID.0);
            self.detached.pending.add(entry.range());
            self.detached.push(child, below);
            return true;
        }
        if entry.level == Level::L0 || LeafSize::at(entry.level, false) > table.config.largest {
            return false;
        }
        let Some(leaf) = table.uniform(first, ENTRIES, below) else { return false };
        let block = Descriptor::leaf(entry.level, leaf.address(), leaf.0);
        if leaf.has_dbm() {
            let dirty = table.hold_writes_of(child, entry.range());
            let held = Descriptor(block.0 & !(bits::DBM | bits::WRITE));
            table.publish_block(entry, held, &mut self.detached.pending);
            self.detached.push(child, below);
            // Nobody may hold a small entry, or walk to one, when hardware may mark the block.
            self.detached.flush();
            table.overwrite(entry.slot, held.0 | bits::DBM | dirty);
        } else {
            table.publish_block(entry, block, &mut self.detached.pending);
            self.detached.push(child, below);
        }
        table.count(if entry.level == Level::L1 { Event::Collapse1G } else { Event::Collapse2M });
        true
    }

    /// Makes runs of the entries of a table that stays.
    fn make_runs(&mut self, table: &Stage2<P>, entry: &Entry, child: PhysAddr, below: Level) {
        if !table.makes_runs(below) {
            return;
        }
        let bytes = RUN as u64 * below.entry_bytes();
        for n in 0..ENTRIES / RUN {
            let first = Slot { table: child, index: n * RUN };
            let start = entry.ipa.offset(n as u64 * bytes);
            let run = IpaRange::trusted(start, start.offset(bytes));
            let value = Descriptor(table.load(first));
            if self.range.covers(run)
                && !value.is_contiguous()
                && !value.has_dbm()
                && table.uniform(first, RUN, below).is_some()
            {
                table.make_run(first, run, &mut self.detached.pending);
            }
        }
    }
}

impl<P: TableMemory + Maintenance> Visitor<P> for Collapse<'_, '_, P> {
    #[inline(always)]
    fn entry(&mut self, _: &Stage2<P>, _: &Entry, _: IpaRange) -> Result<Next, Error> {
        Ok(Next::Onward)
    }

    fn enter(&mut self, table: &Stage2<P>, entry: &Entry, part: IpaRange) -> Result<bool, Error> {
        // Pages have nothing below them to fold: do at once what `leave` would do.
        if entry.level == Level::L2 {
            self.leave(table, entry, part)?;
            return Ok(false);
        }
        Ok(true)
    }

    fn leave(&mut self, table: &Stage2<P>, entry: &Entry, part: IpaRange) -> Result<(), Error> {
        let (Kind::Table(child), Some(below)) = (entry.value.kind(entry.level), entry.level.below()) else {
            return Ok(());
        };
        if part != entry.range() || !self.fold(table, entry, child, below) {
            self.make_runs(table, entry, child, below);
        }
        Ok(())
    }
}
