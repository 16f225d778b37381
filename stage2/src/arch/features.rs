//! From ID registers to what the engine may do. Pure, so that a host test covers every CPU.
//!
//! Sources: Arm ARM (DDI 0487) D24 for the ID registers; the cores that never raise a TLB conflict abort are those that
//! Linux lists.

pub use crate::arch::errata::Errata;
use crate::arch::errata::{self, Effect, core, revision};
use crate::arch::granule::Granule;

/// FEAT_BBM: how a mapping's size may change (ID_AA64MMFR2_EL1.BBM, R_KFLJB, R_KHRBC).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum BbmLevel {
    /// Break-before-make for every change of size.
    Level0 = 0,
    /// FEAT_BBML1: the nT sequence; the Contiguous bit changes directly.
    Level1 = 1,
    /// FEAT_BBML2: directly; until the TLBI completes a TLB conflict abort is possible (I_HYQMB).
    Level2 = 2,
    /// FEAT_BBML3: directly, and no TLB conflict abort.
    Level3 = 3,
}

/// What the embedder does about TLB conflict aborts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ConflictAborts {
    /// It handles them at EL2 (see [`crate::fault`]), so level 2 is level 2.
    Handled,
    /// It does not: level 2 counts on the cores only that are known never to raise one, elsewhere it counts as level 0.
    NotHandled,
}

/// Hardware management of the access flag and dirty state (ID_AA64MMFR1_EL1.HAFDBS).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum HardwareUpdate {
    /// None.
    None,
    /// The access flag (VTCR_EL2.HA).
    AccessFlag,
    /// And dirty state (VTCR_EL2.HD).
    DirtyState,
}

/// The identification registers that matter here, as one PE reads them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IdRegisters {
    /// MIDR_EL1.
    pub midr: u64,
    /// ID_AA64ISAR0_EL1.
    pub isar0: u64,
    /// ID_AA64MMFR0_EL1.
    pub mmfr0: u64,
    /// ID_AA64MMFR1_EL1.
    pub mmfr1: u64,
    /// ID_AA64MMFR2_EL1.
    pub mmfr2: u64,
}

/// What the engine needs to know of a PE, or of the weakest of several.
///
/// On hardware it comes from [`Features::from_id_registers`]; elsewhere begin with [`Features::MINIMAL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Features {
    /// Bits of a physical address: 32 to 52. Granules with 48-bit addresses use no more than 48 of them.
    pub pa_bits: u8,
    /// How sizes may change.
    pub bbm: BbmLevel,
    /// Hardware dirty state at stage 2.
    pub hardware_update: HardwareUpdate,
    /// FEAT_TLBIRANGE.
    pub tlbi_range: bool,
    /// Bits of a VMID: 8 or 16.
    pub vmid_bits: u8,
    /// FEAT_LSE: `LDCLR`, `SWP`, `CAS`.
    pub lse: bool,
    /// FEAT_S2FWB: HCR_EL2.FWB.
    pub fwb: bool,
    /// FEAT_XNX: execute permission for EL0 and EL1 apart.
    pub xnx: bool,
    /// The granules at stage 2 ([`Features::has_granule`]), and those of them with FEAT_LPA2: bit 0, 2, 4 for 4, 16, 64 KiB.
    granules: [u8; 2],
    /// What errata ask for, beside features that they take away.
    pub errata: Errata,
}

/// Cores with BBM level 2 that never raise a TLB conflict abort, with the first such revision.
const CONFLICT_FREE: &[(u64, u64, &str)] = &[
    (0x41_d82, 0x03, "Cortex-X4"),
    (0x41_d84, 0x02, "Neoverse-V3"),
    (0x41_d83, 0x02, "Neoverse-V3AE"),
    (0x41_d8c, 0x11, "C1-Ultra"),
    (0x41_d90, 0x11, "C1-Premium"),
    (0x4e_010, 0x00, "NVIDIA Olympus"),
    (0xc0_ac3, 0x00, "AMPERE1"),
    (0xc0_ac4, 0x00, "AMPERE1A"),
    (0x41_d88, 0x00, "Cortex-A520AE"),
    (0x41_d4d, 0x00, "Cortex-A715"),
    (0x41_d89, 0x00, "Cortex-A720AE"),
    (0x41_d87, 0x00, "Cortex-A725"),
    (0x41_d8e, 0x00, "Neoverse-N3"),
    (0x41_d8a, 0x00, "C1-Nano"),
    (0x41_d8b, 0x00, "C1-Pro"),
];

const fn field(register: u64, low: u32) -> u64 {
    register >> low & 0xf
}

/// Whether ID_AA64MMFR0_EL1 has a granule at stage 2: the field `low` on says so, or 0, as at stage 1.
const fn has_granule(mmfr0: u64, low: u32, at_stage_1: bool) -> bool {
    match field(mmfr0, low) {
        0 => at_stage_1,
        1 => false,
        _ => true,
    }
}

/// The same for a granule with FEAT_LPA2.
const fn has_lpa2(mmfr0: u64, low: u32, at_stage_1: bool) -> bool {
    match field(mmfr0, low) {
        0 => at_stage_1,
        field => field >= 3,
    }
}

impl Features {
    /// What every PE has: 32 bits of physical address and nothing else.
    pub const MINIMAL: Self = Self {
        pa_bits: 32,
        bbm: BbmLevel::Level0,
        hardware_update: HardwareUpdate::None,
        tlbi_range: false,
        vmid_bits: 8,
        lse: false,
        fwb: false,
        xnx: false,
        granules: [1, 0],
        errata: Errata::NONE,
    };

    setters! {
        /// The same, with so many bits of physical address: 32 to 52.
        pub const fn with_pa_bits(mut self, pa_bits: u8) -> Self;
        /// The same, with this way to change sizes.
        pub const fn with_bbm(mut self, bbm: BbmLevel) -> Self;
        /// The same, with this hardware update of descriptors.
        pub const fn with_hardware_update(mut self, hardware_update: HardwareUpdate) -> Self;
        /// The same, with FEAT_TLBIRANGE or without.
        pub const fn with_tlbi_range(mut self, tlbi_range: bool) -> Self;
        /// The same, with VMIDs of so many bits: 8 or 16.
        pub const fn with_vmid_bits(mut self, vmid_bits: u8) -> Self;
        /// The same, with FEAT_LSE or without.
        pub const fn with_lse(mut self, lse: bool) -> Self;
        /// The same, with FEAT_S2FWB or without.
        pub const fn with_fwb(mut self, fwb: bool) -> Self;
        /// The same, with FEAT_XNX or without.
        pub const fn with_xnx(mut self, xnx: bool) -> Self;
        /// The same, with these errata.
        pub const fn with_errata(mut self, errata: Errata) -> Self;
    }

    /// The same, with this granule at stage 2 or without.
    #[must_use]
    pub const fn with_granule<G: Granule>(mut self, has: bool) -> Self {
        let set = &mut self.granules[G::DS as usize];
        *set = *set & !(1 << (G::SHIFT - 12)) | (has as u8) << (G::SHIFT - 12);
        self
    }

    /// What of it a table of this granule uses: of the granules this one, and physical addresses as long as its own.
    #[must_use]
    pub const fn used_by<G: Granule>(mut self) -> Self {
        let has = self.has_granule::<G>();
        if self.pa_bits > G::ADDRESS_BITS as u8 {
            self.pa_bits = G::ADDRESS_BITS as u8;
        }
        self.granules = Self::MINIMAL.granules;
        self.with_granule::<G>(has)
    }

    /// What a PE with these registers can do.
    #[must_use]
    pub fn from_id_registers(id: &IdRegisters, conflicts: ConflictAborts) -> Self {
        let (core, revision) = (core(id.midr), revision(id.midr));
        let pa_bits = match field(id.mmfr0, 0) {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            _ => 52,
        };
        let conflict_free = || CONFLICT_FREE.iter().any(|&(c, first, _)| c == core && revision >= first);
        let mut bbm = match field(id.mmfr2, 52) {
            0 => BbmLevel::Level0,
            1 => BbmLevel::Level1,
            2 if conflicts == ConflictAborts::Handled || conflict_free() => BbmLevel::Level2,
            // The nT sequence is not known to be free of conflict aborts either (R_MRRPW).
            2 => BbmLevel::Level0,
            _ => BbmLevel::Level3,
        };
        if bbm == BbmLevel::Level1 && conflicts == ConflictAborts::NotHandled {
            bbm = BbmLevel::Level0;
        }
        let mut hardware_update = match field(id.mmfr1, 0) {
            0 => HardwareUpdate::None,
            1 => HardwareUpdate::AccessFlag,
            _ => HardwareUpdate::DirtyState,
        };
        if errata::has(id.midr, Effect::DirectSize) {
            bbm = BbmLevel::Level0;
        }
        if errata::has(id.midr, Effect::DirtyState) {
            hardware_update = HardwareUpdate::None;
        }
        Self {
            pa_bits,
            bbm,
            hardware_update,
            tlbi_range: field(id.isar0, 56) >= 2,
            vmid_bits: if field(id.mmfr1, 4) >= 2 { 16 } else { 8 },
            lse: field(id.isar0, 20) >= 2,
            fwb: field(id.mmfr2, 40) >= 1,
            xnx: field(id.mmfr1, 28) >= 1,
            granules: [
                has_granule(id.mmfr0, 40, field(id.mmfr0, 28) != 0xf) as u8
                    | (has_granule(id.mmfr0, 32, field(id.mmfr0, 20) != 0) as u8) << 2
                    | (has_granule(id.mmfr0, 36, field(id.mmfr0, 24) != 0xf) as u8) << 4,
                has_lpa2(id.mmfr0, 40, field(id.mmfr0, 28) == 1) as u8
                    | (has_lpa2(id.mmfr0, 32, field(id.mmfr0, 20) == 2) as u8) << 2,
            ],
            errata: Errata::of(id.midr),
        }
    }

    /// Whether the granule can be used at stage 2, with addresses of its size.
    #[must_use]
    pub const fn has_granule<G: Granule>(&self) -> bool {
        // FEAT_LPA is what makes physical addresses that large.
        self.granules[G::DS as usize] & 1 << (G::SHIFT - 12) != 0 && (!G::LPA || self.pa_bits >= 52)
    }

    /// What both PEs can do, with the errata of both: tables are shared, so the weakest PE decides.
    #[must_use]
    pub fn weakest(self, other: Self) -> Self {
        Self {
            pa_bits: self.pa_bits.min(other.pa_bits),
            bbm: self.bbm.min(other.bbm),
            hardware_update: self.hardware_update.min(other.hardware_update),
            tlbi_range: self.tlbi_range && other.tlbi_range,
            vmid_bits: self.vmid_bits.min(other.vmid_bits),
            lse: self.lse && other.lse,
            fwb: self.fwb && other.fwb,
            xnx: self.xnx && other.xnx,
            granules: [self.granules[0] & other.granules[0], self.granules[1] & other.granules[1]],
            errata: self.errata.or(other.errata),
        }
    }
}

/// How a leaf changes its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Method {
    /// Break-before-make: invalid, invalidate, valid again. Level 0.
    Break,
    /// Mark the block nT, invalidate, replace, invalidate. Level 1.
    Nt,
    /// One store. Levels 2 and 3.
    Direct,
}

impl Method {
    pub(crate) const fn new(level: BbmLevel) -> Self {
        match level {
            BbmLevel::Level0 => Method::Break,
            BbmLevel::Level1 => Method::Nt,
            BbmLevel::Level2 | BbmLevel::Level3 => Method::Direct,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn midr(core: u64, revision: u64) -> u64 {
        (core >> 12) << 24 | (revision & 0xf0) << 16 | 0xf << 16 | (core & 0xfff) << 4 | revision & 0xf
    }

    fn level(midr: u64, bbm: u64, conflicts: ConflictAborts) -> BbmLevel {
        let id = IdRegisters { midr, mmfr2: bbm << 52, ..Default::default() };
        Features::from_id_registers(&id, conflicts).bbm
    }

    #[test]
    fn every_core_that_never_aborts() {
        use BbmLevel::{Level0, Level2};
        // Core, the last revision that may abort (if any), the first that does not.
        let table = [
            (0x41_d82, Some(0x02), 0x03),
            (0x41_d84, Some(0x01), 0x02),
            (0x41_d83, Some(0x01), 0x02),
            (0x41_d8c, Some(0x10), 0x11),
            (0x41_d90, Some(0x10), 0x11),
            (0x4e_010, None, 0x00),
            (0xc0_ac3, None, 0x00),
            (0xc0_ac4, None, 0x00),
            (0x41_d88, None, 0x00),
            (0x41_d4d, None, 0x00),
            (0x41_d89, None, 0x00),
            (0x41_d87, None, 0x00),
            (0x41_d8e, None, 0x00),
            (0x41_d8a, None, 0x00),
            (0x41_d8b, None, 0x00),
        ];
        assert_eq!(table.len(), CONFLICT_FREE.len());
        for (core, bad, good) in table {
            assert_eq!(level(midr(core, good), 2, ConflictAborts::NotHandled), Level2, "{core:#x} good");
            if let Some(bad) = bad {
                assert_eq!(level(midr(core, bad), 2, ConflictAborts::NotHandled), Level0, "{core:#x} bad");
            }
        }
    }

    #[test]
    fn any_other_core_needs_the_handler() {
        // Neoverse-N2, and QEMU's `max`.
        for m in [midr(0x41_d49, 0x00), 0x000f_0510] {
            assert_eq!(level(m, 2, ConflictAborts::Handled), BbmLevel::Level2);
            assert_eq!(level(m, 2, ConflictAborts::NotHandled), BbmLevel::Level0);
            assert_eq!(level(m, 1, ConflictAborts::Handled), BbmLevel::Level1);
            assert_eq!(level(m, 1, ConflictAborts::NotHandled), BbmLevel::Level0);
            assert_eq!(level(m, 3, ConflictAborts::NotHandled), BbmLevel::Level3);
            assert_eq!(level(m, 0, ConflictAborts::Handled), BbmLevel::Level0);
        }
    }

    #[test]
    fn errata_take_features_away() {
        for core in [0x41_d8c, 0x41_d90] {
            assert_eq!(level(midr(core, 0x10), 2, ConflictAborts::Handled), BbmLevel::Level0);
            assert_eq!(level(midr(core, 0x11), 2, ConflictAborts::Handled), BbmLevel::Level2);
        }
        let dirty = |core, revision| {
            let id = IdRegisters { midr: midr(core, revision), mmfr1: 2, ..Default::default() };
            Features::from_id_registers(&id, ConflictAborts::Handled).hardware_update
        };
        for (core, revision) in [(0x41_d05, 0x20), (0x41_d46, 0x02), (0xc0_ac3, 0x10), (0xc0_ac4, 0x00)] {
            assert_eq!(dirty(core, revision), HardwareUpdate::None, "{core:#x}");
        }
        for (core, revision) in [(0x41_d46, 0x03), (0x41_d49, 0x00)] {
            assert_eq!(dirty(core, revision), HardwareUpdate::DirtyState, "{core:#x}");
        }
    }

    #[test]
    fn errata_of_any_pe_hold_for_all() {
        let of = |core| {
            let id = IdRegisters { midr: midr(core, 0), ..Default::default() };
            Features::from_id_registers(&id, ConflictAborts::Handled)
        };
        // Cortex-X4, Cortex-A715, C1-Pro and a Neoverse-N3, which has none.
        let (repeats, breaks, hides, none) = (of(0x41_d82), of(0x41_d4d), of(0x41_d8b), of(0x41_d8e));
        assert_eq!(none.errata, Errata::default());
        for (a, b) in [(repeats, none), (none, repeats)] {
            assert_eq!(a.weakest(b).errata, Errata::NONE.with_repeat_tlbi(true));
        }
        for (a, b) in [(breaks, hides), (hides, breaks)] {
            let both = Errata { repeat_tlbi: false, break_to_deny_execute: true, hide_sme: true };
            assert_eq!(a.weakest(b).errata, both);
        }
    }

    #[test]
    fn fields_are_read_from_their_places() {
        let id =
            IdRegisters { midr: 0, isar0: 2 << 56 | 2 << 20, mmfr0: 4, mmfr1: 1 << 28 | 2 << 4 | 1, mmfr2: 1 << 40 };
        let f = Features::from_id_registers(&id, ConflictAborts::Handled);
        assert_eq!(
            f,
            Features {
                pa_bits: 44,
                bbm: BbmLevel::Level0,
                hardware_update: HardwareUpdate::AccessFlag,
                tlbi_range: true,
                vmid_bits: 16,
                lse: true,
                fwb: true,
                xnx: true,
                granules: [1 | 1 << 4, 0],
                errata: Errata::default(),
            }
        );
        let none = IdRegisters { mmfr0: 0xf << 24, ..Default::default() };
        let weak = Features::from_id_registers(&none, ConflictAborts::Handled);
        assert_eq!(f.weakest(weak), weak);
        assert_eq!(weak.weakest(f), weak);
    }

    #[test]
    fn every_size_of_physical_address_is_known() {
        // ID_AA64MMFR0_EL1.PARange; above 52 bits (FEAT_D128) the engine uses 52.
        for (field, pa_bits) in [32, 36, 40, 42, 44, 48, 52, 52].into_iter().enumerate() {
            let id = IdRegisters { mmfr0: 0xff0 | field as u64, ..Default::default() };
            assert_eq!(Features::from_id_registers(&id, ConflictAborts::Handled).pa_bits, pa_bits);
        }
    }
}
