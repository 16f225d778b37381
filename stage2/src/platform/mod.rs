//! The two doors to the machine that an embedder opens: where tables live, and the instructions that order them.
//!
//! Everything that the engine does to memory or to a TLB goes through these traits. A host test (or the oracle in
//! `stage2-oracle`) implements them to see every event; the module `aarch64` has the real instructions.

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod counters;
pub(crate) mod mapped;
pub mod pool;
mod traits;
pub mod vmid;

pub use traits::*;
