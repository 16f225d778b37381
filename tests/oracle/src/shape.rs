//! What follows from the translation granule: how much a descriptor of each level translates, how long a run is, and where a
//! descriptor has its address. The numbers are the Arm ARM's (D8.2, D8.3.1, D8.7.1), not the engine's.

use stage2::descriptor::bits;
use stage2::{Granule, Level, PhysAddr, Slot};

/// Where descriptors, VTTBR_EL2 and range TLBIs have their addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// 48 bits, in their places.
    Bits48,
    /// FEAT_LPA, with the 64 KiB granule: bits 51:48 of an address are bits 15:12 of a descriptor.
    Lpa,
    /// FEAT_LPA2, with VTCR_EL2.DS = 1: bits 51:50 of an address are bits 9:8 of a descriptor, in the place of SH.
    Lpa2,
}

/// A translation granule, as the model knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// log2 of the bytes in a page, and in a table.
    pub(crate) page: u8,
    /// log2 of the pages in a contiguous run.
    page_run: u8,
    /// log2 of the blocks in one.
    block_run: u8,
    format: Format,
}

impl Shape {
    /// That of 4 KiB.
    pub const PAGE_4K: Self = Self { page: 12, page_run: 4, block_run: 4, format: Format::Bits48 };

    /// That of a granule of the engine's.
    #[must_use]
    pub const fn of<G: Granule>() -> Self {
        let format = match (G::SHIFT, G::ADDRESS_BITS) {
            (_, 48) => Format::Bits48,
            (16, _) => Format::Lpa,
            _ => Format::Lpa2,
        };
        match G::SHIFT {
            14 => Self { page: 14, page_run: 7, block_run: 5, format },
            16 => Self { page: 16, page_run: 5, block_run: 5, format },
            _ => Self { format, ..Self::PAGE_4K },
        }
    }

    /// With runs of other lengths, log2 of their pages and of their blocks: as if the engine had them wrong.
    #[must_use]
    pub const fn with_runs(self, page_run: u8, block_run: u8) -> Self {
        Self { page_run, block_run, ..self }
    }

    /// Bits of an address, at most.
    #[must_use]
    pub const fn address_bits(self) -> u8 {
        if matches!(self.format, Format::Bits48) { 48 } else { 52 }
    }

    /// The bits of a descriptor that have its address.
    pub(crate) const fn address_mask(self) -> u64 {
        let from_page = !(self.bytes() - 1);
        match self.format {
            Format::Bits48 => from_page & ((1 << 48) - 1),
            Format::Lpa => from_page & ((1 << 48) - 1) | 0xf << 12,
            Format::Lpa2 => from_page & ((1 << 50) - 1) | 3 << 8,
        }
    }

    /// The address that a descriptor has, of the next table or of memory.
    #[must_use]
    pub const fn address(self, value: u64) -> PhysAddr {
        let plain = value & self.address_mask() & !(self.bytes() - 1);
        PhysAddr(match self.format {
            Format::Bits48 => plain,
            Format::Lpa => plain | (value >> 12 & 0xf) << 48,
            Format::Lpa2 => plain | (value >> 8 & 3) << 50,
        })
    }

    /// The bits of a descriptor that have bits 51:48 of its address.
    pub(crate) const fn high_mask(self) -> u64 {
        match self.format {
            Format::Bits48 => 0,
            Format::Lpa => 0xf << 12,
            Format::Lpa2 => 3 << 48 | 3 << 8,
        }
    }

    /// The bits of a leaf that say memory type and, where they do, shareability.
    pub(crate) const fn type_mask(self) -> u64 {
        bits::MEM_ATTR | if matches!(self.format, Format::Lpa2) { 0 } else { bits::SHAREABILITY }
    }

    /// log2 of the bytes that BaseADDR of a range TLBI counts in.
    pub(crate) const fn base_shift(self) -> u8 {
        if matches!(self.format, Format::Lpa2) { 16 } else { self.page }
    }

    /// The address that a range TLBI begins at whose BaseADDR is `base` in units of `1 << unit` bytes.
    pub(crate) const fn base(self, base: u64, unit: u8) -> u64 {
        base >> unit << self.base_shift()
    }

    /// log2 of the bytes that a descriptor of `level` translates.
    pub(crate) const fn shift(self, level: Level) -> u8 {
        self.page + (self.page - 3) * (3 - level as u8)
    }

    /// log2 of the bytes that a table of `level` translates.
    pub(crate) const fn table_shift(self, level: Level) -> u8 {
        self.shift(level) + self.page - 3
    }

    /// log2 of the descriptors in a run, each of which translates `1 << shift` bytes.
    pub(crate) const fn run_shift(self, shift: u8) -> u8 {
        if shift == self.page { self.page_run } else { self.block_run }
    }

    /// Descriptors in a table.
    pub(crate) const fn entries(self) -> usize {
        1 << (self.page - 3)
    }

    /// Bytes in a page, and in a table.
    pub(crate) const fn bytes(self) -> u64 {
        1 << self.page
    }

    /// The slot as one of its table, where it is said as one of a frame of 4 KiB that is a part of the table.
    pub(crate) const fn slot(self, slot: Slot) -> Slot {
        let table = slot.table.align_down(self.bytes());
        Slot { table, index: slot.index + (slot.table.0 - table.0) as usize / 8 }
    }

    /// Frames of 4 KiB that a table takes.
    pub(crate) const fn frames(self) -> usize {
        1 << (self.page - 12)
    }

    /// Whether there are blocks at `level`, or pages (D8.3.1).
    pub(crate) const fn has_leaves(self, level: Level) -> bool {
        let large = !matches!(self.format, Format::Bits48);
        match level {
            Level::L0 => large && self.page == 12,
            Level::L1 => large || self.page == 12,
            Level::L2 | Level::L3 => true,
        }
    }

    /// Bytes of the largest leaf.
    pub(crate) const fn largest(self) -> u64 {
        if self.has_leaves(Level::L0) {
            1 << self.shift(Level::L0)
        } else if self.has_leaves(Level::L1) {
            1 << self.shift(Level::L1)
        } else {
            1 << (self.shift(Level::L2) + self.block_run)
        }
    }

    /// The level that walks of `ipa_bits` bits start at, and how many tables the root is: the lowest level that needs no more than
    /// sixteen (D8.2.2). `None` where there are no such IPA spaces.
    pub(crate) fn root(self, ipa_bits: u8) -> Option<(Level, usize)> {
        let levels = if self.page == 12 { [Level::L1, Level::L0] } else { [Level::L2, Level::L1] };
        let levels = levels.into_iter().chain((self.page == 14).then_some(Level::L0));
        let tables = |level| 1 << ipa_bits.saturating_sub(self.table_shift(level));
        let mut roots = levels.map(|level| (level, tables(level))).filter(|&(_, tables)| tables <= 16);
        roots.next().filter(|_| (32..=self.address_bits()).contains(&ipa_bits))
    }

    /// What hardware makes of VTCR_EL2 and VTTBR_EL2: bits of IPA, start level, and the root's address. `None` if the registers are
    /// for another granule or format, or the architecture has no such walk (`AArch64.S2StartLevel`, `S2InvalidSL`,
    /// `S2InconsistentSL`).
    pub(crate) fn walk(self, vtcr: u64, vttbr: u64) -> Option<(u8, Level, PhysAddr)> {
        let (sl0, ds, sl2) = (vtcr >> 6 & 3, vtcr >> 32 & 1, vtcr >> 33 & 1);
        let tg0 = match self.page {
            12 => 0,
            14 => 2,
            _ => 1,
        };
        let ipa_bits = 64 - (vtcr & 0x3f) as u8;
        let level = match (self.page, sl0) {
            (12, 2) | (14, 3) => Level::L0,
            (12, 1) | (14 | 16, 2) => Level::L1,
            (12, 0) | (14 | 16, 1) => Level::L2,
            _ => return None,
        };
        let (least, most) = (self.shift(level) + 1, self.table_shift(level) + 4);
        let lpa2 = matches!(self.format, Format::Lpa2);
        let fits = vtcr >> 14 & 3 == tg0 && (ds == 1) == lpa2 && sl2 == 0 && (least..=most).contains(&ipa_bits);
        // A[51:48], where PS allows for output addresses of 52 bits.
        let high = if self.address_bits() == 52 && vtcr >> 16 & 7 == 6 { (vttbr >> 2 & 0xf) << 48 } else { 0 };
        fits.then_some((ipa_bits, level, PhysAddr(high | vttbr & ((1 << 48) - 1) & !(self.bytes() - 1))))
    }
}
