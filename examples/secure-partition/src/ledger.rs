//! Whose every page is, and whether a transaction has it.

use crate::Partition;
use crate::layout::{self, MEMORY};
use stage2::{IpaRange, PAGE_SIZE};

const PAGES: usize = (MEMORY.bytes() / PAGE_SIZE) as usize;

/// What a page is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Its owner has it to itself.
    Exclusive,
    /// It is its owner's RX or TX buffer, which the SPM writes and reads.
    Buffer,
    /// The transaction with this number has it.
    Transaction(u8),
}

/// One entry for each page of [`MEMORY`].
#[derive(Debug)]
pub struct Ledger {
    pages: [(Partition, Use); PAGES],
}

impl Ledger {
    /// Each partition has what [`layout::memory`] says.
    #[must_use]
    pub fn new() -> Self {
        let mut ledger = Self { pages: [(Partition::First, Use::Exclusive); PAGES] };
        for partition in Partition::ALL {
            ledger.set(layout::memory(partition), partition, Use::Exclusive);
        }
        ledger
    }

    /// Whether all of `range` is memory of `owner`, for `purpose`.
    #[must_use]
    pub fn is(&self, range: IpaRange, owner: Partition, purpose: Use) -> bool {
        MEMORY.covers(range) && self.pages[indices(range)].iter().all(|page| *page == (owner, purpose))
    }

    /// Records a range of [`MEMORY`]; what lies outside of it is nobody's.
    pub fn set(&mut self, range: IpaRange, owner: Partition, purpose: Use) {
        if let Some(range) = range.intersection(MEMORY) {
            self.pages[indices(range)].fill((owner, purpose));
        }
    }

    /// Pages that `owner` has, to itself or not.
    #[must_use]
    pub fn pages_of(&self, owner: Partition) -> usize {
        self.pages.iter().filter(|page| page.0 == owner).count()
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a part of [`MEMORY`] is in the ledger.
fn indices(range: IpaRange) -> core::ops::Range<usize> {
    let index = |ipa: stage2::Ipa| ((ipa.0 - MEMORY.start().0) / PAGE_SIZE) as usize;
    index(range.start())..index(range.end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage2::Ipa;

    #[test]
    fn ownership_is_by_the_page() {
        let mut ledger = Ledger::new();
        let page = |n: u64| IpaRange::from_size(MEMORY.start().offset(n * PAGE_SIZE), PAGE_SIZE).unwrap();
        assert!(ledger.is(layout::memory(Partition::Second), Partition::Second, Use::Exclusive));
        ledger.set(page(7), Partition::Second, Use::Transaction(3));
        assert!(ledger.is(page(7), Partition::Second, Use::Transaction(3)));
        for n in [6, 8] {
            assert!(ledger.is(page(n), Partition::First, Use::Exclusive));
        }
        assert!(!ledger.is(layout::memory(Partition::First), Partition::First, Use::Exclusive));
        assert_eq!(ledger.pages_of(Partition::First), PAGES / 2 - 1);
    }

    #[test]
    fn there_is_nothing_outside() {
        let mut ledger = Ledger::new();
        for (start, end) in [
            (MEMORY.start().0 - PAGE_SIZE, MEMORY.start().0 + PAGE_SIZE),
            (MEMORY.end().0 - PAGE_SIZE, MEMORY.end().0 + PAGE_SIZE),
            (0, PAGE_SIZE),
        ] {
            let range = IpaRange::new(Ipa(start), Ipa(end)).unwrap();
            assert!(!Partition::ALL.iter().any(|&partition| ledger.is(range, partition, Use::Exclusive)));
            ledger.set(range, Partition::First, Use::Buffer);
        }
        assert_eq!(
            ledger.pages_of(Partition::First),
            PAGES / 2 + 1,
            "the last page of the second's became the first's"
        );
    }
}
