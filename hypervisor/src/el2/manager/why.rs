//! Why the management core does not do what it was asked for.

use crate::el2::mediation::hold::{NotQuiet, Unrestorable};
use crate::el2::saving::store::Failure;
use core::fmt;
use hypervisor::policy;
use hypervisor::sentence::Sentence;
use hypervisor_abi::manager::VERSION;
use stage2::Error;

/// A reason. It becomes a sentence where it is sent: the heap may be full of the guest's logs by then.
pub enum Why {
    /// Said already.
    Said(&'static str),
    /// The engine's.
    Engine(Error),
    /// The host speaks another version of the protocol.
    Version(u16),
    /// No range of whole pages of the guest's.
    NoRange { start: u64, end: u64 },
    /// Too many ranges have a policy.
    NoRoom,
    /// A mediated device does not become quiet.
    NotQuiet(NotQuiet),
    /// A mediated device can't be given its state.
    Unrestorable(Unrestorable),
    /// The guest is not sent, or not taken in.
    NotMoved(Failure),
}

impl From<NotQuiet> for Why {
    fn from(device: NotQuiet) -> Self {
        Self::NotQuiet(device)
    }
}

impl From<Unrestorable> for Why {
    fn from(why: Unrestorable) -> Self {
        Self::Unrestorable(why)
    }
}

impl From<Failure> for Why {
    fn from(failure: Failure) -> Self {
        Self::NotMoved(failure)
    }
}

impl From<&'static str> for Why {
    fn from(text: &'static str) -> Self {
        Self::Said(text)
    }
}

impl From<Error> for Why {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(text) => f.write_str(text),
            Self::Engine(error) => error.fmt(f),
            Self::Version(version) => {
                write!(f, "the hypervisor speaks version {VERSION} of the protocol, not {version}")
            }
            Self::NoRange { start, end } => {
                write!(f, "{start:#x}-{end:#x} is not a range of whole pages in the guest's memory")
            }
            Self::NotQuiet(device) => device.fmt(f),
            Self::Unrestorable(why) => write!(f, "a device can't have its state back, and has to be reset: {why}"),
            Self::NotMoved(failure) => failure.fmt(f),
            Self::NoRoom => write!(f, "no more than {} ranges can have a policy: set fewer", policy::MAX_RANGES),
        }
    }
}

impl Why {
    /// The sentence that the host is sent, for a guest with this memory.
    pub fn sentence(&self, memory: impl fmt::Display) -> Sentence {
        match self {
            Self::NoRange { .. } => Sentence::of(format_args!("{self}, which is {memory}")),
            _ => Sentence::of(self),
        }
    }
}
