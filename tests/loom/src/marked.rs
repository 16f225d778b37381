//! A log of which nothing is there but its marks and its pages' descriptors: a descriptor says whether stores go
//! through.

use crate::arch::address::{Ipa, IpaRange, PAGE_SIZE};
use crate::bitmap::dirty_bitmap::{BlockMarks, DirtyBitmap};
use crate::bitmap::page_set::{BLOCK_WORDS, Layout, WORD_PAGES};
use crate::sync::{AtomicU64, Ordering, Weakness, full_fence, has, weakness};
use std::collections::{BTreeMap, BTreeSet};

const HELD: u64 = 0;
const OPEN: u64 = 1;

/// Pages of 2 MiB.
pub const BLOCK: usize = BLOCK_WORDS * WORD_PAGES;

/// A log, whose pages have numbers from 0 on.
#[derive(Debug)]
pub struct Marked {
    marks: DirtyBitmap,
    /// Of the pages that somebody may write in the model. All others stay open and marked if they are so at first.
    descriptors: BTreeMap<usize, AtomicU64>,
}

impl Marked {
    /// A log of `pages` pages, of which several threads may mark `written`. It begins with `dirty` open and marked.
    ///
    /// # Panics
    ///
    /// Not for pages that there are.
    #[must_use]
    pub fn new(pages: usize, written: &[usize], dirty: impl Iterator<Item = usize>) -> Self {
        let range = IpaRange::from_size(Ipa(0), pages as u64 * PAGE_SIZE).expect("some pages");
        let layout = Layout::new(range);
        let mut shared = BTreeSet::new();
        for page in written {
            let mut index = page / WORD_PAGES;
            shared.insert(index);
            index /= BLOCK_WORDS;
            for offset in layout.above() {
                shared.insert(offset + index / WORD_PAGES);
                index /= WORD_PAGES;
            }
        }
        let word = |index| if shared.contains(&index) { AtomicU64::shared(0) } else { AtomicU64::new(0) };
        let words: Box<[AtomicU64]> = (0..layout.words()).map(word).collect();
        let marks = DirtyBitmap::new(layout, Box::leak(words)).expect("as many words as there have to be");
        let descriptors = written.iter().map(|&page| (page, AtomicU64::shared(HELD))).collect();
        let marked = Self { marks, descriptors };
        for page in dirty {
            if let Some(descriptor) = marked.descriptors.get(&page) {
                descriptor.store(OPEN, Ordering::Release);
            }
            marked.mark(page);
        }
        // What is there at first is there.
        full_fence(Ordering::SeqCst);
        marked
    }

    fn mark(&self, page: usize) {
        self.marks.mark(Ipa(page as u64 * PAGE_SIZE));
    }

    /// The order of the descriptors' read-modify-writes: see `TableMemory`.
    fn order() -> Ordering {
        match weakness() {
            Some(Weakness::Descriptor(order)) => order,
            _ => Ordering::AcqRel,
        }
    }

    /// A first write: the page is opened, unless it is open, and marked.
    pub fn write(&self, page: usize) {
        let open = || _ = self.descriptors.get(&page).is_some_and(|slot| slot.replace(HELD, OPEN, Self::order()));
        if has(Weakness::MarksFirst) {
            self.mark(page);
            open();
        } else {
            open();
            self.mark(page);
        }
    }

    fn protect(&self, page: usize) {
        if let Some(descriptor) = self.descriptors.get(&page) {
            descriptor.fetch_and(!OPEN, Self::order());
        }
    }

    /// Takes the marks, protects their pages, and reports them, as `Harvest::block` does.
    pub fn harvest(&self) -> BTreeSet<usize> {
        let mut report = BTreeSet::new();
        if self.marks.is_empty() {
            return report;
        }
        let mut block = |block: BlockMarks<'_>| {
            let pages = block.index * BLOCK..(block.index + 1) * BLOCK;
            if has(Weakness::ProtectsFirst) {
                // Of those that are marked. (Of the others no descriptor may be touched.)
                let all: Vec<_> = block.marked::<false>().flat_map(|(word, bits)| pages_of(word, bits)).collect();
                all.into_iter().for_each(|page| self.protect(page));
            }
            let mut taken: Vec<usize> = Vec::new();
            let mut take = |pages: &mut dyn Iterator<Item = usize>| {
                for page in pages {
                    taken.push(page);
                    if !has(Weakness::ProtectsFirst) {
                        self.protect(page);
                    }
                }
            };
            if block.take_if_full() {
                take(&mut pages.clone());
            } else {
                block.marked::<true>().for_each(|(word, bits)| take(&mut pages_of(word, bits)));
            }
            report.extend(taken);
        };
        if self.marks.is_flat() {
            self.marks.take_flat().for_each(&mut block);
        } else {
            self.marks.each_block::<true>(&mut block);
        }
        // The barrier of the invalidation.
        full_fence(Ordering::SeqCst);
        report
    }

    /// Whether stores to the page go through: for pages that somebody may write.
    #[must_use]
    pub fn is_open(&self, page: usize) -> bool {
        self.descriptors.get(&page).is_some_and(|descriptor| descriptor.load(Ordering::Acquire) == OPEN)
    }
}

/// The pages that bits of a word of level 0 stand for.
fn pages_of(word: usize, bits: u64) -> impl Iterator<Item = usize> {
    (0..WORD_PAGES).filter(move |n| bits >> n & 1 != 0).map(move |n| word * WORD_PAGES + n)
}

impl Drop for Marked {
    fn drop(&mut self) {
        let words = core::ptr::from_ref(self.marks.take_words()).cast_mut();
        // SAFETY: leaked by `new`; every user of its marks borrowed `self`.
        drop(unsafe { Box::from_raw(words) });
    }
}
