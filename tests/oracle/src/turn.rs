//! Where an engine thread hands control back: before each of its events, and while it waits for another PE.

use core::cell::Cell;
use core::ptr;
use corosensei::Yielder;

/// Why a thread hands control back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is about to read.
    Look,
    /// It is about to change something.
    Act,
    /// It cannot go on before another thread has changed something.
    Wait,
}

thread_local! {
    /// The running coroutine's way back to the scheduler.
    static CURRENT: Cell<*const Yielder<(), Step>> = const { Cell::new(ptr::null()) };
}

/// The coroutine of this yielder runs from now on.
///
/// # Safety
///
/// [`leave`] must be called before the yielder goes: when the coroutine suspends itself, and when its body has returned.
pub(crate) unsafe fn enter(yielder: &Yielder<(), Step>) {
    CURRENT.set(yielder);
}

/// No coroutine runs.
pub(crate) fn leave() {
    CURRENT.set(ptr::null());
}

fn hand_back(step: Step) {
    let yielder = CURRENT.get();
    if !yielder.is_null() {
        // SAFETY: `CURRENT` is null unless a coroutine executes, by the contract of `enter`, and then it points to that
        // coroutine's yielder.
        unsafe { &*yielder }.suspend(step);
        CURRENT.set(yielder);
    }
}

/// A scheduling point before a read.
pub(crate) fn before_look() {
    hand_back(Step::Look);
}

/// A scheduling point before a change.
pub(crate) fn before_act() {
    hand_back(Step::Act);
}

/// The engine waits for another PE.
///
/// # Panics
///
/// If there is no other thread: it would wait for ever.
pub(crate) fn wait() {
    assert!(!CURRENT.get().is_null(), "the engine waits for another PE, and there is none");
    hand_back(Step::Wait);
}
