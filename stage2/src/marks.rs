//! One bit a page, with summary words above, so that finding the set bits costs by their number and not by the size of
//! memory.
//!
//! Level 0 has a bit a page; each bit of level n + 1 says that a word of level n may be nonzero; the top is one word. A
//! 64 GiB range has four levels, the upper three of which are a 64th of its bitmap.

use crate::address::{Ipa, IpaRange, PAGE_SHIFT, PAGE_SIZE};
use crate::geometry::LeafSize;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// Pages that one word stands for.
pub(crate) const WORD_PAGES: usize = 64;
/// Enough for a 48-bit IPA space: 64^6 pages.
const MAX_LEVELS: usize = 6;

/// Where the bits of a range are among the words of a bitmap.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    range: IpaRange,
    base: Ipa,
    /// The first word of each level.
    offsets: [usize; MAX_LEVELS],
    levels: usize,
    /// Words of level 0, and of all levels.
    page_words: usize,
    words: usize,
}

/// All of a layout follows from its range.
impl PartialEq for Layout {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.range == other.range
    }
}

impl Eq for Layout {}

impl Layout {
    /// The layout for the pages of `range`.
    #[must_use]
    pub fn new(range: IpaRange) -> Self {
        let base = range.start().align_down(LeafSize::Block2M.bytes());
        let pages = ((range.end().0 - base.0) >> PAGE_SHIFT) as usize;
        let page_words = pages.div_ceil(WORD_PAGES);
        let mut offsets = [0; MAX_LEVELS];
        let (mut level_words, mut words, mut levels) = (page_words, 0, 0);
        for offset in &mut offsets {
            *offset = words;
            words += level_words;
            levels += 1;
            if level_words == 1 {
                break;
            }
            level_words = level_words.div_ceil(WORD_PAGES);
        }
        Self { range, base, offsets, levels, page_words, words }
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

    /// The first word of each level, from the pages up.
    #[inline(always)]
    fn levels(&self) -> impl DoubleEndedIterator<Item = usize> + use<> {
        self.offsets.into_iter().take(self.levels)
    }

    /// The first word of `level`. Past the last level there are no words, whatever the index.
    #[inline(always)]
    fn offset(&self, level: usize) -> usize {
        self.offsets.get(level).copied().unwrap_or(self.words)
    }

    #[inline(always)]
    pub(crate) const fn bit(&self, ipa: Ipa) -> usize {
        ((ipa.0 - self.base.0) >> PAGE_SHIFT) as usize
    }

    /// The address of the first page of word `word` of level 0.
    #[inline(always)]
    pub(crate) const fn word_ipa(&self, word: usize) -> Ipa {
        Ipa(self.base.0 + ((word * WORD_PAGES) as u64) * PAGE_SIZE)
    }

    /// The bits of word `word` that stand for pages of `range`, and of the layout's own range.
    pub(crate) fn mask(&self, word: usize, range: IpaRange) -> u64 {
        let start = self.word_ipa(word);
        let whole = IpaRange::trusted(start, start.offset(WORD_PAGES as u64 * PAGE_SIZE));
        match range.intersection(self.range).and_then(|range| range.intersection(whole)) {
            None => 0,
            Some(part) => {
                let first = (part.start().0 - start.0) >> PAGE_SHIFT;
                (u64::MAX >> (64 - part.pages())) << first
            }
        }
    }

    /// The range from the first to the last page of `bits`, which are not 0, of word `word`.
    pub(crate) fn span(&self, word: usize, bits: u64) -> IpaRange {
        let at = |page: u32| self.word_ipa(word).offset(u64::from(page) * PAGE_SIZE);
        IpaRange::trusted(at(bits.trailing_zeros()), at(64 - bits.leading_zeros()))
    }

    /// The words of level 0 that have pages of `range`.
    pub(crate) fn words_of(&self, range: IpaRange) -> core::ops::Range<usize> {
        match range.intersection(self.range) {
            None => 0..0,
            Some(part) => self.bit(part.start()) / WORD_PAGES..self.bit(Ipa(part.end().0 - 1)) / WORD_PAGES + 1,
        }
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
    /// A bitmap in `words`, all clear. `words` has at least [`Layout::words`] words.
    pub(crate) fn new(layout: Layout, words: &'static [AtomicU64]) -> Self {
        let words = words.get(..layout.words()).unwrap_or(words);
        for word in words {
            word.store(0, SeqCst);
        }
        Self { layout, words }
    }

    /// Gives the memory back.
    pub(crate) fn into_words(self) -> &'static [AtomicU64] {
        self.words
    }

    /// Whether nothing is marked, as far as this PE has seen: one load.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.words.get(self.layout.words - 1).is_none_or(|top| top.load(SeqCst) == 0)
    }

    #[inline(always)]
    fn set(&self, index: usize, bits: u64) {
        // In bounds by the layout; `get` because a panic must not be reachable.
        let Some(word) = self.words.get(index) else { return };
        word.fetch_or(bits, SeqCst);
        self.summarise(index);
    }

    /// Says in the levels above that word `index` of level 0 is in use.
    #[inline(always)]
    fn summarise(&self, mut index: usize) {
        for level in 1..self.layout.levels {
            let Some(word) = self.words.get(self.layout.offset(level) + index / WORD_PAGES) else { return };
            let bit = 1 << (index % WORD_PAGES);
            if word.load(SeqCst) & bit == 0 {
                word.fetch_or(bit, SeqCst);
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
    pub(crate) fn take_all(&self, mut each: impl FnMut(usize, u64)) {
        self.descend::<true>(&mut each);
    }

    /// Shows all marks and leaves them.
    pub(crate) fn peek_all(&self, mut each: impl FnMut(usize, u64)) {
        self.descend::<false>(&mut each);
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

    /// From the top down.
    #[inline(always)]
    fn descend<const TAKE: bool>(&self, each: &mut impl FnMut(usize, u64)) {
        match self.layout.levels {
            // The only word, as if a summary had named it.
            1 => self.each_page_word::<TAKE>(0, 1, each),
            levels => self.descend_from::<TAKE>(levels - 1, 0, each),
        }
    }

    /// Below word `index` of `level`, which is not 0.
    fn descend_from<const TAKE: bool>(&self, level: usize, index: usize, each: &mut impl FnMut(usize, u64)) {
        let mut bits = self.word::<TAKE>(self.layout.offset(level) + index);
        if level <= 1 {
            return self.each_page_word::<TAKE>(index, bits, each);
        }
        while bits != 0 {
            let below = index * WORD_PAGES + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            self.descend_from::<TAKE>(level - 1, below, each);
        }
    }

    /// The words of level 0 that `bits` of word `index` of level 1 name.
    #[inline(always)]
    fn each_page_word<const TAKE: bool>(&self, index: usize, mut bits: u64, each: &mut impl FnMut(usize, u64)) {
        while bits != 0 {
            let below = index * WORD_PAGES + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let pages = self.word::<TAKE>(below);
            if pages != 0 {
                each(below, pages);
            }
        }
    }
}

/// The number of bits that are set; quick for those that harvests have most of.
#[inline(always)]
fn population(bits: u64) -> u64 {
    match bits {
        u64::MAX => 64,
        _ if bits & bits.wrapping_sub(1) == 0 => u64::from(bits != 0),
        _ => u64::from(bits.count_ones()),
    }
}

/// What takes in the pages that a harvest finds.
pub(crate) trait Report {
    /// Pages of word `index` of level 0.
    fn insert_word(&mut self, index: usize, bits: u64);
    /// All pages of a range.
    fn insert_range(&mut self, range: IpaRange);
}

/// What tells the pages that are to be clean.
pub(crate) trait Pages {
    /// Whether all pages of `range` are among them.
    fn contains_range(&self, range: IpaRange) -> bool;
    /// Calls `each` with every word of level 0 that has any, upwards. Some of the bits may lie outside of the range.
    fn each_word(&self, each: impl FnMut(usize, u64));
}

/// A bitmap without summaries, in memory that others may read and write at the same time.
#[derive(Debug)]
pub(crate) struct SharedBitmap<'b> {
    layout: &'b Layout,
    words: &'b [AtomicU64],
    /// Pages that were added and were not there before.
    pub(crate) added: u64,
}

impl<'b> SharedBitmap<'b> {
    pub(crate) fn new(layout: &'b Layout, words: &'b [AtomicU64]) -> Self {
        Self { layout, words, added: 0 }
    }
}

impl Report for SharedBitmap<'_> {
    #[inline(always)]
    fn insert_word(&mut self, index: usize, bits: u64) {
        let Some(word) = self.words.get(index) else { return };
        let before = word.load(Relaxed);
        word.store(before | bits, Relaxed);
        let new = bits & !before;
        self.added += population(new);
    }

    fn insert_range(&mut self, range: IpaRange) {
        for word in self.layout.words_of(range) {
            self.insert_word(word, self.layout.mask(word, range));
        }
    }
}

impl Pages for SharedBitmap<'_> {
    fn contains_range(&self, range: IpaRange) -> bool {
        self.layout.words_of(range).all(|index| {
            let mask = self.layout.mask(index, range);
            self.words.get(index).is_some_and(|word| word.load(Relaxed) & mask == mask)
        })
    }

    #[inline(always)]
    fn each_word(&self, mut each: impl FnMut(usize, u64)) {
        for (index, word) in self.words.iter().enumerate().take(self.layout.page_words) {
            match word.load(Relaxed) {
                0 => {}
                bits => each(index, bits),
            }
        }
    }
}

impl Report for PageSet<'_> {
    #[inline(always)]
    fn insert_word(&mut self, index: usize, bits: u64) {
        PageSet::insert_word(self, index, bits);
    }

    fn insert_range(&mut self, range: IpaRange) {
        PageSet::insert_range(self, range);
    }
}

impl Pages for PageSet<'_> {
    fn contains_range(&self, range: IpaRange) -> bool {
        PageSet::contains_range(self, range)
    }

    #[inline(always)]
    fn each_word(&self, each: impl FnMut(usize, u64)) {
        PageSet::each_word(self, each);
    }
}

/// A set of pages of one range, in memory that the caller gives: what a harvest reports into, what a clear is told.
#[derive(Debug)]
pub struct PageSet<'b> {
    layout: Layout,
    words: &'b mut [u64],
}

impl<'b> PageSet<'b> {
    /// The empty set of pages of `layout`'s range; `None` if `words` is shorter than [`Layout::words`].
    #[must_use]
    pub fn new(layout: Layout, words: &'b mut [u64]) -> Option<Self> {
        let words = words.get_mut(..layout.words())?;
        words.fill(0);
        Some(Self { layout, words })
    }

    /// Where the pages are.
    #[must_use]
    pub const fn layout(&self) -> &Layout {
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
    pub(crate) fn insert_word(&mut self, mut index: usize, mut bits: u64) {
        for offset in self.layout.levels() {
            let Some(word) = self.words.get_mut(offset + index) else { return };
            let before = *word;
            *word |= bits;
            if before != 0 {
                // The summaries know of this word already.
                return;
            }
            bits = 1 << (index % WORD_PAGES);
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
                each(self.layout.word_ipa(word).offset(u64::from(bits.trailing_zeros()) * PAGE_SIZE));
                bits &= bits - 1;
            }
        });
    }

    pub(crate) fn each_word(&self, mut each: impl FnMut(usize, u64)) {
        self.descend(self.layout.levels - 1, 0, &mut each);
    }

    fn descend(&self, level: usize, index: usize, each: &mut impl FnMut(usize, u64)) {
        let mut bits = self.word(self.layout.offset(level) + index);
        if level == 0 {
            if bits != 0 {
                each(index, bits);
            }
            return;
        }
        while bits != 0 {
            let below = index * WORD_PAGES + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            self.descend(level - 1, below, each);
        }
    }

    /// Takes all pages out. Cost: by the number of pages.
    pub fn clear(&mut self) {
        self.clear_below(self.layout.levels - 1, 0);
    }

    fn clear_below(&mut self, level: usize, index: usize) {
        let Some(word) = self.words.get_mut(self.layout.offset(level) + index) else { return };
        let mut bits = core::mem::take(word);
        while level > 0 && bits != 0 {
            let below = index * WORD_PAGES + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            self.clear_below(level - 1, below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, bytes: u64) -> IpaRange {
        IpaRange::from_size(Ipa(start), bytes).unwrap()
    }

    fn marks(range: IpaRange) -> Marks {
        let layout = Layout::new(range);
        Marks::new(layout, Box::leak((0..layout.words()).map(|_| AtomicU64::new(9)).collect()))
    }

    fn taken(marks: &Marks) -> Vec<u64> {
        let mut pages = Vec::new();
        marks.take_all(|word, bits| {
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
    fn layouts_end_in_one_word() {
        for (bytes, levels, words) in [(4096, 1, 1), (64 * 4096, 1, 1), (65 * 4096, 2, 3), (1 << 30, 3, 4096 + 64 + 1)]
        {
            let layout = Layout::new(range(0, bytes));
            assert_eq!((layout.levels, layout.words()), (levels, words), "{bytes:#x}");
        }
        assert_eq!(Layout::new(range(0, 64 << 30)).levels, 4);
        assert_eq!(Layout::new(range(0, 1 << 48)).levels, 6);
        // Not aligned: the first page of the block stands at bit 0.
        let layout = Layout::new(range(0x4021_0000, 0x2000));
        assert_eq!(layout.bit(Ipa(0x4021_1000)), 17);
    }

    #[test]
    fn marks_are_taken_once_and_in_order() {
        let marks = marks(range(0x3f_f000, 1 << 32));
        for page in [0x3f_f000, 0x40_0000, 0x1000_0000, 0x1000_0000, 0x1_003f_e000] {
            marks.mark(Ipa(page));
        }
        let mut seen = Vec::new();
        marks.peek_all(|word, _| seen.push(word));
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
}
