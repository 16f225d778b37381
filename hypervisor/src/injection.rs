//! The state of a PE as an exception to EL1 leaves it (Arm ARM, pseudocode AArch64.TakeException).

use crate::cpu_id::CpuId;

/// Mode field of a saved program status: EL1 with its own stack pointer.
const EL1H: u64 = 0b0101;
/// PSTATE.{D,A,I,F}.
const DAIF: u64 = 0xf << 6;
const SSBS: u64 = 1 << 12;
const PAN: u64 = 1 << 22;
const UAO: u64 = 1 << 23;
const DIT: u64 = 1 << 24;
const TCO: u64 = 1 << 25;
/// N, Z, C, V.
const FLAGS: u64 = 0xf << 28;

/// SCTLR_EL1.SPAN: an exception to EL1 leaves PSTATE.PAN as it is.
const SCTLR_SPAN: u64 = 1 << 23;
/// SCTLR_EL1.DSSBS: PSTATE.SSBS after an exception.
const SCTLR_DSSBS: u64 = 1 << 44;

/// Exception classes of ESR_EL1 (D24.2.39).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// An undefined instruction.
    Undefined,
    /// A data access that an external abort ended.
    DataAbort {
        /// Whether it wrote (ESR_EL2.ISS.WnR).
        write: bool,
        /// Whether it was cache maintenance or an address translation instruction (ESR_EL2.ISS.CM).
        maintenance: bool,
    },
    /// An instruction fetch that an external abort ended.
    InstructionAbort,
}

/// What EL2 writes so that its ERET arrives in the guest's exception handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// For ESR_EL1.
    pub syndrome: u64,
    /// To be added to VBAR_EL1.
    pub vector: u64,
    /// For SPSR_EL2: PSTATE at the handler's first instruction.
    pub pstate: u64,
}

/// The entry to EL1 for `exception`, taken with the program status `spsr` and ESR_EL2.IL as `long_instruction` says.
pub fn enter(exception: Exception, spsr: u64, long_instruction: bool, sctlr_el1: u64, cpu: &CpuId) -> Entry {
    const AARCH32: u64 = 1 << 4;
    let from_el1 = spsr & AARCH32 == 0 && spsr & 0b1100 == 0b0100;
    let vector = match (from_el1, spsr & AARCH32 != 0, spsr & 1 != 0) {
        (true, _, false) => 0x000,
        (true, _, true) => 0x200,
        (false, false, _) => 0x400,
        (false, true, _) => 0x600,
    };

    // What the architecture leaves alone, and the bits that it sets. IL, SS and BTYPE become 0; so does UAO, and ALLINT,
    // whose feature is hidden. The flags of an AArch32 program are defined by SPSR_EL1 alone.
    let mut pstate = spsr & (FLAGS | DIT) | DAIF | EL1H;
    if cpu.has_pan() {
        pstate |= if sctlr_el1 & SCTLR_SPAN == 0 { PAN } else { spsr & PAN };
    }
    if cpu.has_ssbs() && sctlr_el1 & SCTLR_DSSBS != 0 {
        pstate |= SSBS;
    }
    if cpu.has_mte() {
        pstate |= TCO;
    }
    debug_assert!(pstate & UAO == 0);

    /// Synchronous External abort, not on a translation table walk.
    const EXTERNAL_ABORT: u64 = 0b010000;
    let same_level = u64::from(from_el1);
    let (class, iss) = match exception {
        Exception::Undefined => (0x00, 0),
        Exception::InstructionAbort => (0x20 + same_level, EXTERNAL_ABORT),
        Exception::DataAbort { write, maintenance } => {
            (0x24 + same_level, EXTERNAL_ABORT | u64::from(write) << 6 | u64::from(maintenance) << 8)
        }
    };
    Entry { syndrome: class << 26 | u64::from(long_instruction) << 25 | iss, vector, pstate }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA_WRITE: Exception = Exception::DataAbort { write: true, maintenance: false };

    fn plain(exception: Exception, spsr: u64) -> Entry {
        enter(exception, spsr, true, 0, &CpuId::default())
    }

    #[test]
    fn the_vector_follows_the_interrupted_state() {
        for (mode, vector, class) in
            [(0b0100, 0x000, 0x25), (0b0101, 0x200, 0x25), (0, 0x400, 0x24), (0x10, 0x600, 0x24)]
        {
            let entry = plain(DATA_WRITE, mode);
            assert_eq!((entry.vector, entry.syndrome >> 26), (vector, class), "mode {mode:#x}");
        }
    }

    #[test]
    fn syndromes() {
        assert_eq!(plain(DATA_WRITE, 5).syndrome, 0x25 << 26 | 1 << 25 | 1 << 6 | 0x10);
        assert_eq!(plain(Exception::InstructionAbort, 0).syndrome, 0x20 << 26 | 1 << 25 | 0x10);
        let short = enter(Exception::Undefined, 0x10, false, 0, &CpuId::default());
        assert_eq!(short.syndrome, 0);
    }

    #[test]
    fn pstate_is_what_hardware_would_make_it() {
        let all = !0x1f | EL1H;
        let entry = plain(Exception::Undefined, all);
        assert_eq!(entry.pstate, FLAGS | DIT | DAIF | EL1H, "a CPU without PAN, SSBS and MTE");

        let cpu = CpuId { pfr1: 2 << 8 | 1 << 4, mmfr1: 1 << 20, mmfr2: 1 << 4, ..CpuId::default() };
        let entry = |spsr, sctlr| enter(Exception::Undefined, spsr, true, sctlr, &cpu).pstate;
        assert_eq!(entry(EL1H, 0), EL1H | DAIF | PAN | TCO);
        assert_eq!(entry(EL1H, SCTLR_SPAN), EL1H | DAIF | TCO);
        assert_eq!(entry(EL1H | PAN | UAO, SCTLR_SPAN | SCTLR_DSSBS), EL1H | DAIF | PAN | TCO | SSBS);
    }
}
