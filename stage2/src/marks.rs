//! The bits that say which pages of a log are dirty, in the shape of a [`PageSet`](crate::PageSet), set and taken by many
//! PEs at once.

use crate::address::{Ipa, IpaRange};
use crate::page_set::{BLOCK_WORDS, Layout, MAX_LEVELS, WORD_PAGES};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
    fence,
};

/// What is done with each word of level 0 that has marks. A closure will do; a method can be made to inline into the loop
/// that finds them, which a closure cannot.
pub(crate) trait EachWord {
    /// The marks `bits` of word `word`.
    fn word(&mut self, word: usize, bits: u64);
}

impl<F: FnMut(usize, u64)> EachWord for F {
    #[inline(always)]
    fn word(&mut self, word: usize, bits: u64) {
        self(word, bits);
    }
}

/// A bitmap that fault handlers set bits in while a harvest takes them.
///
/// A setter goes from level 0 up, a taker from the top down, all sequentially consistent: whichever comes first at a
/// word, either the taker finds the bit or the setter finds the summary cleared and sets it again.
///
/// A setter goes all the way up, though it need not write where a summary says it already: whoever has set the word's first
/// bit may not have come to the summary yet, and a harvest that begins when this setter is done has to find its bit.
///
/// The same holds between a mark and its descriptor (the handler writes the descriptor, then finds the mark set already;
/// the harvest takes the mark, then changes the descriptor), which is why the descriptors' read-modify-writes have to be
/// both acquire and release: see [`crate::TableMemory`].
#[derive(Debug)]
pub(crate) struct Marks {
    pub(crate) layout: Layout,
    words: &'static [AtomicU64],
}

impl Marks {
    /// No marks, of no log.
    pub(crate) const NONE: Self = Self { layout: Layout::NONE, words: &[] };

    /// A bitmap in `words`, all clear; nothing if there are fewer than [`Layout::words`].
    pub(crate) fn new(layout: Layout, words: &'static [AtomicU64]) -> Option<Self> {
        const ROUND: usize = 16;
        let words = words.get(..layout.words())?;
        // Relaxed: whoever uses it comes to it by the table, which its owner publishes.
        let (rounds, rest) = words.as_chunks::<ROUND>();
        rounds.iter().for_each(|round| round.iter().for_each(|word| word.store(0, Relaxed)));
        rest.iter().for_each(|word| word.store(0, Relaxed));
        Some(Self { layout, words })
    }

    /// Gives the memory back.
    pub(crate) fn take_words(&mut self) -> &'static [AtomicU64] {
        core::mem::take(&mut self.words)
    }

    /// Whether nothing is marked, as far as this PE has seen: one load.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.words.last().is_none_or(|top| top.load(SeqCst) == 0)
    }

    /// `index` is that of a word of level 0.
    #[inline(always)]
    fn set(&self, index: usize, bits: u64) {
        debug_assert!(index < self.layout.page_words() && self.words.len() == self.layout.words());
        // SAFETY: `new` has seen that all words of the layout are there.
        let word = |index| unsafe { self.words.get_unchecked(index) };
        word(index).fetch_or(bits, SeqCst);
        // In the levels above: that the block has marks.
        let mut index = index / BLOCK_WORDS;
        for offset in self.layout.above() {
            let word = word(offset + index / WORD_PAGES);
            if word.load(SeqCst) >> (index % WORD_PAGES) & 1 == 0 {
                word.fetch_or(1 << (index % WORD_PAGES), SeqCst);
            }
            index /= WORD_PAGES;
        }
    }

    /// Marks one page, which lies in the layout's range.
    #[inline(always)]
    pub(crate) fn mark(&self, ipa: Ipa) {
        let bit = self.layout.bit(ipa);
        self.set(bit / WORD_PAGES, 1 << (bit % WORD_PAGES));
    }

    /// Marks the pages of `range` that lie in the layout's range.
    pub(crate) fn mark_range(&self, range: IpaRange) {
        for word in self.layout.words_of(range) {
            self.set(word, self.layout.mask(word, range));
        }
    }

    /// Marks the pages of `bits` of one word of level 0.
    pub(crate) fn mark_word(&self, word: usize, bits: u64) {
        self.set(word, bits);
    }

    /// Takes what is marked of `bits` in one word of level 0. The summaries may keep saying that there is something.
    #[inline(always)]
    pub(crate) fn take_word(&self, word: usize, bits: u64) -> u64 {
        match self.words.get(word) {
            Some(cell) if cell.load(SeqCst) & bits != 0 => cell.fetch_and(!bits, SeqCst) & bits,
            _ => 0,
        }
    }

    /// Takes all marks: calls `each` with the index and the bits of each word of level 0 that has any, upwards.
    #[inline(always)]
    pub(crate) fn take_all(&self, each: &mut impl EachWord) {
        self.descend::<true>(each);
    }

    /// Shows all marks and leaves them.
    pub(crate) fn peek_all(&self, each: &mut impl EachWord) {
        self.descend::<false>(each);
    }

    /// What word `at` of all holds, and 0 instead of it if it is taken.
    #[inline(always)]
    fn word<const TAKE: bool>(&self, at: usize) -> u64 {
        match self.words.get(at) {
            Some(word) if word.load(SeqCst) == 0 => 0,
            Some(word) if TAKE => word.swap(0, SeqCst),
            Some(word) => word.load(SeqCst),
            None => 0,
        }
    }

    /// From the top down, and up again: a loop, since what `each` does is then in one place and no call.
    #[inline(always)]
    fn descend<const TAKE: bool>(&self, each: &mut impl EachWord) {
        let Some(word) = self.words.last() else { return };
        let mut bits = if TAKE { word.swap(0, SeqCst) } else { word.load(SeqCst) };
        // Of each level, the bits of the word that the way down went through which are still to be looked at.
        let mut left = [0; MAX_LEVELS];
        let top = self.layout.depth() - 1;
        let (mut level, mut index) = (top, 0);
        loop {
            if level == 1 {
                self.each_block::<TAKE>(index, bits, each);
                bits = 0;
            }
            while bits == 0 {
                if level >= top {
                    return;
                }
                level += 1;
                index /= WORD_PAGES;
                bits = left.get(level).copied().unwrap_or(0);
            }
            if let Some(left) = left.get_mut(level) {
                *left = bits & (bits - 1);
            }
            index = index * WORD_PAGES + bits.trailing_zeros() as usize;
            level -= 1;
            bits = self.word::<TAKE>(self.layout.offset(level) + index);
        }
    }

    /// The words of the blocks that `bits` of word `index` of level 1 name.
    #[inline(always)]
    fn each_block<const TAKE: bool>(&self, index: usize, mut bits: u64, each: &mut impl EachWord) {
        // Orders what was done to the summary before the looks at its words: all of them with one barrier.
        fence(SeqCst);
        while bits != 0 {
            let block = index * WORD_PAGES + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let first = block * BLOCK_WORDS;
            let Some(Ok(words)) = self.words.get(first..first + BLOCK_WORDS).map(<&[_; BLOCK_WORDS]>::try_from) else {
                return;
            };
            for (n, word) in words.iter().enumerate() {
                if word.load(Relaxed) == 0 {
                    continue;
                }
                let pages = if TAKE { word.swap(0, SeqCst) } else { word.load(SeqCst) };
                // Somebody else may have taken it.
                if pages != 0 {
                    each.word(first + n, pages);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::PAGE_SIZE;

    fn range(start: u64, bytes: u64) -> IpaRange {
        IpaRange::from_size(Ipa(start), bytes).unwrap()
    }

    fn marks(range: IpaRange) -> Marks {
        let layout = Layout::new(range);
        Marks::new(layout, Box::leak((0..layout.words()).map(|_| AtomicU64::new(9)).collect())).unwrap()
    }

    fn taken(marks: &Marks) -> Vec<u64> {
        let mut pages = Vec::new();
        marks.take_all(&mut |word: usize, bits: u64| {
            pages.extend((0..64).filter(|n| bits >> n & 1 != 0).map(|n| marks.layout.word_ipa(word).0 + n * PAGE_SIZE));
        });
        pages
    }

    /// Another PE has set its bit and not come to the summary yet.
    #[test]
    fn a_mark_beside_one_that_is_under_way_is_found() {
        for bytes in [4096, 64 << 20, 4 << 30] {
            let marks = marks(range(0, bytes));
            marks.words[0].store(1, SeqCst);
            marks.mark(Ipa(0));
            assert!(!marks.is_empty());
            assert_eq!(taken(&marks), [0], "{bytes:#x}");
        }
    }

    #[test]
    fn marks_are_taken_once_and_in_order() {
        let marks = marks(range(0x3f_f000, 1 << 32));
        for page in [0x3f_f000, 0x40_0000, 0x1000_0000, 0x1000_0000, 0x1_003f_e000] {
            marks.mark(Ipa(page));
        }
        let mut seen = Vec::new();
        marks.peek_all(&mut |word: usize, _: u64| seen.push(word));
        assert_eq!(seen.len(), 4);
        assert_eq!(taken(&marks), [0x3f_f000, 0x40_0000, 0x1000_0000, 0x1_003f_e000]);
        assert_eq!(taken(&marks), []);
    }

    #[test]
    fn a_range_marks_its_pages_and_no_others() {
        let marks = marks(range(0x5000, 0x10_0000));
        marks.mark_range(range(0, 0x6000));
        assert_eq!(taken(&marks), [0x5000]);
        marks.mark_range(range(0x3f000, 0x3000));
        assert_eq!(taken(&marks), [0x3f000, 0x40000, 0x41000]);
        marks.mark_range(range(0, 1 << 30));
        assert_eq!(taken(&marks).len(), 256);
    }

    #[test]
    fn setters_and_takers_lose_nothing() {
        let marks = marks(range(0, 1 << 26));
        let pages = (1 << 26) / PAGE_SIZE;
        let mut got = vec![0u32; pages as usize];
        std::thread::scope(|scope| {
            let setters: Vec<_> = (0..2)
                .map(|n| {
                    let marks = &marks;
                    scope.spawn(move || {
                        for i in 0..200_000u64 {
                            marks.mark(Ipa((i * 7919 + n) % pages * PAGE_SIZE));
                        }
                    })
                })
                .collect();
            while !setters.iter().all(|setter| setter.is_finished()) {
                for page in taken(&marks) {
                    got[(page / PAGE_SIZE) as usize] += 1;
                }
            }
        });
        for page in taken(&marks) {
            got[(page / PAGE_SIZE) as usize] += 1;
        }
        assert!(got.iter().all(|&times| times > 0));
    }
}
