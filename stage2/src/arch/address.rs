//! Addresses and ranges: the two address spaces of stage 2 as types of their own.

use core::fmt;

/// Bytes in a page of the 4 KiB translation granule, of which all ranges are made.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// An intermediate physical address: what the guest calls physical.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Ipa(pub u64);

/// A physical address: what stage 2 puts out, and where tables lie.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(pub u64);

macro_rules! address {
    ($name:ident) => {
        impl $name {
            /// The address rounded down to a multiple of `size`, a power of two in bytes.
            #[must_use]
            #[inline(always)]
            pub const fn align_down(self, size: u64) -> Self {
                Self(self.0 & !(size - 1))
            }

            /// Whether the address is a multiple of `size`, a power of two in bytes.
            #[must_use]
            #[inline(always)]
            pub const fn is_aligned(self, size: u64) -> bool {
                self.0 & (size - 1) == 0
            }

            /// The address `bytes` further on; wraps like the hardware's adder, never panics.
            #[must_use]
            #[inline(always)]
            pub const fn offset(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(Ipa);
address!(PhysAddr);

/// A non-empty range of whole pages of IPA space, end excluded.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpaRange {
    start: Ipa,
    end: Ipa,
}

impl IpaRange {
    /// What no address lies in, and no range intersects: the place of a range that is not there.
    pub(crate) const NOTHING: Self = Self { start: Ipa(0), end: Ipa(0) };

    #[inline(always)]
    pub(crate) const fn is_nothing(self) -> bool {
        self.end.0 == 0
    }

    /// A range whose bounds the caller has shown to be whole pages in order.
    #[inline(always)]
    pub(crate) const fn new_unchecked(start: Ipa, end: Ipa) -> Self {
        debug_assert!(start.0 < end.0 && start.is_aligned(PAGE_SIZE) && end.is_aligned(PAGE_SIZE));
        Self { start, end }
    }

    /// The first address.
    #[must_use]
    #[inline(always)]
    pub const fn start(self) -> Ipa {
        self.start
    }

    /// The first address past the range.
    #[must_use]
    #[inline(always)]
    pub const fn end(self) -> Ipa {
        self.end
    }

    /// Bytes in the range; a positive multiple of [`PAGE_SIZE`].
    #[must_use]
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Pages in the range.
    #[must_use]
    #[inline(always)]
    pub const fn pages(self) -> u64 {
        self.bytes() >> PAGE_SHIFT
    }

    /// Whether `ipa` lies in the range.
    #[must_use]
    #[inline(always)]
    pub const fn contains(self, ipa: Ipa) -> bool {
        self.start.0 <= ipa.0 && ipa.0 < self.end.0
    }

    /// Whether all of `other` lies in the range.
    #[must_use]
    pub const fn covers(self, other: IpaRange) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// The part that both ranges have, if any.
    #[must_use]
    pub fn intersection(self, other: IpaRange) -> Option<IpaRange> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(IpaRange { start, end })
    }
}

impl fmt::Debug for IpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}..{:#x})", self.start.0, self.end.0)
    }
}

impl fmt::Display for IpaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start.0, self.end.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intersection_is_half_open() {
        let range = |a, b| IpaRange::new(Ipa(a), Ipa(b)).unwrap();
        assert_eq!(range(0x1000, 0x3000).intersection(range(0x3000, 0x4000)), None);
        assert_eq!(range(0x1000, 0x3000).intersection(range(0x2000, 0x4000)), Some(range(0x2000, 0x3000)));
        assert!(range(0x1000, 0x3000).covers(range(0x1000, 0x3000)));
        assert!(!range(0x1000, 0x3000).contains(Ipa(0x3000)));
    }
}
