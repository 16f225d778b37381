//! What the bits of a log are made of; another crate puts a model checker's in its place.

pub(crate) use core::sync::atomic::{AtomicU64, Ordering, fence};

/// Words are memory and nothing more: assembly may look at them.
#[cfg(target_arch = "aarch64")]
pub(crate) const IN_MEMORY: bool = true;
