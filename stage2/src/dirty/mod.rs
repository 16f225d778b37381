//! Dirty logs: which pages the guest has written, by write protection or by hardware dirty state.
//!
//! The log is a bitmap, one bit a page, beside the table. Descriptors hold no more than what the hardware needs:
//! writable, or write-protected. What holds throughout, for a log by write protection: **a leaf of the range that lets
//! writes through has its pages marked, or a fault handler on its way to marking them.** First writable, then marked:
//! the other order would let a harvest take the mark, find nothing to protect, and leave a writable page that no PE
//! will mark again.

mod hardware;
mod harvest;
mod start_stop;
mod write_protect;

use crate::arch::descriptor::bits;

pub use crate::bitmap::logs::{LOGS, Log, LogOptions, Mechanism};

/// The bits that let a leaf's writes through unnoticed.
pub(crate) const WRITABLE: u64 = bits::WRITE | bits::DBM;
