#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]

// Not for tests: its code is that of `examples/quickstart`, which is built for EL2 and booted.
#[cfg(not(doctest))]
#[doc = include_str!("../docs/embedding.md")]
pub mod embedding {}

mod arch;
mod bitmap;
pub mod dirty;
pub mod fault;
mod mapping;
pub mod platform;
mod resize;
mod table;

#[cfg(target_arch = "aarch64")]
pub use platform::aarch64;

pub use arch::{address, descriptor, error, features, geometry, granule, secure};
pub use bitmap::page_set;
pub use platform::{counters, pool, vmid};

pub use address::{Ipa, IpaRange, PAGE_SIZE, PhysAddr};
pub use bitmap::logs::{LOGS, Log, LogOptions, Mechanism};
pub use counters::{Counters, Event};
pub use descriptor::{Attributes, Descriptor, Execute, MemoryType, Permissions};
pub use error::Error;
pub use fault::{Abort, AccessKind, FaultHistory, Outcome, Syndrome, Taken, Untranslated};
pub use features::{BbmLevel, Errata, Features};
pub use geometry::{Geometry, LeafSize, Level};
pub use granule::{Granule, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Granule64KLpa};
pub use mapping::protect::Batch;
pub use page_set::{Layout, PageSet};
pub use platform::mapped::Mapped;
pub use platform::{Dsb, FrameAllocator, GROUP, Maintenance, Scope, Slot, TableMemory, Tlbi, Vmid};
pub use table::dump::Dump;
pub use table::inspect::{Census, Leaf, Leaves};
pub use table::{Config, Stage2};
