//! Kinds of records.

use super::{MAX_BLOCKS, MAX_PAGES};

/// What a record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Kind {
    /// The host tool's own.
    Tool = 1,
    /// Facts of the machine's.
    Machine = 2,
    /// Pages.
    Pages = 3,
    /// State of CPUs and devices.
    State = 4,
    /// The end.
    End = 5,
}

impl Kind {
    pub(super) fn of(number: u64) -> Option<Self> {
        [Self::Tool, Self::Machine, Self::Pages, Self::State, Self::End].into_iter().find(|kind| *kind as u64 == number)
    }

    /// The most blocks of such a record's payload.
    pub(super) const fn most_blocks(self) -> u64 {
        if matches!(self, Self::Pages) { MAX_PAGES } else { MAX_BLOCKS }
    }
}
