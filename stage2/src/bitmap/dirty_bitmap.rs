//! The bits that say which pages of a log are dirty, in the shape of a [`PageSet`](crate::PageSet), set and taken by
//! many PEs at once.

use crate::arch::address::{Ipa, IpaRange};
use crate::arch::granule::{Granule, Granule4K};
use crate::bitmap::page_set::{BLOCK_WORDS, Layout, MAX_LEVELS, WORD_PAGES};
use crate::bitmap::sync::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
    fence,
};

/// What is done with the marks of each block of 2 MiB that has any. A closure will do; a method can be made to inline
/// into the loop that finds them, which a closure cannot.
pub(crate) trait EachBlock {
    /// A block of which a mark was set, as its summary says.
    fn block(&mut self, marks: BlockMarks<'_>);
}

impl<F: FnMut(BlockMarks<'_>)> EachBlock for F {
    #[inline(always)]
    fn block(&mut self, marks: BlockMarks<'_>) {
        self(marks);
    }
}

/// The marks of one block of 2 MiB: of the pages that one table translates.
#[derive(Clone, Copy)]
pub(crate) struct BlockMarks<'m> {
    /// Which block of the layout's.
    pub(crate) index: usize,
    words: &'m [AtomicU64; BLOCK_WORDS],
}

impl<'m> BlockMarks<'m> {
    /// The index of the block's first word.
    pub(crate) const fn first_word(self) -> usize {
        self.index * BLOCK_WORDS
    }

    /// Takes the marks if all 512 are set, and says whether they were.
    #[inline(always)]
    pub(crate) fn take_if_full(self) -> bool {
        if self.words.iter().any(|word| word.load(Relaxed) != u64::MAX) {
            return false;
        }
        // There is one taker, and setters set what is set already: this takes what was seen.
        for word in self.words {
            word.swap(0, SeqCst);
        }
        true
    }

    /// The words that have marks, upwards: taken, or looked at.
    #[inline(always)]
    pub(crate) fn marked<const TAKE: bool>(self) -> MarkedWords<'m, TAKE> {
        MarkedWords { block: self, left: marked_of(self.words) }
    }
}

/// The index and the bits of each word that has any: [`BlockMarks::marked`].
pub(crate) struct MarkedWords<'m, const TAKE: bool> {
    block: BlockMarks<'m>,
    /// A bit for each word that is not 0, the first word's on top.
    left: u64,
}

impl<const TAKE: bool> Iterator for MarkedWords<'_, TAKE> {
    type Item = (usize, u64);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, u64)> {
        while self.left != 0 {
            let n = self.left.leading_zeros() as usize;
            self.left &= !(1 << 63 >> n);
            // SAFETY: `marked_of` sets the upper eight bits only.
            let word = unsafe { self.block.words.get_unchecked(n) };
            let bits = if TAKE { word.swap(0, SeqCst) } else { word.load(SeqCst) };
            // Another PE may have taken it.
            if bits != 0 {
                return Some((self.block.first_word() + n, bits));
            }
        }
        None
    }
}

/// A bit for each word that is not 0, the first word's on top. Without branches: commonly there is one of eight.
#[inline(always)]
fn marked_of(words: &[AtomicU64; BLOCK_WORDS]) -> u64 {
    #[cfg(target_arch = "aarch64")]
    if crate::bitmap::sync::IN_MEMORY {
        let marked: u64;
        // SAFETY: loads of eight words that are there; LDP is two 64-bit single-copy atomic loads. The carry of the
        // comparison with 1 says that a word is not 0.
        unsafe {
            core::arch::asm!(
                "mov {marked}, #0",
                ".irp at, 0, 16, 32, 48",
                "ldp {a}, {b}, [{words}, #\\at]",
                "cmp {a}, #1",
                "adc {marked}, {marked}, {marked}",
                "cmp {b}, #1",
                "adc {marked}, {marked}, {marked}",
                ".endr",
                "lsl {marked}, {marked}, #{unused}",
                a = out(reg) _,
                b = out(reg) _,
                words = in(reg) words,
                marked = out(reg) marked,
                unused = const u64::BITS as usize - BLOCK_WORDS,
                options(nostack, readonly)
            );
        }
        return marked;
    }
    words.iter().enumerate().fold(0, |marked, (n, word)| marked | u64::from(word.load(Relaxed) != 0) << (63 - n))
}

/// The blocks that one word of level 1 names.
pub(crate) struct Blocks<'m> {
    blocks: &'m [[AtomicU64; BLOCK_WORDS]],
    first: usize,
    bits: u64,
}

impl<'m> Iterator for Blocks<'m> {
    type Item = BlockMarks<'m>;

    #[inline(always)]
    fn next(&mut self) -> Option<BlockMarks<'m>> {
        if self.bits == 0 {
            return None;
        }
        let index = self.first + self.bits.trailing_zeros() as usize;
        self.bits &= self.bits - 1;
        // The bitmap's memory is shared with the caller that gave it, which may have written anything.
        Some(BlockMarks { index, words: self.blocks.get(index)? })
    }
}

/// A bitmap that fault handlers set bits in while a harvest takes them.
///
/// A setter goes from level 0 up, a taker from the top down, all sequentially consistent: whichever comes first at a
/// word, either the taker finds the bit or the setter finds the summary cleared and sets it again.
///
/// A setter goes all the way up, though it need not write where a summary says it already: the PE that set the word's
/// first bit may not have come to the summary yet, and a harvest that begins when this setter is done has to find its
/// bit.
///
/// The same holds between a mark and its descriptor (the handler writes the descriptor, then finds the mark set
/// already; the harvest takes the mark, then changes the descriptor), which is why the descriptors' read-modify-writes
/// have to be both acquire and release: see [`crate::TableMemory`].
#[derive(Debug)]
pub(crate) struct DirtyBitmap<G: Granule = Granule4K> {
    pub(crate) layout: Layout<G>,
    words: &'static [AtomicU64],
    /// The last of the words: says whether there are any marks.
    top: &'static AtomicU64,
}

/// The top of a bitmap without words.
static NOTHING: AtomicU64 = AtomicU64::new(0);

impl<G: Granule> DirtyBitmap<G> {
    /// No marks, of no log.
    pub(crate) const NONE: Self = Self { layout: Layout::NONE, words: &[], top: &NOTHING };

    /// A bitmap in `words`, all clear; nothing if there are fewer than [`Layout::words`].
    pub(crate) fn new(layout: Layout<G>, words: &'static [AtomicU64]) -> Option<Self> {
        const ROUND: usize = 16;
        let words = words.get(..layout.words())?;
        // Relaxed: a PE that uses it comes to it by the table, which its owner publishes.
        let (rounds, rest) = words.as_chunks::<ROUND>();
        rounds.iter().for_each(|round| round.iter().for_each(|word| word.store(0, Relaxed)));
        rest.iter().for_each(|word| word.store(0, Relaxed));
        Some(Self { layout, words, top: words.last()? })
    }

    /// Where the words are: no two logs have the same.
    #[inline(always)]
    pub(crate) fn id(&self) -> usize {
        self.words.as_ptr().addr()
    }

    /// Gives the memory back, of which nothing is kept.
    pub(crate) fn take_words(&mut self) -> &'static [AtomicU64] {
        self.top = &NOTHING;
        core::mem::take(&mut self.words)
    }

    /// Whether nothing is marked, as far as this PE has seen: one load.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.top.load(SeqCst) == 0
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

    /// Whether one word says which blocks have marks: for up to 128 MiB.
    #[inline(always)]
    pub(crate) const fn is_flat(&self) -> bool {
        self.layout.depth() == 2
    }

    /// The blocks that have marks, of a bitmap that [is flat](DirtyBitmap::is_flat). The summary is taken; the blocks' marks
    /// are left to be.
    #[inline(always)]
    pub(crate) fn take_flat(&self) -> Blocks<'static> {
        self.blocks_of(0, self.top.swap(0, SeqCst))
    }

    /// Goes over all blocks that have marks, upwards. With `TAKE`, the summaries are taken, and `each` has to take the
    /// block's marks.
    #[inline(never)]
    pub(crate) fn each_block<const TAKE: bool>(&self, each: &mut impl EachBlock) {
        let mut bits = if TAKE { self.top.swap(0, SeqCst) } else { self.top.load(SeqCst) };
        // Of each level, the bits of the word that the way down went through which are still to be looked at.
        let mut left = [0; MAX_LEVELS];
        let top = self.layout.depth() - 1;
        let (mut level, mut index) = (top, 0);
        loop {
            if level == 1 {
                self.blocks_of(index, bits).for_each(|block| each.block(block));
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
            bits = match self.words.get(self.layout.offset(level) + index) {
                Some(word) if word.load(SeqCst) == 0 => 0,
                Some(word) if TAKE => word.swap(0, SeqCst),
                Some(word) => word.load(SeqCst),
                None => 0,
            };
        }
    }

    /// The blocks that `bits` of word `index` of level 1 name.
    #[inline(always)]
    fn blocks_of(&self, index: usize, bits: u64) -> Blocks<'static> {
        // Orders what was done to the summary before the looks at its words: all of them with one barrier.
        fence(SeqCst);
        let (blocks, _) = self.words.as_chunks::<BLOCK_WORDS>();
        Blocks { blocks, first: index * WORD_PAGES, bits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::PAGE_SIZE;

    fn range(start: u64, bytes: u64) -> IpaRange {
        IpaRange::from_size(Ipa(start), bytes).unwrap()
    }

    fn marks(range: IpaRange) -> DirtyBitmap {
        let layout = Layout::new(range);
        DirtyBitmap::new(layout, Box::leak((0..layout.words()).map(|_| AtomicU64::new(9)).collect())).unwrap()
    }

    fn taken(marks: &DirtyBitmap) -> Vec<u64> {
        let mut pages = Vec::new();
        marks.each_block::<true>(&mut |block: BlockMarks<'_>| {
            let mut add = |word, bits: u64| {
                pages.extend(
                    (0..64).filter(|n| bits >> n & 1 != 0).map(|n| marks.layout.word_ipa(word).0 + n * PAGE_SIZE),
                );
            };
            if block.take_if_full() {
                (0..BLOCK_WORDS).for_each(|n| add(block.first_word() + n, u64::MAX));
            } else {
                block.marked::<true>().for_each(|(word, bits)| add(word, bits));
            }
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
        marks.each_block::<false>(&mut |block: BlockMarks<'_>| {
            seen.extend(block.marked::<false>().map(|(word, _)| word))
        });
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
