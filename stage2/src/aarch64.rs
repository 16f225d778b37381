//! The instructions behind [`crate::platform`], for EL2 in either security state.
//!
//! An embedder's platform forwards to these. The regime is a type parameter: the TLBIs are those of the EL1&0 regime
//! under stage 2, and no other can be written by mistake.

use crate::address::{Ipa, PhysAddr};
use crate::platform::{Dsb, Scope, Slot, Tlbi};
use core::arch::asm;
use core::marker::PhantomData;

mod sealed {
    pub trait Sealed {}
}

/// Which stage 2: the IPA space that tables translate.
pub trait Regime: sealed::Sealed {
    /// Bit 63 of a TLBI by IPA: the Non-secure IPA space, from Secure state (FEAT_SEL2).
    const TLBI_NS: u64;

    /// Loads the table's register: root and VMID, from [`crate::Stage2::vttbr`].
    ///
    /// # Safety
    ///
    /// The tables below the root are sound, and stay allocated while the register holds it. An ISB must follow before
    /// the new table can be relied upon.
    unsafe fn set_table(vttbr: u64);
}

/// Non-secure EL2: VTTBR_EL2.
#[derive(Debug)]
pub enum NonSecure {}
/// Secure EL2, Secure IPA space: VSTTBR_EL2 (FEAT_SEL2, D8.2.1). The VMID still comes from VTTBR_EL2.
#[derive(Debug)]
pub enum Secure {}

impl sealed::Sealed for NonSecure {}
impl sealed::Sealed for Secure {}

impl Regime for NonSecure {
    const TLBI_NS: u64 = 0;

    unsafe fn set_table(vttbr: u64) {
        // SAFETY: the caller's promise.
        unsafe { asm!("msr vttbr_el2, {}", in(reg) vttbr, options(nostack, preserves_flags)) };
    }
}

impl Regime for Secure {
    const TLBI_NS: u64 = 0;

    unsafe fn set_table(vttbr: u64) {
        const VMID: u64 = 0xffff << 48;
        // VSTTBR_EL2 is S3_4_C2_C6_0. Its bits 63:48 are RES0: the VMID is VTTBR_EL2's in both security states.
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "msr S3_4_C2_C6_0, {root}",
                "msr vttbr_el2, {vmid}",
                root = in(reg) vttbr & !VMID,
                vmid = in(reg) vttbr & VMID,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// The instructions of one regime.
#[derive(Debug)]
pub struct El2<R>(PhantomData<R>);

impl<R: Regime> El2<R> {
    /// Executes the barrier; also a compiler barrier.
    #[inline(always)]
    pub fn dsb(barrier: Dsb) {
        // SAFETY: barriers have no operands and only order; no `nomem`, so the compiler keeps memory accesses in place.
        unsafe {
            match barrier {
                Dsb::IshSt => asm!("dsb ishst", options(nostack, preserves_flags)),
                Dsb::Ish => asm!("dsb ish", options(nostack, preserves_flags)),
                Dsb::Nsh => asm!("dsb nsh", options(nostack, preserves_flags)),
            }
        }
    }

    /// Executes ISB.
    #[inline(always)]
    pub fn isb() {
        // SAFETY: synchronises the context and nothing else.
        unsafe { asm!("isb", options(nostack, preserves_flags)) };
    }

    /// Executes the invalidation for the VMID in VTTBR_EL2.
    #[inline(always)]
    pub fn tlbi(tlbi: Tlbi) {
        // SAFETY (all): invalidating TLB entries is never unsound, entries are made anew from the tables.
        match tlbi {
            Tlbi::Ipa { ipa, scope } => {
                let operand = Self::ipa_operand(ipa);
                match scope {
                    // SAFETY: see above.
                    Scope::Broadcast => unsafe {
                        asm!("tlbi ipas2e1is, {}", in(reg) operand, options(nostack, preserves_flags));
                    },
                    // SAFETY: see above.
                    Scope::Local => unsafe {
                        asm!("tlbi ipas2e1, {}", in(reg) operand, options(nostack, preserves_flags));
                    },
                }
            }
            Tlbi::Range { base, scale, num } => {
                let operand = Self::range_operand(base, scale, num);
                // TLBI RIPAS2E1IS, which needs FEAT_TLBIRANGE; spelt out so that older assemblers take it.
                // SAFETY: see above; the engine issues it only where the features have it.
                unsafe { asm!("sys #4, c8, c0, #2, {}", in(reg) operand, options(nostack, preserves_flags)) };
            }
            Tlbi::VaLocal { va } => {
                let operand = va >> 12 & 0x0fff_ffff_ffff;
                // SAFETY: see above.
                unsafe { asm!("tlbi vaae1, {}", in(reg) operand, options(nostack, preserves_flags)) };
            }
            // SAFETY (four times): see above.
            Tlbi::VmallE1(Scope::Broadcast) => unsafe { asm!("tlbi vmalle1is", options(nostack, preserves_flags)) },
            // SAFETY: see above.
            Tlbi::VmallE1(Scope::Local) => unsafe { asm!("tlbi vmalle1", options(nostack, preserves_flags)) },
            // SAFETY: see above.
            Tlbi::VmallS12E1(Scope::Broadcast) => unsafe {
                asm!("tlbi vmalls12e1is", options(nostack, preserves_flags));
            },
            // SAFETY: see above.
            Tlbi::VmallS12E1(Scope::Local) => unsafe { asm!("tlbi vmalls12e1", options(nostack, preserves_flags)) },
        }
    }

    /// IPA\[47:12\] in bits 35:0, whatever the granule; TTL (bits 47:44) = 0, no hint.
    #[inline(always)]
    const fn ipa_operand(ipa: Ipa) -> u64 {
        R::TLBI_NS << 63 | ipa.0 >> 12 & 0xf_ffff_ffff
    }

    /// TG 47:46 = 4 KiB, SCALE 45:44, NUM 43:39, TTL 38:37 = 0, BaseADDR 36:0 in granules.
    #[inline(always)]
    const fn range_operand(base: Ipa, scale: u8, num: u8) -> u64 {
        const TG_4K: u64 = 1 << 46;
        R::TLBI_NS << 63 | TG_4K | (scale as u64 & 3) << 44 | (num as u64 & 31) << 39 | base.0 >> 12 & 0x1f_ffff_ffff
    }
}

/// Translates `va` as the guest's EL1 would for a read, through both stages' stage 1 only (`AT S1E1R`).
///
/// For permission faults, where HPFAR_EL2 need not be valid. `None` if the guest's own tables do not translate it (any
/// more). PAR_EL1 is the guest's, and is put back.
#[inline(always)]
#[must_use]
pub fn translate_stage1_read(va: u64) -> Option<Ipa> {
    const FAULT: u64 = 1;
    let (mut par, saved): (u64, u64);
    // SAFETY: AT reads the guest's tables as the guest's own access did, and PAR_EL1 is restored.
    unsafe {
        asm!(
            "mrs {saved}, par_el1",
            "at s1e1r, {va}",
            "isb",
            "mrs {par}, par_el1",
            "msr par_el1, {saved}",
            va = in(reg) va,
            par = out(reg) par,
            saved = out(reg) saved,
            options(nostack, preserves_flags)
        );
    }
    let _ = saved;
    if par & FAULT != 0 {
        return None;
    }
    par &= 0x000f_ffff_ffff_f000;
    Some(Ipa(par | va & 0xfff))
}

/// Descriptors at identity-mapped physical addresses: the body of an embedder's `TableMemory`.
///
/// All four need `slot` to be mapped at its physical address, as memory that the hardware's walks agree with.
#[derive(Debug)]
pub struct Identity;

impl Identity {
    #[inline(always)]
    fn pointer(slot: Slot) -> *mut u64 {
        core::ptr::with_exposed_provenance_mut(slot.address().0 as usize)
    }

    /// Loads with acquire semantics.
    ///
    /// # Safety
    ///
    /// The slot is mapped at its physical address and lies in a live table frame.
    #[inline(always)]
    #[must_use]
    pub unsafe fn load(slot: Slot) -> u64 {
        let value: u64;
        // SAFETY: the caller's promise. LDAPR would do, but needs FEAT_LRCPC.
        unsafe {
            asm!("ldar {value}, [{slot}]", value = out(reg) value, slot = in(reg) Self::pointer(slot),
                options(nostack, preserves_flags));
        }
        value
    }

    /// Stores, relaxed.
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`].
    #[inline(always)]
    pub unsafe fn store(slot: Slot, value: u64) {
        // SAFETY: the caller's promise; aligned, and only ever accessed atomically.
        unsafe { core::sync::atomic::AtomicU64::from_ptr(Self::pointer(slot)) }
            .store(value, core::sync::atomic::Ordering::Relaxed);
    }

    /// Compare-exchange with acquire and release semantics, by load-exclusive and store-exclusive: runs on every CPU.
    ///
    /// # Errors
    ///
    /// The value found.
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`].
    #[inline(always)]
    pub unsafe fn compare_exchange(slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise; aligned, and only ever accessed atomically.
        unsafe { AtomicU64::from_ptr(Self::pointer(slot)) }
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }

    /// Fills a table: sixteen stores a round, since the compiler does not unroll this far.
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`], for all slots of `table`, and no other PE uses them.
    #[inline(always)]
    pub unsafe fn fill(table: PhysAddr, first: u64, step: u64) {
        let mut value = first;
        let mut at = Self::pointer(Slot { table, index: 0 });
        for _ in 0..crate::geometry::ENTRIES / 16 {
            // SAFETY: the caller's promise: sixteen aligned slots of a frame that only this PE uses. STP is two 64-bit
            // single-copy atomic stores.
            unsafe {
                asm!(
                    ".rept 8",
                    "add {next}, {value}, {step}",
                    "stp {value}, {next}, [{at}], #16",
                    "add {value}, {next}, {step}",
                    ".endr",
                    value = inout(reg) value,
                    at = inout(reg) at,
                    next = out(reg) _,
                    step = in(reg) step,
                    options(nostack, preserves_flags)
                );
            }
        }
        let _ = (value, at);
    }
}
