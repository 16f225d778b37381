#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]

/// What the marks of a log are made of; another crate puts a model checker's in its place.
mod sync {
    pub(crate) use core::sync::atomic::{AtomicU64, Ordering, fence};
    /// Words are memory and nothing more: assembly may look at them.
    #[cfg(target_arch = "aarch64")]
    pub(crate) const IN_MEMORY: bool = true;
}

#[cfg(target_arch = "aarch64")]
pub mod aarch64;
pub mod address;
mod clean;
mod collapse;
pub mod counters;
pub mod descriptor;
pub mod dirty;
mod errata;
pub mod error;
pub mod fault;
pub mod features;
mod first_write;
mod freeze;
pub mod geometry;
mod harvest;
mod identity;
mod invalidate;
mod map;
mod marks;
pub mod page_set;
pub mod platform;
pub mod pool;
mod protect;
mod report;
mod reserve;
pub mod secure;
mod size_change;
mod split;
mod table;
mod under_way;
mod unmap;
pub mod vmid;
mod walk;

pub use address::{Ipa, IpaRange, PAGE_SIZE, PhysAddr};
pub use counters::{Counters, Event};
pub use descriptor::{Attributes, Descriptor, MemoryType, Permissions};
pub use dirty::{LOGS, Log, LogOptions, Mechanism};
pub use error::Error;
pub use fault::{Abort, FaultHistory, Outcome, Syndrome};
pub use features::{BbmLevel, Errata, Features};
pub use geometry::{Geometry, LeafSize, Level};
pub use identity::Identity;
pub use page_set::{Layout, PageSet};
pub use platform::{Dsb, Maintenance, Scope, Slot, TableMemory, Tlbi, Vmid};
pub use protect::Batch;
pub use table::{Config, Stage2};
pub use walk::{Census, Leaf, Leaves};
