//! Splitting: leaves become tables of smaller leaves that translate exactly the same.

use crate::arch::address::{Ipa, IpaRange, PhysAddr};
use crate::arch::descriptor::{Descriptor, bits};
use crate::arch::error::Error;
use crate::arch::geometry::{LeafSize, Level};
use crate::arch::granule::Granule;
use crate::platform::counters::Event;
use crate::platform::{Dsb, Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::spare::SpareTables;
use crate::table::walk::{Entry, Next, Visitor};

/// Where a child table gets no contiguous runs, because a later step would only take them apart again.
pub(crate) type Plain = [Option<IpaRange>; 2];

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Splits every leaf of `range` that is larger than `to`, so that none is left; a leaf that reaches over the
    /// range's bounds is split too. What is smaller already, or not mapped, stays as it is.
    ///
    /// With FEAT_BBM level 2 no translation is ever invalid and no TLB invalidation is issued. Cost: one frame and 512
    /// descriptors for each split leaf.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`]; [`Error::OutOfMemory`] with the address of the first leaf that could not be split: those
    /// before it are split, and every leaf translates as it did.
    pub fn split(&self, range: IpaRange, to: LeafSize) -> Result<(), Error> {
        self.check(range)?;
        let result = self.visit(range, &mut Split { to, reserve: SpareTables::none(self) });
        // Orders the new tables before whatever the caller does on the strength of their being there.
        self.dsb(Dsb::IshSt);
        result
    }

    /// Splits the leaf that reaches over `edge`, if there is one that `wants` agrees to, until a leaf starts at `edge`.
    /// `edges` are both edges of the operation: when they lie in one leaf, one split serves both.
    pub(crate) fn split_edge(
        &self,
        edge: Ipa,
        edges: IpaRange,
        wants: impl Fn(&Entry<G>) -> bool,
        reserve: &mut SpareTables<'_, P, G>,
    ) -> Result<(), Error> {
        if edge == self.geometry.range().end() {
            return Ok(());
        }
        loop {
            let entry = self.lookup_stable(edge);
            if !entry.is_leaf() || !wants(&entry) {
                return Ok(());
            }
            if entry.is_run_member() && edge != entry.run().start() {
                self.split_run(&entry);
            } else if edge != entry.ipa {
                self.split_leaf(&entry, &plain_at_edges(&entry, edges), reserve)?;
            } else {
                return Ok(());
            }
        }
    }

    /// Splits the leaves at both edges of `range`, the less aligned edge first: its split often serves the other.
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn split_edges(
        &self,
        range: IpaRange,
        wants: impl Fn(&Entry<G>) -> bool,
        reserve: &mut SpareTables<'_, P, G>,
    ) -> Result<(), Error> {
        let (mut first, mut second) = (range.start(), range.end());
        if first.0.trailing_zeros() > second.0.trailing_zeros() {
            core::mem::swap(&mut first, &mut second);
        }
        [first, second].into_iter().try_for_each(|edge| self.split_edge(edge, range, &wants, reserve))
    }

    /// Makes one block a table, or takes its run apart if it is a member of one. Says whether the entry is a table of
    /// this call's making now; otherwise read it again.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn split_leaf(
        &self,
        entry: &Entry<G>,
        plain: &Plain,
        reserve: &mut SpareTables<'_, P, G>,
    ) -> Result<bool, Error> {
        self.split_leaf_to(entry, None, plain, reserve)
    }

    /// [`Stage2::split_leaf`], with leaves that translate like `children`, where there is that: like the block, but for
    /// permissions. What a PE may still hold of the block's is the caller's to invalidate.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn split_leaf_to(
        &self,
        entry: &Entry<G>,
        children: Option<Descriptor>,
        plain: &Plain,
        reserve: &mut SpareTables<'_, P, G>,
    ) -> Result<bool, Error> {
        if entry.is_run_member() {
            self.split_run(entry);
            return Ok(false);
        }
        let child = reserve.take(entry.ipa)?;
        let held = match self.hold_writes(entry) {
            Ok(held) => held,
            Err(_) => {
                reserve.put(child);
                return Ok(false);
            }
        };
        // A leaf that was only made busy has no dirty state to give back: its children are as it was.
        let marked = held != entry.value && entry.value.has_dbm();
        self.fill_child(entry, children.unwrap_or(if marked { held } else { entry.value }), child, plain);
        if self.publish_table(entry, held, child).is_err() {
            // Another PE was first. Ours was never reachable.
            reserve.put(child);
            return Ok(false);
        }
        if marked {
            self.give_dirty_state_back(entry.value, child);
        }
        self.count(if entry.level <= Level::L1 { Event::Split1G } else { Event::Split2M });
        Ok(true)
    }

    /// Writes all 512 entries of a child that is not published yet: same output, same attributes.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    fn fill_child(&self, entry: &Entry<G>, value: Descriptor, child: PhysAddr, plain: &Plain) {
        let Some(below) = entry.level.below() else { return };
        let output = value.address_of::<G>().align_down(entry.level.bytes::<G>());
        let first = Descriptor::leaf_of::<G>(below, output, value.0 & !bits::CONTIGUOUS).0;
        let step = below.bytes::<G>();
        let [first_plain, second_plain] = plain.map(|range| range.is_some_and(|range| range.covers(entry.range())));
        let whole = first_plain || second_plain;
        let runs = !whole && self.makes_runs(below, entry.range()) && !entry.value.has_dbm();
        let contiguous = if runs { bits::CONTIGUOUS } else { 0 };
        // SAFETY: the child was taken from the reserve and is reachable by this PE only.
        unsafe { self.fill(child, first | contiguous, step) };
        if contiguous == 0 {
            return;
        }
        for range in plain.iter().flatten().filter_map(|range| range.intersection(entry.range())) {
            let from = below.index_of::<G>(range.start()) / below.run::<G>() * below.run::<G>();
            let to = (below.index_of::<G>(Ipa(range.end().0 - 1)) / below.run::<G>() + 1) * below.run::<G>();
            for index in from..to {
                self.store(Slot { table: child, index }, first + index as u64 * step);
            }
        }
    }

    /// Gives the entries of a child that was published read-only and busy their dirty state (R_RTBRL): size first,
    /// permission second. The busy marks make this PE their only writer.
    fn give_dirty_state_back(&self, parent: Descriptor, child: PhysAddr) {
        // Orders the table's publication before the permission.
        self.dsb(Dsb::IshSt);
        let dirty_state = parent.0 & (bits::DBM | bits::WRITE);
        for index in 0..G::ENTRIES {
            let slot = Slot { table: child, index };
            self.overwrite(slot, self.load(slot) & !bits::BUSY | dirty_state);
        }
    }
}

/// The runs of the child of `entry` that an edge of `edges` cuts through.
fn plain_at_edges<G: Granule>(entry: &Entry<G>, edges: IpaRange) -> Plain {
    let Some(below) = entry.level.below() else { return [None; 2] };
    let run = below.run::<G>() as u64 * below.bytes::<G>();
    [edges.start(), edges.end()].map(|edge| {
        let inside = entry.range().contains(edge) && !edge.is_aligned(run);
        let start = edge.align_down(run);
        inside.then(|| IpaRange::new_unchecked(start, start.offset(run)))
    })
}

struct Split<'t, P: TableMemory + Maintenance, G: Granule> {
    to: LeafSize,
    reserve: SpareTables<'t, P, G>,
}

impl<P: TableMemory + Maintenance, G: Granule> Split<'_, P, G> {
    /// Splits what the level-2 table at `entry` has to pages: block after block, at a level that the compiler knows,
    /// and all else as the walk would.
    fn blocks(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<(), Error> {
        const PLAIN: u64 = bits::VALID | bits::TABLE | bits::CONTIGUOUS | bits::BUSY | bits::NT;
        for (slot, ipa) in entry.children(IpaRange::new_unchecked(
            part.start().align_down(Level::L2.bytes::<G>()),
            part.end().offset(Level::L2.bytes::<G>() - 1).align_down(Level::L2.bytes::<G>()),
        )) {
            let block = Entry::at(slot, Level::L2, ipa, Descriptor(table.load(slot)));
            let plain = [Some(block.range()), None];
            let is_block = block.value.0 & PLAIN == bits::VALID && part.covers(block.range());
            if !is_block || !table.split_leaf(&block, &plain, &mut self.reserve)? {
                let inside = block.range().intersection(part).unwrap_or(part);
                table.visit_table(entry.value.address_of::<G>(), Level::L2, inside, self)?;
            }
        }
        Ok(())
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Visitor<P, G> for Split<'_, P, G> {
    #[inline(always)]
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error> {
        let Some(below) = entry.level.below().filter(|_| entry.is_leaf() && entry.level != self.to.level()) else {
            // The level is the one asked for, or below: only a run may be too large.
            if entry.is_run_member() && entry.size() > self.to {
                table.split_run(entry);
                return Ok(Next::Retry);
            }
            return Ok(Next::Continue);
        };
        if entry.size() <= self.to {
            return Ok(Next::Continue);
        }
        let too_large = LeafSize::at(below, true) > self.to;
        let plain = [too_large.then_some(part), None];
        let done = table.split_leaf(entry, &plain, &mut self.reserve)?;
        Ok(if done && LeafSize::at(below, false) <= self.to { Next::Continue } else { Next::Retry })
    }

    #[inline(always)]
    fn enter(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<bool, Error> {
        if !cfg!(feature = "small") && entry.level == Level::L1 && self.to == LeafSize::Page {
            self.blocks(table, entry, part)?;
            return Ok(false);
        }
        // Pages have nothing to split unless there may be runs.
        Ok(entry.level != Level::L2 || self.to == LeafSize::Page && table.config.contiguous)
    }
}
