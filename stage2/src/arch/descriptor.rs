//! One 64-bit stage-2 descriptor: what it is, what it grants.
//!
//! Source: Arm ARM (DDI 0487) D8.3.1 (descriptor formats), D8.4.2 (stage-2 permissions), D8.5 (hardware update).

use crate::arch::address::PhysAddr;
use crate::arch::geometry::Level;
use crate::arch::granule::{self, Granule, Granule4K};
use core::fmt;

pub use crate::arch::attributes::{Attributes, Execute, MemoryType, Permissions};
pub(crate) use crate::arch::attributes::{OWNER_BITS, PERMISSION_BITS, execute_rights, is_device};
pub use crate::arch::bits;

/// One descriptor's value.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Descriptor(pub u64);

/// What a descriptor means at its level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Not valid, and no PE is at work on it.
    Invalid,
    /// Being changed by a PE: wait. Invalid for a break, nT set, or read-only for a hardware-tracked split.
    Busy,
    /// Points to the next level's table.
    Table(PhysAddr),
    /// A block or a page: the output address, and whether it is part of a contiguous run.
    Leaf {
        /// Where this entry's first byte maps to.
        output: PhysAddr,
        /// The Contiguous bit.
        contiguous: bool,
    },
}

impl Descriptor {
    /// The invalid descriptor.
    pub const INVALID: Descriptor = Descriptor(0);
    /// Invalid, and a PE will soon make it valid again.
    pub const BROKEN: Descriptor = Descriptor(bits::BUSY);

    /// A leaf taken out for a break, with all that it says but that it is valid: it remembers itself.
    #[must_use]
    #[inline(always)]
    pub(crate) const fn break_entry(self) -> Self {
        Self(self.0 & !bits::VALID | bits::BUSY)
    }

    /// The leaf that [`Descriptor::broken`] made invalid. What was invalid before stays so.
    #[must_use]
    #[inline(always)]
    pub(crate) const fn restore(self) -> Self {
        let value = self.0 & !bits::BUSY;
        if value == Self::INVALID.0 { Self::INVALID } else { Self(value | bits::VALID) }
    }

    /// A table descriptor, with 48-bit addresses. Table descriptors of stage 2 carry no attributes.
    #[must_use]
    #[inline(always)]
    pub const fn table(frame: PhysAddr) -> Self {
        Self::table_of::<Granule4K>(frame)
    }

    /// A table descriptor of the granule's.
    #[must_use]
    #[inline(always)]
    pub const fn table_of<G: Granule>(frame: PhysAddr) -> Self {
        Self(granule::encode::<G>(frame) | bits::TABLE | bits::VALID)
    }

    /// A leaf at `level`, with 48-bit addresses and `attributes` from [`Attributes::encode`], or copied from another leaf.
    #[must_use]
    #[inline(always)]
    pub const fn leaf(level: Level, output: PhysAddr, attributes: u64) -> Self {
        Self::leaf_of::<Granule4K>(level, output, attributes)
    }

    /// A leaf of the granule's. Where its address takes the place of SH, that is left out.
    #[must_use]
    #[inline(always)]
    pub const fn leaf_of<G: Granule>(level: Level, output: PhysAddr, attributes: u64) -> Self {
        let kind = match level {
            Level::L3 => bits::VALID | bits::TABLE,
            _ => bits::VALID,
        };
        Self(granule::encode::<G>(output) | attributes & !(G::ADDRESS | bits::VALID | bits::TABLE) | kind)
    }

    /// Whether the hardware can use it.
    #[must_use]
    #[inline(always)]
    pub const fn is_valid(self) -> bool {
        self.0 & bits::VALID != 0
    }

    /// Whether it points to a table, at a level that has tables.
    #[must_use]
    #[inline(always)]
    pub const fn is_table(self, level: Level) -> bool {
        self.0 & (bits::VALID | bits::TABLE) == bits::VALID | bits::TABLE && !matches!(level, Level::L3)
    }

    /// Whether a PE is at work on it.
    #[must_use]
    #[inline(always)]
    pub const fn is_busy(self, level: Level) -> bool {
        // Bit 16 is an address bit in tables and pages.
        let nt =
            !matches!(level, Level::L3) && self.0 & (bits::VALID | bits::TABLE | bits::NT) == bits::VALID | bits::NT;
        self.0 & bits::BUSY != 0 || nt
    }

    /// What it is at `level`, with the 4 KiB granule and 48-bit addresses.
    #[must_use]
    #[inline(always)]
    pub const fn kind(self, level: Level) -> Kind {
        self.kind_of::<Granule4K>(level)
    }

    /// What it is at `level`.
    #[must_use]
    #[inline(always)]
    pub const fn kind_of<G: Granule>(self, level: Level) -> Kind {
        if self.is_busy(level) {
            Kind::Busy
        } else if !self.is_valid() {
            Kind::Invalid
        } else if self.is_table(level) {
            Kind::Table(self.address_of::<G>())
        } else {
            Kind::Leaf { output: self.address_of::<G>(), contiguous: self.is_contiguous() }
        }
    }

    /// The address field, of 48 bits: next table, or output address.
    #[must_use]
    #[inline(always)]
    pub const fn address(self) -> PhysAddr {
        self.address_of::<Granule4K>()
    }

    /// The address field.
    #[must_use]
    #[inline(always)]
    pub const fn address_of<G: Granule>(self) -> PhysAddr {
        granule::decode::<G>(self.0)
    }

    /// The Contiguous bit.
    #[must_use]
    #[inline(always)]
    pub const fn is_contiguous(self) -> bool {
        self.0 & bits::CONTIGUOUS != 0
    }

    /// A leaf whose writes are let through by S2AP or marked by hardware.
    #[must_use]
    #[inline(always)]
    pub const fn is_writable(self) -> bool {
        self.0 & bits::VALID != 0 && self.0 & (bits::WRITE | bits::DBM) != 0
    }

    /// A leaf that is write-protected for a log: its owner grants writes, and the first one faults.
    #[must_use]
    #[inline(always)]
    pub const fn is_write_protected(self) -> bool {
        self.0 & (bits::VALID | bits::WRITE_GRANTED | bits::WRITE | bits::DBM) == bits::VALID | bits::WRITE_GRANTED
    }

    /// Whether hardware dirty state is kept in it.
    #[must_use]
    #[inline(always)]
    pub const fn has_dbm(self) -> bool {
        self.0 & bits::DBM != 0
    }

    /// A leaf's attributes, as its owner asked for them.
    #[must_use]
    pub const fn attributes(self) -> Attributes {
        Attributes::decode(self.0)
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Descriptor({:#018x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_block_matches_the_architecture() {
        // Block, MemAttr 0b1111, S2AP 0b11, SH 0b11, AF; XN 0.
        let d = Descriptor::leaf(Level::L2, PhysAddr(0x4020_0000), Attributes::RAM.encode());
        assert_eq!(d.0 & !bits::WRITE_GRANTED, 0x4020_07fd);
        assert_eq!(d.kind(Level::L2), Kind::Leaf { output: PhysAddr(0x4020_0000), contiguous: false });
        assert_eq!(d.attributes(), Attributes::RAM);
    }

    #[test]
    fn device_page_matches_the_architecture() {
        let d = Descriptor::leaf(Level::L3, PhysAddr(0x0900_0000), Attributes::DEVICE.encode());
        assert_eq!(d.0 & !bits::WRITE_GRANTED, 0x0040_0000_0900_04c7);
        assert_eq!(d.attributes(), Attributes::DEVICE);
        assert!(!d.is_table(Level::L3), "bit 1 of a page does not make it a table");
    }

    #[test]
    fn kinds() {
        assert_eq!(Descriptor::INVALID.kind(Level::L1), Kind::Invalid);
        assert_eq!(Descriptor::BROKEN.kind(Level::L3), Kind::Busy);
        assert_eq!(Descriptor::table(PhysAddr(0x1_0000)).kind(Level::L1), Kind::Table(PhysAddr(0x1_0000)));
        let block = Descriptor::leaf(Level::L2, PhysAddr(0x20_0000), Attributes::RAM.encode());
        assert_eq!(Descriptor(block.0 | bits::NT).kind(Level::L2), Kind::Busy);
        // Bit 16 belongs to the address of a page.
        let page = Descriptor::leaf(Level::L3, PhysAddr(0x1_0000), Attributes::RAM.encode());
        assert_eq!(page.kind(Level::L3), Kind::Leaf { output: PhysAddr(0x1_0000), contiguous: false });
    }

    #[test]
    fn a_leaf_takes_attributes_from_a_leaf_of_another_level_and_nothing_else() {
        let (block, page) = (PhysAddr(0x4020_0000), PhysAddr(0x8000_3000));
        let block_of = |attributes| Descriptor::leaf(Level::L2, block, attributes);
        let page_of = |attributes| Descriptor::leaf(Level::L3, page, attributes);
        let ram = Attributes::RAM.encode();
        assert_eq!(page_of(block_of(ram).0), page_of(ram));
        assert_eq!(block_of(page_of(ram).0), block_of(ram));
        assert_eq!(page_of(page_of(ram).break_entry().0 & !bits::BUSY), page_of(ram));
    }

    #[test]
    fn what_is_broken_lets_nothing_through_and_comes_back() {
        for output in [0, 0x20_0000] {
            let leaf = Descriptor::leaf(Level::L2, PhysAddr(output), Attributes::RAM.encode());
            let broken = leaf.break_entry();
            assert!(!broken.is_valid() && !broken.is_writable() && broken.kind(Level::L2) == Kind::Busy);
            assert!(!Descriptor(leaf.0 & !bits::VALID & !bits::WRITE | bits::DBM).is_writable());
            assert_eq!(broken.restore(), leaf);
        }
        assert_eq!(Descriptor::BROKEN.restore(), Descriptor::INVALID);
    }

    #[test]
    fn tracking_is_told_from_denial() {
        let ram = Descriptor::leaf(Level::L3, PhysAddr(0), Attributes::RAM.encode());
        assert!(ram.is_writable() && !ram.is_write_protected());
        let dirty_log = Descriptor(ram.0 & !bits::WRITE);
        assert!(!dirty_log.is_writable() && dirty_log.is_write_protected());
        assert!(dirty_log.attributes().permissions.write, "the owner still grants writes");
        let denied = Attributes { permissions: Permissions::READ_EXECUTE, ..Attributes::RAM };
        let denied = Descriptor::leaf(Level::L3, PhysAddr(0), denied.encode());
        assert!(!denied.is_writable() && !denied.is_write_protected());
    }
}
