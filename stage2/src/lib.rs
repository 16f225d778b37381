//! Stage-2 translation tables for 64-bit Arm: large blocks, split on demand, without break-before-make where the CPU
//! has FEAT_BBM level 2.
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod counters;
pub mod descriptor;
pub mod error;
pub mod features;
pub mod geometry;
pub mod platform;

pub use address::{Ipa, IpaRange, PAGE_SIZE, PhysAddr};
pub use counters::{Counters, Event};
pub use descriptor::{Attributes, Descriptor, MemoryType, Permissions};
pub use error::Error;
pub use features::{BbmLevel, Features};
pub use geometry::{Geometry, LeafSize, Level};
pub use platform::{Dsb, Maintenance, Scope, Slot, TableMemory, Tlbi, Vmid};
