//! Mediates a virtio-mmio device: the guest drives a register frame that software answers, and the device works on rings that
//! the guest never sees.
//!
//! A device that does DMA reads and writes whatever memory its descriptors name. Here the descriptors that it sees are copies,
//! in memory that is not the guest's: each of the guest's was read once, the copy was checked, and what was checked is what
//! the device is given. The data itself is not copied: the guest's addresses are the device's (IPA = PA).
//!
//! What the hypervisor does with the parts:
//!
//! - a guest's load or store in the frame goes to [`Device::read`] or [`Device::write`];
//! - QueueNotify *feeds*: what the guest has made available is checked and handed to the device;
//! - InterruptACK *drains*: what the device has used is handed to the guest, and every page that the device was allowed to
//!   write is marked as written. Whoever may not wait for the guest calls [`Device::drain`];
//! - before dirty pages are reported, [`Device::report_in_flight`] marks all that the device may write at this moment;
//! - before the guest is saved, or its last dirty pages are taken, [`Device::quiesce`] makes the device write nothing more, and
//!   [`Device::resume`] lets it go on where it was; between the two it can be [saved](Device::save) and
//!   [restored](Device::restore), here or elsewhere.
//!
//! The logic needs no instruction of its own: memory, registers and barriers are behind [`Environment`], so that a host tests it
//! with a guest that changes its memory between two loads.
//!
//! Sources: Virtual I/O Device (VIRTIO) Version 1.2, of which sections are cited.
#![no_std]
#![forbid(unsafe_code)]

mod device;
mod environment;
mod features;
mod queue;
pub mod registers;
mod rings;
mod saved;
mod unusable;
mod violation;

pub use device::{Device, Written};
pub use environment::Environment;
pub use features::{Kind, feature};
pub use queue::NotWritable;
pub use rings::{MAX_SIZE, Rings};
pub use saved::{Heads, Placement, SAVED_BYTES, Saved, SavedQueue};
pub use unusable::Unusable;
pub use violation::Violation;
