//! Translation granules: how large a page and a table are, which is all that the levels, blocks and runs follow from.
//!
//! Sources: Arm ARM (DDI 0487) D8.2 (levels by granule), D8.3.1 (where a descriptor has the address), D8.7.1 (contiguous runs).

use crate::arch::address::PhysAddr;
use crate::arch::bits;
use core::fmt::Debug;

mod sealed {
    pub trait Sealed {}
}

/// A translation granule, as a type: what follows from it are constants, so that code for one granule knows of no other.
pub trait Granule: sealed::Sealed + Copy + Eq + Debug + Send + Sync + 'static {
    /// log2 of [`Granule::BYTES`].
    const SHIFT: u32;
    /// log2 of the blocks of level 2 in a contiguous run (D8.7.1).
    const BLOCK_RUN_SHIFT: u32;
    /// log2 of the pages in a contiguous run (D8.7.1).
    const PAGE_RUN_SHIFT: u32;
    /// VTCR_EL2.TG0 (bits 15:14).
    const TG0: u64;
    /// Bits of an output address, and of an IPA, at most: 48, or 52 with FEAT_LPA (64 KiB) and FEAT_LPA2 (the others).
    const ADDRESS_BITS: u32;
    /// VTCR_EL2.DS, which FEAT_LPA2 is turned on by.
    const DS: bool = Self::ADDRESS_BITS == 52 && Self::SHIFT < 16;
    /// 52-bit addresses in the format of FEAT_LPA.
    const LPA: bool = Self::ADDRESS_BITS == 52 && !Self::DS;
    /// Whether entries of level 0 can be blocks (D8.3.1).
    const LEVEL_0_BLOCKS: bool = Self::DS && Self::SHIFT == 12;
    /// The bits of a descriptor that hold an address.
    const ADDRESS: u64 = if Self::DS { 0x0003_ffff_ffff_f300 } else { bits::ADDRESS };
    /// log2 of the bytes that BaseADDR of a range TLBI counts in: the granule's, or 64 KiB where VTCR_EL2.DS is 1.
    const BASE_SHIFT: u32 = if Self::DS { 16 } else { Self::SHIFT };
    /// Bytes in a page, and in a table.
    const BYTES: u64 = 1 << Self::SHIFT;
    /// Descriptors in a table.
    const ENTRIES: usize = 1 << (Self::SHIFT - 3);
    /// Frames of 4 KiB, in which [`TableMemory`](crate::TableMemory) counts, that a table takes.
    const FRAMES: usize = 1 << (Self::SHIFT - 12);
}

/// 4 KiB: blocks of 2 MiB and 1 GiB, runs of 64 KiB and 32 MiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule4K;

/// 16 KiB: blocks of 32 MiB, runs of 2 MiB and 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule16K;

/// 64 KiB: blocks of 512 MiB, runs of 2 MiB and 16 GiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule64K;

/// 4 KiB with 52-bit addresses (FEAT_LPA2): as [`Granule4K`], and blocks of 512 GiB. Descriptors have no place to say how
/// memory is shared: Normal memory is inner shareable, as VTCR_EL2 says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule4KLpa2;

/// 16 KiB with 52-bit addresses (FEAT_LPA2): as [`Granule16K`], and blocks of 64 GiB; shared as with [`Granule4KLpa2`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule16KLpa2;

/// 64 KiB with 52-bit addresses (FEAT_LPA): as [`Granule64K`], and blocks of 4 TiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Granule64KLpa;

/// log2 of bytes, of pages in a run, of blocks in a run; TG0; bits of an address.
macro_rules! granules {
    ($($name:ident: $shift:literal, $page_run:literal, $block_run:literal, $tg0:literal, $address_bits:literal;)*) => {
        $(impl sealed::Sealed for $name {}
        impl Granule for $name {
            const SHIFT: u32 = $shift;
            const PAGE_RUN_SHIFT: u32 = $page_run;
            const BLOCK_RUN_SHIFT: u32 = $block_run;
            const TG0: u64 = $tg0;
            const ADDRESS_BITS: u32 = $address_bits;
        })*
    };
}

granules! {
    Granule4K: 12, 4, 4, 0b00, 48;
    Granule16K: 14, 7, 5, 0b10, 48;
    Granule64K: 16, 5, 5, 0b01, 48;
    Granule4KLpa2: 12, 4, 4, 0b00, 52;
    Granule16KLpa2: 14, 7, 5, 0b10, 52;
    Granule64KLpa: 16, 5, 5, 0b01, 52;
}

/// An address in the bits of a descriptor that hold it: bits 51:50 in 9:8 (FEAT_LPA2), or 51:48 in 15:12 (FEAT_LPA).
#[inline(always)]
pub(crate) const fn encode<G: Granule>(address: PhysAddr) -> u64 {
    if G::DS {
        address.0 & 0x0003_ffff_ffff_f000 | address.0 >> 42 & 0x300
    } else if G::LPA {
        address.0 & 0x0000_ffff_ffff_0000 | address.0 >> 36 & 0xf000
    } else {
        address.0 & bits::ADDRESS
    }
}

/// The address that a descriptor holds.
#[inline(always)]
pub(crate) const fn decode<G: Granule>(value: u64) -> PhysAddr {
    if G::DS {
        PhysAddr(value & 0x0003_ffff_ffff_f000 | (value & 0x300) << 42)
    } else if G::LPA {
        PhysAddr(value & 0x0000_ffff_ffff_0000 | (value & 0xf000) << 36)
    } else {
        PhysAddr(value & bits::ADDRESS)
    }
}
