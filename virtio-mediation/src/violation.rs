//! What a driver may not do, and a device neither.

use core::fmt;

/// Why a device was stopped: its driver has to reset it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A queue's size is no power of two, or larger than it may be.
    QueueSize(u32),
    /// A ring does not begin where it has to be aligned to, or is not in the guest's memory, or the guest may not write it.
    Ring(u64),
    /// More became available at once than the queue has room for.
    IndexJump(u16),
    /// There is no descriptor of this number.
    NoSuchDescriptor(u16),
    /// The descriptor is in a chain already: a loop, or a part of two chains.
    InUse(u16),
    /// The descriptor has flags that were not agreed on.
    Flags(u16),
    /// A segment is empty.
    Empty(u16),
    /// A segment is not in the guest's memory.
    Outside {
        /// The segment's address.
        start: u64,
        /// Its length.
        bytes: u32,
    },
    /// The device would write where the guest may not.
    NotWritable {
        /// The segment's address.
        start: u64,
        /// Its length.
        bytes: u32,
    },
    /// What the device may write in all of a queue is more than the guest has memory.
    TooMuch(u16),
    /// A segment that the device reads comes after one that it writes.
    Order(u16),
    /// The device has used what it was not given.
    NotGiven(u32),
    /// The device does not become quiet.
    NotQuiet,
    /// The device does not take the features that it had taken before it was quiesced.
    Features,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueSize(size) => write!(f, "a queue cannot have {size} descriptors"),
            Self::Ring(address) => {
                write!(f, "the ring at {address:#x} is not aligned, or not in memory that the guest may write")
            }
            Self::IndexJump(by) => write!(f, "the available index went on by {by}, more than the queue's size"),
            Self::NoSuchDescriptor(number) => write!(f, "the queue has no descriptor {number}"),
            Self::InUse(number) => write!(f, "descriptor {number} is in a chain already"),
            Self::Flags(number) => write!(f, "descriptor {number} has flags that were not agreed on"),
            Self::Empty(number) => write!(f, "descriptor {number} is empty"),
            Self::Outside { start, bytes } => {
                write!(f, "a segment of {bytes:#x} bytes at {start:#x} is not in the guest's memory")
            }
            Self::NotWritable { start, bytes } => {
                write!(f, "the device would write {bytes:#x} bytes at {start:#x}, where the guest may not")
            }
            Self::TooMuch(number) => {
                write!(
                    f,
                    "with descriptor {number} the device would write more than there is memory, and so some of it twice"
                )
            }
            Self::Order(number) => {
                write!(f, "descriptor {number} is one that the device reads, behind one that it writes")
            }
            Self::NotQuiet => f.write_str("the device was told to reset and does not become quiet"),
            Self::Features => f.write_str("the device does not take the features that it had taken before"),
            Self::NotGiven(id) => write!(f, "the device has used descriptor {id}, which it was not given"),
        }
    }
}
