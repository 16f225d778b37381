//! TLBs of combined entries, of whatever sizes.

use crate::counts::ENTRY_SIZES;
use crate::lru::Lru;
use crate::sizes::Capacity;

/// A translation of both stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its first virtual address.
    pub va: u64,
    /// Its first physical address.
    pub pa: u64,
    /// log2 of its bytes.
    pub shift: u8,
    /// What it is for, unless it is global.
    pub asid: Option<u16>,
}

impl Entry {
    #[inline]
    fn translates(&self, va: u64, asid: u16) -> bool {
        (va ^ self.va) >> self.shift == 0 && self.asid.is_none_or(|own| own == asid)
    }

    /// The physical address of `va`, which it translates.
    pub fn physical(&self, va: u64) -> u64 {
        self.pa | (va & ((1 << self.shift) - 1))
    }
}

/// A TLB. One set is searched for all sizes at once; of more, a set for each size.
#[derive(Debug, Clone)]
pub struct Tlb {
    entries: Lru<Entry>,
    is_one_set: bool,
}

impl Tlb {
    pub fn new(capacity: Capacity) -> Self {
        Self { entries: Lru::new(capacity), is_one_set: capacity.entries == capacity.ways }
    }

    #[inline]
    pub fn find(&mut self, va: u64, asid: u16) -> Option<Entry> {
        if self.is_one_set {
            return self.entries.find(0, |entry| entry.translates(va, asid)).copied();
        }
        ENTRY_SIZES.iter().find_map(|&shift| {
            let is = |entry: &Entry| entry.shift == shift && entry.translates(va, asid);
            self.entries.find(va >> shift, is).copied()
        })
    }

    pub fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.va >> entry.shift, entry);
    }

    pub fn retain(&mut self, keep: impl Fn(&Entry) -> bool) {
        self.entries.retain(keep);
    }
}
