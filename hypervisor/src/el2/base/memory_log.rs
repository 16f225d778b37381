//! The last of what was printed, in memory: for a board with no UART that is known, and for one whose UART the guest has
//! switched off.
//!
//! It is read from outside: a debugger finds it by the symbol `UNBROKEN_LOG`, and a dump of RAM by its first eight bytes.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// How many bytes are kept.
const BYTES: usize = 16 << 10;
/// The first eight bytes, as soon as there is anything behind them.
const MAGIC: u64 = u64::from_le_bytes(*b"UNBRKLOG");

/// A ring of text.
#[repr(C)]
pub struct MemoryLog {
    magic: AtomicU64,
    /// Bytes that were written in all: the next one lies at this number's remainder by the size of `text`.
    written: AtomicU64,
    text: [AtomicU8; BYTES],
}

/// The one that there is.
#[unsafe(no_mangle)]
pub static UNBROKEN_LOG: MemoryLog =
    MemoryLog { magic: AtomicU64::new(0), written: AtomicU64::new(0), text: [const { AtomicU8::new(0) }; BYTES] };

impl MemoryLog {
    /// Adds a byte. Plain loads and stores: it is called before the caches are on, when an exclusive access may fail. Of two
    /// CPUs that print without the console's lock, one may overwrite a byte of the other's.
    pub fn push(&self, byte: u8) {
        let written = self.written.load(Relaxed);
        if let Some(place) = self.text.get(written as usize % BYTES) {
            place.store(byte, Relaxed);
        }
        self.written.store(written.wrapping_add(1), Relaxed);
        self.magic.store(MAGIC, Relaxed);
    }
}
