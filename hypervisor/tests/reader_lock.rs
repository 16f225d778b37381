//! The lock around the guest's table, where a crash closes it; `tests/loom` has the rest.

use hypervisor::reader_lock::{Flag, ReaderLock};

#[test]
fn a_closed_lock_waits_for_those_inside_and_lets_nobody_in() {
    let (lock, own, other) = (ReaderLock::default(), Flag::default(), Flag::default());
    // The caller reads, and so does another, that ends when it is waited for the third time.
    lock.begin_read(&own, || unreachable!());
    let nested = lock.begin_read(&other, || unreachable!());
    let mut waits = 0;
    let all_out = lock.close([&other].into_iter(), || {
        waits += 1;
        if waits == 3 {
            lock.end_read(&other, nested);
        }
        true
    });
    assert!(all_out && waits == 3, "{waits} waits");
    assert_eq!(lock.try_begin_read(&other), None);
}

#[test]
fn patience_with_those_inside_ends() {
    let (lock, other) = (ReaderLock::default(), Flag::default());
    lock.begin_read(&other, || unreachable!());
    let mut left = 10;
    let patience = || {
        left -= 1;
        left > 0
    };
    assert!(!lock.close([&other].into_iter(), patience), "a reader that never ends");
    let lock = ReaderLock::default();
    lock.begin_write([].into_iter(), || unreachable!());
    assert!(!lock.close([].into_iter(), || false), "a writer that never ends");
    lock.end_write();
    assert!(lock.close([].into_iter(), || false));
}
