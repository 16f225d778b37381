//! Mapping, with the largest leaves that fit.

use crate::arch::address::{Ipa, IpaRange, PhysAddr};
use crate::arch::descriptor::{Attributes, Descriptor, OWNER_BITS, bits};
use crate::arch::error::Error;
use crate::arch::geometry::Level;
use crate::arch::granule::Granule;
use crate::platform::{Dsb, Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::retire::RetiredTables;
use crate::table::spare::SpareTables;
use crate::table::walk::{Entry, Next, Visitor};

/// What a mapping is to look like, anywhere in it.
#[derive(Clone, Copy)]
struct Target {
    range: IpaRange,
    output: PhysAddr,
    /// The attributes in the bits of a leaf.
    attributes: u64,
}

impl Target {
    fn output_at(&self, ipa: Ipa) -> PhysAddr {
        self.output.offset(ipa.0.wrapping_sub(self.range.start().0))
    }

    /// The leaf at `ipa`, without the Contiguous bit.
    fn leaf<G: Granule>(&self, level: Level, ipa: Ipa) -> Descriptor {
        Descriptor::leaf_of::<G>(level, self.output_at(ipa), self.attributes)
    }

    /// Whether `entry` maps what is asked for already. Tracking and leaf size make no difference.
    fn is_met_by<G: Granule>(&self, entry: &Entry<G>) -> bool {
        // Where the address takes the place of SH, nobody asks for that.
        let asked = OWNER_BITS & !G::ADDRESS;
        entry.value.address_of::<G>() == self.output_at(entry.ipa) && (entry.value.0 ^ self.attributes) & asked == 0
    }

    /// Whether the entry has to go before the new mapping can come (R_WHZWS: output address and attributes change with
    /// a break only).
    fn conflicts_with<G: Granule>(&self, entry: &Entry<G>) -> bool {
        entry.is_leaf() && !self.is_met_by(entry)
    }

    /// Whether the entry of `level` at `ipa`, of which `part` is to be mapped, can be a leaf: all of it is wanted, the
    /// output is aligned, and it does not reach over a log's bounds.
    fn fits<P, G: Granule>(&self, table: &Stage2<P, G>, level: Level, ipa: Ipa, part: IpaRange) -> bool {
        let bytes = level.bytes::<G>();
        part.bytes() == bytes
            && level >= table.config.largest.level()
            && self.output_at(ipa).is_aligned(bytes)
            && !table.logs.straddles(part)
    }

    /// The first entry of the table that `entry` is to lead to and how much the next is more, if all of them become
    /// leaves alike.
    fn leaves_below<P, G>(&self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Option<(u64, u64)>
    where
        P: TableMemory + Maintenance,
        G: Granule,
    {
        let below = entry.level.below().filter(|_| part == entry.range() && table.logs.none_in(part))?;
        let (start, step) = (part.start(), below.bytes::<G>());
        // Outputs of whole entries are aligned alike: where no log makes a difference, what fits one fits all.
        if !self.fits(table, below, start, IpaRange::new_unchecked(start, start.offset(step))) {
            return None;
        }
        let (first, last) = (self.leaf::<G>(below, start).0, self.leaf::<G>(below, Ipa(part.end().0 - step)).0);
        // Addresses of 52 bits do not lie in one piece: an output that goes over a bound between its pieces is no sum.
        if last != first + (G::ENTRIES as u64 - 1) * step {
            return None;
        }
        let is_run = table.makes_runs(below, part) && self.output_at(start).is_aligned(below.run::<G>() as u64 * step);
        Some((first | if is_run { bits::CONTIGUOUS } else { 0 }, step))
    }

    /// The tables that mapping `part` below an entry of `level` at `ipa` takes, when nothing is there yet.
    #[cfg_attr(not(feature = "small"), inline(always))]
    fn tables<P, G: Granule>(&self, table: &Stage2<P, G>, level: Level, ipa: Ipa, part: IpaRange) -> usize {
        let below = level.below().filter(|_| !self.fits(table, level, ipa, part));
        below.map_or(0, |below| 1 + self.tables_below(table, below, part))
    }

    /// The same below each entry of `level` that `part` lies in.
    fn tables_below<P, G: Granule>(&self, table: &Stage2<P, G>, level: Level, part: IpaRange) -> usize {
        let bytes = level.bytes::<G>();
        let (mut tables, mut at) = (0, part.start());
        while at < part.end() {
            let start = at.align_down(bytes);
            let child = IpaRange::new_unchecked(at, start.offset(bytes).min(part.end()));
            // Outputs of whole entries are aligned alike, so where no log is among them these take equally many tables.
            let whole = child.bytes() == bytes && table.logs.none_in(part);
            let alike = if whole { (part.end().0 - at.0) / bytes } else { 1 };
            tables += alike as usize * self.tables(table, level, start, child);
            at = child.end().offset((alike - 1) * bytes);
        }
        tables
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Maps `range` to the physical addresses from `output` on, with the largest leaves that alignment allows.
    ///
    /// What is mapped there already in the same way is left alone, whatever its leaf size; what is mapped in another
    /// way is unmapped first (break-before-make, R_WHZWS), so that accesses to it fault for a moment. New mappings need
    /// no invalidation. Cost: one store a new leaf, one frame and one DSB a new table.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`]; [`Error::BadOutput`]; [`Error::BadMemoryType`]; [`Error::MissingFeature`] for permissions;
    /// [`Error::OutOfMemory`]; all of them before anything has changed.
    #[cfg_attr(feature = "small", inline(never))]
    pub fn map(&mut self, range: IpaRange, output: PhysAddr, attributes: Attributes) -> Result<(), Error> {
        self.check(range)?;
        let last = output.0.checked_add(range.bytes() - G::BYTES);
        let reach = (1 << self.config.features.pa_bits.min(G::ADDRESS_BITS as u8)) - 1;
        if !output.is_aligned(G::BYTES) || last.is_none_or(|last| last & !reach != 0) {
            return Err(Error::BadOutput { output });
        }
        let fwb = self.config.fwb;
        if !attributes.memory.can_be_said(fwb) {
            return Err(Error::BadMemoryType { memory: attributes.memory });
        }
        self.check_execute(attributes.permissions)?;
        self.in_flight.advance_epoch();
        *self.unreadable.get_mut() |= !attributes.permissions.read;
        let target = Target { range, output, attributes: attributes.encode_for(fwb) };
        let (tables, conflict) = self.survey(target)?;
        let mut reserve = SpareTables::new(self, tables, range.start())?;
        if conflict {
            self.split_edges(range, |entry| target.conflicts_with(entry), &mut reserve)?;
            self.evict(target)?;
        }
        self.visit(range, &mut Install { target, reserve })?;
        // Orders the new descriptors before whatever tells the guest that its memory is there.
        self.dsb(Dsb::IshSt);
        // What is new in a log is dirty, and writable until a harvest finds it.
        self.logs.mark_written(range);
        Ok(())
    }

    /// The tables that mapping `target` takes, and whether something else is mapped there.
    #[cfg_attr(feature = "small", inline(never))]
    fn survey(&self, target: Target) -> Result<(usize, bool), Error> {
        let mut count = Count { target, tables: 0, conflict: false };
        self.visit(target.range, &mut count)?;
        Ok((count.tables, count.conflict))
    }

    /// Takes out what conflicts with `target`; its edges are split.
    #[cfg_attr(feature = "small", inline(never))]
    fn evict(&self, target: Target) -> Result<(), Error> {
        self.visit(target.range, &mut Evict { target, detached: RetiredTables::new(self) })
    }
}

/// First pass: what will be needed.
struct Count {
    target: Target,
    tables: usize,
    conflict: bool,
}

impl<P: TableMemory + Maintenance, G: Granule> Visitor<P, G> for Count {
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error> {
        let conflict = self.target.conflicts_with(entry);
        if conflict || !entry.is_leaf() {
            self.tables += self.target.tables(table, entry.level, entry.ipa, part);
        }
        self.conflict |= conflict;
        Ok(Next::Continue)
    }
}

/// Second pass, where something else is mapped: leaves go, tables stay.
struct Evict<'t, P: TableMemory + Maintenance, G: Granule> {
    target: Target,
    detached: RetiredTables<'t, P, G>,
}

impl<P: TableMemory + Maintenance, G: Granule> Visitor<P, G> for Evict<'_, P, G> {
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error> {
        if self.target.conflicts_with(entry) {
            table.overwrite(entry.slot, Descriptor::INVALID.0);
            self.detached.pending.add(part);
        }
        Ok(Next::Continue)
    }
}

/// Last pass: invalid becomes valid.
struct Install<'t, P: TableMemory + Maintenance, G: Granule> {
    target: Target,
    reserve: SpareTables<'t, P, G>,
}

impl<P: TableMemory + Maintenance, G: Granule> Install<'_, P, G> {
    /// Installs a whole run at once if one starts here and all of it is wanted and free.
    fn install_run(&self, table: &Stage2<P, G>, entry: &Entry<G>) -> bool {
        let (run, length) = (entry.run(), entry.level.run::<G>());
        let slot = |n| Slot { index: entry.slot.index + n, ..entry.slot };
        if !entry.slot.index.is_multiple_of(length)
            || !table.makes_runs(entry.level, run)
            || !self.target.range.covers(run)
            || !self.target.output_at(entry.ipa).is_aligned(run.bytes())
            || (1..length).any(|n| table.load(slot(n)) != Descriptor::INVALID.0)
        {
            return false;
        }
        let first = self.target.leaf::<G>(entry.level, entry.ipa).0 | bits::CONTIGUOUS;
        for n in 0..length {
            table.overwrite(slot(n), first + n as u64 * entry.level.bytes::<G>());
        }
        true
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Visitor<P, G> for Install<'_, P, G> {
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error> {
        if entry.is_leaf() {
            // Met already: everything else was evicted.
            return Ok(Next::Continue);
        }
        if entry.level == Level::L3 || self.target.fits(table, entry.level, entry.ipa, part) {
            if !self.install_run(table, entry) {
                table.overwrite(entry.slot, self.target.leaf::<G>(entry.level, entry.ipa).0);
            }
            return Ok(Next::Continue);
        }
        let child = self.reserve.take(entry.ipa)?;
        let leaves = self.target.leaves_below(table, entry, part);
        let (first, step) = leaves.unwrap_or((Descriptor::INVALID.0, 0));
        // SAFETY: the child was taken from the reserve and is reachable by this PE only.
        unsafe { table.fill(child, first, step) };
        // Orders the child's entries before the entry that leads to them.
        table.dsb(Dsb::IshSt);
        table.overwrite(entry.slot, Descriptor::table_of::<G>(child).0);
        // What goes into a child that is empty yet is for the next steps of the walk.
        Ok(if leaves.is_some() { Next::Continue } else { Next::Retry })
    }
}
