//! Collapsing: tables whose leaves translate like one large leaf become that leaf.

use crate::arch::address::{Ipa, IpaRange, PhysAddr};
use crate::arch::descriptor::{Descriptor, Kind, bits};
use crate::arch::error::Error;
use crate::arch::geometry::{LeafSize, Level};
use crate::arch::granule::Granule;
use crate::platform::counters::Event;
use crate::platform::{GROUP, Maintenance, Slot, TableMemory};
use crate::table::retire::RetiredTables;
use crate::table::tlb::Pending;
use crate::table::walk::{Entry, Next, Visitor};
use crate::table::{Stage2, frames_of};

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Makes the leaves of `range` as large as the alignment and contiguity of their output addresses and the equality
    /// of their attributes allow, from a page up to the largest that the configuration makes. Tables that a large leaf
    /// replaces, and tables in which nothing is mapped, are freed.
    ///
    /// What a log covers is left alone; what an ended log left write-protected becomes writable.
    ///
    /// With FEAT_BBM level 2 no translation is ever invalid. Leaves that reach over the range's bounds stay as they
    /// are. Cost: one load a descriptor, and one invalidation for each 32 tables.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`].
    #[cfg_attr(feature = "small", inline(never))]
    pub fn collapse(&mut self, range: IpaRange) -> Result<(), Error> {
        self.check(range)?;
        // No leaf may change its size while a PE holds it as one that hardware marks (R_RTBRL).
        if self.hardware_logged && !cfg!(feature = "small") {
            self.reopen_all(range)?;
        }
        let mut detached = RetiredTables::new(self);
        if self.hardware_logged && cfg!(feature = "small") {
            // The same by the walk that is needed anyhow: a KiB less.
            self.visit(range, &mut Collapse { range, detached: &mut detached, only_reopen: true })?;
            detached.flush();
        }
        let mut collapse = Collapse { range, detached: &mut detached, only_reopen: false };
        self.visit(range, &mut collapse)?;
        if G::FRAMES > 1 && self.geometry.start_level() == Level::L2 {
            // The root has blocks, and no entry leads to it at which its runs would be made. (Not with 4 KiB.)
            for n in 0..self.geometry.root_tables() as u64 {
                let (ipa, table) = (Ipa(n * Level::L1.bytes::<G>()), self.root.offset(n * G::BYTES));
                collapse.make_runs(self, ipa, table, Level::L2);
            }
        }
        Ok(())
    }

    /// The one leaf that entries `first..first + count` of a table amount to, without the Contiguous bit.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    fn uniform(&self, first: Slot, count: usize, level: Level) -> Option<Descriptor> {
        let leaf = Descriptor(self.load(first) & !bits::CONTIGUOUS);
        let Kind::Leaf { output, .. } = leaf.kind_of::<G>(level) else { return None };
        let step = level.bytes::<G>();
        if !output.is_aligned(count as u64 * step) {
            return None;
        }
        let mut expected = leaf.0;
        for index in first.index..first.index + count {
            if self.load(Slot { index, ..first }) & !bits::CONTIGUOUS != expected {
                return None;
            }
            expected = expected.wrapping_add(step);
        }
        Some(leaf)
    }

    /// Makes every leaf of `range` writable that an ended log left to hardware.
    /// On return no PE holds one that hardware marks.
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn reopen_all(&mut self, range: IpaRange) -> Result<(), Error> {
        let mut reopen = Reopen { pending: Pending::new() };
        self.visit(range, &mut reopen)?;
        self.complete(&reopen.pending);
        Ok(())
    }

    /// Makes a leaf writable that an ended log left write-protected or marked by hardware.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    fn reopen(&self, slot: Slot, level: Level) {
        let mut value = Descriptor(self.load(slot));
        // More rights need no invalidation; a PE that holds an older entry faults once, and finds the leaf writable.
        while matches!(value.kind_of::<G>(level), Kind::Leaf { .. })
            && value.0 & bits::WRITE_GRANTED != 0
            && value.0 & (bits::WRITE | bits::DBM) != bits::WRITE
        {
            match self.replace(slot, value.0, value.0 & !bits::DBM | bits::WRITE) {
                Ok(()) => return,
                // Hardware may have marked it meanwhile.
                Err(found) => value = Descriptor(found),
            }
        }
    }
}

struct Reopen {
    pending: Pending,
}

impl<P: TableMemory + Maintenance, G: Granule> Visitor<P, G> for Reopen {
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, _: IpaRange) -> Result<Next, Error> {
        if entry.value.has_dbm() && table.logs.none_in(entry.range()) {
            self.pending.add(entry.range());
            table.reopen(entry.slot, entry.level);
        }
        Ok(Next::Continue)
    }

    /// Pages, none of them logged: one look at each, and one invalidation for all.
    #[inline(always)]
    fn enter(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<bool, Error> {
        const MARKED: u64 = bits::DBM | bits::WRITE_GRANTED;
        if cfg!(feature = "small") || entry.level != Level::L2 || !table.logs.none_in(part) {
            return Ok(true);
        }
        let at = |index| Slot { table: entry.value.address_of::<G>(), index };
        // SAFETY (all): as for all descriptors (`table.rs`).
        let misses = |group: usize| {
            // SAFETY: see above.
            unsafe { table.platform.group_with::<false>(at(group * GROUP), bits::VALID | MARKED) != 0 }
        };
        if part == entry.range() && !(0..G::ENTRIES / GROUP).any(misses) {
            // All of them at once. Writable first: no write of the guest's faults.
            let lse = table.config.features.lse;
            table.platform.counters().add(Event::DescriptorWrite, 2 * G::ENTRIES as u64);
            self.pending.add(part);
            // SAFETY: see above.
            unsafe { table.platform.set_run(at(0), G::ENTRIES, bits::WRITE, lse) };
            // SAFETY: see above.
            unsafe { table.platform.clear_run::<false>(at(0), G::ENTRIES, bits::DBM, lse) };
            return Ok(false);
        }
        let mut changed = 0;
        for (slot, _) in entry.children(part) {
            let mut value = Descriptor(table.load(slot));
            while value.0 & MARKED == MARKED {
                // SAFETY: as for all descriptors (`table.rs`).
                match unsafe { table.platform.compare_exchange(slot, value.0, value.0 & !bits::DBM | bits::WRITE) } {
                    Ok(()) => {
                        changed += 1;
                        break;
                    }
                    // Hardware has marked it meanwhile.
                    Err(found) => value = Descriptor(found),
                }
            }
        }
        if changed != 0 {
            table.platform.counters().add(Event::DescriptorWrite, changed);
            self.pending.add(part);
        }
        Ok(false)
    }
}

struct Collapse<'t, 'd, P: TableMemory + Maintenance, G: Granule> {
    range: IpaRange,
    detached: &'d mut RetiredTables<'t, P, G>,
    /// What [`Stage2::reopen_all`] does, built for size: nothing becomes larger.
    only_reopen: bool,
}

impl<P: TableMemory + Maintenance, G: Granule> Collapse<'_, '_, P, G> {
    /// Whether the leaf is part of a run that reaches over the range's bounds. The members of a run have the same permissions
    /// (D8.7.1), so either all of them are opened or none.
    fn cuts(&self, leaf: &Entry<G>) -> bool {
        leaf.is_run_member() && !self.range.covers(leaf.run())
    }

    /// Replaces the table at `entry` by one leaf, or by nothing if it maps nothing.
    fn fold(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, child: PhysAddr, below: Level) -> bool {
        let first = Slot { table: child, index: 0 };
        if Descriptor(table.load(first)).kind_of::<G>(below) == Kind::Invalid {
            if (1..G::ENTRIES).any(|index| table.load(Slot { index, ..first }) != Descriptor::INVALID.0) {
                return false;
            }
            table.overwrite(entry.slot, Descriptor::INVALID.0);
            self.detached.pending.add(entry.range());
            self.detached.push(child, below);
            return true;
        }
        if entry.level < table.config.largest.level() {
            return false;
        }
        let Some(leaf) = table.uniform(first, G::ENTRIES, below) else { return false };
        self.publish(table, entry, leaf, child, below);
        true
    }

    /// The table `child` becomes a block like its first entry, `leaf`.
    #[cfg_attr(feature = "small", inline(always))]
    fn publish(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, leaf: Descriptor, child: PhysAddr, below: Level) {
        let block = Descriptor::leaf_of::<G>(entry.level, leaf.address_of::<G>(), leaf.0);
        table.publish_block(entry, block, &mut self.detached.pending);
        self.detached.push(child, below);
        table.count(if entry.level <= Level::L1 { Event::Collapse1G } else { Event::Collapse2M });
    }

    /// [`Collapse::fold`] for the commonest tables: 512 pages with equal attributes, all writable or all write-protected by
    /// a log that has ended. One look at each; says whether it was that.
    #[inline(always)]
    fn fold_alike(&mut self, table: &Stage2<P, G>, entry: &Entry<G>) -> bool {
        let child = entry.value.address_of::<G>();
        let leaf = Descriptor(table.load(Slot { table: child, index: 0 }));
        let Kind::Leaf { output, contiguous: false } = leaf.kind_of::<G>(Level::L3) else { return false };
        if leaf.has_dbm()
            || LeafSize::Block2M > table.config.largest
            || !output.is_aligned(LeafSize::Block2M.bytes_of::<G>())
        {
            return false;
        }
        // SAFETY: as for all descriptors (`table.rs`); `&mut self` of the table's: no other PE writes.
        let alike = |(frame, first)| unsafe { table.platform.is_filled(frame, first, G::BYTES) };
        if !frames_of::<G>(child, leaf.0, G::BYTES).all(alike) {
            return false;
        }
        let opened = if leaf.0 & bits::WRITE_GRANTED == 0 { leaf.0 } else { leaf.0 | bits::WRITE };
        self.publish(table, entry, Descriptor(opened), child, Level::L3);
        true
    }

    /// Makes runs of the entries of a table that stays, and translates from `ipa` on.
    fn make_runs(&mut self, table: &Stage2<P, G>, ipa: Ipa, child: PhysAddr, below: Level) {
        let length = below.run::<G>();
        let bytes = length as u64 * below.bytes::<G>();
        if self.range.bytes() < bytes || table.config.largest < LeafSize::at(below, true) {
            return;
        }
        for n in 0..G::ENTRIES / length {
            let first = Slot { table: child, index: n * length };
            let start = ipa.offset(n as u64 * bytes);
            let run = IpaRange::new_unchecked(start, start.offset(bytes));
            let value = Descriptor(table.load(first));
            if self.range.covers(run)
                && table.makes_runs(below, run)
                && !value.is_contiguous()
                && table.uniform(first, length, below).is_some()
            {
                table.make_run(first, below, run, &mut self.detached.pending);
            }
        }
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Visitor<P, G> for Collapse<'_, '_, P, G> {
    #[inline(always)]
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, _: IpaRange) -> Result<Next, Error> {
        if cfg!(feature = "small") && self.only_reopen {
            if entry.value.has_dbm() && table.logs.none_in(entry.range()) {
                self.detached.pending.add(entry.range());
                table.reopen(entry.slot, entry.level);
            }
        } else if table.logs.none_in(entry.range()) && !self.cuts(entry) {
            table.reopen(entry.slot, entry.level);
        }
        Ok(Next::Continue)
    }

    #[inline(always)]
    fn enter(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<bool, Error> {
        if entry.level != Level::L2 || !table.logs.none_in(part) || cfg!(feature = "small") && self.only_reopen {
            return Ok(true);
        }
        if !cfg!(feature = "small") && part == entry.range() && self.fold_alike(table, entry) {
            return Ok(false);
        }
        // Pages, none of them logged: one quick look at each, where `entry` would ask about logs each time.
        for (slot, ipa) in entry.children(part) {
            let value = table.load(slot);
            if value & bits::WRITE_GRANTED != 0
                && value & (bits::WRITE | bits::DBM) != bits::WRITE
                && !self.cuts(&Entry::<G>::at(slot, Level::L3, ipa, Descriptor(value)))
            {
                table.reopen(slot, Level::L3);
            }
        }
        self.leave(table, entry, part)?;
        Ok(false)
    }

    fn leave(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<(), Error> {
        let (Kind::Table(child), Some(below)) = (entry.value.kind_of::<G>(entry.level), entry.level.below()) else {
            return Ok(());
        };
        if cfg!(feature = "small") && self.only_reopen {
            return Ok(());
        }
        let foldable = part == entry.range() && table.logs.none_in(part);
        if !foldable || !self.fold(table, entry, child, below) {
            self.make_runs(table, entry.ipa, child, below);
        }
        Ok(())
    }
}
