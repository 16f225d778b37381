//! What the guest reads from its ID registers: an allow-list of fields.
//!
//! A field that is not on the list reads as 0, which means "not implemented" in every field that the architecture has
//! added since Armv8.0 (D24.1.3); so a feature that this file does not know is hidden, never half there. What is on the
//! list is set up by [`crate::cpu_id`] or needs nothing from EL2.

/// One register: CRm and op2 (op0 = 3, op1 = 0, CRn = 0), and the fields that the guest sees.
struct Register {
    crm: u8,
    op2: u8,
    fields: &'static [Field],
}

/// What the guest sees of a 4-bit field whose lowest bit is given first.
enum Field {
    /// What the CPU says.
    Same(u8),
    /// What the CPU says, but not more than this.
    AtMost(u8, u64),
    /// The PMU's version: what the CPU says, but not more than PMUv3p8, and none where it is an implementation's own.
    Pmu(u8),
    /// Always this.
    Always(u8, u64),
    /// The single bits of a mask.
    Bits(u64),
}

use Field::{Always, AtMost, Bits, Pmu, Same};

const ALL: u64 = u64::MAX;

/// PMUv3p8 in ID_AA64DFR0_EL1.PMUVer and ID_DFR0_EL1.PerfMon.
const PMUV3P8: u64 = 8;

/// ID_AA64*: everything that is shown.
const REGISTERS: &[Register] = &[
    // ID_AA64PFR0_EL1: EL0, EL1 (AArch64 only), FP, AdvSIMD, GIC, RAS, SVE, DIT, CSV2, CSV3. Not: EL2, EL3, MPAM, AMU,
    // RME; RAS at most 1, since the fault injection of RASv1p1 is trapped (HCR_EL2.FIEN).
    Register {
        crm: 4,
        op2: 0,
        fields: &[
            Same(0),
            Always(4, 1),
            Same(16),
            Same(20),
            Same(24),
            AtMost(28, 1),
            AtMost(32, 1),
            Same(48),
            Same(56),
            Same(60),
        ],
    },
    // ID_AA64PFR1_EL1: BT, SSBS, MTE, SME, CSV2_frac. Not: RAS_frac, MPAM_frac, RNDR_trap, NMI, GCS, THE, PFAR.
    Register { crm: 4, op2: 1, fields: &[Same(0), AtMost(4, 2), AtMost(8, 3), AtMost(24, 2), Same(32)] },
    // ID_AA64ZFR0_EL1 and ID_AA64SMFR0_EL1: instructions of SVE and SME only.
    Register { crm: 4, op2: 4, fields: &[Bits(ALL)] },
    // Of SMFR0 not F8F16, F8F32, SF8FMA, SF8DP4, SF8DP2: FPMR, which FP8 goes by, is hidden.
    Register { crm: 4, op2: 5, fields: &[Bits(ALL & !(3 << 40) & !(7 << 28))] },
    // ID_AA64DFR0_EL1: DebugVer up to Debugv8p8 (8p9 needs MDCR_EL2.EBWE), PMUVer up to PMUv3p8 (the registers of 3p9 trap), BRPs, WRPs, CTX_CMPs,
    // DoubleLock. Not: TraceVer, PMSVer, TraceFilt, TraceBuffer, MTPMU, BRBE, HPMN0, PMSS.
    Register { crm: 5, op2: 0, fields: &[AtMost(0, 10), Pmu(8), Same(12), Same(20), Same(28), Same(36)] },
    // ID_AA64ISAR0_EL1: all but TME (27:24).
    Register { crm: 6, op2: 0, fields: &[Bits(ALL & !(0xf << 24) & !0xf)] },
    // ID_AA64ISAR1_EL1: all but LS64 (63:60), which HCRX_EL2.EnALS would have to open.
    Register { crm: 6, op2: 1, fields: &[Bits(ALL & !(0xf << 60))] },
    // ID_AA64ISAR2_EL1: WFxT, RPRES, GPA3, APA3, MOPS, BC, PAC_frac, CLRBHB, RPRFM, CSSC. Not: the 128-bit instructions.
    Register {
        crm: 6,
        op2: 2,
        fields: &[Same(0), Same(4), Same(8), Same(12), AtMost(16, 1), Same(20), Same(24), Same(28), Same(48), Same(52)],
    },
    // ID_AA64MMFR0_EL1: PARange up to 48 bits, as stage 2 has no more; ASIDBits, BigEnd, SNSMem, BigEndEL0, TGran16,
    // TGran64, TGran4, ExS, ECV without the offset that is EL2's. TGran16_2, TGran64_2 and TGran4_2 say that there is no
    // stage 2. Not: FGT.
    Register {
        crm: 7,
        op2: 0,
        fields: &[
            AtMost(0, 5),
            Same(4),
            Same(8),
            Same(12),
            Same(16),
            Same(20),
            Same(24),
            Same(28),
            Always(32, 1),
            Always(36, 1),
            Always(40, 1),
            Same(44),
            AtMost(60, 1),
        ],
    },
    // ID_AA64MMFR1_EL1: HAFDBS up to dirty state, HPDS, PAN, SpecSEI, ETS, AFP, nTLBPA, TIDCP1, CMOW. Not: VMIDBits, VH,
    // LO, XNX, TWED, HCX.
    Register {
        crm: 7,
        op2: 1,
        fields: &[AtMost(0, 2), Same(12), Same(20), Same(24), Same(36), Same(44), Same(48), Same(52), Same(56)],
    },
    // ID_AA64MMFR2_EL1: CnP, UAO, LSM, IESB, VARange, CCIDX, ST, AT, IDS, TTL, BBM, E0PD. Not: NV, FWB, EVT.
    Register {
        crm: 7,
        op2: 2,
        fields: &[
            Same(0),
            Same(4),
            Same(8),
            Same(12),
            AtMost(16, 1),
            Same(20),
            Same(28),
            Same(32),
            Same(36),
            Same(48),
            Same(52),
            Same(60),
        ],
    },
];

impl Field {
    fn view(&self, raw: u64) -> u64 {
        let value = |low: u8| raw >> low & 0xf;
        match *self {
            Same(low) => value(low) << low,
            AtMost(low, most) => value(low).min(most) << low,
            Pmu(low) => match value(low) {
                0xf => 0,
                version => version.min(PMUV3P8) << low,
            },
            Always(low, always) => always << low,
            Bits(mask) => raw & mask,
        }
    }
}

/// The guest's value of the ID register with `crm` and `op2` (op0 = 3, op1 = 0, CRn = 0), of which the CPU reads `raw`.
///
/// `gic_registers` says whether the guest's GIC is used through system registers.
pub fn guest_view(crm: u8, op2: u8, raw: u64, gic_registers: bool) -> u64 {
    const GIC: u64 = 0xf << 24;
    match (crm, op2) {
        // AArch32 at EL0. ID_PFR1_EL1: no virtualization, and the GIC as in ID_AA64PFR0_EL1.
        (1, 1) => raw & !(0xf << 12) & !(if gic_registers { 0 } else { 0xf << 28 }),
        // ID_PFR0_EL1: RAS at most 1, no AMU.
        (1, 0) => raw & !(0xf << 20) & !(0xf << 28) | (raw >> 28 & 0xf).min(1) << 28,
        // ID_DFR0_EL1: CopDbg and PerfMon, no trace.
        (1, 2) => raw & 0xf | Pmu(24).view(raw),
        // ID_DFR1_EL1.
        (3, 5) => 0,
        (1..=3, _) => raw,
        _ => match REGISTERS.iter().find(|register| (register.crm, register.op2) == (crm, op2)) {
            Some(register) => {
                let view = register.fields.iter().fold(0, |view, field| view | field.view(raw));
                if (crm, op2) == (4, 0) && !gic_registers { view & !GIC } else { view }
            }
            None => 0,
        },
    }
}

/// What the CPU reads from the ID register with `crm` and `op2`, as if it had no SME: ID_AA64PFR1_EL1.SME and all of
/// ID_AA64SMFR0_EL1 are 0. For a core whose errata want that ([`stage2::Errata::hide_sme`]).
pub const fn without_sme(crm: u8, op2: u8, raw: u64) -> u64 {
    const SME: u64 = 0xf << 24;
    match (crm, op2) {
        (4, 1) => raw & !SME,
        (4, 5) => 0,
        _ => raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_that_traps_is_not_told_of() {
        // F8F16, F8F32, SF8FMA, SF8DP4, SF8DP2.
        let fp8 = [41, 40, 30, 29, 28].into_iter().fold(0, |bits, bit| bits | 1 << bit);
        assert_eq!(guest_view(4, 5, ALL, true), ALL & !fp8);
    }

    #[test]
    fn without_sme_no_register_tells_of_it() {
        // SME, and SMFR0. All else stays.
        assert_eq!(guest_view(4, 1, without_sme(4, 1, ALL), true), guest_view(4, 1, ALL, true) & !(0xf << 24));
        assert_eq!(guest_view(4, 5, without_sme(4, 5, ALL), true), 0);
        for (crm, op2) in [(4, 0), (4, 4), (5, 0), (6, 0), (6, 1), (6, 2), (7, 0), (7, 1), (7, 2)] {
            assert_eq!(without_sme(crm, op2, ALL), ALL);
        }
    }

    #[test]
    fn no_field_stands_twice() {
        for register in REGISTERS {
            let mut seen = 0u64;
            for field in register.fields {
                let mask = match *field {
                    Same(low) | AtMost(low, _) | Pmu(low) | Always(low, _) => 0xf << low,
                    Bits(mask) => mask,
                };
                assert_eq!(seen & mask, 0, "CRm {} op2 {}", register.crm, register.op2);
                seen |= mask;
            }
        }
    }

    #[test]
    fn what_only_el2_could_serve_is_hidden() {
        // EL2, EL3, MPAM, AMU, RME in ID_AA64PFR0_EL1.
        let pfr0 = guest_view(4, 0, ALL, true);
        assert_eq!(pfr0 & (0xff << 8 | 0xf << 36 | 0xf << 40 | 0xf << 44 | 0xf << 52), 0);
        assert_eq!(pfr0 >> 4 & 0xf, 1, "EL1 is AArch64 only");
        // NMI and GCS in ID_AA64PFR1_EL1.
        assert_eq!(guest_view(4, 1, ALL, true) & (0xf << 36 | 0xf << 44), 0);
        // Trace, SPE, trace buffer, BRBE in ID_AA64DFR0_EL1.
        assert_eq!(guest_view(5, 0, ALL, true) & (0xf << 4 | 0xf << 32 | 0xf << 44 | 0xf << 52), 0);
        // VHE and HCX in ID_AA64MMFR1_EL1; NV and FWB in ID_AA64MMFR2_EL1.
        assert_eq!(guest_view(7, 1, ALL, true) & (0xf << 8 | 0xf << 40), 0);
        assert_eq!(guest_view(7, 2, ALL, true) & (0xf << 24 | 0xf << 40), 0);
        // ID_AA64MMFR3_EL1 and every register that does not exist yet.
        for (crm, op2) in [(4, 2), (4, 3), (4, 7), (5, 1), (6, 3), (7, 3), (7, 4), (7, 7)] {
            assert_eq!(guest_view(crm, op2, ALL, true), 0);
        }
    }

    #[test]
    fn the_pmu_is_no_newer_than_what_is_set_up() {
        for (raw, seen) in [(0, 0), (1, 1), (8, 8), (9, 8), (0xe, 8), (0xf, 0)] {
            assert_eq!(guest_view(5, 0, raw << 8, true) >> 8 & 0xf, seen, "PMUVer {raw:#x}");
            assert_eq!(guest_view(1, 2, raw << 24, true) >> 24 & 0xf, seen, "PerfMon {raw:#x}");
        }
    }

    #[test]
    fn stage_2_has_48_bits() {
        assert_eq!(guest_view(7, 0, 6, true) & 0xf, 5);
        assert_eq!(guest_view(7, 0, 2, true) & 0xf, 2);
    }

    #[test]
    fn the_gic_is_hidden_where_it_is_memory_mapped() {
        assert_eq!(guest_view(4, 0, 1 << 24, true) >> 24 & 0xf, 1);
        assert_eq!(guest_view(4, 0, 1 << 24, false) >> 24 & 0xf, 0);
        assert_eq!(guest_view(1, 1, 1 << 28, false), 0);
    }

    #[test]
    fn a_missing_fpu_stays_missing() {
        let pfr0 = guest_view(4, 0, 0xff << 16, true);
        assert_eq!(pfr0 >> 16 & 0xff, 0xff);
    }
}
