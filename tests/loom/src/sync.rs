//! What the included modules are made of here: loom's atomics in place of core's.
//!
//! Words of 64 bits are more than loom's in three ways. Loom takes a sequentially consistent load for an acquire; here there
//! is a fence before it, if what its thread has written last was written so, too. Loom has a plain store seen in its turn, if not by everybody: here it
//! may also come to memory late, when its thread does something that has to come behind it. And loom 0.7 remembers of the
//! accesses to an atomic no more than the last, so that it does not try a store before a load of another thread's where its
//! own thread has loaded in between: here each access takes its turn first, at an atomic that orders nothing.

use loom::sync::atomic as modelled;
use loom::thread::{self, ThreadId};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Plain;

pub use loom::sync::atomic::Ordering;
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize};

/// Words of 64 bits are more than memory here, and assembly must not look at them.
#[cfg(target_arch = "aarch64")]
pub(crate) const IN_MEMORY: bool = false;

/// What is different from the code as it stands, to see that a test notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weakness {
    /// There is no fence in the code that is tested.
    NoFence,
    /// What replaces a whole word orders nothing.
    RelaxedSwap,
    /// What sets bits of a word orders nothing.
    RelaxedSet,
    /// Loads order nothing, and may find what is old.
    RelaxedLoad,
    /// Descriptors' read-modify-writes have this order and no more.
    Descriptor(Ordering),
    /// Pages are protected before their marks are taken.
    ProtectsFirst,
    /// The marks are set before the page is opened.
    MarksFirst,
}

/// A plain store that has not come to memory.
struct Late {
    by: ThreadId,
    word: Arc<Shared>,
    value: u64,
}

/// A word that several threads use.
#[derive(Debug)]
struct Shared {
    value: modelled::AtomicU64,
    turns: modelled::AtomicU64,
}

impl Shared {
    /// The value, when it is this thread's turn.
    fn now(&self) -> &modelled::AtomicU64 {
        self.turns.fetch_add(1, Ordering::Relaxed);
        &self.value
    }
}

// Loom runs all threads of a model on one.
thread_local! {
    static WEAKNESS: Cell<Option<Weakness>> = const { Cell::new(None) };
    static STORES_COME_LATE: Cell<bool> = const { Cell::new(false) };
    /// The threads that have written last in the sequentially consistent order.
    static IN_SEQUENCE: RefCell<HashSet<ThreadId>> = RefCell::new(HashSet::new());
    static LATE: RefCell<Vec<Late>> = const { RefCell::new(Vec::new()) };
}

/// Begins a model: what is wrong in it, if anything, and whether plain stores come late.
pub fn begin(weakness: Option<Weakness>, stores_come_late: bool) {
    WEAKNESS.set(weakness);
    STORES_COME_LATE.set(stores_come_late);
    IN_SEQUENCE.take();
    LATE.take();
}

/// Whether the model has this weakness.
pub(crate) fn has(weakness: Weakness) -> bool {
    WEAKNESS.get() == Some(weakness)
}

/// The weakness of the model.
pub(crate) fn weakness() -> Option<Weakness> {
    WEAKNESS.get()
}

/// The fence of the code that is tested.
pub(crate) fn fence(order: Ordering) {
    if !has(Weakness::NoFence) {
        full_fence(order);
    }
}

/// A fence, whatever is wrong.
pub(crate) fn full_fence(order: Ordering) {
    land(|_| true);
    modelled::fence(order);
}

/// This thread's late stores that `which` chooses come to memory, the last one first.
fn land(which: impl Fn(&Late) -> bool) {
    if LATE.with_borrow(Vec::is_empty) {
        return;
    }
    let this = thread::current().id();
    // Taken out first: other threads may run at each store.
    let landing: Vec<Late> =
        LATE.with_borrow_mut(|late| late.extract_if(.., |store| store.by == this && which(store)).collect());
    for store in landing.into_iter().rev() {
        store.word.now().store(store.value, Ordering::Relaxed);
    }
}

/// A word of 64 bits.
#[derive(Debug)]
pub struct AtomicU64 {
    /// Which one thread uses: loom has no need to look at it.
    plain: Plain,
    /// Which several threads use.
    shared: Option<Arc<Shared>>,
}

impl AtomicU64 {
    /// A word that one thread uses.
    pub(crate) const fn new(value: u64) -> Self {
        Self { plain: Plain::new(value), shared: None }
    }

    /// A word that several threads use. In a model only.
    pub(crate) fn shared(value: u64) -> Self {
        let shared = Shared { value: modelled::AtomicU64::new(value), turns: modelled::AtomicU64::new(0) };
        Self { plain: Plain::new(value), shared: Some(Arc::new(shared)) }
    }

    /// Before this thread's next access to the word: its late stores to it come to memory.
    fn settle(word: &Arc<Shared>) {
        land(|store| Arc::ptr_eq(&store.word, word));
    }

    /// Before this thread writes the word: its late stores to it, or all if this is a release.
    fn settle_all(word: &Arc<Shared>, order: Ordering) {
        let releases = matches!(order, Ordering::Release | Ordering::AcqRel | Ordering::SeqCst);
        land(|store| releases || Arc::ptr_eq(&store.word, word));
        let this = thread::current().id();
        IN_SEQUENCE.with_borrow_mut(|threads| match order {
            Ordering::SeqCst => threads.insert(this),
            _ => threads.remove(&this),
        });
    }

    pub(crate) fn load(&self, order: Ordering) -> u64 {
        let Some(word) = &self.shared else { return self.plain.load(Ordering::Relaxed) };
        Self::settle(word);
        if has(Weakness::RelaxedLoad) {
            return word.now().load(Ordering::Relaxed);
        }
        if order == Ordering::SeqCst && IN_SEQUENCE.with_borrow(|threads| threads.contains(&thread::current().id())) {
            modelled::fence(Ordering::SeqCst);
        }
        word.now().load(order)
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        let Some(word) = &self.shared else { return self.plain.store(value, Ordering::Relaxed) };
        Self::settle_all(word, order);
        if order == Ordering::Relaxed && STORES_COME_LATE.get() {
            let late = Late { by: thread::current().id(), word: Arc::clone(word), value };
            LATE.with_borrow_mut(|stores| stores.push(late));
        } else {
            word.now().store(value, order);
        }
    }

    pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
        let Some(word) = &self.shared else { return self.plain.swap(value, Ordering::Relaxed) };
        let order = if has(Weakness::RelaxedSwap) { Ordering::Relaxed } else { order };
        Self::settle_all(word, order);
        word.now().swap(value, order)
    }

    pub(crate) fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        let Some(word) = &self.shared else { return self.plain.fetch_or(bits, Ordering::Relaxed) };
        let order = if has(Weakness::RelaxedSet) { Ordering::Relaxed } else { order };
        Self::settle_all(word, order);
        word.now().fetch_or(bits, order)
    }

    pub(crate) fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        let Some(word) = &self.shared else { return self.plain.fetch_and(bits, Ordering::Relaxed) };
        Self::settle_all(word, order);
        word.now().fetch_and(bits, order)
    }

    /// Replaces `old` by `new`, and says whether it was `old`.
    pub(crate) fn replace(&self, old: u64, new: u64, order: Ordering) -> bool {
        let Some(word) = &self.shared else {
            return self.plain.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        };
        Self::settle_all(word, order);
        let failure = match order {
            Ordering::Relaxed | Ordering::Release => Ordering::Relaxed,
            _ => Ordering::Acquire,
        };
        word.now().compare_exchange(old, new, order, failure).is_ok()
    }
}
