//! The shape of the tables: levels, leaf sizes, start level and concatenated root tables for the 4 KiB granule.
//!
//! Source: Arm ARM (DDI 0487) D8.2, "Translation process", and D8.2.2 for concatenated stage-2 tables.

use crate::arch::address::{Ipa, IpaRange, PAGE_SHIFT, PAGE_SIZE};
use crate::arch::error::Error;
use core::fmt;

/// Descriptors in one 4 KiB table.
pub const ENTRIES: usize = 512;
/// Descriptors in a contiguous run (4 KiB granule, levels 2 and 3; D8.7.1).
pub const RUN: usize = 16;

/// A lookup level. Level 0 has tables only; levels 1 and 2 have blocks; level 3 has pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Level {
    /// 512 GiB an entry.
    L0 = 0,
    /// 1 GiB an entry.
    L1 = 1,
    /// 2 MiB an entry.
    L2 = 2,
    /// 4 KiB an entry.
    L3 = 3,
}

impl Level {
    /// log2 of the bytes that one entry of this level maps.
    #[must_use]
    #[inline(always)]
    pub const fn shift(self) -> u32 {
        PAGE_SHIFT + 9 * (3 - self as u32)
    }

    /// Bytes that one entry of this level maps.
    #[must_use]
    #[inline(always)]
    pub const fn entry_bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The level below, towards the pages; level 3 has none.
    #[must_use]
    #[inline(always)]
    pub const fn below(self) -> Option<Level> {
        match self {
            Level::L0 => Some(Level::L1),
            Level::L1 => Some(Level::L2),
            Level::L2 => Some(Level::L3),
            Level::L3 => None,
        }
    }

    /// The level above, towards the root; level 0 has none.
    #[must_use]
    #[inline(always)]
    pub const fn above(self) -> Option<Level> {
        match self {
            Level::L0 => None,
            Level::L1 => Some(Level::L0),
            Level::L2 => Some(Level::L1),
            Level::L3 => Some(Level::L2),
        }
    }

    /// Index of `ipa`'s entry in a table of this level (not the root, which may be concatenated).
    #[must_use]
    #[inline(always)]
    pub const fn index(self, ipa: Ipa) -> usize {
        (ipa.0 >> self.shift()) as usize & (ENTRIES - 1)
    }
}

/// The sizes that a leaf can have, smallest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum LeafSize {
    /// One level-3 page of 4 KiB.
    Page,
    /// Sixteen pages with the Contiguous bit: 64 KiB.
    Contiguous64K,
    /// One level-2 block of 2 MiB.
    Block2M,
    /// Sixteen 2 MiB blocks with the Contiguous bit: 32 MiB.
    Contiguous32M,
    /// One level-1 block of 1 GiB.
    Block1G,
}

impl LeafSize {
    /// All sizes, largest first.
    pub const DESCENDING: [LeafSize; 5] =
        [LeafSize::Block1G, LeafSize::Contiguous32M, LeafSize::Block2M, LeafSize::Contiguous64K, LeafSize::Page];

    /// Bytes that the leaf maps, which is also its alignment.
    #[must_use]
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        match self {
            LeafSize::Page => PAGE_SIZE,
            LeafSize::Contiguous64K => RUN as u64 * PAGE_SIZE,
            LeafSize::Block2M => 2 << 20,
            LeafSize::Contiguous32M => RUN as u64 * (2 << 20),
            LeafSize::Block1G => 1 << 30,
        }
    }

    /// The level whose entries make up the leaf.
    #[must_use]
    #[inline(always)]
    pub const fn level(self) -> Level {
        match self {
            LeafSize::Page | LeafSize::Contiguous64K => Level::L3,
            LeafSize::Block2M | LeafSize::Contiguous32M => Level::L2,
            LeafSize::Block1G => Level::L1,
        }
    }

    /// Whether the leaf is a run of entries with the Contiguous bit.
    #[must_use]
    #[inline(always)]
    pub const fn is_contiguous(self) -> bool {
        matches!(self, LeafSize::Contiguous64K | LeafSize::Contiguous32M)
    }

    /// The size of a leaf entry at `level`, with or without the Contiguous bit. Level 0 has no leaves without LPA2, and
    /// the engine writes no Contiguous bit at level 1.
    #[must_use]
    #[inline(always)]
    pub(crate) const fn at(level: Level, contiguous: bool) -> LeafSize {
        match (level, contiguous) {
            (Level::L0 | Level::L1, _) => LeafSize::Block1G,
            (Level::L2, true) => LeafSize::Contiguous32M,
            (Level::L2, false) => LeafSize::Block2M,
            (Level::L3, true) => LeafSize::Contiguous64K,
            (Level::L3, false) => LeafSize::Page,
        }
    }
}

impl fmt::Display for LeafSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LeafSize::Block1G => "1 GiB",
            LeafSize::Contiguous32M => "32 MiB",
            LeafSize::Block2M => "2 MiB",
            LeafSize::Contiguous64K => "64 KiB",
            LeafSize::Page => "4 KiB",
        })
    }
}

/// Size of the IPA space and the tables that its root needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    ipa_bits: u8,
    start_level: Level,
    /// log2 of the bytes that an entry of the root maps.
    root_shift: u8,
    root_tables: usize,
}

impl Geometry {
    /// The geometry for `ipa_bits` bits of IPA space: 32 to 48.
    ///
    /// The highest start level that concatenation allows is used (up to 16 root tables, D8.2.2): level 1 up to 43 bits,
    /// level 0 from 44.
    ///
    /// # Errors
    ///
    /// [`Error::BadIpaSize`] for any other number of bits.
    pub const fn new(ipa_bits: u8) -> Result<Self, Error> {
        let (start_level, root_tables) = match ipa_bits {
            32..=39 => (Level::L1, 1),
            40..=43 => (Level::L1, 1 << (ipa_bits - 39)),
            44..=48 => (Level::L0, 1),
            _ => return Err(Error::BadIpaSize { bits: ipa_bits }),
        };
        Ok(Self { ipa_bits, start_level, root_shift: start_level.shift() as u8, root_tables })
    }

    /// Bits of an IPA.
    #[must_use]
    pub const fn ipa_bits(self) -> u8 {
        self.ipa_bits
    }

    /// The level that a walk starts at.
    #[must_use]
    #[inline(always)]
    pub const fn start_level(self) -> Level {
        self.start_level
    }

    /// Tables concatenated at the start level: 1 to 16, in adjacent frames aligned to their total size.
    #[must_use]
    #[inline(always)]
    pub const fn root_tables(self) -> usize {
        self.root_tables
    }

    /// All of the IPA space.
    #[must_use]
    pub const fn range(self) -> IpaRange {
        IpaRange::new_unchecked(Ipa(0), Ipa(1 << self.ipa_bits))
    }

    /// Index of `ipa`'s entry in the concatenated root: up to 16 × 512 - 1.
    #[must_use]
    #[inline(always)]
    pub const fn root_index(self, ipa: Ipa) -> usize {
        (ipa.0 >> self.root_shift) as usize
    }

    /// VTCR_EL2.T0SZ (bits 5:0).
    #[must_use]
    pub const fn t0sz(self) -> u64 {
        64 - self.ipa_bits as u64
    }

    /// VTCR_EL2.SL0 (bits 7:6), for the 4 KiB granule: 2 starts at level 0, 1 at level 1.
    #[must_use]
    pub const fn sl0(self) -> u64 {
        match self.start_level {
            Level::L0 => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_level_and_root_follow_the_ipa_size() {
        let shape = |bits| Geometry::new(bits).map(|g| (g.start_level, g.root_tables, g.t0sz(), g.sl0()));
        assert_eq!(shape(32), Ok((Level::L1, 1, 32, 1)));
        assert_eq!(shape(39), Ok((Level::L1, 1, 25, 1)));
        assert_eq!(shape(40), Ok((Level::L1, 2, 24, 1)));
        assert_eq!(shape(43), Ok((Level::L1, 16, 21, 1)));
        assert_eq!(shape(44), Ok((Level::L0, 1, 20, 2)));
        assert_eq!(shape(48), Ok((Level::L0, 1, 16, 2)));
        for bits in [0, 31, 49, 52, 255] {
            assert_eq!(shape(bits), Err(Error::BadIpaSize { bits }));
        }
    }

    #[test]
    fn the_root_covers_the_ipa_space() {
        for bits in 32..=48 {
            let g = Geometry::new(bits).unwrap();
            let last = Ipa((1 << bits) - 1);
            assert!(g.root_index(last) < g.root_tables() * ENTRIES, "{bits} bits");
        }
    }

    #[test]
    fn sizes_and_levels_agree() {
        for size in LeafSize::DESCENDING {
            let entries = if size.is_contiguous() { RUN as u64 } else { 1 };
            assert_eq!(size.bytes(), entries * size.level().entry_bytes());
            assert_eq!(LeafSize::at(size.level(), size.is_contiguous()), size);
        }
        assert!(LeafSize::DESCENDING.is_sorted_by(|a, b| a > b && a.bytes() > b.bytes()));
    }
}
