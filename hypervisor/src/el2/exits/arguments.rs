//! What the guest's arguments and the engine's errors amount to.

use hypervisor_abi::status;
use stage2::{Error, Ipa, IpaRange};

/// The status for arguments that make no sense.
pub const INVALID: i64 = status::INVALID_PARAMETERS;

/// The status that an error of the engine's amounts to.
pub fn done<T>(result: Result<T, Error>) -> Result<T, i64> {
    result.map_err(|error| match error {
        Error::OutOfMemory { .. } => status::NO_MEMORY,
        Error::LogOverlap { .. } | Error::TooManyLogs => status::BUSY,
        Error::NoHardwareDirtyState => status::NOT_SUPPORTED,
        _ => INVALID,
    })
}

/// The range of whole pages that two arguments name.
pub fn range(start: u64, bytes: u64) -> Result<IpaRange, i64> {
    IpaRange::from_size(Ipa(start), bytes).map_err(|_| INVALID)
}
