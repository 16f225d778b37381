//! What is kept of a device that is quiet.

use crate::rings::MAX_SIZE;
use serde::{Deserialize, Serialize};

/// Queues of any kind of device.
pub(crate) const QUEUES: usize = 2;
/// Words of the configuration space that are kept, of any kind of device.
pub(crate) const CONFIG_WORDS: usize = 9;

/// The most bytes that [`Saved`] takes as `postcard` writes it.
pub const SAVED_BYTES: usize = 2048;

/// Heads of chains, in the order in which the device got them.
pub type Heads = heapless::Vec<u16, { MAX_SIZE as usize }>;

/// Where the guest has a queue's rings, and how many descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Descriptors.
    pub size: u32,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub driver: u64,
    /// Address of the used ring.
    pub device: u64,
}

/// A queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    /// Whether the driver has made it ready.
    pub ready: bool,
    /// What the driver has written.
    pub placement: Placement,
    /// How far the guest's available ring was taken.
    pub available: u16,
    /// How far the guest's used ring goes.
    pub used: u16,
    /// What was made available and is not used.
    pub heads: Heads,
}

/// All that is to be kept of a quiet device for its driver to notice nothing: [`crate::Device::save`]. It may come from anywhere:
/// [`crate::Device::restore`] believes nothing of it. What its segments are is in the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// DeviceID.
    pub kind: u32,
    /// What the driver is offered.
    pub offered: u64,
    /// What the driver has written to DriverFeatures.
    pub accepted: u64,
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// QueueSel.
    pub queue_select: u32,
    /// Status, as the driver has written it.
    pub status: u32,
    /// InterruptStatus.
    pub interrupt: u32,
    /// A rule was broken, and the driver has not yet reset the device.
    pub needs_reset: bool,
    /// How many rules were broken.
    pub violations: u64,
    /// The words of the configuration space that the kind of device has, as they were.
    pub config: [u32; CONFIG_WORDS],
    /// Queues; what the kind does not have is empty.
    pub queues: [SavedQueue; QUEUES],
}
