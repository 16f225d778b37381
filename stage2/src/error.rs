//! What can go wrong, each with the address that it went wrong at.

use crate::address::{Ipa, PhysAddr};
use core::fmt;

/// Why an operation did not do what it was asked to. Unless a function says otherwise, nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The range is empty, runs backwards, or its bounds are no multiples of 4 KiB.
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
    /// The IPA size is not between 32 and 48 bits.
    BadIpaSize {
        /// What was asked for.
        bits: u8,
    },
    /// The output address is not page-aligned, or the range runs past 48 bits of physical address.
    BadOutput {
        /// The output address that was asked for.
        output: PhysAddr,
    },
    /// VMID 0 is reserved (R_TLJCY), and the VMID must fit the size that the CPU has.
    BadVmid {
        /// What was asked for.
        vmid: u16,
    },
    /// Nothing is mapped where the operation needs something to be.
    NotMapped {
        /// The first such address.
        ipa: Ipa,
    },
    /// The frame allocator had no frame left.
    OutOfMemory {
        /// Where the frame was needed. Everything below this address that a long operation was asked to do is done.
        ipa: Ipa,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::BadRange { start, end } => {
                write!(f, "{start}-{end} is no range: give two multiples of 4 KiB, the smaller one first")
            }
            Error::OutOfRange { end, ipa_bits } => {
                write!(f, "a range up to {end} leaves the {ipa_bits}-bit IPA space")
            }
            Error::BadIpaSize { bits } => write!(f, "{bits} bits of IPA: must be between 32 and 48"),
            Error::BadOutput { output } => {
                write!(f, "output address {output}: must be a multiple of 4 KiB, and the range must end below 2^48")
            }
            Error::BadVmid { vmid } => write!(f, "VMID {vmid}: must not be 0 and must fit the CPU's VMID size"),
            Error::NotMapped { ipa } => write!(f, "nothing is mapped at IPA {ipa}"),
            Error::OutOfMemory { ipa } => write!(f, "no frame left for a table at IPA {ipa}"),
        }
    }
}

impl core::error::Error for Error {}
