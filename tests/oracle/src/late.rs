//! Plain stores that come to memory late, and the last one first, for [`crate::Setup::late_stores`].
//!
//! Arm lets a PE's plain stores be seen in any order until a barrier (B2.3): a walk's view of that is in the model always,
//! but what *software* on other PEs loads is what memory holds. With this, it holds what it would if each PE had a store
//! buffer that empties from its far end: at a DSB, before a read-modify-write (which is ordered on both sides), when it is
//! full, and when the PE waits for another or returns. The PE itself reads what it has stored. Operations that have the engine
//! to themselves store as ever: there is nobody to see it.

use crate::event::Action;
use crate::model::Model;
use crate::turn::before_act;
use stage2::{PhysAddr, Slot};

/// Stores that a PE may have on their way.
const MOST: usize = 48;

impl Model {
    /// The executing PE's plain store.
    pub(crate) fn put(&self, slot: Slot, value: u64) {
        if !self.setup().late_stores || self.is_exclusive() {
            return self.apply(self.pe(), Action::Store { slot, value });
        }
        // Stores to one place stay in their order (coherence).
        self.let_go(|stores| stores.iter().position(|&(other, _)| other == slot));
        self.let_go(|stores| (stores.len() == MOST).then_some(0));
        self.with_late(|stores| stores.push((slot, value)));
    }

    /// What the executing PE has stored in `slot`, if it has not come to memory yet.
    pub(crate) fn own_store(&self, slot: Slot) -> Option<u64> {
        self.with_late(|stores| stores.iter().find(|(other, _)| *other == slot).map(|&(_, value)| value))
    }

    /// All that the executing PE has stored comes to memory, the last store first. Other PEs may do something in between.
    /// Whether there was anything.
    pub(crate) fn drain(&self) -> bool {
        let mut any = false;
        while self.let_go(|stores| stores.len().checked_sub(1)) {
            any = true;
        }
        any
    }

    /// What the executing PE has stored in `table` comes to memory.
    pub(crate) fn drain_table(&self, table: PhysAddr) {
        while self.let_go(|stores| stores.iter().position(|(slot, _)| slot.table == table)) {}
    }

    /// The store that `which` chooses comes to memory. Whether there was one.
    fn let_go(&self, which: impl FnOnce(&[(Slot, u64)]) -> Option<usize>) -> bool {
        let store = self.with_late(|stores| which(stores).map(|index| stores.remove(index)));
        if let Some((slot, value)) = store {
            before_act();
            self.apply(self.pe(), Action::Store { slot, value });
        }
        store.is_some()
    }
}
