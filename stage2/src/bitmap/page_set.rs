//! Sets of pages: one bit a page, with summary words above, so that going over a set costs by its pages and not by the
//! size of memory.
//!
//! Level 0 has a bit a page. Each bit of level 1 says that one of the eight words of a block of 2 MiB may be nonzero:
//! one cache line, and one table of pages to look up. Each bit of level n + 1 from there on says so of a word of level
//! n; the top is one word. A 64 GiB range has four levels, the upper three of which are a 504th of its bitmap.

use crate::arch::address::{Ipa, IpaRange, PAGE_SIZE};
use crate::arch::granule::{Granule, Granule4K};
use core::marker::PhantomData;

/// Pages that one word of a bitmap stands for.
pub const WORD_PAGES: usize = 64;
/// Words of a bitmap that stand for the pages of 2 MiB: the words of level 0 that one bit of level 1 stands for.
pub const BLOCK_WORDS: usize = 8;
/// Enough for a 48-bit IPA space: 512 × 64^5 pages are more. (They are half of one of 52 bits, in pages of 4 KiB.)
pub(crate) const MAX_LEVELS: usize = 6;

/// Where the bits of a range are among the words of a bitmap.
#[derive(Clone, Copy, Debug)]
pub struct Layout<G: Granule = Granule4K> {
    range: IpaRange,
    base: Ipa,
    /// The first word of each level; 0 for the pages', and for levels that are not there.
    offsets: [usize; MAX_LEVELS],
    levels: usize,
    /// Words of level 0, and of all levels.
    page_words: usize,
    words: usize,
    granule: PhantomData<G>,
}

/// All of a layout follows from its range.
impl<G: Granule> PartialEq for Layout<G> {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.range == other.range
    }
}

impl<G: Granule> Eq for Layout<G> {}

impl Layout {
    /// The layout for the pages of `range`, which are those of the 4 KiB granule.
    #[must_use]
    pub fn new(range: IpaRange) -> Self {
        Self::with_granule(range)
    }
}

impl<G: Granule> Layout<G> {
    /// No pages.
    pub(crate) const NONE: Self = Self {
        range: IpaRange::NOTHING,
        base: Ipa(0),
        offsets: [0; MAX_LEVELS],
        levels: 0,
        page_words: 0,
        words: 0,
        granule: PhantomData,
    };

    /// The layout for the pages of `range`, which are the granule's. A part of a page stands for the page.
    #[must_use]
    pub fn with_granule(range: IpaRange) -> Self {
        let range = if G::FRAMES > 1 { whole_pages::<G>(range) } else { range };
        let base = range.start().align_down((BLOCK_WORDS * WORD_PAGES) as u64 * G::BYTES);
        let pages = ((range.end().0 - base.0) >> G::SHIFT) as usize;
        let page_words = pages.div_ceil(WORD_PAGES);
        let blocks = page_words.div_ceil(BLOCK_WORDS);
        let mut offsets = [0; MAX_LEVELS];
        // Level 0 is whole blocks, so that no word of one is missing.
        let (mut below, mut words, mut levels) = (blocks, blocks * BLOCK_WORDS, 1);
        for offset in offsets.iter_mut().skip(1) {
            let level_words = below.div_ceil(WORD_PAGES);
            *offset = words;
            words += level_words;
            levels += 1;
            if level_words == 1 {
                break;
            }
            below = level_words;
        }
        if G::ADDRESS_BITS == 52 && pages > 512 << (6 * (MAX_LEVELS - 1)) {
            // The top would be more than one word. No memory is enough for that.
            words = usize::MAX;
        }
        Self { range, base, offsets, levels, page_words, words, granule: PhantomData }
    }

    /// The range that the bits stand for.
    #[must_use]
    pub const fn range(&self) -> IpaRange {
        self.range
    }

    /// 64-bit words that a bitmap of this layout takes: a little more than one for 64 pages.
    #[must_use]
    pub const fn words(&self) -> usize {
        self.words
    }

    /// The first so many of these words have a bit for each page: see [`PageSet::bitmap`].
    #[must_use]
    pub const fn page_words(&self) -> usize {
        self.page_words
    }

    /// The first word of each level above the pages', upwards. Levels that are not there have 0.
    #[inline(always)]
    pub(crate) fn above(&self) -> impl Iterator<Item = usize> + '_ {
        self.offsets.iter().skip(1).copied().take_while(|&offset| offset != 0)
    }

    /// The number of levels, 2 to 6.
    #[inline(always)]
    pub(crate) const fn depth(&self) -> usize {
        self.levels
    }

    /// The first word of `level`. Past the last level there are no words, whatever the index.
    #[inline(always)]
    pub(crate) fn offset(&self, level: usize) -> usize {
        self.offsets.get(level).copied().unwrap_or(self.words)
    }

    #[inline(always)]
    pub(crate) const fn bit(&self, ipa: Ipa) -> usize {
        ((ipa.0 - self.base.0) >> G::SHIFT) as usize
    }

    /// The address of the page that bit 0 of word `word` of a bitmap stands for. It may lie before the range, which a
    /// bitmap rounds down to 2 MiB.
    #[must_use]
    #[inline(always)]
    pub const fn word_ipa(&self, word: usize) -> Ipa {
        Ipa(self.base.0 + ((word * WORD_PAGES) as u64) * G::BYTES)
    }

    /// The bits of word `word` that stand for pages of `range`, and of the layout's own range.
    pub(crate) fn mask(&self, word: usize, range: IpaRange) -> u64 {
        let start = self.word_ipa(word);
        let whole = IpaRange::new_unchecked(start, start.offset(WORD_PAGES as u64 * G::BYTES));
        // A part of a page stands for the page.
        let range = if G::FRAMES > 1 { whole_pages::<G>(range) } else { range };
        match range.intersection(self.range).and_then(|range| range.intersection(whole)) {
            None => 0,
            Some(part) => {
                let first = (part.start().0 - start.0) >> G::SHIFT;
                (u64::MAX >> (64 - (part.bytes() >> G::SHIFT))) << first
            }
        }
    }

    /// The range from the first to the last page of `bits`, which are not 0, of word `word`.
    pub(crate) fn span(&self, word: usize, bits: u64) -> IpaRange {
        span_of::<G>(self.word_ipa(word), bits)
    }

    /// The words of level 0 that have pages of `range`.
    pub(crate) fn words_of(&self, range: IpaRange) -> core::ops::Range<usize> {
        match range.intersection(self.range) {
            None => 0..0,
            Some(part) => self.bit(part.start()) / WORD_PAGES..self.bit(Ipa(part.end().0 - 1)) / WORD_PAGES + 1,
        }
    }
}

/// The pages of the granule that have a part of `range`.
fn whole_pages<G: Granule>(range: IpaRange) -> IpaRange {
    let start = range.start().align_down(G::BYTES);
    // A page at the very end of 64 bits has no end that can be said: all but its last 4 KiB.
    let end = range.end().0.checked_next_multiple_of(G::BYTES).map_or(Ipa(u64::MAX).align_down(PAGE_SIZE), Ipa);
    IpaRange::new_unchecked(start, end)
}

/// The range from the first to the last page of `bits`, which are not 0 and stand for pages from `ipa` on.
#[inline(always)]
pub(crate) fn span_of<G: Granule>(ipa: Ipa, bits: u64) -> IpaRange {
    let at = |page: u32| ipa.offset(u64::from(page) * G::BYTES);
    IpaRange::new_unchecked(at(bits.trailing_zeros()), at(64 - bits.leading_zeros()))
}

/// A set of pages of one range, in memory that the caller gives: what a harvest reports into, what a clear is told.
#[derive(Debug)]
pub struct PageSet<'b, G: Granule = Granule4K> {
    layout: Layout<G>,
    words: &'b mut [u64],
}

impl<'b, G: Granule> PageSet<'b, G> {
    /// The empty set of pages of `layout`'s range; `None` if `words` is shorter than [`Layout::words`].
    #[must_use]
    pub fn new(layout: Layout<G>, words: &'b mut [u64]) -> Option<Self> {
        let words = words.get_mut(..layout.words())?;
        words.fill(0);
        Some(Self { layout, words })
    }

    /// Where the pages are.
    #[must_use]
    pub const fn layout(&self) -> &Layout<G> {
        &self.layout
    }

    /// One bit a page, from the range's start rounded down to 2 MiB on.
    #[must_use]
    pub fn bitmap(&self) -> &[u64] {
        self.words.get(..self.layout.page_words).unwrap_or_default()
    }

    /// Adds a page; what lies outside the range is left out.
    pub fn insert(&mut self, ipa: Ipa) {
        if self.layout.range.contains(ipa) {
            let bit = self.layout.bit(ipa);
            self.insert_word(bit / WORD_PAGES, 1 << (bit % WORD_PAGES));
        }
    }

    /// Adds the pages of `range`; what lies outside the set's range is left out.
    pub fn insert_range(&mut self, range: IpaRange) {
        for word in self.layout.words_of(range) {
            self.insert_word(word, self.layout.mask(word, range));
        }
    }

    #[inline(always)]
    pub(crate) fn insert_word(&mut self, index: usize, bits: u64) {
        let Some(word) = self.words.get_mut(index) else { return };
        *word |= bits;
        let mut index = index / BLOCK_WORDS;
        for level in 1..self.layout.depth() {
            let Some(word) = self.words.get_mut(self.layout.offset(level) + index / WORD_PAGES) else { return };
            let bit = 1 << (index % WORD_PAGES);
            if *word & bit != 0 {
                // Those above know of this word already.
                return;
            }
            *word |= bit;
            index /= WORD_PAGES;
        }
    }

    fn word(&self, word: usize) -> u64 {
        self.words.get(word).copied().unwrap_or(0)
    }

    /// Whether the page is in the set.
    #[must_use]
    pub fn contains(&self, ipa: Ipa) -> bool {
        self.layout.range.contains(ipa) && {
            let bit = self.layout.bit(ipa);
            self.word(bit / WORD_PAGES) >> (bit % WORD_PAGES) & 1 != 0
        }
    }

    /// Whether all pages of `range` that the set can hold are in it.
    #[must_use]
    pub fn contains_range(&self, range: IpaRange) -> bool {
        self.layout.words_of(range).all(|word| {
            let mask = self.layout.mask(word, range);
            self.word(word) & mask == mask
        })
    }

    /// Pages in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        let mut pages = 0;
        self.each_word(|_, bits| pages += bits.count_ones() as usize);
        pages
    }

    /// Whether there is no page in the set; one load.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.last().is_none_or(|top| *top == 0)
    }

    /// Calls `each` with every page, upwards. Cost: by the number of pages, not by the size of the range.
    pub fn for_each(&self, mut each: impl FnMut(Ipa)) {
        self.each_word(|word, mut bits| {
            while bits != 0 {
                each(self.layout.word_ipa(word).offset(u64::from(bits.trailing_zeros()) * G::BYTES));
                bits &= bits - 1;
            }
        });
    }

    pub(crate) fn each_word(&self, mut each: impl FnMut(usize, u64)) {
        self.descend(self.layout.depth() - 1, 0, &mut each);
    }

    /// Goes over what bits of word `index` of `level`, which is no level of pages, name.
    fn descend(&self, level: usize, index: usize, each: &mut impl FnMut(usize, u64)) {
        let mut bits = self.word(self.layout.offset(level) + index);
        while bits != 0 {
            let below = index * WORD_PAGES + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if level > 1 {
                self.descend(level - 1, below, each);
                continue;
            }
            for word in below * BLOCK_WORDS..(below + 1) * BLOCK_WORDS {
                match self.word(word) {
                    0 => {}
                    pages => each(word, pages),
                }
            }
        }
    }

    /// Takes all pages out. Cost: by the number of pages.
    pub fn clear(&mut self) {
        self.clear_below(self.layout.depth() - 1, 0);
    }

    fn clear_below(&mut self, level: usize, index: usize) {
        let Some(word) = self.words.get_mut(self.layout.offset(level) + index) else { return };
        let mut bits = core::mem::take(word);
        while bits != 0 {
            let below = index * WORD_PAGES + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if level > 1 {
                self.clear_below(level - 1, below);
            } else if let Some(block) = self.words.get_mut(below * BLOCK_WORDS..(below + 1) * BLOCK_WORDS) {
                block.fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, bytes: u64) -> IpaRange {
        IpaRange::from_size(Ipa(start), bytes).unwrap()
    }

    #[test]
    fn layouts_end_in_one_word() {
        let (mib, gib) = (1 << 20, 1u64 << 30);
        for (bytes, levels, words) in [
            (4096, 2, 8 + 1),
            (2 * mib, 2, 8 + 1),
            (2 * mib + 4096, 2, 16 + 1),
            (128 * mib, 2, 512 + 1),
            (128 * mib + 4096, 3, 520 + 2 + 1),
            (gib, 3, 4096 + 8 + 1),
        ] {
            let layout = Layout::new(range(0, bytes));
            assert_eq!((layout.levels, layout.words()), (levels, words), "{bytes:#x}");
        }
        assert_eq!(Layout::new(range(0, 64 << 30)).levels, 4);
        assert_eq!(Layout::new(range(0, 1 << 48)).levels, 6);
        assert_eq!(Layout::new(range(0, 65 * 4096)).page_words(), 2, "a plain bitmap ends with the range");
        // Not aligned: the first page of the block stands at bit 0.
        let layout = Layout::new(range(0x4021_0000, 0x2000));
        assert_eq!(layout.bit(Ipa(0x4021_1000)), 17);
    }

    #[test]
    fn sets_count_and_clear_by_their_pages() {
        let layout = Layout::new(range(0x1000, 1 << 30));
        let mut words = vec![7; layout.words()];
        let mut set = PageSet::new(layout, &mut words).unwrap();
        assert!(set.is_empty());
        set.insert(Ipa(0));
        assert!(set.is_empty(), "outside");
        set.insert_range(range(0x20_0000, 0x20_0000));
        set.insert(Ipa(0x1000));
        assert_eq!(set.len(), 513);
        assert!(set.contains_range(range(0x20_0000, 0x20_0000)) && !set.contains_range(range(0x20_0000, 0x20_1000)));
        let mut first = None;
        set.for_each(|ipa| first = first.or(Some(ipa)));
        assert_eq!(first, Some(Ipa(0x1000)));
        set.clear();
        assert!(set.is_empty() && set.bitmap().iter().all(|word| *word == 0));
        assert!(PageSet::new(layout, &mut [0; 4]).is_none());
    }

    #[test]
    fn the_bits_of_a_word_span_the_first_to_the_last_page() {
        let layout = Layout::new(range(0x4020_0000, 0x20_0000));
        for (bits, start, pages) in [(1, 0, 1), (0b1010 << 20, 21, 3), (1 << 63, 63, 1), (u64::MAX, 0, 64)] {
            let expected = range(0x4024_0000 + start * PAGE_SIZE, pages * PAGE_SIZE);
            assert_eq!(layout.span(1, bits), expected, "{bits:#x}");
        }
    }

    /// Page by page, over a range that begins and ends inside of words at every level.
    #[test]
    fn a_set_holds_what_was_put_in_and_nothing_else() {
        let whole = range(0x4021_3000, 0x4_0000_5000);
        let (first, last) = (whole.start().0, whole.end().0 - PAGE_SIZE);
        let layout = Layout::new(whole);
        let mut words = vec![7; layout.words() + 1];
        let mut set = PageSet::new(layout, &mut words).unwrap();
        for _ in 0..2 {
            let mut expected = std::collections::BTreeSet::new();
            let far = [0, 63, 64, 4095, 4096, 1 << 15, (1 << 18) - 1, 1 << 18, 1 << 21].map(|n| first + n * PAGE_SIZE);
            for page in far.into_iter().chain([last]) {
                set.insert(Ipa(page + 8));
                expected.insert(page);
            }
            // Both ends lie outside; and one range that ends in the middle of a word.
            for part in [range(first - 0x2000, 0x5000), range(last, 0x3000), range(0x8000_0000, 0x4_5000)] {
                set.insert_range(part);
                let pages = (part.start().0..part.end().0).step_by(PAGE_SIZE as usize);
                expected.extend(pages.filter(|page| (first..=last).contains(page)));
            }
            set.insert(Ipa(first - PAGE_SIZE));
            set.insert(Ipa(last + PAGE_SIZE));
            let mut got = Vec::new();
            set.for_each(|ipa| got.push(ipa.0));
            assert!(got.iter().eq(&expected), "upwards, each once");
            assert_eq!((set.len(), set.is_empty()), (expected.len(), false));
            for &page in &expected {
                for near in [page - PAGE_SIZE, page, page + PAGE_SIZE] {
                    let held = expected.contains(&near);
                    assert_eq!(set.contains(Ipa(near + 0xff8)), held, "{near:#x}");
                    if whole.contains(Ipa(near)) {
                        assert_eq!(set.contains_range(range(near, PAGE_SIZE)), held, "{near:#x}");
                        let bit = (near - (first & !0x1f_ffff)) / PAGE_SIZE;
                        assert_eq!(set.bitmap()[bit as usize / 64] >> (bit % 64) & 1 != 0, held, "{near:#x}");
                    }
                }
            }
            assert!(set.contains_range(range(0x8000_0000, 0x4_5000)));
            assert!(!set.contains_range(range(0x8000_0000, 0x4_6000)));
            set.clear();
            assert!(set.words.iter().all(|word| *word == 0), "summaries, too");
        }
    }
}
