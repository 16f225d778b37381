//! What a PE remembers of its aborts.

use crate::arch::address::PAGE_SHIFT;

/// What one PE remembers from one abort to the next, to notice one that comes back.
#[derive(Clone, Copy, Debug)]
pub struct FaultHistory {
    /// One more than the last abort's page; 0: there was none.
    page: u64,
    changes: u64,
    repeats: u32,
}

impl Default for FaultHistory {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultHistory {
    /// No abort yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { page: 0, changes: 0, repeats: 0 }
    }

    /// How often the page has aborted in a row before, for nothing, with nothing changed in the table since.
    pub(super) fn again(&mut self, address: u64, changes: u64) -> u32 {
        let page = (address >> PAGE_SHIFT) + 1;
        let same = page == self.page && changes == self.changes;
        self.repeats = if same { self.repeats.saturating_add(1) } else { 0 };
        (self.page, self.changes) = (page, changes);
        self.repeats
    }

    /// The last abort had a cause that is gone now.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        self.page = 0;
    }
}
