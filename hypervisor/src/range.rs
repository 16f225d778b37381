//! Ranges of physical addresses, and what is left of some when others are taken out.

use alloc::vec::Vec;
use core::fmt;

/// Bytes from `start` up to, not including, `end`; never wraps round the address space.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysRange {
    start: u64,
    end: u64,
}

impl PhysRange {
    /// The bytes from `start` up to `end`, or nothing when `end` lies below `start`.
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start <= end { Some(Self { start, end }) } else { None }
    }

    /// `size` bytes from `start` on, or nothing when that runs past the end of the address space.
    pub const fn with_size(start: u64, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// First byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes.
    pub const fn size(self) -> u64 {
        self.end - self.start
    }

    /// Whether there is no byte in it.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether `address` lies in it.
    pub const fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Whether all of `other` lies in it.
    pub const fn contains_range(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether at least one byte lies in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end && !self.is_empty() && !other.is_empty()
    }

    /// Its first `bytes` bytes, or all of it when there are not more.
    pub const fn at_most(self, bytes: u64) -> Self {
        if self.size() > bytes { Self { start: self.start, end: self.start + bytes } } else { self }
    }

    /// The smallest range of whole `granule`-byte units around it, or nothing when that runs past the end of the
    /// address space. `granule` is a power of two.
    pub const fn grown_to(self, granule: u64) -> Option<Self> {
        match self.end.checked_next_multiple_of(granule) {
            Some(end) => Some(Self { start: self.start & !granule.wrapping_sub(1), end }),
            None => None,
        }
    }

    /// The largest range of whole `granule`-byte units inside it, or nothing when there is not one such unit.
    /// `granule` is a power of two.
    pub const fn shrunk_to(self, granule: u64) -> Option<Self> {
        let end = self.end & !granule.wrapping_sub(1);
        match self.start.checked_next_multiple_of(granule) {
            Some(start) if start < end => Some(Self { start, end }),
            _ => None,
        }
    }
}

impl fmt::Display for PhysRange {
    /// As users write a range: `0x40000000-0x60000000`, the end exclusive.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}

impl fmt::Debug for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Sorts ranges and joins those that touch or overlap; empty ones go.
pub fn merged(mut ranges: Vec<PhysRange>) -> Vec<PhysRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    let mut joined: Vec<PhysRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// What is left of `ranges` when every byte of `holes` is taken out; sorted, joined.
pub fn without(ranges: &[PhysRange], holes: &[PhysRange]) -> Vec<PhysRange> {
    let mut left = merged(ranges.to_vec());
    for hole in merged(holes.to_vec()) {
        let mut next = Vec::with_capacity(left.len() + 1);
        for range in left {
            if !range.overlaps(hole) {
                next.push(range);
                continue;
            }
            let below = PhysRange::new(range.start, hole.start).filter(|part| !part.is_empty());
            let above = PhysRange::new(hole.end, range.end).filter(|part| !part.is_empty());
            next.extend(below.into_iter().chain(above));
        }
        left = next;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(start, end).unwrap()
    }

    #[test]
    fn a_range_never_wraps() {
        assert_eq!(PhysRange::new(2, 1), None);
        assert_eq!(PhysRange::with_size(u64::MAX, 2), None);
        assert_eq!(PhysRange::with_size(u64::MAX, 0), Some(range(u64::MAX, u64::MAX)));
        assert_eq!(range(0, u64::MAX).grown_to(0x1000), None);
        assert_eq!(range(u64::MAX - 1, u64::MAX).shrunk_to(0x1000), None);
    }

    #[test]
    fn overlap_needs_a_common_byte() {
        assert!(range(0, 10).overlaps(range(9, 11)));
        assert!(!range(0, 10).overlaps(range(10, 11)));
        assert!(!range(0, 10).overlaps(range(5, 5)));
        assert!(range(0, 10).contains_range(range(0, 10)));
        assert!(!range(0, 10).contains_range(range(0, 11)));
    }

    #[test]
    fn growing_and_shrinking_keep_whole_granules() {
        assert_eq!(range(0x1001, 0x1fff).grown_to(0x1000), Some(range(0x1000, 0x2000)));
        assert_eq!(range(0x1001, 0x3fff).shrunk_to(0x1000), Some(range(0x2000, 0x3000)));
        assert_eq!(range(0x1001, 0x2fff).shrunk_to(0x1000), None);
    }

    #[test]
    fn a_range_is_cut_behind_its_first_bytes() {
        assert_eq!(range(0x1000, 0x3000).at_most(0x800), range(0x1000, 0x1800));
        assert_eq!(range(0x1000, 0x1800).at_most(0x800), range(0x1000, 0x1800));
        assert_eq!(range(u64::MAX - 1, u64::MAX).at_most(u64::MAX), range(u64::MAX - 1, u64::MAX));
    }

    #[test]
    fn merging_joins_what_touches() {
        let ranges = alloc::vec![range(8, 9), range(4, 6), range(0, 2), range(2, 4), range(7, 7)];
        assert_eq!(merged(ranges), [range(0, 6), range(8, 9)]);
    }

    #[test]
    fn holes_are_taken_out_everywhere() {
        let ram = [range(0, 100), range(200, 300)];
        assert_eq!(without(&ram, &[]), ram);
        assert_eq!(without(&ram, &[range(0, 100)]), [range(200, 300)]);
        assert_eq!(
            without(&ram, &[range(250, 400), range(10, 20), range(15, 30), range(90, 210)]),
            [range(0, 10), range(30, 90), range(210, 250)]
        );
        assert_eq!(without(&ram, &[range(50, 50)]), ram);
    }
}
