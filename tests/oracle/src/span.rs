//! What one descriptor translates: an aligned range of a power of two of bytes.

use core::fmt;
use core::ops::Range;
use stage2::{Ipa, IpaRange, Level};

/// log2 of the entries in a contiguous run.
const RUN_SHIFT: u8 = 4;

/// An aligned range of `1 << shift` bytes of IPA space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Span {
    pub shift: u8,
    pub base: u64,
}

impl Span {
    /// What a descriptor of `level` translates that lies at `index` of a table for `table_base` and on.
    pub fn entry(level: Level, table_base: u64, index: usize) -> Self {
        let shift = level.shift() as u8;
        Self { shift, base: table_base + ((index as u64) << shift) }
    }

    /// What a whole table of `level` translates.
    pub fn table(level: Level, base: u64) -> Self {
        Self { shift: level.shift() as u8 + 9, base }
    }

    /// The run of sixteen that the entry would be cached with if it had the Contiguous bit.
    pub fn run(self) -> Self {
        let shift = self.shift + RUN_SHIFT;
        Self { shift, base: self.base >> shift << shift }
    }

    pub fn bytes(self) -> u64 {
        1 << self.shift
    }

    pub fn end(self) -> u64 {
        self.base + self.bytes()
    }

    pub fn range(self) -> Range<u64> {
        self.base..self.end()
    }

    pub fn overlaps(self, range: &Range<u64>) -> bool {
        self.base < range.end && range.start < self.end()
    }

    pub fn is_inside(self, range: &Range<u64>) -> bool {
        range.start <= self.base && self.end() <= range.end
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.base, self.end())
    }
}

/// The part that two ranges share; empty if they share none.
pub(crate) fn intersection(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// A range of the engine's as plain numbers.
pub(crate) fn plain(range: IpaRange) -> Range<u64> {
    range.start().0..range.end().0
}

/// The page of `ipa`.
pub(crate) fn page(ipa: Ipa) -> Range<u64> {
    let start = ipa.0 & !0xfff;
    start..start + 0x1000
}
