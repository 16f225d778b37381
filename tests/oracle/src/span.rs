//! What one descriptor translates: an aligned range of a power of two of bytes.

use crate::shape::Shape;
use core::fmt;
use core::ops::Range;
use stage2::{Ipa, IpaRange, Level};

/// An aligned range of `1 << shift` bytes of IPA space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Span {
    pub shift: u8,
    pub base: u64,
    /// log2 of the entries in a run of such descriptors.
    run: u8,
}

impl Span {
    /// What a descriptor of `level` translates that lies at `index` of a table for `table_base` and on.
    pub fn entry(shape: Shape, level: Level, table_base: u64, index: usize) -> Self {
        let shift = shape.shift(level);
        Self { shift, base: table_base + ((index as u64) << shift), run: shape.run_shift(shift) }
    }

    /// What a whole table of `level` translates.
    pub fn table(shape: Shape, level: Level, base: u64) -> Self {
        let shift = shape.table_shift(level);
        Self { shift, base, run: shape.run_shift(shift) }
    }

    /// The run that the entry would be cached with if it had the Contiguous bit.
    pub fn run(self) -> Self {
        let shift = self.shift + self.run;
        Self { shift, base: self.base >> shift << shift, run: 0 }
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
pub(crate) fn page(shape: Shape, ipa: Ipa) -> Range<u64> {
    let start = ipa.align_down(shape.bytes()).0;
    start..start + shape.bytes()
}
