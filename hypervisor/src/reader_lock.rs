//! A lock for what every fault reads and little else writes: a reader touches nothing that another CPU writes
//! meanwhile.
//!
//! Each reader has a [`Flag`] of its own. It raises the flag, then looks whether there is a writer; a writer says that
//! it is there, then looks at all flags. With a full barrier between the two steps of each, one of them sees the other.
//! Readers that see a writer step back, so no stream of faults keeps one waiting.

use crate::sync::{AtomicBool, AtomicUsize, Ordering, fence};

/// Not 0 while its owner is reading. Written by the owner alone.
#[derive(Debug, Default)]
pub struct Flag(pub AtomicUsize);

/// The lock; what it guards is its user's.
#[derive(Debug, Default)]
pub struct ReaderLock {
    /// There is a writer, or one that waits for readers to end.
    writer: AtomicBool,
}

impl ReaderLock {
    /// Begins to read, and returns what [`ReaderLock::end_read`] wants. May be called again by a reader, which then
    /// ends twice, in reverse order. `wait` is called while a writer is waited for.
    #[inline(always)]
    pub fn begin_read(&self, own: &Flag, wait: impl Fn()) -> usize {
        loop {
            if let Some(nested) = self.try_begin_read(own) {
                return nested;
            }
            self.wait_for_writer(&wait);
        }
    }

    /// [`ReaderLock::begin_read`], or nothing while there is a writer.
    #[inline(always)]
    pub fn try_begin_read(&self, own: &Flag) -> Option<usize> {
        let nested = own.0.load(Ordering::Relaxed);
        own.0.store(1, Ordering::Relaxed);
        // Orders the flag before the look at the writer; `begin_write` has the other half.
        fence(Ordering::SeqCst);
        // Acquire: what the last writer has written is seen.
        if self.writer.load(Ordering::Acquire) { self.step_back(own, nested) } else { Some(nested) }
    }

    /// A writer is there, or waits for readers. A reader that came before goes on.
    #[cold]
    #[inline(always)]
    fn step_back(&self, own: &Flag, nested: usize) -> Option<usize> {
        if nested != 0 {
            return Some(nested);
        }
        own.0.store(0, Ordering::Release);
        None
    }

    #[cold]
    #[inline(never)]
    fn wait_for_writer(&self, wait: impl Fn()) {
        while self.writer.load(Ordering::Relaxed) {
            wait();
        }
    }

    /// Ends what [`ReaderLock::begin_read`] has begun.
    #[inline(always)]
    pub fn end_read(&self, own: &Flag, nested: usize) {
        // Release: what was read was read before a writer that sees this changes it.
        own.0.store(nested, Ordering::Release);
    }

    /// Begins to write: waits for other writers, then for the readers whose flags `all` gives. The caller does not
    /// read.
    pub fn begin_write<'f>(&self, all: impl Iterator<Item = &'f Flag>, wait: impl Fn()) {
        while self.writer.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            wait();
        }
        // Orders the word that there is a writer before the look at the flags.
        fence(Ordering::SeqCst);
        for flag in all {
            while flag.0.load(Ordering::Acquire) != 0 {
                wait();
            }
        }
    }

    /// Locks out readers and writers for good, as a crash does, and waits until those that are in have ended, in as far
    /// as `may_wait` says, which is called again and again. Says whether all have. `others` are the flags of the other
    /// CPUs: the caller may be in the middle of reading, or writing, itself.
    pub fn close<'f>(&self, others: impl Iterator<Item = &'f Flag>, mut may_wait: impl FnMut() -> bool) -> bool {
        while self.writer.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            if !may_wait() {
                return false;
            }
        }
        // As in `begin_write`.
        fence(Ordering::SeqCst);
        for flag in others {
            while flag.0.load(Ordering::Acquire) != 0 {
                if !may_wait() {
                    return false;
                }
            }
        }
        true
    }

    /// Ends what [`ReaderLock::begin_write`] has begun.
    pub fn end_write(&self) {
        // Release: readers that see it see what was written.
        self.writer.store(false, Ordering::Release);
    }
}
