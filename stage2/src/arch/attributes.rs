//! What a mapping says of its memory beside the addresses: memory type and permissions, and how a descriptor says it.
//!
//! Source: Arm ARM (DDI 0487) D8.6.5 (memory attributes of stage 2, with and without FEAT_S2FWB), D8.4.2 (permissions).

use crate::arch::bits;
use core::fmt;

/// How the guest's accesses are cached. Without HCR_EL2.FWB the weaker of this and the guest's own stage 1 holds; with it,
/// [`Config::fwb`](crate::Config), this decides for [`MemoryType::Normal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum MemoryType {
    // Each is its MemAttr: without FWB, but for `Stage1`.
    /// Normal, inner and outer write-back cacheable, inner shareable: RAM. With FWB it is that whatever the guest says of
    /// it, so that EL2 and the guest never see memory differently for want of cache maintenance.
    Normal = 0b1111,
    /// Normal, inner and outer write-through cacheable, inner shareable. Not with FWB, which can't say it.
    WriteThrough = 0b1010,
    /// Normal, non-cacheable, inner shareable.
    NonCacheable = 0b0101,
    /// What the guest's stage 1 says, inner shareable. Without FWB that is [`MemoryType::Normal`], and reads as such.
    Stage1 = 0b0111,
    /// Device-nGnRnE.
    DeviceNGnRnE = 0b0000,
    /// Device-nGRE.
    DeviceNGRE = 0b0010,
    /// Device-GRE.
    DeviceGRE = 0b0011,
    /// Device-nGnRE: device registers.
    Device = 0b0001,
}

impl MemoryType {
    /// MemAttr and SH. Nobody asks for what can't be said: [`MemoryType::can_be_said`].
    pub(crate) const fn encode(self, fwb: bool) -> u64 {
        const INNER_SHAREABLE: u64 = 3 << 8;
        let attr = match self {
            MemoryType::Normal if fwb => 0b0110,
            MemoryType::Stage1 if !fwb => 0b1111,
            _ => self as u64,
        };
        attr << 2 | if self.is_device() { 0 } else { INNER_SHAREABLE }
    }

    /// Whether MemAttr has a value for it.
    pub(crate) const fn can_be_said(self, fwb: bool) -> bool {
        !(fwb && matches!(self, MemoryType::WriteThrough))
    }

    /// The engine writes no value that would mean two types, one of them with FWB.
    const fn decode(value: u64) -> MemoryType {
        match (value & bits::MEM_ATTR) >> 2 {
            0b0000 => MemoryType::DeviceNGnRnE,
            0b0010 => MemoryType::DeviceNGRE,
            0b0011 => MemoryType::DeviceGRE,
            0b0101 => MemoryType::NonCacheable,
            0b0111 => MemoryType::Stage1,
            0b1010 => MemoryType::WriteThrough,
            0b1111 | 0b0110 => MemoryType::Normal,
            _ => MemoryType::Device,
        }
    }

    /// Whether it is Device memory of any kind.
    #[must_use]
    pub const fn is_device(self) -> bool {
        is_device((self as u64) << 2)
    }
}

/// Whether MemAttr of a leaf says Device memory, with FWB or without: bits 3:2 are 0.
pub(crate) const fn is_device(leaf: u64) -> bool {
    leaf & 0b1100 << 2 == 0
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemoryType::Normal => "normal",
            MemoryType::WriteThrough => "write-through",
            MemoryType::NonCacheable => "non-cacheable",
            MemoryType::Stage1 => "as stage 1",
            MemoryType::DeviceNGnRnE => "device-nGnRnE",
            MemoryType::Device => "device",
            MemoryType::DeviceNGRE => "device-nGRE",
            MemoryType::DeviceGRE => "device-GRE",
        })
    }
}

/// Where the guest may fetch instructions. EL1 and EL0 apart needs FEAT_XNX on every CPU ([`Features::xnx`](crate::Features)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Execute {
    // Each is its XN[1:0], bits 54:53 (D8.4.2.3).
    /// Nowhere.
    Never = 0b10,
    /// At EL0 only.
    El0 = 0b01,
    /// At EL1 only.
    El1 = 0b11,
    /// At EL1 and EL0.
    Always = 0b00,
}

impl Execute {
    /// Whether at EL0, or at EL1.
    #[must_use]
    pub const fn at(self, el0: bool) -> bool {
        match self {
            Execute::Never => false,
            Execute::El0 => el0,
            Execute::El1 => !el0,
            Execute::Always => true,
        }
    }

    /// Whether it takes FEAT_XNX to say so.
    pub(crate) const fn is_apart(self) -> bool {
        self as u8 & 1 != 0
    }

    const fn decode(value: u64) -> Self {
        match (value & bits::NO_EXECUTE != 0, value & bits::EXECUTE_APART != 0) {
            (false, false) => Execute::Always,
            (false, true) => Execute::El0,
            (true, false) => Execute::Never,
            (true, true) => Execute::El1,
        }
    }
}

/// [`Execute::Always`] or [`Execute::Never`].
impl From<bool> for Execute {
    fn from(execute: bool) -> Self {
        if execute { Execute::Always } else { Execute::Never }
    }
}

/// What the owner of the mapping lets the guest do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Permissions {
    /// Data reads.
    pub read: bool,
    /// Data writes.
    pub write: bool,
    /// Instruction fetch.
    pub execute: Execute,
}

impl Permissions {
    /// Read, write and execute: what RAM is given.
    pub const ALL: Self = Self { read: true, write: true, execute: Execute::Always };
    /// Read and write: what devices are given.
    pub const READ_WRITE: Self = Self { read: true, write: true, execute: Execute::Never };
    /// Read and execute.
    pub const READ_EXECUTE: Self = Self { read: true, write: false, execute: Execute::Always };
    /// Read only.
    pub const READ: Self = Self { read: true, write: false, execute: Execute::Never };
    /// Nothing: the mapping stays, every access faults.
    pub const NONE: Self = Self { read: false, write: false, execute: Execute::Never };

    /// The descriptor bits; a granted write is enabled at once.
    pub(crate) const fn encode(self) -> u64 {
        let mut value = (self.execute as u64) << bits::EXECUTE_APART.trailing_zeros();
        if self.read {
            value |= bits::READ;
        }
        if self.write {
            value |= bits::WRITE | bits::WRITE_GRANTED;
        }
        value
    }

    const fn decode(value: u64) -> Self {
        Self { read: value & bits::READ != 0, write: value & bits::WRITE_GRANTED != 0, execute: Execute::decode(value) }
    }
}

/// As `rwx`, with `-` for what is denied, and `u` or `p` in place of `x` where EL0 or EL1 alone may execute.
impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.read { "r" } else { "-" })?;
        f.write_str(if self.write { "w" } else { "-" })?;
        f.write_str(match self.execute {
            Execute::Never => "-",
            Execute::El0 => "u",
            Execute::El1 => "p",
            Execute::Always => "x",
        })
    }
}

/// The descriptor bits that [`Permissions`] decides.
pub(crate) const PERMISSION_BITS: u64 =
    bits::READ | bits::WRITE | bits::WRITE_GRANTED | bits::NO_EXECUTE | bits::EXECUTE_APART | bits::DBM;

/// The fetches that a leaf lets through: bit 54 for EL0, bit 53 for EL1.
pub(crate) const fn execute_rights(leaf: u64) -> u64 {
    !leaf & bits::NO_EXECUTE | !(leaf ^ leaf >> 1) & bits::EXECUTE_APART
}

/// Everything about a mapping but its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Attributes {
    /// Cacheability and shareability.
    pub memory: MemoryType,
    /// What the guest may do.
    pub permissions: Permissions,
}

impl Attributes {
    /// Guest RAM: Normal write-back memory, all permissions.
    pub const RAM: Self = Self { memory: MemoryType::Normal, permissions: Permissions::ALL };
    /// Device registers: Device-nGnRE, read and write.
    pub const DEVICE: Self = Self { memory: MemoryType::Device, permissions: Permissions::READ_WRITE };

    /// A leaf's bits without address and type, with HCR_EL2.FWB = 0. The access flag is set: the engine takes no access flag
    /// faults of its own making.
    #[must_use]
    pub const fn encode(self) -> u64 {
        self.encode_for(false)
    }

    /// The same, with HCR_EL2.FWB = `fwb`.
    pub(crate) const fn encode_for(self, fwb: bool) -> u64 {
        self.memory.encode(fwb) | self.permissions.encode() | bits::ACCESS
    }

    /// What [`Attributes::encode`] says, as the leaf's owner asked for it, in the bits of a leaf.
    pub(crate) const fn decode(value: u64) -> Self {
        Self { memory: MemoryType::decode(value), permissions: Permissions::decode(value) }
    }
}

/// The bits of a leaf in which its owner's wishes are: all of [`Attributes::encode`] but what tracking may change.
pub(crate) const OWNER_BITS: u64 =
    bits::MEM_ATTR | bits::SHAREABILITY | bits::READ | bits::WRITE_GRANTED | bits::NO_EXECUTE | bits::EXECUTE_APART;

#[cfg(test)]
mod tests {
    use super::*;

    /// MemAttr and SH as D8.6.5 has them, without FWB and with it.
    const TYPES: [(MemoryType, Option<u64>, Option<u64>); 8] = [
        (MemoryType::Normal, Some(0b1111), Some(0b0110)),
        (MemoryType::WriteThrough, Some(0b1010), None),
        (MemoryType::NonCacheable, Some(0b0101), Some(0b0101)),
        (MemoryType::Stage1, None, Some(0b0111)),
        (MemoryType::DeviceNGnRnE, Some(0b0000), Some(0b0000)),
        (MemoryType::Device, Some(0b0001), Some(0b0001)),
        (MemoryType::DeviceNGRE, Some(0b0010), Some(0b0010)),
        (MemoryType::DeviceGRE, Some(0b0011), Some(0b0011)),
    ];
    /// XN\[1:0\], bits 54:53, as D8.4.2.3 has them.
    const EXECUTE: [(Execute, u64); 4] =
        [(Execute::Always, 0b00), (Execute::El0, 0b01), (Execute::Never, 0b10), (Execute::El1, 0b11)];

    #[test]
    fn every_attribute_is_in_its_place_and_comes_back() {
        for (memory, plain, forced) in TYPES {
            for (fwb, attr) in [(false, plain), (true, forced)] {
                assert_eq!(memory.can_be_said(fwb), attr.is_some() || memory == MemoryType::Stage1, "{memory:?} {fwb}");
                let Some(attr) = attr else { continue };
                let shareability = if attr & 0b1100 == 0 { 0 } else { 0b11 };
                for n in 0..4 {
                    for (execute, xn) in EXECUTE {
                        let permissions = Permissions { read: n & 1 != 0, write: n & 2 != 0, execute };
                        let attributes = Attributes { memory, permissions };
                        let leaf = attributes.encode_for(fwb);
                        assert_eq!(leaf & (0xf << 2 | 3 << 8), attr << 2 | shareability << 8, "{attributes:?}");
                        assert_eq!(leaf >> 53 & 3, xn, "{attributes:?}");
                        assert_eq!(Attributes::decode(leaf), attributes);
                        assert_eq!(leaf & !(PERMISSION_BITS | OWNER_BITS), bits::ACCESS, "each bit is somebody's");
                    }
                }
            }
        }
        // Without FWB there is one word for both.
        assert_eq!(MemoryType::Stage1.encode(false), MemoryType::Normal.encode(false));
    }

    #[test]
    fn fetches_are_let_through_where_they_are_granted() {
        for (execute, xn) in EXECUTE {
            let rights = execute_rights(xn << 53);
            assert_eq!(
                (rights & 1 << 54 != 0, rights & 1 << 53 != 0),
                (execute.at(true), execute.at(false)),
                "{execute:?}"
            );
            assert_eq!(rights & !(3 << 53), 0);
        }
    }
}
