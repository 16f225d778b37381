//! Started by UEFI firmware: all that can be decided without calling it.
//!
//! Firmware starts the image as an EFI application. The application (`el2/efi.rs`) copies the image to a place with room
//! behind it, takes the device tree from the configuration table, and leaves boot services; the copy is then entered as
//! any boot loader enters an arm64 Image, with a device tree in x0 that says what firmware's memory map says.
//!
//! Sources: UEFI Specification 2.10; Linux, Documentation/arch/arm/uefi.rst; Xen, docs/misc/arm/device-tree/booting.txt.

pub mod leave;
pub mod load_options;
pub mod memory_map;
#[cfg(test)]
mod tests;
pub mod tree;

use core::fmt;

/// Why the image can't be started by this firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EfiError {
    /// The last bytes of the image are not there.
    Truncated,
    /// The CPU is not at EL2.
    ExceptionLevel {
        /// Where it is.
        level: u64,
    },
    /// The descriptors of the memory map have a size that they can't have.
    DescriptorSize {
        /// Bytes.
        size: usize,
    },
    /// A descriptor of the memory map says what can't be.
    Descriptor {
        /// Its number, from 0.
        index: usize,
    },
    /// The memory map can't be read.
    NoMemoryMap,
    /// The memory map has no memory that could be used.
    NoRam,
    /// Firmware has no memory in one piece for something.
    NoMemory {
        /// For what.
        what: &'static str,
        /// So many bytes.
        bytes: u64,
    },
    /// The configuration table has no device tree, or one without CPUs: GRUB makes that where firmware has none.
    NoTree,
    /// The cells of the tree's root can't hold an address of the memory map.
    RootCells {
        /// The address.
        address: u64,
    },
    /// The tree with all that is added to it takes more than was set aside.
    TreeGrew {
        /// Bytes that it takes.
        bytes: usize,
    },
    /// The load options are not text.
    LoadOptions,
    /// Neither a module nor an option names a kernel.
    NoKernel,
    /// A file can't be had from the volume that the image came from.
    File {
        /// What it was to be.
        what: &'static str,
    },
    /// Boot services did not end.
    StillThere {
        /// How often it was tried.
        attempts: usize,
    },
}

impl fmt::Display for EfiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UPDATE: &str = "update the firmware";
        const AGAIN: &str = "start again";
        let next = match *self {
            Self::Truncated => {
                f.write_str("the image's file is cut short")?;
                "copy it again"
            }
            Self::ExceptionLevel { level } => {
                write!(f, "started at EL{level}, but this hypervisor needs EL2")?;
                "switch virtualization on in firmware's set-up (QEMU: -M virt,virtualization=on)"
            }
            Self::DescriptorSize { size } => {
                write!(f, "firmware's memory map has descriptors of {size} bytes")?;
                UPDATE
            }
            Self::Descriptor { index } => {
                write!(f, "descriptor {index} of firmware's memory map is damaged")?;
                UPDATE
            }
            Self::NoMemoryMap => {
                f.write_str("firmware does not tell its memory map")?;
                UPDATE
            }
            Self::NoRam => {
                f.write_str("firmware's memory map has no RAM")?;
                UPDATE
            }
            Self::NoMemory { what, bytes } => {
                write!(f, "firmware has no {} KiB of memory in one piece for the {what}", bytes.div_ceil(1024))?;
                "give more memory, or load less"
            }
            Self::NoTree => {
                f.write_str("firmware has no device tree of this machine, only ACPI")?;
                "choose the tree in its set-up (QEMU: -M virt,acpi=off), or load one (GRUB: devicetree FILE)"
            }
            Self::RootCells { address } => {
                write!(f, "the memory at {address:#x} is too much for the cells of the device tree's root")?;
                "correct its #address-cells and #size-cells"
            }
            Self::TreeGrew { bytes } => {
                write!(f, "the device tree has grown to {bytes} bytes")?;
                AGAIN
            }
            Self::LoadOptions => {
                f.write_str("the boot option's arguments are no text")?;
                "write them anew"
            }
            Self::NoKernel => {
                f.write_str("no guest kernel was loaded")?;
                "name one in the arguments (kernel=PATH initrd=PATH -- KERNEL'S ARGUMENTS), or load one with GRUB's \
                 xen_module"
            }
            Self::File { what } => {
                write!(f, "the {what} cannot be read from the volume that the hypervisor came from")?;
                "check its path"
            }
            Self::StillThere { attempts } => {
                write!(f, "firmware did not end its boot services in {attempts} attempts")?;
                AGAIN
            }
        };
        write!(f, ": {next}")
    }
}

impl core::error::Error for EfiError {}
