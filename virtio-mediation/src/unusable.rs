//! What cannot be mediated.

use crate::violation::Violation;
use core::fmt;

/// Why a transport cannot be mediated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There is no virtio-mmio transport.
    NoTransport,
    /// It has another version than the one that is mediated.
    Version(u32),
    /// There is no device at the transport.
    NoDevice,
    /// A device of this ID is not mediated.
    Kind(u32),
    /// The device has no `VERSION_1`.
    Legacy,
    /// The device does not become quiet.
    NoReset,
    /// It has no queue where its kind has one, or one that is in use after a reset.
    Queue(u32),
    /// There is no memory for its rings.
    NoMemory,
    /// The state is that of a device with another ID.
    OtherKind(u32),
    /// The state has features that the device does not have.
    OtherFeatures(u64),
    /// The state is none that a device can have.
    NoState(Violation),
    /// The device works, and so can't be given a state.
    InUse,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTransport => f.write_str("there is no virtio-mmio transport"),
            Self::Version(version) => write!(
                f,
                "its transport has version {version} (1 is legacy), and only version 2 can be mediated \
                 (QEMU: -global virtio-mmio.force-legacy=off)"
            ),
            Self::NoDevice => f.write_str("no device is attached to this transport"),
            Self::Kind(id) => write!(
                f,
                "a device with ID {id} is not mediated; network cards (1), disks (2) and \
                 sources of entropy (4) are"
            ),
            Self::Legacy => f.write_str("the device does not offer VERSION_1"),
            Self::NoReset => f.write_str("the device does not reset"),
            Self::Queue(queue) => write!(f, "the device's queue {queue} is not there, or in use after a reset"),
            Self::NoMemory => f.write_str("there is no memory for its rings"),
            Self::OtherKind(id) => write!(f, "the saved state is that of a device with ID {id}"),
            Self::OtherFeatures(missing) => {
                write!(f, "the saved state's device offered features that this one does not have: {missing:#x}")
            }
            Self::NoState(why) => write!(f, "the saved state does not fit the guest's memory or the device: {why}"),
            Self::InUse => f.write_str("the device is in use: a state is restored to one that is quiet"),
        }
    }
}

impl core::error::Error for Unusable {}
