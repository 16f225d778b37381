//! The one table walker that everything else uses.

use crate::arch::address::{Ipa, IpaRange, PhysAddr};
use crate::arch::descriptor::{Descriptor, Kind};
use crate::arch::error::Error;
use crate::arch::geometry::{LeafSize, Level};
use crate::arch::granule::Granule;
use crate::platform::counters::Event;
use crate::platform::{Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use core::marker::PhantomData;

/// A descriptor that a walk came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<G> {
    pub slot: Slot,
    pub level: Level,
    /// The first address that the entry translates.
    pub ipa: Ipa,
    pub value: Descriptor,
    granule: PhantomData<G>,
}

impl<G: Granule> Entry<G> {
    #[inline(always)]
    fn new(slot: Slot, level: Level, ipa: Ipa, value: Descriptor) -> Self {
        Self { slot, level, ipa, value, granule: PhantomData }
    }

    /// The entry of `level` that translates `ipa`.
    #[inline(always)]
    pub fn at(slot: Slot, level: Level, ipa: Ipa, value: Descriptor) -> Self {
        Self::new(slot, level, ipa.align_down(level.bytes::<G>()), value)
    }

    /// What the entry translates.
    #[inline(always)]
    pub fn range(&self) -> IpaRange {
        IpaRange::new_unchecked(self.ipa, self.ipa.offset(self.level.bytes::<G>()))
    }

    /// The run of entries that it belongs to.
    #[inline(always)]
    pub fn run(&self) -> IpaRange {
        let bytes = self.level.run::<G>() as u64 * self.level.bytes::<G>();
        let start = self.ipa.align_down(bytes);
        IpaRange::new_unchecked(start, start.offset(bytes))
    }

    #[inline(always)]
    pub fn is_leaf(&self) -> bool {
        self.value.is_valid()
    }

    #[inline(always)]
    pub fn is_run_member(&self) -> bool {
        self.value.is_valid() && self.value.is_contiguous()
    }

    /// Size of the leaf, a whole run where the entry is a member of one.
    pub fn size(&self) -> LeafSize {
        LeafSize::at(self.level, self.value.is_contiguous())
    }
}

/// What a visitor wants next.
pub(crate) enum Next {
    /// The entry is done with.
    Continue,
    /// The entry has changed, or is to be: read it again, and go down if it is a table now.
    Retry,
}

/// Something that goes over all entries of a range, in ascending order.
pub(crate) trait Visitor<P, G: Granule> {
    /// A leaf or an invalid entry that `part` of the range lies in. Busy entries have been waited for.
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error>;

    /// A table, before what is in it. `false` leaves out what is in it, and [`Visitor::leave`].
    #[inline(always)]
    fn enter(&mut self, _: &Stage2<P, G>, _entry: &Entry<G>, _part: IpaRange) -> Result<bool, Error> {
        Ok(true)
    }

    /// The table again, after what is in it.
    #[inline(always)]
    fn leave(&mut self, _: &Stage2<P, G>, _entry: &Entry<G>, _part: IpaRange) -> Result<(), Error> {
        Ok(())
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// The slot in the concatenated root tables.
    #[inline(always)]
    pub(crate) fn root_slot(&self, ipa: Ipa) -> Slot {
        let root_index = self.geometry.root_index(ipa);
        let index = root_index % G::ENTRIES;
        // The tables are adjacent; by this difference the compiler sees that the slot is, too.
        Slot { table: PhysAddr(self.root.0.wrapping_add(8 * (root_index as u64).wrapping_sub(index as u64))), index }
    }

    /// The slot for `ipa` in `table` of `level`; for the start level, anywhere in the root.
    #[inline(always)]
    pub(crate) fn slot(&self, table: PhysAddr, level: Level, ipa: Ipa) -> Slot {
        if level == self.geometry.start_level() {
            self.root_slot(ipa)
        } else {
            Slot { table, index: level.index_of::<G>(ipa) }
        }
    }

    /// Walks to the entry that translates `ipa` (or fails to). The entry may be busy. `ipa` lies in the IPA space.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn lookup(&self, ipa: Ipa) -> Entry<G> {
        let (mut slot, mut level) = (self.root_slot(ipa), self.geometry.start_level());
        while let Some(below) = level.below() {
            match self.step(slot, level, below, ipa) {
                Ok(next) => (slot, level) = (next, below),
                Err(value) => return Entry::at(slot, level, ipa, value),
            }
        }
        Entry::at(slot, level, ipa, Descriptor(self.load(slot)))
    }

    /// The slot of the page that `ipa` lies in, if there are tables down to level 3. `ipa` lies in the IPA space.
    #[inline(always)]
    pub(crate) fn page_slot(&self, ipa: Ipa) -> Option<Slot> {
        let slot = self.level_2_slot(ipa)?;
        self.step(slot, Level::L2, Level::L3, ipa).ok()
    }

    /// The same for the block of level 2.
    #[inline(always)]
    pub(crate) fn level_2_slot(&self, ipa: Ipa) -> Option<Slot> {
        let mut slot = self.root_slot(ipa);
        // With 4 KiB no walk starts as low as that, and the compiler is told so.
        if G::FRAMES > 1 && self.geometry.start_level() == Level::L2 {
            return Some(slot);
        }
        if self.geometry.start_level() == Level::L0 {
            slot = self.step(slot, Level::L0, Level::L1, ipa).ok()?;
        }
        self.step(slot, Level::L1, Level::L2, ipa).ok()
    }

    /// From an entry of `level` to the entry of `below` in the table that it points to; the entry itself if it points
    /// to none. With constant levels, as in [`Stage2::page_slot`], it takes half as many instructions as in a loop.
    #[inline(always)]
    pub(crate) fn step(&self, slot: Slot, level: Level, below: Level, ipa: Ipa) -> Result<Slot, Descriptor> {
        let value = Descriptor(self.load(slot));
        if value.is_table(level) {
            Ok(Slot { table: value.address_of::<G>(), index: below.index_of::<G>(ipa) })
        } else {
            Err(value)
        }
    }

    /// Like [`Stage2::lookup`], after any PE that is changing the entry has finished.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn lookup_stable(&self, ipa: Ipa) -> Entry<G> {
        loop {
            let entry = self.lookup(ipa);
            if !entry.value.is_busy(entry.level) {
                return entry;
            }
            self.wait_for(entry.slot, entry.level);
        }
    }

    /// Waits until the entry in `slot`, of a table of `level`, is no longer what it was when it was found busy. The PE
    /// that marked it waits for no other PE while it holds the mark, so this ends.
    #[cold]
    #[inline(never)]
    pub(crate) fn wait_for(&self, slot: Slot, level: Level) {
        self.count(Event::BusyWait);
        while Descriptor(self.load(slot)).is_busy(level) {
            self.platform.wait();
        }
    }

    /// Calls the visitor for each entry of the range that is no table, in ascending order.
    pub(crate) fn visit(&self, range: IpaRange, visitor: &mut impl Visitor<P, G>) -> Result<(), Error> {
        self.visit_table(self.root, self.geometry.start_level(), range, visitor)
    }

    /// [`Stage2::visit`] from `table` of level `top` down, which may be one that is not published yet.
    ///
    /// A loop, not a recursion: an embedder's stack may be small.
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn visit_table(
        &self,
        table: PhysAddr,
        top: Level,
        range: IpaRange,
        visitor: &mut impl Visitor<P, G>,
    ) -> Result<(), Error> {
        let (mut table, mut level, mut bytes) = (table, top, top.bytes::<G>());
        let (mut ipa, mut end) = (range.start(), range.end());
        // The tables that led here, each in its level's place.
        let mut above = [PhysAddr(0); Level::L3 as usize];
        loop {
            while ipa < end {
                let start = ipa.align_down(bytes);
                let part = IpaRange::new_unchecked(ipa, start.offset(bytes).min(end));
                let slot = self.slot(table, level, ipa);
                let entry = Entry::new(slot, level, start, Descriptor(self.load(slot)));
                match (entry.value.kind_of::<G>(level), level.below()) {
                    (Kind::Busy, _) => {
                        self.wait_for(entry.slot, entry.level);
                        continue;
                    }
                    (Kind::Table(next), Some(below)) => {
                        if visitor.enter(self, &entry, part)? {
                            if let Some(place) = above.get_mut(level as usize) {
                                *place = table;
                            }
                            (table, level, bytes, end) = (next, below, below.bytes::<G>(), part.end());
                            continue;
                        }
                    }
                    _ => {
                        if let Next::Retry = visitor.entry(self, &entry, part)? {
                            continue;
                        }
                    }
                }
                ipa = part.end();
            }
            // Back up, behind the entry that led to the table.
            let Some(parent) = level.above().filter(|_| level != top) else { return Ok(()) };
            let Some(&led_here) = above.get(parent as usize) else { return Ok(()) };
            let value = Descriptor::table_of::<G>(table);
            (table, level, bytes) = (led_here, parent, parent.bytes::<G>());
            let last = Ipa(end.0 - 1);
            let entry = Entry::new(self.slot(table, level, last), level, last.align_down(bytes), value);
            visitor.leave(self, &entry, IpaRange::new_unchecked(entry.ipa.max(range.start()), end))?;
            end = match level.above().filter(|_| level != top) {
                Some(above) => entry.ipa.align_down(above.bytes::<G>()).offset(above.bytes::<G>()).min(range.end()),
                None => range.end(),
            };
        }
    }
}

impl<G: Granule> Entry<G> {
    /// The entries of the table that this one leads to, as far as `part` reaches; nothing if it leads to none.
    #[inline(always)]
    pub fn children(&self, part: IpaRange) -> impl Iterator<Item = (Slot, Ipa)> + use<G> {
        let below = self.level.below().filter(|_| self.value.is_table(self.level));
        let (level, count) =
            below.map_or((Level::L3, 0), |level| (level, (part.bytes() >> level.shift_of::<G>()) as usize));
        let first = level.index_of::<G>(part.start());
        let table = self.value.address_of::<G>();
        (0..count).map(move |n| (Slot { table, index: first + n }, part.start().offset(n as u64 * level.bytes::<G>())))
    }
}

/// All slots of `tables` adjacent tables.
pub(crate) fn slots<G: Granule>(first: PhysAddr, tables: usize) -> impl Iterator<Item = Slot> {
    (0..tables * G::ENTRIES)
        .map(move |n| Slot { table: first.offset((n / G::ENTRIES) as u64 * G::BYTES), index: n % G::ENTRIES })
}
