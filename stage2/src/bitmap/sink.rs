//! What harvests report into, and what clears are told by: a page set, or a plain bitmap in memory that others use too.

use crate::arch::address::{Ipa, IpaRange};
use crate::arch::granule::Granule;
use crate::bitmap::page_set::{BLOCK_WORDS, Layout, PageSet, WORD_PAGES};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The number of bits that are set, of some that are; quick for those that harvests have most of.
#[inline(always)]
fn population(bits: u64) -> u64 {
    // Asked in this way the compiler does not count the bits to find out.
    if bits >> bits.trailing_zeros() == 1 { 1 } else { population_of_many(bits) }
}

// Out of line: what it needs would take the registers of a harvest.
#[cold]
#[inline(never)]
fn population_of_many(bits: u64) -> u64 {
    if bits == u64::MAX { 64 } else { u64::from(bits.count_ones()) }
}

/// What takes in the pages that a harvest finds. Each method returns how many were added that were not there before,
/// where that is counted.
pub(crate) trait Sink<G: Granule> {
    /// Pages of word `index` of level 0.
    fn insert_word(&mut self, index: usize, bits: u64) -> u64;
    /// All pages of the block of 2 MiB whose first word of level 0 is `first`.
    #[inline(always)]
    fn insert_block(&mut self, first: usize) -> u64 {
        (first..first + BLOCK_WORDS).map(|word| self.insert_word(word, u64::MAX)).sum()
    }
    /// Pages from `ipa` on, a bit each, that all lie in one word.
    #[inline(always)]
    fn insert_pages(&mut self, ipa: Ipa, bits: u64) -> u64 {
        let first = self.layout().bit(ipa);
        self.insert_word(first / WORD_PAGES, bits << (first % WORD_PAGES))
    }
    /// All pages of a range.
    fn insert_range(&mut self, range: IpaRange) -> u64;
    /// Where the pages are.
    fn layout(&self) -> &Layout<G>;
}

/// What tells the pages that are to be clean.
pub(crate) trait Pages {
    /// Whether all pages of `range` are among them.
    fn contains_range(&self, range: IpaRange) -> bool;
    /// Calls `each` with every word of level 0 that has any, upwards. Some of the bits may lie outside of the range.
    fn each_word(&self, each: impl FnMut(usize, u64));
}

/// A bitmap without summaries, in memory that others may read and write at the same time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedBitmap<'b, G: Granule> {
    layout: &'b Layout<G>,
    words: &'b [AtomicU64],
}

impl<'b, G: Granule> SharedBitmap<'b, G> {
    // By value: what a harvest reports into stays in registers.
    #[cold]
    #[inline(never)]
    fn insert_all(mut self, range: IpaRange) -> u64 {
        self.layout.words_of(range).map(|word| self.insert_word(word, self.layout.mask(word, range))).sum()
    }

    pub(crate) fn new(layout: &'b Layout<G>, words: &'b [AtomicU64]) -> Self {
        Self { layout, words }
    }
}

impl<G: Granule> Sink<G> for SharedBitmap<'_, G> {
    #[inline(always)]
    fn insert_word(&mut self, index: usize, bits: u64) -> u64 {
        let Some(word) = self.words.get(index) else { return 0 };
        let before = word.load(Relaxed);
        let new = bits & !before;
        if new == 0 {
            // Where nothing is new, nothing is written: others may have changed the word meanwhile.
            return 0;
        }
        word.store(before | bits, Relaxed);
        population(new)
    }

    #[inline(always)]
    fn insert_block(&mut self, first: usize) -> u64 {
        match self.words.get(first..).and_then(<[_]>::first_chunk::<BLOCK_WORDS>) {
            // Commonly none of them is there yet.
            Some(words) if words.iter().fold(0, |any, word| any | word.load(Relaxed)) == 0 => {
                words.iter().for_each(|word| word.store(u64::MAX, Relaxed));
                (BLOCK_WORDS * WORD_PAGES) as u64
            }
            _ => (first..first + BLOCK_WORDS).map(|word| self.insert_word(word, u64::MAX)).sum(),
        }
    }

    #[inline(always)]
    fn insert_range(&mut self, range: IpaRange) -> u64 {
        Self::insert_all(*self, range)
    }

    #[inline(always)]
    fn layout(&self) -> &Layout<G> {
        self.layout
    }
}

impl<G: Granule> Pages for SharedBitmap<'_, G> {
    fn contains_range(&self, range: IpaRange) -> bool {
        self.layout.words_of(range).all(|index| {
            let mask = self.layout.mask(index, range);
            self.words.get(index).is_some_and(|word| word.load(Relaxed) & mask == mask)
        })
    }

    #[inline(always)]
    fn each_word(&self, mut each: impl FnMut(usize, u64)) {
        for (index, word) in self.words.iter().enumerate().take(self.layout.page_words()) {
            match word.load(Relaxed) {
                0 => {}
                bits => each(index, bits),
            }
        }
    }
}

/// The owner of a set can ask it how many pages it has, so none are counted here.
impl<G: Granule> Sink<G> for PageSet<'_, G> {
    #[inline(always)]
    fn insert_word(&mut self, index: usize, bits: u64) -> u64 {
        PageSet::insert_word(self, index, bits);
        0
    }

    fn insert_range(&mut self, range: IpaRange) -> u64 {
        PageSet::insert_range(self, range);
        0
    }

    #[inline(always)]
    fn layout(&self) -> &Layout<G> {
        PageSet::layout(self)
    }
}

impl<G: Granule> Pages for PageSet<'_, G> {
    fn contains_range(&self, range: IpaRange) -> bool {
        PageSet::contains_range(self, range)
    }

    #[inline(always)]
    fn each_word(&self, each: impl FnMut(usize, u64)) {
        PageSet::each_word(self, each);
    }
}
