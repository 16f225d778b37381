//! Which devices are mediated, and which of their features a guest is offered.

/// Feature bits (6, 5.1.3, 5.2.3).
pub mod feature {
    #![expect(missing_docs, reason = "the specification's names")]
    pub const VERSION_1: u64 = 1 << 32;
    pub const BLK_SEG_MAX: u64 = 1 << 2;
    pub const BLK_RO: u64 = 1 << 5;
    pub const BLK_BLK_SIZE: u64 = 1 << 6;
    pub const BLK_FLUSH: u64 = 1 << 9;
    pub const BLK_TOPOLOGY: u64 = 1 << 10;
    pub const BLK_CONFIG_WCE: u64 = 1 << 11;
    pub const NET_CSUM: u64 = 1 << 0;
    pub const NET_GUEST_CSUM: u64 = 1 << 1;
    pub const NET_MAC: u64 = 1 << 5;
    pub const NET_HOST_TSO4: u64 = 1 << 11;
    pub const NET_HOST_TSO6: u64 = 1 << 12;
    pub const NET_HOST_ECN: u64 = 1 << 13;
    pub const NET_MRG_RXBUF: u64 = 1 << 15;
    pub const NET_STATUS: u64 = 1 << 16;
}

use feature::*;

/// Where the block device's `writeback` is in its configuration space (5.2.4).
pub(crate) const WRITEBACK: u64 = 0x20;

/// A kind of device that is mediated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Network card (5.1): receives on queue 0, sends on queue 1.
    Network,
    /// Block device (5.2): requests on queue 0.
    Block,
    /// Entropy device (5.4): asks on queue 0.
    Entropy,
}

impl Kind {
    /// The kind with this DeviceID, if it is mediated.
    #[must_use]
    pub const fn of_id(id: u32) -> Option<Self> {
        match id {
            1 => Some(Self::Network),
            2 => Some(Self::Block),
            4 => Some(Self::Entropy),
            _ => None,
        }
    }

    /// Its DeviceID.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Self::Network => 1,
            Self::Block => 2,
            Self::Entropy => 4,
        }
    }

    /// How many queues it has without the features that add some.
    pub(crate) const fn queues(self) -> usize {
        match self {
            Self::Network => 2,
            Self::Block | Self::Entropy => 1,
        }
    }

    /// Words of the configuration space that its features give a meaning (5.1.4, 5.2.4).
    pub(crate) const fn config_words(self) -> usize {
        match self {
            Self::Network => 2,
            Self::Block => 9,
            Self::Entropy => 0,
        }
    }

    /// What a guest may be offered. All that changes what a ring or a descriptor means is missing: INDIRECT_DESC, EVENT_IDX,
    /// RING_PACKED, RING_RESET, NOTIFICATION_DATA, ACCESS_PLATFORM, IN_ORDER; and what adds queues or requests that carry
    /// addresses of their own.
    #[must_use]
    pub const fn allowed(self) -> u64 {
        VERSION_1
            | match self {
                Self::Network => {
                    NET_CSUM
                        | NET_GUEST_CSUM
                        | NET_MAC
                        | NET_HOST_TSO4
                        | NET_HOST_TSO6
                        | NET_HOST_ECN
                        | NET_MRG_RXBUF
                        | NET_STATUS
                }
                Self::Entropy => 0,
                // Without RO a guest would try to write a disk that refuses it.
                Self::Block => BLK_SEG_MAX | BLK_RO | BLK_BLK_SIZE | BLK_FLUSH | BLK_TOPOLOGY | BLK_CONFIG_WCE,
            }
    }

    /// Whether the driver may write the byte at `offset` of the configuration space, with these features: the block
    /// device's `writeback` (5.2.4) alone.
    pub(crate) const fn may_write_config(self, offset: u64, bytes: u8, features: u64) -> bool {
        matches!(self, Self::Block) && offset == WRITEBACK && bytes == 1 && features & BLK_CONFIG_WCE != 0
    }
}
