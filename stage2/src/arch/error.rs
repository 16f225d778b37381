//! What can go wrong, each with the address that it went wrong at.

use crate::arch::address::{Ipa, IpaRange, PhysAddr};
use crate::arch::attributes::MemoryType;
use core::fmt;

/// Why an operation did not do what it was asked to. Unless a function says otherwise, nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The range is empty, runs backwards, or its bounds are no multiples of 4 KiB, or not of the table's granule.
    BadRange {
        /// First address.
        start: Ipa,
        /// First address past the range.
        end: Ipa,
    },
    /// The range leaves the IPA space that the tables were made for.
    OutOfRange {
        /// The first address past the range that was asked for.
        end: Ipa,
        /// Bits of the IPA space.
        ipa_bits: u8,
    },
    /// The IPA size is not between 32 and 48 bits (52 with 52-bit addresses), or larger than the CPUs' physical addresses.
    BadIpaSize {
        /// What was asked for.
        bits: u8,
    },
    /// The output address is not page-aligned, or the range runs past the physical addresses that the CPUs have.
    BadOutput {
        /// The output address that was asked for.
        output: PhysAddr,
    },
    /// VMID 0 is reserved (R_TLJCY), and the VMID must fit the size that the CPU has.
    BadVmid {
        /// What was asked for.
        vmid: u16,
    },
    /// The frame allocator had no frame left.
    OutOfMemory {
        /// Where the frame was needed. Everything below this address that a long operation was asked to do is done.
        ipa: Ipa,
    },
    /// A page of the range is in another log already.
    LogOverlap {
        /// That log's range.
        range: IpaRange,
    },
    /// The table has [`crate::LOGS`] logs.
    TooManyLogs,
    /// The memory given for a log's bitmap is too small.
    BitmapTooSmall {
        /// 64-bit words that the range needs.
        needed: usize,
    },
    /// Something that not every PE that uses the table has.
    MissingFeature {
        /// What, by its name in the architecture.
        feature: &'static str,
    },
    /// The memory type can't be said in a descriptor: write-through memory with HCR_EL2.FWB.
    BadMemoryType {
        /// What was asked for.
        memory: MemoryType,
    },
    /// The table was set up without hardware dirty state, or a PE has none.
    NoHardwareDirtyState,
    /// The set of pages does not belong to the log.
    WrongSet {
        /// The set's range.
        range: IpaRange,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::BadRange { start, end } => {
                write!(
                    f,
                    "{start}-{end} is no range: give two multiples of the granule (4 KiB at least), the smaller one first"
                )
            }
            Error::OutOfRange { end, ipa_bits } => {
                write!(f, "a range up to {end} leaves the {ipa_bits}-bit IPA space")
            }
            Error::BadIpaSize { bits } => write!(
                f,
                "{bits} bits of IPA: must be between 32 and 48 (52 with LPA or LPA2), and no more than the CPUs' physical addresses have"
            ),
            Error::BadOutput { output } => {
                write!(
                    f,
                    "output address {output}: must be a multiple of the granule, and the range must end within the CPU's physical addresses"
                )
            }
            Error::BadVmid { vmid } => write!(f, "VMID {vmid}: must not be 0 and must fit the CPU's VMID size"),
            Error::OutOfMemory { ipa } => write!(f, "no frame left for a table at IPA {ipa}"),
            Error::LogOverlap { range } => {
                write!(f, "pages of the range are in the log of {range} already: stop that first")
            }
            Error::TooManyLogs => f.write_str("the table has as many logs as there is room for: stop one first"),
            Error::BitmapTooSmall { needed } => write!(f, "the log's bitmap needs {needed} words of 64 bits"),
            Error::MissingFeature { feature } => write!(f, "not every CPU of the table has {feature}"),
            Error::BadMemoryType { memory } => write!(f, "{memory} memory can't be told to a CPU with HCR_EL2.FWB = 1"),
            Error::NoHardwareDirtyState => {
                write!(f, "hardware dirty state (FEAT_HAFDBS) is off or missing on a CPU: log by write protection")
            }
            Error::WrongSet { range } => write!(f, "a set of pages of {range} does not fit the log"),
        }
    }
}

impl core::error::Error for Error {}
