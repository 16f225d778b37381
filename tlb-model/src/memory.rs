//! What walks read.

use std::fmt;

/// Physical memory, as far as it can be read.
pub trait Memory {
    /// The eight bytes at a physical address that is a multiple of eight, in little-endian order; nothing where no memory is.
    fn read(&self, address: u64) -> Option<u64>;
}

/// Why there is no translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Registers ask for something that the model does not know.
    Unknown(&'static str),
    /// The descriptor at this stage (1 or 2) and level is not valid.
    Invalid {
        /// 1 or 2.
        stage: u8,
        /// 0 to 3.
        level: u8,
        /// The IPA or the VA that was to be translated.
        address: u64,
    },
    /// A descriptor lies where no memory is.
    Unreadable {
        /// Its physical address.
        address: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(what) => write!(f, "the model does not know {what}"),
            Self::Invalid { stage, level, address } => {
                write!(f, "{address:#x} has no translation at stage {stage}, level {level}")
            }
            Self::Unreadable { address } => write!(f, "the descriptor at {address:#x} is in no memory"),
        }
    }
}

impl std::error::Error for Problem {}
