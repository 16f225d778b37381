//! What a CPU's ID registers say, and the values of EL2's control registers that follow from it.
//!
//! A feature is either usable by the guest, and then set up here as Linux's `Documentation/arch/arm64/booting.rst` wants
//! it, or hidden by [`crate::id_registers`], and then trapped here as far as the architecture can trap it.

use crate::id_registers::without_sme;
use stage2::features::{Errata, IdRegisters};

/// The identification registers of one CPU that anything depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuId {
    /// MIDR_EL1.
    pub midr: u64,
    /// MPIDR_EL1.
    pub mpidr: u64,
    /// ID_AA64PFR0_EL1.
    pub pfr0: u64,
    /// ID_AA64PFR1_EL1.
    pub pfr1: u64,
    /// ID_AA64ZFR0_EL1.
    pub zfr0: u64,
    /// ID_AA64SMFR0_EL1.
    pub smfr0: u64,
    /// ID_AA64DFR0_EL1.
    pub dfr0: u64,
    /// ID_AA64ISAR0_EL1.
    pub isar0: u64,
    /// ID_AA64ISAR1_EL1.
    pub isar1: u64,
    /// ID_AA64ISAR2_EL1.
    pub isar2: u64,
    /// ID_AA64MMFR0_EL1.
    pub mmfr0: u64,
    /// ID_AA64MMFR1_EL1.
    pub mmfr1: u64,
    /// ID_AA64MMFR2_EL1.
    pub mmfr2: u64,
}

/// The 4-bit field of `register` whose lowest bit is `low`.
const fn field(register: u64, low: u32) -> u64 {
    register >> low & 0xf
}

impl CpuId {
    /// Affinity fields of MPIDR_EL1: what PSCI and the device tree name a CPU by.
    pub const fn affinity(&self) -> u64 {
        self.mpidr & 0xff_00ff_ffff
    }

    /// The same without what an erratum of the core forbids the guest to use: then all here is set up, and trapped, as on a
    /// CPU that does not have it.
    #[must_use]
    pub fn without_errata(self) -> Self {
        if !Errata::of(self.midr).hide_sme {
            return self;
        }
        Self { pfr1: without_sme(4, 1, self.pfr1), smfr0: without_sme(4, 5, self.smfr0), ..self }
    }

    /// What the engine wants to know.
    pub const fn stage2(&self) -> IdRegisters {
        IdRegisters { midr: self.midr, isar0: self.isar0, mmfr0: self.mmfr0, mmfr1: self.mmfr1, mmfr2: self.mmfr2 }
    }

    /// FEAT_SVE.
    pub const fn has_sve(&self) -> bool {
        field(self.pfr0, 32) != 0
    }

    /// FEAT_SME.
    pub const fn has_sme(&self) -> bool {
        field(self.pfr1, 24) != 0
    }

    /// FEAT_SME2 (SMFR0.SMEver).
    pub const fn has_sme2(&self) -> bool {
        self.has_sme() && field(self.smfr0, 56) != 0
    }

    /// The GIC's CPU interface as system registers (FEAT_GICv3).
    pub const fn has_gic_registers(&self) -> bool {
        field(self.pfr0, 24) != 0
    }

    /// FEAT_AMUv1.
    pub const fn has_activity_monitors(&self) -> bool {
        field(self.pfr0, 44) != 0
    }

    /// FEAT_MPAM.
    pub const fn has_mpam(&self) -> bool {
        field(self.pfr0, 40) != 0 || field(self.pfr1, 16) != 0
    }

    /// FEAT_MTE, at least the instructions.
    pub const fn has_mte(&self) -> bool {
        field(self.pfr1, 8) != 0
    }

    /// FEAT_MTE2: memory has tags.
    pub const fn has_memory_tags(&self) -> bool {
        field(self.pfr1, 8) >= 2
    }

    /// FEAT_NMI.
    const fn has_nmi(&self) -> bool {
        field(self.pfr1, 36) != 0
    }

    /// FEAT_PAuth for addresses, in any of its algorithms.
    pub const fn has_address_authentication(&self) -> bool {
        field(self.isar1, 4) != 0 || field(self.isar1, 8) != 0 || field(self.isar2, 12) != 0
    }

    /// FEAT_PAuth for generic data, in any of its algorithms.
    pub const fn has_generic_authentication(&self) -> bool {
        field(self.isar1, 24) != 0 || field(self.isar1, 28) != 0 || field(self.isar2, 8) != 0
    }

    /// AArch32 at EL0.
    pub const fn has_aarch32_el0(&self) -> bool {
        field(self.pfr0, 0) == 2
    }

    /// FEAT_RAS.
    pub const fn has_ras(&self) -> bool {
        field(self.pfr0, 28) != 0
    }

    /// FEAT_DoubleLock.
    pub const fn has_double_lock(&self) -> bool {
        field(self.dfr0, 36) == 0
    }

    /// How many breakpoints there are.
    pub const fn breakpoints(&self) -> u64 {
        field(self.dfr0, 12) + 1
    }

    /// How many watchpoints there are.
    pub const fn watchpoints(&self) -> u64 {
        field(self.dfr0, 20) + 1
    }

    /// FEAT_CSV2_2 or FEAT_CSV2_1p2: SCXTNUM_EL1 and SCXTNUM_EL0.
    pub const fn has_software_context(&self) -> bool {
        field(self.pfr0, 56) >= 2 || (field(self.pfr0, 56) == 1 && field(self.pfr1, 32) == 2)
    }

    /// FEAT_MOPS.
    const fn has_mops(&self) -> bool {
        field(self.isar2, 16) != 0
    }

    /// FEAT_PMUv3, and its version as ID_AA64DFR0_EL1.PMUVer has it.
    pub const fn pmu_version(&self) -> Option<u64> {
        match field(self.dfr0, 8) {
            0 | 0xf => None,
            version => Some(version),
        }
    }

    /// FEAT_LOR.
    const fn has_limited_ordering_regions(&self) -> bool {
        field(self.mmfr1, 16) != 0
    }

    /// FEAT_HCX: HCRX_EL2.
    pub const fn has_hcrx(&self) -> bool {
        field(self.mmfr1, 40) != 0
    }

    /// FEAT_FGT: the fine-grained trap registers.
    pub const fn has_fine_grained_traps(&self) -> bool {
        field(self.mmfr0, 56) != 0
    }

    /// FEAT_FGT2: the second set of them.
    pub const fn has_fine_grained_traps2(&self) -> bool {
        field(self.mmfr0, 56) >= 2
    }

    /// FEAT_TRF: TRFCR_EL2.
    pub const fn has_trace_filter(&self) -> bool {
        field(self.dfr0, 40) != 0
    }

    /// FEAT_PAN.
    pub const fn has_pan(&self) -> bool {
        field(self.mmfr1, 20) != 0
    }

    /// FEAT_UAO.
    pub const fn has_uao(&self) -> bool {
        field(self.mmfr2, 4) != 0
    }

    /// FEAT_SSBS.
    pub const fn has_ssbs(&self) -> bool {
        field(self.pfr1, 4) != 0
    }

    /// HCR_EL2 while the guest runs (D24.2.55).
    pub const fn hcr(&self) -> u64 {
        /// Stage 2 is on.
        const VM: u64 = 1 << 0;
        /// Walks of the guest's stage 1 through device memory fault: EL2 walks its tables, too, and what a device answers, an
        /// external abort, would be an exception at EL2.
        const PTW: u64 = 1 << 2;
        /// DC ISW cleans as well.
        const SWIO: u64 = 1 << 1;
        /// Reads of ID group 3 trap.
        const TID3: u64 = 1 << 18;
        /// SMC traps.
        const TSC: u64 = 1 << 19;
        /// Implementation-defined system registers trap.
        const TIDCP: u64 = 1 << 20;
        /// ACTLR_EL1 traps.
        const TACR: u64 = 1 << 21;
        /// EL1 is AArch64.
        const RW: u64 = 1 << 31;
        /// LORegion registers trap.
        const TLOR: u64 = 1 << 35;
        /// Pointer authentication keys, and instructions, do not trap.
        const APK_API: u64 = 1 << 40 | 1 << 41;
        /// SCXTNUM registers do not trap.
        const EN_SCXT: u64 = 1 << 53;
        /// Allocation tags are reachable.
        const ATA: u64 = 1 << 56;
        // Zero on purpose: IMO, FMO and AMO (interrupts and SErrors are the guest's own), TGE, E2H, NV, FIEN (no
        // injected errors), TEA and TERR (the guest answers for its own external aborts).
        let mut hcr = VM | PTW | SWIO | TID3 | TSC | TIDCP | TACR | RW;
        if self.has_limited_ordering_regions() {
            hcr |= TLOR;
        }
        if self.has_address_authentication() {
            hcr |= APK_API;
        }
        if self.has_software_context() {
            hcr |= EN_SCXT;
        }
        if self.has_memory_tags() {
            hcr |= ATA;
        }
        hcr
    }

    /// HCRX_EL2, where there is one (D24.2.56). What is 0 traps or disables what [`crate::id_registers`] hides.
    pub const fn hcrx(&self) -> u64 {
        /// Memory copy and set instructions do not trap.
        const MSCEN: u64 = 1 << 11;
        /// ALLINT traps.
        const TALLINT: u64 = 1 << 6;
        let mut hcrx = 0;
        if self.has_mops() {
            hcrx |= MSCEN;
        }
        if self.has_nmi() {
            hcrx |= TALLINT;
        }
        hcrx
    }

    /// CPTR_EL2 with E2H = 0 (D24.2.34).
    pub const fn cptr(&self) -> u64 {
        /// RES1, with TZ (bit 8) and TSM (bit 12) set: they trap SVE and SME, or are RES1 themselves.
        const RES1: u64 = 0x33ff;
        const TZ: u64 = 1 << 8;
        const TSM: u64 = 1 << 12;
        /// Trace registers trap.
        const TTA: u64 = 1 << 20;
        /// Activity monitors trap.
        const TAM: u64 = 1 << 30;
        let mut cptr = RES1;
        if self.has_sve() {
            cptr &= !TZ;
        }
        if self.has_sme() {
            cptr &= !TSM;
        }
        if field(self.dfr0, 4) != 0 {
            cptr |= TTA;
        }
        if self.has_activity_monitors() {
            cptr |= TAM;
        }
        cptr
    }

    /// MDCR_EL2 for a CPU with `counters` event counters (PMCR_EL0.N; D24.3.18).
    pub const fn mdcr(&self, counters: u64) -> u64 {
        /// SPE's registers trap.
        const TPMS: u64 = 1 << 14;
        /// Event counters stand still at EL2 (FEAT_PMUv3p1).
        const HPMD: u64 = 1 << 17;
        /// Trace filter registers trap.
        const TTRF: u64 = 1 << 19;
        /// So does the cycle counter (FEAT_PMUv3p5).
        const HCCD: u64 = 1 << 23;
        // Zero on purpose: TDE, TDA, TDOSA, TDRA (debug registers are the guest's), TPM and TPMCR (so is the PMU), E2PB
        // and E2TB (buffers of SPE and TRBE belong to EL2, and trap: they take physical addresses' worth of trust).
        let mut mdcr = 0;
        if let Some(version) = self.pmu_version() {
            // HPMN: all event counters are the guest's.
            mdcr |= counters & 0x1f;
            if version >= 4 {
                mdcr |= HPMD;
            }
            if version >= 6 {
                mdcr |= HCCD;
            }
        }
        if field(self.dfr0, 32) != 0 {
            mdcr |= TPMS;
        }
        if self.has_trace_filter() {
            mdcr |= TTRF;
        }
        mdcr
    }

    /// SMCR_EL2, where there is SME: the longest vectors, and all that the CPU has beyond plain SME.
    pub const fn smcr(&self) -> u64 {
        const LEN: u64 = 0xf;
        const EZT0: u64 = 1 << 30;
        const FA64: u64 = 1 << 31;
        let mut smcr = LEN;
        if self.smfr0 >> 63 != 0 {
            smcr |= FA64;
        }
        if field(self.smfr0, 56) != 0 {
            smcr |= EZT0;
        }
        smcr
    }

    /// HFGRTR_EL2 and HFGWTR_EL2, where there are any: the `n…` bits of what the guest may use; whatever else they trap
    /// only when set stays clear.
    pub const fn hfgrtr(&self) -> u64 {
        const N_SMPRI_EL1: u64 = 1 << 54;
        const N_TPIDR2_EL0: u64 = 1 << 55;
        if self.has_sme() { N_SMPRI_EL1 | N_TPIDR2_EL0 } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C1-Pro 4193714: up to r1p2.
    #[test]
    fn sme_is_hidden_and_trapped_where_its_stores_land_late() {
        /// CPTR_EL2.TSM.
        const TSM: u64 = 1 << 12;
        let of =
            |midr| CpuId { midr, pfr1: 0x0200_0020, smfr0: 1 << 63 | 1 << 32, ..CpuId::default() }.without_errata();
        let (early, mended) = (of(0x411f_d8b2), of(0x411f_d8b3));
        assert!(!early.has_sme() && early.pfr1 == 0x20 && early.smfr0 == 0);
        assert_eq!((early.cptr() & TSM, early.hfgrtr()), (TSM, 0), "SME traps, and so do its registers");
        assert!(mended.has_sme() && mended.smfr0 != 0);
        assert_eq!(mended.cptr() & TSM, 0);
    }

    #[test]
    fn a_plain_cpu_gets_no_bit_of_a_feature_that_it_lacks() {
        let id = CpuId::default();
        assert_eq!(id.hcr(), 0x803c_0007);
        assert_eq!(id.cptr(), 0x33ff);
        assert_eq!(id.mdcr(6), 0);
        assert_eq!((id.hcrx(), id.hfgrtr()), (0, 0));
    }

    #[test]
    fn usable_features_are_opened() {
        let id = CpuId {
            pfr0: 2 << 56 | 1 << 32,
            pfr1: 2 << 8 | 1 << 24,
            isar1: 1 << 4,
            isar2: 1 << 16,
            ..CpuId::default()
        };
        assert_eq!(id.hcr() & (3 << 40 | 1 << 53 | 1 << 56), 3 << 40 | 1 << 53 | 1 << 56);
        assert_eq!(id.cptr() & (1 << 8 | 1 << 12), 0);
        assert_eq!(id.hcrx(), 1 << 11);
        assert_eq!(id.hfgrtr(), 3 << 54);
    }

    #[test]
    fn hidden_features_are_trapped() {
        let id = CpuId {
            pfr0: 1 << 44,
            pfr1: 1 << 36,
            dfr0: 1 << 4 | 1 << 32 | 1 << 40,
            mmfr1: 1 << 16,
            ..CpuId::default()
        };
        assert_eq!(id.cptr() & (1 << 20 | 1 << 30), 1 << 20 | 1 << 30);
        assert_eq!(id.mdcr(0), 1 << 14 | 1 << 19);
        assert_eq!(id.hcrx(), 1 << 6);
        assert_ne!(id.hcr() & 1 << 35, 0);
    }

    #[test]
    fn the_guest_gets_all_counters_and_they_stand_still_at_el2() {
        let with_pmu = |version: u64| CpuId { dfr0: version << 8, ..CpuId::default() };
        assert_eq!(with_pmu(1).mdcr(6), 6);
        assert_eq!(with_pmu(4).mdcr(6), 6 | 1 << 17);
        assert_eq!(with_pmu(6).mdcr(31), 31 | 1 << 17 | 1 << 23);
        assert_eq!(with_pmu(0xf).mdcr(6), 0, "an implementation-defined PMU is not given");
    }
}
