//! What a table looks like to its owner: leaves, counts, and whether anything has changed.

use crate::arch::address::{Ipa, IpaRange, PhysAddr};
use crate::arch::descriptor::{Attributes, Descriptor, Kind, bits};
use crate::arch::geometry::{LeafSize, Level};
use crate::arch::granule::{Granule, Granule4K};
use crate::platform::{Maintenance, TableMemory};
use crate::table::Stage2;
use crate::table::walk::{Entry, slots};

/// A leaf of the table, as [`Stage2::walk`] and [`Stage2::leaves`] show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The leaf's first address.
    pub ipa: Ipa,
    /// Its size; a contiguous run is one leaf.
    pub size: LeafSize,
    /// Where the first address maps to.
    pub output: PhysAddr,
    /// What its owner asked for.
    pub attributes: Attributes,
    /// Writes are granted, and the first one faults, for a log.
    pub write_protected: bool,
    /// Hardware keeps dirty state in it.
    pub hardware_tracked: bool,
    /// Bytes that it translates, which depend on the granule.
    pub(crate) bytes: u64,
}

impl Leaf {
    /// What the leaf translates.
    #[must_use]
    pub fn range(&self) -> IpaRange {
        IpaRange::new_unchecked(self.ipa, self.ipa.offset(self.bytes))
    }

    fn of<G: Granule>(entry: &Entry<G>) -> Option<Leaf> {
        let Kind::Leaf { output, .. } = entry.value.kind_of::<G>(entry.level) else {
            return None;
        };
        let size = entry.size();
        let bytes = size.bytes_of::<G>();
        Some(Leaf {
            ipa: entry.ipa.align_down(bytes),
            size,
            output: output.align_down(bytes),
            attributes: entry.value.attributes(),
            write_protected: entry.value.is_write_protected(),
            hardware_tracked: entry.value.has_dbm(),
            bytes,
        })
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// The leaf that translates `ipa`, or `None` where nothing is mapped (or a break is under way).
    ///
    /// Cost: one load a level.
    #[must_use]
    pub fn walk(&self, ipa: Ipa) -> Option<Leaf> {
        if ipa.0 >> self.geometry.ipa_bits() != 0 {
            return None;
        }
        Leaf::of(&self.lookup_stable(ipa))
    }

    /// All leaves that translate any of `range`, in ascending order. Runs on while others change the table: each leaf
    /// is as it was when it was reached.
    pub fn leaves(&self, range: IpaRange) -> Leaves<'_, P, G> {
        Leaves { table: self, next: range.start(), end: range.end().min(self.geometry.range().end()) }
    }

    /// Number of tables, the root's included, and of leaves by size in the order of [`LeafSize::DESCENDING`].
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = Census { tables: 0, leaves: [0; LeafSize::DESCENDING.len()] };
        self.census_of(self.root, self.geometry.start_level(), self.geometry.root_tables(), &mut census);
        census
    }

    fn census_of(&self, first: PhysAddr, level: Level, tables: usize, census: &mut Census) {
        census.tables += tables;
        for slot in slots::<G>(first, tables) {
            let value = Descriptor(self.load(slot));
            match (value.kind_of::<G>(level), level.below()) {
                (Kind::Table(next), Some(below)) => self.census_of(next, below, 1, census),
                (Kind::Leaf { contiguous: true, .. }, _) if slot.index % level.run::<G>() != 0 => {}
                (Kind::Leaf { contiguous, .. }, _) => {
                    let size = LeafSize::at(level, contiguous);
                    census.leaves[LeafSize::DESCENDING.len() - 1 - size as usize] += 1;
                }
                _ => {}
            }
        }
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
            let entry = self.lookup_stable(ipa);
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
        self.in_flight.epoch()
    }
}

/// How much there is of what: [`Stage2::census`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Census {
    /// Tables, of a page each, the root's included.
    pub tables: usize,
    /// Leaves, in the order of [`LeafSize::DESCENDING`].
    pub leaves: [usize; LeafSize::DESCENDING.len()],
}

/// Iterator over leaves: [`Stage2::leaves`].
#[derive(Debug)]
pub struct Leaves<'t, P, G: Granule = Granule4K> {
    table: &'t Stage2<P, G>,
    next: Ipa,
    end: Ipa,
}

impl<P: TableMemory + Maintenance, G: Granule> Iterator for Leaves<'_, P, G> {
    type Item = Leaf;

    fn next(&mut self) -> Option<Leaf> {
        while self.next < self.end {
            let entry = self.table.lookup_stable(self.next);
            match Leaf::of(&entry) {
                Some(leaf) => {
                    self.next = leaf.range().end();
                    return Some(leaf);
                }
                None => self.next = entry.range().end(),
            }
        }
        None
    }
}
