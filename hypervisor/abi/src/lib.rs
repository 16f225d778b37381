//! Hypercall numbers and types that the hypervisor and its guests share.
//!
//! Calls follow the SMC Calling Convention (DEN0028): the function identifier in `x0`, arguments from `x1` on, the
//! status in `x0`, results from `x1` on. They sit in the range of the vendor-specific hypervisor service (owning
//! entity 6). A function that the hypervisor does not know, or that is switched off for this guest, answers
//! [`status::NOT_SUPPORTED`] and changes nothing.
#![no_std]

#[cfg(feature = "manager")]
pub mod manager;

/// Function identifiers.
pub mod function {
    /// Number of functions of the service (DEN0028, 6.2): `w0` holds the count.
    pub const CALL_COUNT: u32 = 0x8600_ff00;
    /// Who serves this range (DEN0028, 6.2): `w0` to `w3` hold [`UID`](super::UID).
    pub const CALL_UID: u32 = 0x8600_ff01;
    /// Revision of the service (DEN0028, 6.2): `w0` holds the major, `w1` the minor number.
    pub const REVISION: u32 = 0x8600_ff03;

    /// The hypervisor's own memory, one range a call.
    ///
    /// `x1` is the range's number, counted from 0. On success `x1` is the first physical address and `x2` the length in
    /// bytes, both multiples of 4 KiB. A number past the last range answers
    /// [`INVALID_PARAMETERS`](super::status::INVALID_PARAMETERS). The guest may know where the ranges are, because
    /// knowing it opens nothing: it is what the payload aims at.
    pub const OWN_MEMORY: u32 = 0xc600_0000;
}

/// What a call answers in `x0`.
pub mod status {
    /// Done.
    pub const SUCCESS: i64 = 0;
    /// The function is unknown or switched off for this guest.
    pub const NOT_SUPPORTED: i64 = -1;
    /// An argument is out of range; nothing has changed.
    pub const INVALID_PARAMETERS: i64 = -3;
}

/// The service's UID, ce4e1afa-7829-45d6-9b01-d855aaa83941, as [`function::CALL_UID`] returns it: byte 0 of the UUID in
/// bits 7:0 of `w0` (DEN0028, 6.2).
pub const UID: [u32; 4] = [0xfa1a_4ece, 0xd645_2978, 0x55d8_019b, 0x4139_a8aa];

/// The revision of the service that this crate describes: major, minor. A change that breaks a caller raises the major
/// number.
pub const REVISION: (u32, u32) = (0, 1);
