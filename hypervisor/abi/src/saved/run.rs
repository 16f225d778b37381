//! Which pages a record has.

use super::{BLOCK_BYTES, Block};
use crate::page_hash::WORDS;

/// Words of a header before the runs.
pub(super) const HEADER_WORDS: usize = 8;
/// The most runs that a header has room for.
pub const MAX_RUNS: usize = WORDS - HEADER_WORDS;

const PAGE_BITS: u32 = 40;
const COUNT_BITS: u32 = 23;

/// Pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first page's address, divided by 4 KiB: 40 bits.
    pub page: u64,
    /// How many: 23 bits, not 0.
    pub count: u64,
    /// They are all zero, and not in the payload.
    pub zero: bool,
}

impl Run {
    /// The most pages of a run.
    pub const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;

    /// As it stands in a header: the page in bits 39:0, the count in bits 62:40, zero in bit 63.
    pub(super) const fn word(self) -> u64 {
        let page = self.page & ((1 << PAGE_BITS) - 1);
        page | (self.count & Self::MAX_COUNT) << PAGE_BITS | (self.zero as u64) << 63
    }

    pub(super) const fn of(word: u64) -> Self {
        let count = word >> PAGE_BITS & Self::MAX_COUNT;
        Self { page: word & ((1 << PAGE_BITS) - 1), count, zero: word >> 63 != 0 }
    }

    /// The first address.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.page * BLOCK_BYTES
    }

    /// The first address behind it.
    #[must_use]
    pub const fn end(self) -> u64 {
        (self.page + self.count) * BLOCK_BYTES
    }

    /// Pages of it in the payload.
    #[must_use]
    pub const fn in_payload(self) -> u64 {
        if self.zero { 0 } else { self.count }
    }
}

/// The runs of a header that was decoded. Of a block that was not, they may be anything.
pub fn runs(header: &Block) -> impl Iterator<Item = Run> + '_ {
    let count = header.get(6).map_or(0, |&count| count.min(MAX_RUNS as u64) as usize);
    header.iter().skip(HEADER_WORDS).take(count).map(|&word| Run::of(word))
}

/// Where the guest's memory lies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ram {
    ranges: [(u64, u64); Self::MOST],
    used: usize,
}

impl Ram {
    /// Ranges that there is room for.
    const MOST: usize = 32;

    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: [(0, 0); Self::MOST], used: 0 }
    }

    /// Adds a range by its first address and the first one behind it. Says whether there was room.
    pub fn push(&mut self, start: u64, end: u64) -> bool {
        let Some(slot) = self.ranges.get_mut(self.used) else { return false };
        *slot = (start, end);
        self.used += 1;
        true
    }

    /// The ranges.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().copied().take(self.used)
    }

    /// Whether all of a run is in one of the ranges.
    #[must_use]
    pub fn covers(&self, run: Run) -> bool {
        self.ranges().any(|(start, end)| start <= run.start() && run.end() <= end)
    }
}
