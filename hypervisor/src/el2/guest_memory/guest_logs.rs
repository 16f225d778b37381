//! The logs that the guest has started by its calls.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;
use hypervisor::granule::Granule;
use hypervisor_abi::status;
use spin::Mutex;
use stage2::Log;

/// Logs at a time.
pub const LOGS: usize = 4;

/// A log of the guest's. The alignment makes its size a power of two, so that a shift finds one by its number.
#[repr(align(128))]
pub struct Slot {
    pub log: Option<Log<Granule>>,
    /// Words of a bitmap of its pages.
    pub needed: usize,
    pub accepted: Accepted,
    /// The last log's bitmap: a guest that logs again mostly logs the same range.
    pub spare: Option<&'static [AtomicU64]>,
}

impl Slot {
    const NONE: Self = Self { log: None, needed: 0, accepted: Accepted::NONE, spare: None };

    /// `words` words for a log, with anything in them.
    pub fn storage(&mut self, words: usize) -> Result<&'static [AtomicU64], i64> {
        if let Some(spare) = self.spare.take() {
            if spare.len() == words {
                return Ok(spare);
            }
            // SAFETY: it was leaked from a box, below, and the engine uses it no more: it has given it back.
            drop(unsafe { Box::from_raw(core::ptr::from_ref(spare).cast_mut()) });
        }
        Ok(Box::leak(zeroed(words)?))
    }
}

/// The guest's logs: its calls make them, and nobody else. Taken before the table's lock.
pub struct Logs(pub Mutex<[Slot; LOGS]>);

impl Logs {
    pub const fn new() -> Self {
        Self(Mutex::new([const { Slot::NONE }; LOGS]))
    }
}

/// The buffer that a log was last reported into: a guest that harvests again and again uses the same.
#[derive(Clone, Copy)]
pub struct Accepted {
    /// Where it begins.
    pub address: u64,
    /// While the table's is this, the guest may write it.
    pub epoch: u64,
    /// It has pages of a log.
    pub logged: bool,
}

impl Accepted {
    /// No table has come so far.
    pub const NONE: Self = Self { address: 0, epoch: u64::MAX, logged: false };
}

/// Memory for a log, if there is any: a guest's wish is no reason to run out of it.
fn zeroed<T: Default>(words: usize) -> Result<Box<[T]>, i64> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(words).map_err(|_| status::NO_MEMORY)?;
    memory.resize_with(words, T::default);
    Ok(memory.into_boxed_slice())
}
