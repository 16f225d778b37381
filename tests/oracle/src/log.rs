//! A dirty log: which pages may have been written since the last report.

use crate::span::intersection;
use core::ops::Range;

/// A range whose writes are to be reported.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub range: Range<u64>,
    /// One bit a page: it may have been written, unseen by hardware tracking or marked by it, since the last report.
    pub written: Vec<u64>,
}

impl Log {
    pub fn new(range: Range<u64>) -> Self {
        let pages = ((range.end - range.start) >> 12) as usize;
        Self { range, written: vec![0; pages.div_ceil(64)] }
    }

    pub fn pages(&self, range: &Range<u64>) -> Range<u64> {
        let part = intersection(&self.range, range);
        if part.is_empty() {
            return 0..0;
        }
        (part.start - self.range.start) >> 12..(part.end - self.range.start).div_ceil(4096)
    }

    pub fn note(&mut self, range: &Range<u64>) {
        for page in self.pages(range) {
            self.written[page as usize / 64] |= 1 << (page % 64);
        }
    }

    pub fn is_written(&self, page: u64) -> bool {
        self.written[page as usize / 64] >> (page % 64) & 1 != 0
    }

    pub fn forget(&mut self, page: u64) {
        self.written[page as usize / 64] &= !(1 << (page % 64));
    }
}
