//! Why a guest's tree cannot be written.

use crate::range::PhysRange;
use core::fmt;

/// The arm64 boot protocol's limit (Linux, `Documentation/arch/arm64/booting.rst`).
pub(super) const MAX_SIZE: usize = 2 << 20;

/// Why no tree was written.
#[derive(Debug, PartialEq, Eq)]
pub enum GuestTreeError {
    /// Nothing that can be granted lies at this address.
    NotGrantable {
        /// The address.
        address: u64,
        /// Where the machine's virtio-mmio transports lie, if it has any.
        transports: Option<PhysRange>,
    },
    /// A CPU that the machine does not have.
    NoSuchCpu {
        /// Its affinity.
        mpidr: u64,
    },
    /// The tree is larger than the boot protocol allows.
    TooLarge {
        /// Its bytes.
        size: usize,
    },
    /// The writer would not have it.
    Writer(vm_fdt::Error),
}

impl fmt::Display for GuestTreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotGrantable { address, transports: None } => {
                write!(f, "grant-dma={address:#x} can't be granted: the machine has no virtio-mmio device")
            }
            Self::NotGrantable { address, transports: Some(transports) } => write!(
                f,
                "grant-dma={address:#x} is no virtio-mmio device's address: the machine's lie at {transports}"
            ),
            Self::NoSuchCpu { mpidr } => write!(f, "the machine has no CPU {mpidr:#x} to give to the guest"),
            Self::TooLarge { size } => {
                write!(f, "the guest's device tree has {size} bytes, but {MAX_SIZE} are allowed: shorten its bootargs")
            }
            Self::Writer(error) => write!(f, "the guest's device tree can't be written: {error}"),
        }
    }
}

impl core::error::Error for GuestTreeError {}

impl From<vm_fdt::Error> for GuestTreeError {
    fn from(error: vm_fdt::Error) -> Self {
        Self::Writer(error)
    }
}
