//! A small secure-partition manager (SPM) around the `stage2` engine: FF-A memory management between two partitions.
//!
//! This library is what can be tested on a host: who owns what ([`ledger`]), what a partition asks for ([`descriptor`]),
//! what becomes of it ([`relayer`]), the stage-2 tables behind it ([`tables`]), the calls ([`service`]) and messages
//! ([`messages`]). The images around it are `src/spm` (EL3 stub and S-EL2) and `src/partition` (S-EL1).
//!
//! Sources: Arm Firmware Framework for A-profile (DEN0077A) and its memory management protocol (DEN0140).
#![cfg_attr(not(test), no_std)]

pub mod descriptor;
pub mod layout;
pub mod ledger;
pub mod messages;
pub mod relayer;
pub mod service;
pub mod tables;
pub mod work;

/// One of the two partitions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Partition {
    /// FF-A endpoint 0x8001.
    First,
    /// FF-A endpoint 0x8002.
    Second,
}

impl Partition {
    /// Both.
    pub const ALL: [Partition; 2] = [Partition::First, Partition::Second];

    /// Its FF-A endpoint ID. Bit 15 says that it is Secure.
    #[must_use]
    pub const fn id(self) -> u16 {
        0x8001 + self as u16
    }

    /// The partition with this endpoint ID.
    #[must_use]
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|partition| partition.id() == id)
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// 0 or 1.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}
