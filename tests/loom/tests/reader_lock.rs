//! The hypervisor's lock: readers and writers exclude each other, and see what the one before has written.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use stage2_loom::reader_lock::{Flag, ReaderLock};

struct Guarded {
    lock: ReaderLock,
    flags: [Flag; 2],
    /// loom's: reports a read beside a write, or one that is not ordered after it.
    value: UnsafeCell<u32>,
}

// SAFETY: what the lock is for; loom reports it where it fails.
unsafe impl Sync for Guarded {}
// SAFETY: as above.
unsafe impl Send for Guarded {}

impl Guarded {
    fn new() -> Arc<Self> {
        Arc::new(Self { lock: ReaderLock::default(), flags: Default::default(), value: UnsafeCell::new(0) })
    }

    fn read(&self, own: usize) -> u32 {
        let nested = self.lock.begin_read(&self.flags[own], thread::yield_now);
        // SAFETY: the lock is held for reading.
        let value = self.value.with(|value| unsafe { *value });
        self.lock.end_read(&self.flags[own], nested);
        value
    }

    fn read_within_a_read(&self, own: usize) {
        let nested = self.lock.begin_read(&self.flags[own], thread::yield_now);
        self.read(own);
        // SAFETY: the lock is still held for reading.
        self.value.with(|value| unsafe { *value });
        self.lock.end_read(&self.flags[own], nested);
    }

    fn write(&self) {
        self.lock.begin_write(self.flags.iter(), thread::yield_now);
        // SAFETY: the lock is held for writing.
        self.value.with_mut(|value| unsafe { *value += 1 });
        self.lock.end_write();
    }
}

/// Every interleaving with up to `preemptions` preemptions.
fn check(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 100_000;
    model.check(test);
}

#[test]
fn a_reader_and_a_writer_exclude_each_other() {
    check(3, || {
        let guarded = Guarded::new();
        let theirs = Arc::clone(&guarded);
        let writer = thread::spawn(move || theirs.write());
        guarded.read(0);
        writer.join().unwrap();
        assert_eq!(guarded.read(0), 1);
    });
}

#[test]
fn a_read_within_a_read_does_not_let_a_writer_in() {
    check(3, || {
        let guarded = Guarded::new();
        let theirs = Arc::clone(&guarded);
        let writer = thread::spawn(move || theirs.write());
        guarded.read_within_a_read(0);
        writer.join().unwrap();
    });
}

#[test]
fn two_readers_and_a_writer() {
    check(1, || {
        let guarded = Guarded::new();
        let (theirs, others) = (Arc::clone(&guarded), Arc::clone(&guarded));
        let writer = thread::spawn(move || theirs.write());
        let reader = thread::spawn(move || _ = others.read(1));
        guarded.read(0);
        writer.join().unwrap();
        reader.join().unwrap();
    });
}

#[test]
fn two_writers_exclude_each_other() {
    check(3, || {
        let guarded = Guarded::new();
        let theirs = Arc::clone(&guarded);
        let writer = thread::spawn(move || theirs.write());
        guarded.write();
        writer.join().unwrap();
        assert_eq!(guarded.read(0), 2);
    });
}

/// What a crash does: the caller of `close` reads at the moment, and changes what is guarded once the others are out.
#[test]
fn a_closed_lock_lets_nobody_change_what_is_left() {
    check(3, || {
        let guarded = Guarded::new();
        let theirs = Arc::clone(&guarded);
        let other = thread::spawn(move || {
            for _ in 0..2 {
                if let Some(nested) = theirs.lock.try_begin_read(&theirs.flags[1]) {
                    // SAFETY: the lock is held for reading.
                    theirs.value.with(|value| unsafe { *value });
                    theirs.lock.end_read(&theirs.flags[1], nested);
                }
            }
        });
        guarded.lock.begin_read(&guarded.flags[0], thread::yield_now);
        let all_out = guarded.lock.close([&guarded.flags[1]].into_iter(), || {
            thread::yield_now();
            true
        });
        assert!(all_out);
        // SAFETY: the other is out, and does not come in again.
        guarded.value.with_mut(|value| unsafe { *value += 1 });
        other.join().unwrap();
    });
}
