//! What the attacks are about.

use crate::calls::services::MIB;
use crate::machine::cpu::MAX_CPUS;
use core::sync::atomic::AtomicU64;

/// First address of the memory that the calls may be about: nothing of the payload's is in it.
pub static AREA: AtomicU64 = AtomicU64::new(0);
/// Its bytes.
pub const AREA_BYTES: u64 = 8 * MIB;

/// Each CPU's page of code.
pub static CODE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// Each CPU's stage-1 entry for a page of its own choice.
pub static WINDOWS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
