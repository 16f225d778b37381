//! This CPU: who it is, what it can do, and its EL2 registers.

use core::arch::asm;
use secure_partition::layout::CPUS;
use stage2::Features;
use stage2::features::{ConflictAborts, IdRegisters};

macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading the register has no effect.
        unsafe { asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// Its number, from 0.
pub fn index() -> usize {
    // boot.S lets no other CPU through.
    (read!("mpidr_el1") & 0xff) as usize % CPUS
}

/// What the engine needs to know of it.
pub fn features() -> Features {
    // `Tables::fault` answers conflict aborts.
    Features::from_id_registers(&IdRegisters::read(), ConflictAborts::Handled)
}

/// Makes S-EL1 what partitions expect and no more: SMC comes here, and so do the extensions that contexts
/// have no registers for.
pub fn set_up() {
    const VM: u64 = 1 << 0;
    const SWIO: u64 = 1 << 1;
    const FMO_IMO_AMO: u64 = 7 << 3;
    const DC: u64 = 1 << 12; // Partitions run without a stage 1 of their own, in Normal memory all the same.
    const TSC: u64 = 1 << 19;
    const RW: u64 = 1 << 31;
    const HCR: u64 = VM | SWIO | FMO_IMO_AMO | DC | TSC | RW;
    /// RES1 bits, and traps for FP (TFP), SVE (TZ) and SME (TSM): contexts have no such registers.
    const CPTR: u64 = 0x33ff | 1 << 10;
    let (midr, mpidr) = (read!("midr_el1"), read!("mpidr_el1"));
    // SAFETY: these registers are about lower exception levels, none of which runs yet.
    unsafe {
        asm!(
            "msr hcr_el2, {hcr}",
            "msr cptr_el2, {cptr}",
            "msr hstr_el2, xzr",
            "msr mdcr_el2, xzr",
            "msr cnthctl_el2, xzr",
            "msr cntvoff_el2, xzr",
            "msr vpidr_el2, {midr}",
            "msr vmpidr_el2, {mpidr}",
            "isb",
            hcr = in(reg) HCR,
            cptr = in(reg) CPTR,
            midr = in(reg) midr,
            mpidr = in(reg) mpidr,
            options(nostack, preserves_flags)
        );
    }
}

/// ESR_EL2, ELR_EL2, FAR_EL2: for a report on the SPM's own death.
pub fn syndrome() -> [u64; 3] {
    [read!("esr_el2"), read!("elr_el2"), read!("far_el2")]
}
