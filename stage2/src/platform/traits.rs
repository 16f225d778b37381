//! What an embedder implements: [`TableMemory`] and [`Maintenance`], and what they speak of.

use crate::arch::address::{Ipa, PhysAddr};
use crate::arch::geometry::ENTRIES;
use crate::platform::counters::Counters;

/// Slots that [`TableMemory::group_with`] looks at: pages of half a word of a dirty bitmap.
pub const GROUP: usize = 32;

/// The place of one descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Slot {
    /// The frame that holds the table, or the first of them; what [`TableMemory::fill`] and [`TableMemory::is_filled`] are asked
    /// for begins in any of them.
    pub table: PhysAddr,
    /// Index of the descriptor: below 512, 2048 or 8192 (4, 16, 64 KiB granule).
    pub index: usize,
}

impl Slot {
    /// The physical address of the descriptor.
    #[must_use]
    #[inline(always)]
    pub const fn address(self) -> PhysAddr {
        PhysAddr(self.table.0 + 8 * self.index as u64)
    }
}

/// Where frames for tables come from, and where they are mapped: what [`Mapped`](crate::Mapped) makes a [`TableMemory`] of.
///
/// # Safety
///
/// The engine puts the frames' addresses into descriptors that hardware walks, so an implementation must give out frames
/// that nothing else uses, mapped for reads and writes at [`FrameAllocator::offset`] as the hardware's walks see them:
/// Normal memory, inner shareable, write-back, or as VTCR_EL2 says.
pub unsafe trait FrameAllocator {
    /// As [`TableMemory::allocate`].
    fn allocate(&self, frames: usize) -> Option<PhysAddr>;

    /// As [`TableMemory::free`].
    ///
    /// # Safety
    ///
    /// The same.
    unsafe fn free(&self, first: PhysAddr, frames: usize);

    /// What is added to a frame's physical address to get the address that it is mapped at; wraps. 0, an identity map, where
    /// an implementation says nothing else. Always the same.
    #[inline(always)]
    fn offset(&self) -> u64 {
        0
    }
}

/// Frames for tables, and the descriptors in them.
///
/// # Safety
///
/// The engine puts the frames' addresses into descriptors that hardware walks, so an implementation must give out
/// frames that nothing else uses, and its accesses must reach the memory that the hardware walks (Normal memory, inner
/// shareable, write-back, or as VTCR_EL2 says), each as one 64-bit single-copy atomic access.
///
/// The read-modify-writes are ordered on both sides: what comes before is seen before, what comes after is done after
/// (on AArch64: `LDAXR` with `STLXR`, `CASAL`, `LDCLRAL`; elsewhere `SeqCst`). With less, a dirty log would lose pages.
///
/// Most embedders take [`Mapped`](crate::Mapped), which has fast bodies for all of it. The bodies that are provided here go
/// through `load`, `store` and `compare_exchange`, so that an implementation that watches these misses nothing.
pub unsafe trait TableMemory {
    /// `frames` adjacent frames of 4 KiB, aligned to their total size (`frames` is a power of two, at most 16; 1 but
    /// for the root). The contents may be anything. `None` when there is no such memory. With the granule of 16 KiB a table
    /// is 4 frames and a root at most 64, with that of 64 KiB 16 and 256.
    fn allocate(&self, frames: usize) -> Option<PhysAddr>;

    /// Takes back what [`TableMemory::allocate`] gave.
    ///
    /// # Safety
    ///
    /// `first` and `frames` are as they were allocated; no descriptor, walk cache or other PE leads there any more.
    unsafe fn free(&self, first: PhysAddr, frames: usize);

    /// Loads a descriptor with acquire semantics: what is read through a table descriptor comes after it.
    ///
    /// # Safety
    ///
    /// `slot` lies in a frame that was allocated here and not freed.
    unsafe fn load(&self, slot: Slot) -> u64;

    /// Stores a descriptor, relaxed. Only where no other PE writes the slot: in a table that is not published yet, in
    /// an entry that this PE has marked busy, or under `&mut`.
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::load`].
    unsafe fn store(&self, slot: Slot, value: u64);

    /// Replaces `old` by `new`, atomically, ordered on both sides (see the trait).
    ///
    /// # Errors
    ///
    /// The value found, if it was not `old`. Never fails spuriously.
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::load`].
    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64>;

    /// Clears the bits of `mask` atomically, ordered on both sides (see the trait), and returns the value from before.
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::load`].
    #[inline(always)]
    unsafe fn fetch_clear(&self, slot: Slot, mask: u64) -> u64 {
        // SAFETY: the caller's promise.
        let mut value = unsafe { self.load(slot) };
        loop {
            // SAFETY: the caller's promise.
            match unsafe { self.compare_exchange(slot, value, value & !mask) } {
                Ok(()) => return value,
                Err(found) => value = found,
            }
        }
    }

    /// Clears the bits of `mask` in `count` adjacent slots, each as [`TableMemory::fetch_clear`] does. With `SEE`,
    /// returns all bits that were set in any of the slots before; without, what it returns says nothing. `lse`: every
    /// PE that uses the table has FEAT_LSE.
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::load`], for all of the slots; `lse` is true only if it is so.
    #[inline(always)]
    unsafe fn clear_run<const SEE: bool>(&self, first: Slot, count: usize, mask: u64, lse: bool) -> u64 {
        let _ = lse;
        let mut seen = 0;
        for index in first.index..first.index + count {
            // SAFETY: the caller's promise.
            seen |= unsafe { self.fetch_clear(Slot { index, ..first }, mask) };
        }
        seen
    }

    /// Sets the bits of `mask` in `count` adjacent slots, each atomically, ordered on both sides (see the trait). `lse` as
    /// for [`TableMemory::clear_run`].
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::clear_run`].
    #[inline(always)]
    unsafe fn set_run(&self, first: Slot, count: usize, mask: u64, lse: bool) {
        let _ = lse;
        for slot in (first.index..first.index + count).map(|index| Slot { index, ..first }) {
            // SAFETY: the caller's promise.
            let mut value = unsafe { self.load(slot) };
            // SAFETY: the caller's promise.
            while let Err(found) = unsafe { self.compare_exchange(slot, value, value | mask) } {
                value = found;
            }
        }
    }

    /// Which of [`GROUP`] adjacent slots, from `first` on, have a bit of `mask` that is `SET`, or that is not: bit `n` for
    /// slot `n` of them. The loads may be relaxed: what is found is only looked at, not followed.
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::load`], for all of the slots.
    #[inline(always)]
    unsafe fn group_with<const SET: bool>(&self, first: Slot, mask: u64) -> u32 {
        (0..GROUP).fold(0, |which, n| {
            // SAFETY: the caller's promise.
            let value = unsafe { self.load(Slot { index: first.index + n, ..first }) };
            which | u32::from(if SET { value } else { !value } & mask != 0) << n
        })
    }

    /// Whether the 512 slots of a frame hold `first`, `first + step`, `first + 2·step`, … Only where no other PE writes
    /// them.
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::load`], for all slots of `table`.
    #[inline(always)]
    unsafe fn is_filled(&self, table: PhysAddr, first: u64, step: u64) -> bool {
        let mut expected = first;
        (0..ENTRIES).all(|index| {
            // SAFETY: the caller's promise; `index` is below 512.
            let same = unsafe { self.load(Slot { table, index }) } == expected;
            expected = expected.wrapping_add(step);
            same
        })
    }

    /// Stores `first`, `first + step`, `first + 2·step`, … into the 512 slots of a frame of a table that is not published yet.
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::store`], for all slots of `table`.
    #[inline(always)]
    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        let mut value = first;
        for index in 0..ENTRIES {
            // SAFETY: the caller's promise; `index` is below 512.
            unsafe { self.store(Slot { table, index }, value) };
            value = value.wrapping_add(step);
        }
    }
}

/// The barriers that the engine needs (D8.17, B2.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Dsb {
    /// `DSB ISHST`: earlier stores are seen by every PE's walks before what follows.
    IshSt,
    /// `DSB ISH`: completes broadcast TLBIs (R_PSMWS).
    Ish,
    /// `DSB NSH`: completes local TLBIs.
    Nsh,
}

/// Which PEs a TLBI reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Scope {
    /// All PEs of the inner shareable domain (the IS forms); completed by [`Dsb::Ish`].
    Broadcast,
    /// The executing PE; completed by [`Dsb::Nsh`] (or [`Dsb::Ish`]).
    Local,
}

/// One TLB invalidation instruction of the EL1&0 regime, for the table's VMID.
///
/// No level hint and no last-level form is in use: an old entry may be a block, a run or a page, and a hint that is
/// wrong invalidates nothing (R_SQXYZ).
///
/// There may be more of them in a later version. A platform that looks at them hands on what it does not know, or does
/// [`Tlbi::VmallS12E1`] broadcast in its place, which covers everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Tlbi {
    /// `IPAS2E1(IS)`: stage-2 entries, of any level, that translate `ipa`.
    Ipa {
        /// An address in the page.
        ipa: Ipa,
        /// Which PEs.
        scope: Scope,
    },
    /// `RIPAS2E1IS` (FEAT_TLBIRANGE): stage-2 entries that translate any of `(num + 1) << (5 * scale + 1)` pages of the
    /// granule.
    Range {
        /// The first page; a multiple of what `unit` says.
        base: Ipa,
        /// SCALE, 0 to 3.
        scale: u8,
        /// NUM, 0 to 31.
        num: u8,
        /// log2 of the granule's bytes: 12, 14 or 16.
        granule: u8,
        /// log2 of the bytes that BaseADDR counts in: the granule's, or 16 whatever the granule where VTCR_EL2.DS is 1.
        unit: u8,
    },
    /// `VAAE1`: combined entries of any ASID on this PE that translate the guest virtual address `va`.
    VaLocal {
        /// An address in the page.
        va: u64,
    },
    /// `VMALLE1(IS)`: combined (and stage-1) entries of the VMID, not those of stage 2 alone.
    VmallE1(Scope),
    /// `VMALLS12E1(IS)`: all entries of the VMID, of both stages; recovers from TLB conflicts (I_JCCRT).
    VmallS12E1(Scope),
}

/// Pages, of the granule, that [`Tlbi::Range`] with these operands covers.
#[must_use]
#[inline(always)]
pub const fn range_tlbi_pages(scale: u8, num: u8) -> u64 {
    (num as u64 + 1) << (5 * scale as u64 + 1)
}

/// The operand of [`Tlbi::Ipa`]: IPA\[51:12\] in bits 39:0, whatever the granule; TTL (bits 47:44) = 0, no hint.
#[must_use]
#[inline(always)]
pub const fn ipa_tlbi_operand(ipa: Ipa) -> u64 {
    ipa.0 >> 12 & 0xff_ffff_ffff
}

/// The operand of [`Tlbi::Range`]: TG 47:46 (1, 2, 3 for 4, 16, 64 KiB), SCALE 45:44, NUM 43:39, TTL 38:37 = 0, BaseADDR 36:0.
#[must_use]
#[inline(always)]
pub const fn range_tlbi_operand(base: Ipa, scale: u8, num: u8, granule: u8, unit: u8) -> u64 {
    let tg = ((granule as u64).wrapping_sub(10) / 2) & 3;
    tg << 46 | (scale as u64 & 3) << 44 | (num as u64 & 31) << 39 | base.0 >> (unit & 63) & 0x1f_ffff_ffff
}

/// A virtual machine identifier: nonzero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Vmid(core::num::NonZeroU16);

impl Vmid {
    /// `vmid`, unless it is 0, which is reserved (R_TLJCY).
    ///
    /// # Errors
    ///
    /// [`crate::Error::BadVmid`] for 0.
    pub const fn new(vmid: u16) -> Result<Self, crate::arch::error::Error> {
        match core::num::NonZeroU16::new(vmid) {
            Some(vmid) => Ok(Self(vmid)),
            None => Err(crate::arch::error::Error::BadVmid { vmid }),
        }
    }

    /// The number, for VTTBR_EL2\[63:48\].
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

/// Barriers, TLB invalidation, waiting and counting.
///
/// # Safety
///
/// The engine frees tables on the word of these: each call must do what its documentation says, for every PE that may
/// use the tables. A TLBI acts on the VMID in the executing PE's VTTBR_EL2, so an implementation must see to it that
/// `vmid` is the current one there.
pub unsafe trait Maintenance {
    /// Executes the barrier. It must also be a compiler barrier (and, for threads of a host, a `SeqCst` fence).
    fn dsb(&self, barrier: Dsb);

    /// `ISB`: what follows is fetched, and translated, anew.
    fn isb(&self);

    /// Executes the invalidation; it is complete after the DSB that fits its scope, executed by the same PE.
    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi);

    /// The calling PE's counters.
    fn counters(&self) -> &Counters;

    /// Called in a loop while another PE changes an entry. The other PE needs no help from this one.
    #[inline(always)]
    fn wait(&self) {
        core::hint::spin_loop();
    }
}
