//! Why not.

use core::fmt;

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
