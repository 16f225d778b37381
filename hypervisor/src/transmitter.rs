//! Patience with a UART that the guest has, too: where it has switched the transmitter off, the FIFO stays full for ever.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// How often a full FIFO is looked at before what does not fit is given up.
const PATIENCE: usize = 1 << 20;

/// Whether it is worth waiting for room in the FIFO.
#[derive(Debug, Default)]
pub struct Transmitter {
    /// The last wait was in vain. What is printed from then on is lost until there is room, but costs no time.
    stalled: AtomicBool,
}

impl Transmitter {
    /// One that was not waited for so far.
    pub const fn new() -> Self {
        Self { stalled: AtomicBool::new(false) }
    }

    /// Waits for room for one byte, and says whether there is.
    pub fn wait_for_room(&self, is_full: impl Fn() -> bool) -> bool {
        let patience = if self.stalled.load(Relaxed) { 1 } else { PATIENCE };
        let has_room = (0..patience).any(|_| !is_full());
        self.stalled.store(!has_room, Relaxed);
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_transmitter_that_is_off_is_waited_for_once() {
        let transmitter = Transmitter::new();
        let looks = Cell::new(0);
        let off = || {
            looks.set(looks.get() + 1);
            true
        };
        assert!((0..100).all(|_| !transmitter.wait_for_room(off)));
        assert!(looks.get() < 2 * PATIENCE, "{} looks for 100 bytes", looks.get());
        assert!(transmitter.wait_for_room(|| false), "it is on again");
        looks.set(0);
        let slow = || {
            looks.set(looks.get() + 1);
            looks.get() < 1000
        };
        assert!(transmitter.wait_for_room(slow), "one that is slow is waited for again");
    }
}
