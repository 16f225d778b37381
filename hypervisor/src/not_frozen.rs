//! The proof that the guest's memory does not stand still: code that writes it on the guest's behalf has to show it.

use core::ops::Deref;

/// What was read when it was not frozen, and is held, so that it cannot be frozen now.
#[derive(Debug)]
pub struct NotFrozen<G>(G);

impl<G> NotFrozen<G> {
    /// Reads again and again, until what is read is not frozen. What was read is let go while `wait` runs: the CPU
    /// that is to thaw it needs it.
    #[inline(always)]
    pub fn read(read: impl Fn() -> G, is_frozen: impl Fn(&G) -> bool, wait: impl Fn()) -> Self {
        loop {
            if let Some(held) = Self::of(read(), &is_frozen) {
                return held;
            }
            wait();
        }
    }

    /// What is held, or nothing if it is frozen: then it is let go.
    #[inline(always)]
    pub fn of(held: G, is_frozen: impl FnOnce(&G) -> bool) -> Option<Self> {
        let frozen = is_frozen(&held);
        (!frozen).then_some(Self(held))
    }
}

impl<G> Deref for NotFrozen<G> {
    type Target = G;

    #[inline(always)]
    fn deref(&self) -> &G {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A lock that counts its holders, around a table that thaws when it has been waited for so often.
    struct Lock {
        held: Cell<usize>,
        frozen_for: Cell<usize>,
    }

    struct Held<'l>(&'l Lock);

    impl Drop for Held<'_> {
        fn drop(&mut self) {
            self.0.held.set(self.0.held.get() - 1);
        }
    }

    impl Lock {
        fn read(&self) -> Held<'_> {
            self.held.set(self.held.get() + 1);
            Held(self)
        }

        fn not_frozen(&self) -> (NotFrozen<Held<'_>>, usize) {
            let waits = Cell::new(0);
            let wait = || {
                assert_eq!(self.held.get(), 0, "who thaws could not get the lock");
                waits.set(waits.get() + 1);
                self.frozen_for.set(self.frozen_for.get() - 1);
            };
            (NotFrozen::read(|| self.read(), |held| held.0.frozen_for.get() > 0, wait), waits.get())
        }
    }

    #[test]
    fn what_is_frozen_is_let_go_and_read_again_until_it_is_not() {
        for frozen_for in [0, 1, 2, 7] {
            let lock = Lock { held: Cell::new(0), frozen_for: Cell::new(frozen_for) };
            let (held, waits) = lock.not_frozen();
            assert_eq!((waits, held.0.0.frozen_for.get(), lock.held.get()), (frozen_for, 0, 1));
            drop(held);
            assert_eq!(lock.held.get(), 0);
        }
    }

    #[test]
    fn what_is_frozen_is_let_go_by_one_that_does_not_wait() {
        for frozen_for in [0, 1] {
            let lock = Lock { held: Cell::new(0), frozen_for: Cell::new(frozen_for) };
            let held = NotFrozen::of(lock.read(), |held| held.0.frozen_for.get() > 0);
            assert_eq!((held.is_some(), lock.held.get()), (frozen_for == 0, 1 - frozen_for));
        }
    }
}
