//! What other PEs have begun and not finished: small counts that let an operation promise something about all of them.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Counts of unfinished work on one table. An increment comes before the first descriptor that the work changes, a
/// decrement after its last barrier, so a PE that has seen such a descriptor sees the count.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// Operations that take rights away and have not completed their invalidation, and, in multiples of [`CHANGE`],
    /// changes that may have left older entries in TLBs, ever: one increment for both.
    revocations: AtomicU64,
    /// Contiguous runs that are being taken apart.
    splitting_runs: AtomicU64,
    /// Changes of what is mapped, granted or logged so far.
    epoch: AtomicU64,
}

/// One change after which a PE may fault once for having held something older. There are never as many operations at
/// once.
const CHANGE: u64 = 1 << 16;

/// One more of something, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted<'c>(&'c AtomicU64);

impl Counted<'_> {
    /// Ends an announced operation that has changed something: one step for both.
    #[inline(always)]
    pub(crate) fn end_with_change(self) {
        self.0.fetch_add(CHANGE - 1, SeqCst);
        core::mem::forget(self);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A change of what is granted, until it is dropped.
#[derive(Debug)]
pub(crate) struct Granting<'c> {
    epoch: &'c AtomicU64,
    _revocation: Counted<'c>,
}

impl Drop for Granting<'_> {
    fn drop(&mut self) {
        self.epoch.fetch_add(1, SeqCst);
    }
}

impl InFlight {
    pub(crate) const fn new() -> Self {
        Self { revocations: AtomicU64::new(0), splitting_runs: AtomicU64::new(0), epoch: AtomicU64::new(0) }
    }

    /// Announces that rights are going to be taken away; ends when the invalidation is complete.
    #[inline(always)]
    pub(crate) fn begin_revocation(&self) -> Counted<'_> {
        self.revocations.fetch_add(1, SeqCst);
        Counted(&self.revocations)
    }

    /// The same, by a change of what is granted, which is noted when it ends: a PE that has looked at a leaf meanwhile
    /// knows by then that it may have changed since.
    #[inline(always)]
    pub(crate) fn begin_granting(&self) -> Granting<'_> {
        Granting { epoch: &self.epoch, _revocation: self.begin_revocation() }
    }

    /// Notes a change of what is mapped or granted.
    pub(crate) fn advance_epoch(&self) {
        self.epoch.fetch_add(1, SeqCst);
    }

    /// Changes of what is mapped or granted so far.
    #[inline(always)]
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }

    /// Whether others than the `own` announcements of the caller are at it.
    #[inline(always)]
    pub(crate) fn others_revoking(&self, own: u64) -> bool {
        self.revocations.load(SeqCst) % CHANGE > own
    }

    /// Announces that a run is going to lose its Contiguous bits one by one.
    pub(crate) fn begin_splitting_run(&self) -> Counted<'_> {
        self.splitting_runs.fetch_add(1, SeqCst);
        Counted(&self.splitting_runs)
    }

    /// Whether any run is half taken apart.
    #[inline(always)]
    pub(crate) fn splitting_runs(&self) -> bool {
        self.splitting_runs.load(SeqCst) != 0
    }

    /// Notes a change after which a PE may fault once for having held something older.
    #[inline(always)]
    pub(crate) fn note_change(&self) {
        self.revocations.fetch_add(CHANGE, SeqCst);
    }

    /// The number of changes so far.
    pub(crate) fn changes(&self) -> u64 {
        self.revocations.load(SeqCst) / CHANGE
    }
}
