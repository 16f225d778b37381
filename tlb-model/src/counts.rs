//! What is counted.

use serde::{Deserialize, Serialize};

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An instruction fetch.
    Fetch,
    /// A load.
    Load,
    /// A store.
    Store,
}

/// Counts of a span of time. A pair has EL0's count first, then EL1's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Fetches: one for each piece of straight code in a page, not for each instruction.
    pub fetches: [u64; 2],
    /// Loads.
    pub loads: [u64; 2],
    /// Stores.
    pub stores: [u64; 2],
    /// Accesses that the level-1 TLB could not translate.
    pub l1_misses: [u64; 2],
    /// Accesses that no TLB could translate: each is a walk.
    pub walks: [u64; 2],
    /// Stage-1 descriptors that walks read.
    pub stage1_references: [u64; 2],
    /// Stage-2 descriptors that walks read.
    pub stage2_references: [u64; 2],
    /// Entries that walks have made, by their sizes: [`ENTRY_SIZES`].
    pub entries: [u64; 6],
    /// Different pieces of 64 bytes of tables that walks read.
    pub table_lines: u64,
    /// Invalidations of any kind.
    pub invalidations: u64,
    /// Walks that found no translation.
    pub failed: u64,
}

/// log2 of the sizes that a TLB's entry can have with a granule of 4 KiB: page, run, block, run, block, run.
pub const ENTRY_SIZES: [u8; 6] = [12, 16, 21, 25, 30, 34];

/// Bytes of a cache line, the unit that tables are read in.
pub(crate) const LINE: u64 = 64;

impl Counts {
    /// Walks of both exception levels.
    #[must_use]
    pub fn all_walks(&self) -> u64 {
        self.walks.iter().sum()
    }

    /// Descriptors that walks read, of both stages and exception levels.
    #[must_use]
    pub fn references(&self) -> u64 {
        self.stage1_references.iter().chain(&self.stage2_references).sum()
    }

    /// Bytes of tables that walks have read, each line of 64 counted once.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        self.table_lines * LINE
    }
}
