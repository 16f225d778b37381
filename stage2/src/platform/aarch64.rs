//! The instructions behind [`crate::platform`], for EL2 in either security state.
//!
//! An embedder's platform forwards to these. The regime is a type parameter: the TLBIs are those of the EL1&0 regime
//! under stage 2, and no other can be written by mistake.

use crate::arch::address::Ipa;
use crate::arch::features::IdRegisters;
use crate::arch::secure::SecureControl;
use crate::arch::syndrome::{Syndrome, Taken, Untranslated};
use crate::platform::traits::{Dsb, Scope, Tlbi, Vmid, ipa_tlbi_operand, range_tlbi_operand};
use core::arch::asm;
use core::marker::PhantomData;

/// VTTBR_EL2\[63:48\].
const VMID: u64 = 0xffff << 48;

/// The value of a system register whose reading has no effect.
macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading the register has no effect.
        unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

impl IdRegisters {
    /// Those of the executing PE.
    #[must_use]
    pub fn read() -> Self {
        Self {
            midr: read!("midr_el1"),
            isar0: read!("id_aa64isar0_el1"),
            mmfr0: read!("id_aa64mmfr0_el1"),
            mmfr1: read!("id_aa64mmfr1_el1"),
            mmfr2: read!("id_aa64mmfr2_el1"),
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// Which stage 2: the IPA space that a table translates, and the register that holds its root.
pub trait Regime: sealed::Sealed {
    /// Bit 63 of a TLBI by IPA, in Secure state: the Non-secure IPA space (FEAT_SEL2). RES0 in Non-secure state.
    const TLBI_NS: u64;

    /// Loads the table's register, and the VMID, from [`crate::Stage2::vttbr`].
    ///
    /// # Safety
    ///
    /// The tables below the root are sound, and stay allocated while the register holds it. An ISB must follow before
    /// the new table can be relied upon. No exception level under stage 2 runs on this PE meanwhile.
    unsafe fn set_table(vttbr: u64);
}

/// Non-secure EL2: VTTBR_EL2.
#[derive(Debug)]
pub enum NonSecure {}
/// Secure EL2, the Secure IPA space: VSTTBR_EL2 (FEAT_SEL2, D8.2.1). The VMID still comes from VTTBR_EL2.
#[derive(Debug)]
pub enum Secure {}
/// Secure EL2, the Non-secure IPA space: VTTBR_EL2. A partition's two tables have one VMID.
#[derive(Debug)]
pub enum SecureNonSecureIpa {}

impl sealed::Sealed for NonSecure {}
impl sealed::Sealed for Secure {}
impl sealed::Sealed for SecureNonSecureIpa {}

impl Regime for NonSecure {
    const TLBI_NS: u64 = 0;

    #[inline(always)]
    unsafe fn set_table(vttbr: u64) {
        set_vttbr(vttbr);
    }
}

impl Regime for Secure {
    const TLBI_NS: u64 = 0;

    /// Leaves the root of the Non-secure IPA space as it is.
    #[inline(always)]
    unsafe fn set_table(vttbr: u64) {
        // VSTTBR_EL2. Its bits 63:48 are RES0: the VMID is VTTBR_EL2's in both security states.
        // SAFETY: the caller's promise.
        unsafe { asm!("msr S3_4_C2_C6_0, {}", in(reg) vttbr & !VMID, options(nostack, preserves_flags)) };
        set_vttbr(read_vttbr() & !VMID | vttbr & VMID);
    }
}

impl Regime for SecureNonSecureIpa {
    const TLBI_NS: u64 = 1;

    #[inline(always)]
    unsafe fn set_table(vttbr: u64) {
        set_vttbr(vttbr);
    }
}

#[inline(always)]
fn read_vttbr() -> u64 {
    read!("vttbr_el2")
}

/// Callers promise what [`Regime::set_table`] asks for.
#[inline(always)]
fn set_vttbr(value: u64) {
    // SAFETY: nothing at EL2 is translated by it; what it means for lower exception levels is the callers' promise.
    unsafe { asm!("msr vttbr_el2, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// Loads VTCR_EL2, in Non-secure state, with [`crate::Stage2::vtcr`].
///
/// # Safety
///
/// As for [`Regime::set_table`]: the value describes the table in VTTBR_EL2 whenever a lower exception level runs.
pub unsafe fn set_control(vtcr: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("msr vtcr_el2, {}", in(reg) vtcr, options(nostack, preserves_flags)) };
}

/// Loads VSTCR_EL2 and VTCR_EL2, in Secure state.
///
/// # Safety
///
/// As for [`Regime::set_table`]: the values describe the tables in VSTTBR_EL2 and VTTBR_EL2 whenever a lower exception
/// level runs. The PE has FEAT_SEL2.
pub unsafe fn set_secure_control(control: SecureControl) {
    // VSTCR_EL2 is S3_4_C2_C6_2.
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "msr S3_4_C2_C6_2, {vstcr}",
            "msr vtcr_el2, {vtcr}",
            vstcr = in(reg) control.vstcr,
            vtcr = in(reg) control.vtcr,
            options(nostack, preserves_flags)
        );
    }
}

/// Removes the entries of all VMIDs of this security state from the TLBs of all PEs (`ALLE1IS`): for
/// [`Vmids::renew`](crate::vmid::Vmids::renew), and before the first table of all is used. When it returns, no access
/// that used such an entry is on its way any more, on any core: it is rare enough to repeat TLBI and DSB everywhere
/// ([`Errata::repeat_tlbi`](crate::Errata)).
pub fn invalidate_all_vmids() {
    // SAFETY: invalidating TLB entries is never unsound; the rest are barriers.
    unsafe {
        asm!(
            // Orders descriptor stores before the invalidation: a walk that starts after it sees them.
            "dsb ishst",
            "tlbi alle1is",
            // Completes it on all PEs, but on cores with an erratum not the accesses that used the entries.
            "dsb ish",
            "tlbi alle1is",
            // Completes these as well.
            "dsb ish",
            "isb",
            options(nostack, preserves_flags)
        );
    }
}

/// The instructions of one regime.
#[derive(Debug)]
pub struct El2<R>(PhantomData<R>);

impl<R: Regime> El2<R> {
    /// Executes the barrier; also a compiler barrier.
    #[inline(always)]
    pub fn dsb(barrier: Dsb) {
        // SAFETY (all): barriers have no operands and only order; no `nomem`, so the compiler keeps memory accesses in
        // place.
        match barrier {
            // SAFETY: see above.
            Dsb::IshSt => unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) },
            // SAFETY: see above.
            Dsb::Ish => unsafe { asm!("dsb ish", options(nostack, preserves_flags)) },
            // SAFETY: see above.
            Dsb::Nsh => unsafe { asm!("dsb nsh", options(nostack, preserves_flags)) },
        }
    }

    /// Executes ISB.
    #[inline(always)]
    pub fn isb() {
        // SAFETY: synchronises the context and nothing else.
        unsafe { asm!("isb", options(nostack, preserves_flags)) };
    }

    /// Executes the invalidation for `vmid`, which another table than the current one may have: then VTTBR_EL2 names it
    /// for the time being. For a program with several tables; with one, [`El2::tlbi`] is enough.
    #[inline]
    pub fn tlbi_for(vmid: Vmid, tlbi: Tlbi) {
        let current = read_vttbr();
        let another = current >> 48 != u64::from(vmid.get());
        if another {
            // The roots stay the current machine's. That makes no wrong entry: EL1&0 is out of context at EL2, so no
            // walk begins before the register is put back, and AT is not used in between.
            set_vttbr(current & !VMID | u64::from(vmid.get()) << 48);
            // The TLBI must see the new VMID.
            Self::isb();
        }
        Self::tlbi(tlbi);
        if another {
            set_vttbr(current);
            // What follows must see the old one.
            Self::isb();
        }
    }

    /// Executes the invalidation for the VMID in VTTBR_EL2.
    #[inline(always)]
    pub fn tlbi(tlbi: Tlbi) {
        // SAFETY (all): invalidating TLB entries is never unsound, entries are made anew from the tables.
        match tlbi {
            Tlbi::Ipa { ipa, scope } => {
                let operand = R::TLBI_NS << 63 | ipa_tlbi_operand(ipa);
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
            Tlbi::Range { base, scale, num, granule, unit } => {
                let operand = R::TLBI_NS << 63 | range_tlbi_operand(base, scale, num, granule, unit);
                // TLBI RIPAS2E1IS, which needs FEAT_TLBIRANGE; spelt out so that older assemblers take it.
                // SAFETY: see above; the engine issues it only where the features have it.
                unsafe { asm!("sys #4, c8, c0, #2, {}", in(reg) operand, options(nostack, preserves_flags)) };
            }
            Tlbi::VaLocal { va } => {
                let operand = va >> 12 & 0x0fff_ffff_ffff;
                // SAFETY: see above.
                unsafe { asm!("tlbi vaae1, {}", in(reg) operand, options(nostack, preserves_flags)) };
            }
            // SAFETY: see above.
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
}

/// Reads what the registers say of an abort that was taken to EL2 from a lower exception level, whose ESR_EL2 is `esr`, and
/// translates its address where they don't say it, by [`translate_stage1_read`], which says what it needs of the
/// embedder. A TLB conflict abort is never translated. `None` for what has nothing to do with the tables, such as an
/// external abort.
///
/// To be called before another exception is taken at EL2. If the translation is one, ESR_EL2 and FAR_EL2 are put back, and
/// HPFAR_EL2 says no less than before.
#[inline]
#[must_use]
pub fn read_abort(esr: u64) -> Option<Taken> {
    let syndrome = Syndrome::decode(esr)?;
    let va = read!("far_el2");
    let mut taken = syndrome.taken(va, read!("hpfar_el2"), || translate_stage1_read(va));
    if let Taken::Abort(abort) = &mut taken {
        /// SPSR_EL2.M\[3:0\]: 0 is EL0, in AArch64 and in AArch32.
        const MODE: u64 = 0xf;
        abort.el0 = read!("spsr_el2") & MODE == 0;
    }
    if let Taken::Untranslated { why: Untranslated::Exception, .. } = taken {
        // SAFETY: the registers hold what the exception from the guest has left there, as they did.
        unsafe {
            asm!(
                "msr esr_el2, {esr}",
                "msr far_el2, {va}",
                esr = in(reg) esr,
                va = in(reg) va,
                options(nomem, nostack, preserves_flags)
            );
        }
    }
    Some(taken)
}

/// Translates `va` as the guest's EL1 would for a read, by the guest's stage 1 alone (`AT S1E1R`).
///
/// For permission faults, where HPFAR_EL2 need not be valid. PAR_EL1 is the guest's, and is put back.
///
/// The walk reads tables that the guest may be changing, and an external abort on it is an exception at EL2 itself, not
/// a value in PAR_EL1 (Arm ARM, address translation instructions). The section `.exception_table` has an entry for the
/// instruction, two 32-bit words, each an offset from its own address: of the instruction, and of where to go on. The
/// embedder's vector for synchronous exceptions from EL2 looks ELR_EL2 up there and returns to the second; it may
/// change SP_EL0 meanwhile. ELR_EL2, SPSR_EL2 and SP_EL0 are put back; ESR_EL2 and FAR_EL2 are then those of EL2's own
/// exception.
///
/// # Errors
///
/// [`Untranslated`], for [`Stage2::untranslated`](crate::Stage2::untranslated).
#[inline(always)]
pub fn translate_stage1_read(va: u64) -> Result<Ipa, Untranslated> {
    const FAULT: u64 = 1;
    /// In place of PAR_EL1, which has reserved bits that are 0.
    const EXCEPTION: u64 = u64::MAX;
    let par: u64;
    // SAFETY: AT reads the guest's tables as the guest's own access did. PAR_EL1 is restored, and on the way of the
    // exception what that has changed. The exception saves nothing to the stack.
    unsafe {
        asm!(
            "mrs {saved}, par_el1",
            "mrs {elr}, elr_el2",
            "mrs {spsr}, spsr_el2",
            "mrs {sp}, sp_el0",
            "2: at s1e1r, {va}",
            // The translation is complete before its result is read.
            "isb",
            "mrs {par}, par_el1",
            "3: msr par_el1, {saved}",
            ".pushsection .text.fixup, \"ax\"",
            "4: msr elr_el2, {elr}",
            "msr spsr_el2, {spsr}",
            "msr sp_el0, {sp}",
            "mov {par}, #-1",
            "b 3b",
            ".popsection",
            ".pushsection .exception_table, \"a\"",
            ".balign 4",
            ".word 2b - ., 4b - .",
            ".popsection",
            va = in(reg) va,
            par = out(reg) par,
            saved = out(reg) _,
            elr = out(reg) _,
            spsr = out(reg) _,
            sp = out(reg) _,
            options(nostack, preserves_flags)
        );
    }
    if par & FAULT == 0 {
        return Ok(Ipa(par & 0x000f_ffff_ffff_f000 | va & 0xfff));
    }
    Err(if par == EXCEPTION { Untranslated::Exception } else { Untranslated::Fault((par >> 1 & 0x3f) as u8) })
}
