//! The shape of the tables: levels, leaf sizes, start level and concatenated root tables.
//!
//! Source: Arm ARM (DDI 0487) D8.2, "Translation process", and D8.2.2 for concatenated stage-2 tables.

use crate::arch::address::{Ipa, IpaRange};
use crate::arch::error::Error;
use crate::arch::granule::{Granule, Granule4K};
use core::fmt;

/// Descriptors in one 4 KiB table.
pub const ENTRIES: usize = 512;
/// Descriptors in a contiguous run (4 KiB granule, levels 2 and 3; D8.7.1).
pub const RUN: usize = 16;

/// A lookup level. Level 3 has pages, level 2 blocks; level 1 has blocks with 4 KiB or 52-bit addresses, level 0 with both.
/// There is a level −1, too, at which no walk of stage 2 needs to begin: see [`Geometry::with_granule`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Level {
    /// 512 GiB an entry, with the 4 KiB granule.
    L0 = 0,
    /// 1 GiB an entry; with 16 KiB 64 GiB, with 64 KiB 4 TiB.
    L1 = 1,
    /// 2 MiB an entry; 32 MiB, 512 MiB.
    L2 = 2,
    /// 4 KiB an entry; 16 KiB, 64 KiB.
    L3 = 3,
}

impl Level {
    /// log2 of the bytes that one entry of this level maps, with the 4 KiB granule.
    #[must_use]
    #[inline(always)]
    pub const fn shift(self) -> u32 {
        self.shift_of::<Granule4K>()
    }

    /// log2 of the bytes that one entry of this level maps.
    #[must_use]
    #[inline(always)]
    pub const fn shift_of<G: Granule>(self) -> u32 {
        G::SHIFT + (G::SHIFT - 3) * (3 - self as u32)
    }

    /// Bytes that one entry of this level maps, with the 4 KiB granule.
    #[must_use]
    #[inline(always)]
    pub const fn entry_bytes(self) -> u64 {
        self.bytes::<Granule4K>()
    }

    /// Bytes that one entry of this level maps.
    #[must_use]
    #[inline(always)]
    pub const fn bytes<G: Granule>(self) -> u64 {
        1 << self.shift_of::<G>()
    }

    /// Descriptors of this level, 2 or 3, in a contiguous run.
    #[must_use]
    #[inline(always)]
    pub const fn run<G: Granule>(self) -> usize {
        1 << if matches!(self, Level::L3) { G::PAGE_RUN_SHIFT } else { G::BLOCK_RUN_SHIFT }
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

    /// Index of `ipa`'s entry in a table of this level (not the root, which may be concatenated), with the 4 KiB granule.
    #[must_use]
    #[inline(always)]
    pub const fn index(self, ipa: Ipa) -> usize {
        self.index_of::<Granule4K>(ipa)
    }

    /// Index of `ipa`'s entry in a table of this level (not the root, which may be concatenated).
    #[must_use]
    #[inline(always)]
    pub const fn index_of<G: Granule>(self, ipa: Ipa) -> usize {
        (ipa.0 >> self.shift_of::<G>()) as usize & (G::ENTRIES - 1)
    }
}

/// The sizes that a leaf can have, smallest first. They are named after what they are with the 4 KiB granule; with the others
/// they are, level by level:
///
/// | | 4 KiB | 16 KiB | 64 KiB |
/// | --- | --- | --- | --- |
/// | [`LeafSize::Page`] | 4 KiB | 16 KiB | 64 KiB |
/// | [`LeafSize::Contiguous64K`] | 64 KiB | 2 MiB | 2 MiB |
/// | [`LeafSize::Block2M`] | 2 MiB | 32 MiB | 512 MiB |
/// | [`LeafSize::Contiguous32M`] | 32 MiB | 1 GiB | 16 GiB |
/// | [`LeafSize::Block1G`] | 1 GiB | 64 GiB with LPA2 | 4 TiB with LPA |
/// | [`LeafSize::Block512G`] | 512 GiB with LPA2 | – | – |
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum LeafSize {
    /// One page, of level 3.
    Page,
    /// A run of pages with the Contiguous bit.
    Contiguous64K,
    /// One block of level 2.
    Block2M,
    /// A run of blocks of level 2 with the Contiguous bit.
    Contiguous32M,
    /// One block of level 1.
    Block1G,
    /// One block of level 0.
    Block512G,
}

impl LeafSize {
    /// All sizes, largest first.
    pub const DESCENDING: [LeafSize; 6] = [
        LeafSize::Block512G,
        LeafSize::Block1G,
        LeafSize::Contiguous32M,
        LeafSize::Block2M,
        LeafSize::Contiguous64K,
        LeafSize::Page,
    ];

    /// Bytes that the leaf maps, which is also its alignment, with the 4 KiB granule.
    #[must_use]
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        self.bytes_of::<Granule4K>()
    }

    /// Bytes that the leaf maps, which is also its alignment.
    #[must_use]
    #[inline(always)]
    pub const fn bytes_of<G: Granule>(self) -> u64 {
        let entries = if self.is_contiguous() { self.level().run::<G>() } else { 1 };
        entries as u64 * self.level().bytes::<G>()
    }

    /// What the leaf maps with the granule, as people write it.
    #[must_use]
    pub const fn with_granule<G: Granule>(self) -> impl fmt::Display {
        Bytes(self.bytes_of::<G>())
    }

    /// The largest.
    pub(crate) const fn largest<G: Granule>() -> LeafSize {
        // Level 1 has blocks with 4 KiB or 52-bit addresses (D8.3.1).
        match G::SHIFT == 12 || G::ADDRESS_BITS == 52 {
            _ if G::LEVEL_0_BLOCKS => LeafSize::Block512G,
            true => LeafSize::Block1G,
            false => LeafSize::Contiguous32M,
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
            LeafSize::Block512G => Level::L0,
        }
    }

    /// Whether the leaf is a run of entries with the Contiguous bit.
    #[must_use]
    #[inline(always)]
    pub const fn is_contiguous(self) -> bool {
        matches!(self, LeafSize::Contiguous64K | LeafSize::Contiguous32M)
    }

    /// The size of a leaf entry at `level`, with or without the Contiguous bit, which the engine writes at levels 2 and 3 only.
    /// Where a level has no leaves it is above [`LeafSize::largest`].
    #[must_use]
    #[inline(always)]
    pub(crate) const fn at(level: Level, contiguous: bool) -> LeafSize {
        match (level, contiguous) {
            (Level::L0, _) => LeafSize::Block512G,
            (Level::L1, _) => LeafSize::Block1G,
            (Level::L2, true) => LeafSize::Contiguous32M,
            (Level::L2, false) => LeafSize::Block2M,
            (Level::L3, true) => LeafSize::Contiguous64K,
            (Level::L3, false) => LeafSize::Page,
        }
    }
}

/// The size that the leaf has with the 4 KiB granule.
impl fmt::Display for LeafSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_granule::<Granule4K>().fmt(f)
    }
}

/// A number of bytes, as people read it: a multiple of a KiB, MiB or GiB.
#[derive(Clone, Copy)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0.trailing_zeros() {
            30.. => (30, "GiB"),
            20.. => (20, "MiB"),
            _ => (10, "KiB"),
        };
        write!(f, "{} {unit}", self.0 >> shift)
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
    sl0: u8,
}

impl Geometry {
    /// The geometry for `ipa_bits` bits of IPA space: 32 to 48, with the 4 KiB granule.
    ///
    /// # Errors
    ///
    /// [`Error::BadIpaSize`] for any other number of bits.
    pub const fn new(ipa_bits: u8) -> Result<Self, Error> {
        Self::with_granule::<Granule4K>(ipa_bits)
    }

    /// The geometry for `ipa_bits` bits of IPA space: 32 to 48, or to 52 where the granule has 52-bit addresses.
    ///
    /// The start level is the lowest that concatenation allows (up to 16 root tables, D8.2.2): one load less for each walk.
    /// With the 4 KiB granule that is level 1 up to 43 bits and level 0 from 44, with 16 KiB level 2 up to 40 bits, level 1
    /// up to 51, with 64 KiB level 2 up to 46. So none is level −1 (VTCR_EL2.SL2): 52 bits are 16 tables of level 0.
    ///
    /// # Errors
    ///
    /// [`Error::BadIpaSize`] for any other number of bits.
    pub const fn with_granule<G: Granule>(ipa_bits: u8) -> Result<Self, Error> {
        if ipa_bits < 32 || ipa_bits as u32 > G::ADDRESS_BITS {
            return Err(Error::BadIpaSize { bits: ipa_bits });
        }
        let mut start_level = if G::SHIFT == 12 { Level::L1 } else { Level::L2 };
        while let Some(above) = start_level.above()
            && ipa_bits as u32 > above.shift_of::<G>() + 4
        {
            start_level = above;
        }
        // The bits that one table of the level resolves, and those below it.
        let table_bits = (start_level.shift_of::<G>() + G::SHIFT - 3) as u8;
        let root_tables = 1 << ipa_bits.saturating_sub(table_bits);
        let sl0 = if G::SHIFT == 12 { 2 - start_level as u8 } else { 3 - start_level as u8 };
        Ok(Self { ipa_bits, start_level, root_shift: start_level.shift_of::<G>() as u8, root_tables, sl0 })
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

    /// VTCR_EL2.SL0 (bits 7:6): 2, 1, 0 for level 0, 1, 2 with the 4 KiB granule, and one more with the others. SL2 is 0.
    #[must_use]
    pub const fn sl0(self) -> u64 {
        self.sl0 as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::granule::{Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Granule64KLpa};

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
    fn start_level_and_root_of_larger_granules() {
        fn shape<G: Granule>(bits: u8) -> (Level, usize, u64, u64) {
            let g = Geometry::with_granule::<G>(bits).unwrap();
            (g.start_level, g.root_tables, g.t0sz(), g.sl0())
        }
        let of_16k = shape::<Granule16K>;
        assert_eq!(of_16k(32), (Level::L2, 1, 32, 1));
        assert_eq!(of_16k(36), (Level::L2, 1, 28, 1));
        assert_eq!(of_16k(37), (Level::L2, 2, 27, 1));
        assert_eq!(of_16k(40), (Level::L2, 16, 24, 1));
        assert_eq!(of_16k(41), (Level::L1, 1, 23, 2));
        assert_eq!(of_16k(47), (Level::L1, 1, 17, 2));
        assert_eq!(of_16k(48), (Level::L1, 2, 16, 2));
        let of_64k = shape::<Granule64K>;
        assert_eq!(of_64k(32), (Level::L2, 1, 32, 1));
        assert_eq!(of_64k(42), (Level::L2, 1, 22, 1));
        assert_eq!(of_64k(46), (Level::L2, 16, 18, 1));
        assert_eq!(of_64k(47), (Level::L1, 1, 17, 2));
        assert_eq!(of_64k(48), (Level::L1, 1, 16, 2));
        assert_eq!(Geometry::with_granule::<Granule64K>(52), Err(Error::BadIpaSize { bits: 52 }));
        let lpa2_4k = shape::<Granule4KLpa2>;
        assert_eq!([lpa2_4k(43), lpa2_4k(44)], [(Level::L1, 16, 21, 1), (Level::L0, 1, 20, 2)]);
        assert_eq!([lpa2_4k(49), lpa2_4k(52)], [(Level::L0, 2, 15, 2), (Level::L0, 16, 12, 2)]);
        let lpa2_16k = shape::<Granule16KLpa2>;
        assert_eq!([lpa2_16k(48), lpa2_16k(51)], [(Level::L1, 2, 16, 2), (Level::L1, 16, 13, 2)]);
        assert_eq!(lpa2_16k(52), (Level::L0, 1, 12, 3));
        assert_eq!(shape::<Granule64KLpa>(52), (Level::L1, 1, 12, 2));
        assert_eq!(Geometry::with_granule::<Granule4KLpa2>(53), Err(Error::BadIpaSize { bits: 53 }));
    }

    #[test]
    fn the_root_covers_the_ipa_space() {
        fn covers<G: Granule>() {
            for bits in 32..=G::ADDRESS_BITS as u8 {
                let g = Geometry::with_granule::<G>(bits).unwrap();
                let last = Ipa((1 << bits) - 1);
                assert!(g.root_index(last) < g.root_tables() * G::ENTRIES, "{bits} bits");
            }
        }
        covers::<Granule4K>();
        covers::<Granule16K>();
        covers::<Granule64K>();
        covers::<Granule4KLpa2>();
        covers::<Granule16KLpa2>();
        covers::<Granule64KLpa>();
    }

    #[test]
    fn sizes_and_levels_agree() {
        for size in LeafSize::DESCENDING {
            assert_eq!(LeafSize::at(size.level(), size.is_contiguous()), size);
        }
        let sizes = |[_, bytes @ ..]: [u64; 6]| bytes.map(|bytes| Bytes(bytes).to_string());
        let of_4k = LeafSize::DESCENDING.map(LeafSize::bytes);
        let of_16k = LeafSize::DESCENDING.map(LeafSize::bytes_of::<Granule16K>);
        let of_64k = LeafSize::DESCENDING.map(LeafSize::bytes_of::<Granule64K>);
        assert_eq!(sizes(of_4k), ["1 GiB", "32 MiB", "2 MiB", "64 KiB", "4 KiB"]);
        assert_eq!(sizes(of_16k), ["64 GiB", "1 GiB", "32 MiB", "2 MiB", "16 KiB"]);
        assert_eq!(sizes(of_64k), ["4096 GiB", "16 GiB", "512 MiB", "2 MiB", "64 KiB"]);
        assert_eq!(of_4k[0], 512 << 30);
        let largest = [LeafSize::largest::<Granule4KLpa2>(), LeafSize::largest::<Granule16KLpa2>()];
        assert_eq!(largest, [LeafSize::Block512G, LeafSize::Block1G]);
        assert_eq!(LeafSize::largest::<Granule64KLpa>(), LeafSize::Block1G);
        for sizes in [of_4k, of_16k, of_64k] {
            assert!(sizes.is_sorted_by(|a, b| a > b));
        }
    }
}
