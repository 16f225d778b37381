//! Why not.

use alloc::vec::Vec;
use core::fmt;

/// The heap is full: of the guest's own logs, or by what a file has.
pub const NO_MEMORY: Error = Error::Said("there is no memory for the guest's state");

/// An empty list with room for so many.
///
/// # Errors
///
/// Where there is no memory.
pub fn room<T>(count: usize) -> Result<Vec<T>, Error> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| NO_MEMORY)?;
    Ok(list)
}

/// A copy of these bytes.
///
/// # Errors
///
/// Where there is no memory.
pub fn copy(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut copy = room(bytes.len())?;
    copy.extend(bytes);
    Ok(copy)
}

/// Why a guest is not stopped, saved or started.
#[derive(Clone, Copy, Debug)]
pub enum Error {
    /// A sentence.
    Said(&'static str),
    /// The engine's.
    Engine(stage2::Error),
    /// A CPU does not come to EL2.
    DoesNotCome {
        /// Its affinity fields.
        mpidr: u64,
    },
    /// The firmware does not start a CPU.
    NotStarted {
        /// Its affinity fields.
        mpidr: u64,
    },
}

impl From<stage2::Error> for Error {
    fn from(error: stage2::Error) -> Self {
        Self::Engine(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(text) => f.write_str(text),
            Self::Engine(error) => error.fmt(f),
            Self::DoesNotCome { mpidr } => write!(
                f,
                "CPU {mpidr:#x} does not come to EL2: it sleeps, and has interrupts switched off at the GIC or its CPU \
                 interface; try again when it works"
            ),
            Self::NotStarted { mpidr } => write!(f, "the firmware does not start CPU {mpidr:#x}"),
        }
    }
}
