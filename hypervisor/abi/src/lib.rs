//! Hypercall numbers and types that the hypervisor and its guests share.
//!
//! Calls follow the SMC Calling Convention (DEN0028): the function identifier in `x0`, arguments from `x1` on, the
//! status in `x0`, results from `x1` on. They sit in the range of the vendor-specific hypervisor service (owning
//! entity 6). A function that the hypervisor does not know, or that is switched off for this guest, answers
//! [`status::NOT_SUPPORTED`] and changes nothing.
#![no_std]

#[cfg(any(feature = "manager", feature = "events"))]
pub mod events;
#[cfg(feature = "manager")]
pub mod manager;
#[cfg(feature = "saved")]
pub mod page_hash;
#[cfg(feature = "events")]
pub mod recorded;
#[cfg(feature = "saved")]
pub mod saved;

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

    // What follows is off unless the hypervisor was started with `hypercalls=on`. Ranges are given by their first address
    // and their length in bytes, both multiples of 4 KiB.

    /// What the stage-2 engine does: `x1` is the BBM level that sizes change by, `x2` is 1 if hardware keeps dirty state,
    /// `x3` is the number of IPA bits.
    pub const FEATURES: u32 = 0xc600_0001;
    /// The engine's counter number `x1`, in the order of `stage2::Event::ALL`, added up over all CPUs, in `x1`.
    pub const COUNTER: u32 = 0xc600_0002;
    /// Handles an abort with the syndrome `x1` (ESR_EL2) at the virtual address `x2` and the IPA `x3`, as if the calling
    /// CPU had just taken it. The syndrome must be that of an abort from a lower exception level.
    pub const INJECT_ABORT: u32 = 0xc600_0003;
    /// The leaf that maps the IPA `x1`: its first IPA in `x1`, its [size](super::leaf) in `x2`, what the guest may do there
    /// as [`permissions`](super::permissions) in `x3`, with [`permissions::DEVICE`](super::permissions::DEVICE) added for
    /// a device's registers. Answers [`NOT_FOUND`](super::status::NOT_FOUND) where nothing is mapped.
    pub const LEAF: u32 = 0xc600_0004;
    /// Hashes of what no guest can change: in `x1` the hypervisor's code, constants and own translation tables; in `x2` the
    /// registers that control EL2 and stage 2 on the calling CPU; in `x3` the leaves of the guest's stage-2 table.
    pub const INTEGRITY: u32 = 0xc600_0005;
    /// Memory that runs out, for tests: the next `x1` requests for table frames are met, the `x2` after these are refused,
    /// and then all is as before; `x2` = 0 ends a test early. `x1` is the number of requests that were refused since this
    /// was called last.
    pub const REFUSE_FRAMES: u32 = 0xc600_0006;
    /// How often this guest has gone on from a save in `x1`, and in `x2` how often this machine has stopped it to save it.
    pub const RESUMED: u32 = 0xc600_0007;
    /// Takes the range `x1`, `x2` of RAM from the guest and gives it back with all permissions, while all others wait: how many
    /// ticks of CNTPCT_EL0 the first took in `x1`, and the second in `x2`.
    pub const REMAP: u32 = 0xc600_0008;
    /// Gives the range `x1`, `x2` the [`permissions`](super::permissions) `x3`.
    pub const PROTECT: u32 = 0xc600_0010;
    /// Splits the range `x1`, `x2` to leaves no larger than [`leaf`](super::leaf) `x3`.
    pub const SPLIT: u32 = 0xc600_0011;
    /// Collapses the range `x1`, `x2` to the largest leaves.
    pub const COLLAPSE: u32 = 0xc600_0012;
    /// Starts a log of the range `x1`, `x2` with the options [`log`](super::log) `x3`; its handle in `x1`.
    pub const LOG_START: u32 = 0xc600_0020;
    /// Sets the bits of log `x1`'s dirty pages in the bitmap in the guest's memory at the IPA `x2`, a multiple of 8, which
    /// has room for `x3` words of 64 bits, and starts anew. Other bits stay as they are: clear them before. Bit 0 is the
    /// page at the range's start rounded down to 2 MiB. `x1` is the number of bits that were not set before, `x2` the number
    /// of words that the bitmap has. A bitmap that the guest may not write is refused.
    pub const LOG_HARVEST: u32 = 0xc600_0021;
    /// The same, and nothing changes.
    pub const LOG_PEEK: u32 = 0xc600_0022;
    /// Makes the pages of log `x1` that are set in the bitmap at `x2`, of `x3` words, count as clean.
    pub const LOG_CLEAR: u32 = 0xc600_0023;
    /// Ends log `x1`; leaves become as large as they were, unless `x2` is [`log::KEEP_LEAVES`](super::log::KEEP_LEAVES).
    pub const LOG_STOP: u32 = 0xc600_0024;
    /// Has stores to the range `x1`, `x2` [watched](super::watch) as `x3` says.
    pub const WATCH: u32 = 0xc600_0030;
    /// Reports the next store to each watched page anew. A page is reported once, then open until this is called.
    pub const WATCH_REARM: u32 = 0xc600_0031;
    /// The oldest store to a watched page that was not asked for yet: its IPA in `x1`, its virtual address in `x2`, the
    /// instruction's address in `x3`, the affinity of its CPU in `x4`, and in `x5` whether it was denied. Answers
    /// [`NOT_FOUND`](super::status::NOT_FOUND) if there is none.
    pub const WATCH_TAKE: u32 = 0xc600_0032;
}

/// What [`function::PROTECT`] lets the guest do; bits that add up.
pub mod permissions {
    /// Read.
    pub const READ: u64 = 1;
    /// Write.
    pub const WRITE: u64 = 2;
    /// Execute.
    pub const EXECUTE: u64 = 4;
    /// In the answer of [`function::LEAF`](super::function::LEAF): these are a device's registers.
    pub const DEVICE: u64 = 8;
}

/// Leaf sizes, for [`function::SPLIT`].
pub mod leaf {
    /// 4 KiB.
    pub const PAGE: u64 = 0;
    /// 64 KiB, contiguous.
    pub const CONTIGUOUS_64K: u64 = 1;
    /// 2 MiB.
    pub const BLOCK_2M: u64 = 2;
    /// 32 MiB, contiguous.
    pub const CONTIGUOUS_32M: u64 = 3;
    /// 1 GiB.
    pub const BLOCK_1G: u64 = 4;
}

/// How a log works, for [`function::LOG_START`].
pub mod log {
    /// By write protection, split at the first write.
    pub const WRITE_PROTECT: u64 = 0;
    /// By hardware, page by page.
    pub const HARDWARE_PAGE: u64 = 1;
    /// By hardware, in blocks of 2 MiB.
    pub const HARDWARE_BLOCK: u64 = 2;
    /// Added: everything counts as dirty at first.
    pub const ALL_DIRTY: u64 = 1 << 8;
    /// For [`function::LOG_STOP`](super::function::LOG_STOP): nothing but the log ends. Pages that are held back stay so
    /// until their first write, or until they are collapsed.
    pub const KEEP_LEAVES: u64 = 1;
}

/// What happens to stores to a range, for [`function::WATCH`].
pub mod watch {
    /// Nothing.
    pub const NONE: u64 = 0;
    /// The first one to each page is reported, and carried out.
    pub const REPORT: u64 = 1;
    /// They are reported and abort.
    pub const DENY: u64 = 2;
}

/// What a call answers in `x0`.
pub mod status {
    /// Done.
    pub const SUCCESS: i64 = 0;
    /// The function is unknown or switched off for this guest.
    pub const NOT_SUPPORTED: i64 = -1;
    /// An argument is out of range; nothing has changed.
    pub const INVALID_PARAMETERS: i64 = -3;
    /// There is none of what was asked for.
    pub const NOT_FOUND: i64 = -2;
    /// There is no memory for it; nothing has changed, or what has is in the function's description.
    pub const NO_MEMORY: i64 = -12;
    /// The range is in a log already, or there are too many logs.
    pub const BUSY: i64 = -16;
}

/// The service's UID, ce4e1afa-7829-45d6-9b01-d855aaa83941, as [`function::CALL_UID`] returns it: byte 0 of the UUID in
/// bits 7:0 of `w0` (DEN0028, 6.2).
pub const UID: [u32; 4] = [0xfa1a_4ece, 0xd645_2978, 0x55d8_019b, 0x4139_a8aa];

/// The revision of the service that this crate describes: major, minor. A change that breaks a caller raises the major
/// number.
pub const REVISION: (u32, u32) = (0, 1);
