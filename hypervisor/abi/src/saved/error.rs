//! What can be wrong with a file.

use super::{BLOCK_BYTES, FORMAT, Kind, Run};
use core::fmt;

/// What is wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// The block at which the record begins.
    pub block: u64,
    /// What is wrong with it.
    pub damage: Damage,
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It does not begin as a record does.
    Foreign,
    /// It is of another format.
    Format(u32),
    /// The header is not what was written.
    Header,
    /// The payload is not what was written.
    Payload,
    /// The header is whole, and says what can't be.
    Impossible,
    /// A record of another kind, or number, had to come.
    Order {
        /// What has come.
        kind: Kind,
        /// Its number.
        number: u64,
        /// The number that had to come.
        expected: u64,
    },
    /// Pages that are not the guest's memory.
    NotRam(Run),
    /// The file ends in it.
    CutOff,
    /// The last record says that there are so many.
    Records(u64),
    /// The file goes on behind it.
    GoesOn,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.block.wrapping_mul(BLOCK_BYTES);
        match self.damage {
            Damage::Foreign if self.block == 0 => f.write_str("it is no saved machine"),
            Damage::Foreign => write!(f, "it is damaged: what begins at byte {at:#x} is no record"),
            Damage::Format(format) => {
                write!(
                    f,
                    "it has format {format}, and this version reads format {FORMAT}: use the version that saved it"
                )
            }
            Damage::Header => write!(f, "it is damaged: the checksum of the header at byte {at:#x} is wrong"),
            Damage::Payload => write!(f, "it is damaged: the checksum of what follows byte {at:#x} is wrong"),
            Damage::Impossible => write!(f, "it is damaged: the header at byte {at:#x} says what can't be"),
            Damage::Order { kind, number, expected } => write!(
                f,
                "it is damaged: at byte {at:#x} is record {number} ({kind:?}), where another was to come, or record {expected}"
            ),
            Damage::NotRam(run) => {
                let (start, end) = (run.start(), run.end());
                write!(f, "at byte {at:#x} it has pages at {start:#x}-{end:#x}, which are not the guest's memory")
            }
            Damage::CutOff => write!(f, "it is cut off in what begins at byte {at:#x}"),
            Damage::Records(records) => {
                write!(f, "it is damaged: its end, at byte {at:#x}, says that it has {records} records, and it has not")
            }
            Damage::GoesOn => write!(f, "it is damaged: it goes on behind its end, at byte {at:#x}"),
        }
    }
}

impl core::error::Error for Error {}
