//! The bits of a stage-2 descriptor with 48-bit output addresses, of any granule.
//!
//! Source: Arm ARM (DDI 0487) D8.3.1 (descriptor formats), D8.4.2 (stage-2 permissions), D8.5 (hardware update).

/// The descriptor is valid.
pub const VALID: u64 = 1 << 0;
/// Levels 0 to 2: points to a table. Level 3: must be set in a valid descriptor (D8.3.1.2).
pub const TABLE: u64 = 1 << 1;
/// MemAttr\[3:0\] (D8.6.5).
pub const MEM_ATTR: u64 = 0xf << 2;
/// S2AP\[0\]: the guest may read.
pub const READ: u64 = 1 << 6;
/// S2AP\[1\]: the guest may write; with DBM, the page is dirty (D8.5.2).
pub const WRITE: u64 = 1 << 7;
/// SH\[1:0\].
pub const SHAREABILITY: u64 = 3 << 8;
/// Access flag.
pub const ACCESS: u64 = 1 << 10;
/// nT, Block descriptors only (I_PJZBK): the entry is about to change size, and may fault or conflict (R_MRRPW).
pub const NT: u64 = 1 << 16;
/// Output address or next table, bits 47:12.
pub const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// Dirty bit modifier: hardware sets S2AP\[1\] on a write (D8.5.2; needs VTCR_EL2.HD).
pub const DBM: u64 = 1 << 51;
/// Contiguous (D8.7.1): one of a run of adjacent entries that may be cached as one.
pub const CONTIGUOUS: u64 = 1 << 52;
/// XN\[1\], bit 54: no execution at EL0, and with XN\[0\] = 0 none at EL1 (D8.4.2.3).
pub const NO_EXECUTE: u64 = 1 << 54;
/// XN\[0\], bit 53: what bit 54 says does not hold for EL1, but its opposite (FEAT_XNX; elsewhere 0).
pub const EXECUTE_APART: u64 = 1 << 53;
/// Software bit 56 of a leaf: the owner grants writes. Beside S2AP\[1\] = 0 and DBM = 0 it means that writes are
/// held back for tracking only. Bits 58:55 are for software in a leaf (D8.3.1.2).
pub const WRITE_GRANTED: u64 = 1 << 56;
/// Software bit 57: one PE is changing the entry, all others wait. In an invalid descriptor this is the "break" of
/// break-before-make; in a valid one it is a hardware-tracked leaf made read-only for its split (R_RTBRL).
pub const BUSY: u64 = 1 << 57;
