//! Errata that the engine or its embedder works around, by core and revision: the one table.
//!
//! Checked against Linux (`arch/arm64/kernel/cpu_errata.c`, `arch/arm64/Kconfig`, `asm/cputype.h`, 7.1 and its stable
//! branches): cores and revisions of the list for `ARM64_WORKAROUND_REPEAT_TLBI`, 4193714 and 2645198 are Linux's.

/// What a core's errata ask for. [`Features::weakest`](crate::Features::weakest) joins them: where one PE needs
/// something, all do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Errata {
    /// A broadcast TLBI and its DSB may complete before stores of other PEs that used the old translation: both are
    /// repeated, as Linux does for `ARM64_WORKAROUND_REPEAT_TLBI` (CVE-2025-10263 among them).
    pub repeat_tlbi: bool,
    /// Execute permission is taken away by break-before-make: without it an abort may report a wrong syndrome or
    /// address (Cortex-A715 2645198).
    pub break_to_deny_execute: bool,
    /// Stores of SME may land after a TLBI and its DSB, repeated or not (C1-Pro 4193714): the embedder hides SME from
    /// the guest, and traps it.
    pub hide_sme: bool,
}

impl Errata {
    /// Of a core without any.
    pub const NONE: Self = Self { repeat_tlbi: false, break_to_deny_execute: false, hide_sme: false };

    setters! {
        /// The same, with this [`Errata::repeat_tlbi`].
        pub const fn with_repeat_tlbi(mut self, repeat_tlbi: bool) -> Self;
        /// The same, with this [`Errata::break_to_deny_execute`].
        pub const fn with_break_to_deny_execute(mut self, break_to_deny_execute: bool) -> Self;
        /// The same, with this [`Errata::hide_sme`].
        pub const fn with_hide_sme(mut self, hide_sme: bool) -> Self;
    }

    /// What the core with this MIDR_EL1 asks for.
    #[must_use]
    pub fn of(midr: u64) -> Self {
        Self {
            repeat_tlbi: has(midr, Effect::EarlyCompletion),
            break_to_deny_execute: has(midr, Effect::ExecuteNeedsBreak),
            hide_sme: has(midr, Effect::EarlySme),
        }
    }

    /// What either asks for.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self {
            repeat_tlbi: self.repeat_tlbi || other.repeat_tlbi,
            break_to_deny_execute: self.break_to_deny_execute || other.break_to_deny_execute,
            hide_sme: self.hide_sme || other.hide_sme,
        }
    }
}

/// Bits 23:20 (variant) and 3:0 (revision) of MIDR_EL1 as one ordered number: r1p2 is 0x12.
pub(crate) const fn revision(midr: u64) -> u64 {
    (midr >> 16 & 0xf0) | midr & 0xf
}

/// Implementer and part number of MIDR_EL1: 0x41_d4f.
pub(crate) const fn core(midr: u64) -> u64 {
    (midr >> 24 & 0xff) << 12 | midr >> 4 & 0xfff
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// Direct size changes are unsafe.
    DirectSize,
    /// Hardware dirty state is unsafe.
    DirtyState,
    /// [`Errata::repeat_tlbi`].
    EarlyCompletion,
    /// [`Errata::break_to_deny_execute`].
    ExecuteNeedsBreak,
    /// [`Errata::hide_sme`].
    EarlySme,
}

/// One erratum of one core.
struct Erratum {
    core: u64,
    /// The bits of `core` that count.
    mask: u64,
    /// The first and the last revision that has it.
    revisions: (u64, u64),
    effect: Effect,
}

const EVERY: (u64, u64) = (0, 0xff);

const fn erratum(core: u64, revisions: (u64, u64), effect: Effect) -> Erratum {
    Erratum { core, mask: 0xff_fff, revisions, effect }
}

/// Whether the core with this MIDR_EL1 has an erratum of this effect.
pub(crate) fn has(midr: u64, effect: Effect) -> bool {
    let (core, revision) = (core(midr), revision(midr));
    let hit = |e: &Erratum| core & e.mask == e.core && e.revisions.0 <= revision && revision <= e.revisions.1;
    TABLE.iter().any(|erratum| erratum.effect == effect && hit(erratum))
}

use Effect::{DirectSize, DirtyState, EarlyCompletion, EarlySme, ExecuteNeedsBreak};

const TABLE: &[Erratum] = &[
    // 3683289: C1-Ultra and C1-Premium before r1p1.
    erratum(0x41_d8c, (0x00, 0x10), DirectSize),
    erratum(0x41_d90, (0x00, 0x10), DirectSize),
    // 1024718: Cortex-A55 loses dirty updates.
    erratum(0x41_d05, EVERY, DirtyState),
    // 2051678: Cortex-A510 before r0p3 orders dirty updates wrongly.
    erratum(0x41_d46, (0x00, 0x02), DirtyState),
    // AC03_CPU_38, AC04_CPU_10: AmpereOne updates access flag and dirty state after an invalidation.
    erratum(0xc0_ac3, EVERY, DirtyState),
    erratum(0xc0_ac4, EVERY, DirtyState),
    // Kryo 4xx Silver rdpe, which is a Cortex-A55, loses dirty updates like it (Linux's list for broken DBM).
    erratum(0x51_805, (0xde, 0xde), DirtyState),
    // Qualcomm 1009: Falkor v1, and all Kryo of the first kind (parts 0x2..).
    erratum(0x51_800, (0x00, 0x00), EarlyCompletion),
    Erratum { core: 0x51_200, mask: 0xff_f00, revisions: EVERY, effect: EarlyCompletion },
    // 1286807: Kryo 4xx Gold rcpe to rfpe, which are Cortex-A76 r0p0 to r3p0. That core is below: 4118414 has all
    // revisions.
    erratum(0x51_804, (0xce, 0xfe), EarlyCompletion),
    // 2441007: Cortex-A55.
    erratum(0x41_d05, EVERY, EarlyCompletion),
    // 2441009: Cortex-A510 before r1p2.
    erratum(0x41_d46, (0x00, 0x11), EarlyCompletion),
    // CVE-2025-10263, in Linux 4118414, by other numbers on each core.
    erratum(0x41_d90, EVERY, EarlyCompletion), // C1-Premium, 4193780
    erratum(0x41_d8c, EVERY, EarlyCompletion), // C1-Ultra, 4193780
    erratum(0x41_d0b, EVERY, EarlyCompletion), // Cortex-A76, 4193800
    erratum(0x41_d0e, EVERY, EarlyCompletion), // Cortex-A76AE, 4193801
    erratum(0x41_d0d, EVERY, EarlyCompletion), // Cortex-A77, 4193798
    erratum(0x41_d41, EVERY, EarlyCompletion), // Cortex-A78, 4193791
    erratum(0x41_d42, EVERY, EarlyCompletion), // Cortex-A78AE, 4193793
    erratum(0x41_d4b, EVERY, EarlyCompletion), // Cortex-A78C, 4193794
    erratum(0x41_d47, EVERY, EarlyCompletion), // Cortex-A710, 4193788
    erratum(0x41_d44, EVERY, EarlyCompletion), // Cortex-X1, 4193791
    erratum(0x41_d4c, EVERY, EarlyCompletion), // Cortex-X1C, 4193792
    erratum(0x41_d48, EVERY, EarlyCompletion), // Cortex-X2, 4193788
    erratum(0x41_d4e, EVERY, EarlyCompletion), // Cortex-X3, 4193786
    erratum(0x41_d82, EVERY, EarlyCompletion), // Cortex-X4, 4118414
    erratum(0x41_d85, EVERY, EarlyCompletion), // Cortex-X925, 4193781
    erratum(0x41_d0c, EVERY, EarlyCompletion), // Neoverse-N1, 4193800
    erratum(0x41_d49, EVERY, EarlyCompletion), // Neoverse-N2, 4193789
    erratum(0x41_d40, EVERY, EarlyCompletion), // Neoverse-V1, 4193790
    erratum(0x41_d4f, EVERY, EarlyCompletion), // Neoverse-V2, 4193787
    erratum(0x41_d84, EVERY, EarlyCompletion), // Neoverse-V3, 4193784
    erratum(0x41_d83, EVERY, EarlyCompletion), // Neoverse-V3AE, 4193784
    erratum(0x4e_010, EVERY, EarlyCompletion), // NVIDIA Olympus, T410-OLY-1029
    erratum(0x6d_d49, EVERY, EarlyCompletion), // Microsoft Azure Cobalt 100, 4193789
    // 2645198: Cortex-A715.
    erratum(0x41_d4d, EVERY, ExecuteNeedsBreak),
    // 4193714: C1-Pro up to r1p2. An r1p2 with REVIDR_EL1[0] set is free of it; it loses SME all the same.
    erratum(0x41_d8b, (0x00, 0x12), EarlySme),
];

#[cfg(test)]
mod tests {
    use super::*;

    const fn midr(core: u64, revision: u64) -> u64 {
        (core >> 12) << 24 | (revision & 0xf0) << 16 | 0xf << 16 | (core & 0xfff) << 4 | revision & 0xf
    }

    /// The revisions in the list have it, those in the second do not.
    fn check(core: u64, effect: Effect, affected: &[u64], free: &[u64]) {
        for &revision in affected {
            assert!(has(midr(core, revision), effect), "{core:#x} r{revision:#x} has it");
        }
        for &revision in free {
            assert!(!has(midr(core, revision), effect), "{core:#x} r{revision:#x} is free of it");
        }
        let errata = Errata::of(midr(core, affected[0]));
        assert_eq!(errata.repeat_tlbi, has(midr(core, affected[0]), EarlyCompletion));
        assert_eq!(errata.break_to_deny_execute, has(midr(core, affected[0]), ExecuteNeedsBreak));
        assert_eq!(errata.hide_sme, has(midr(core, affected[0]), EarlySme));
    }

    macro_rules! cores {
        ($($name:ident: $core:literal, $effect:ident, $affected:expr, $free:expr;)*) => {
            $(#[test]
            fn $name() {
                check($core, Effect::$effect, &$affected, &$free);
            })*

            /// Each row of the table has a test.
            #[test]
            fn every_row_is_tested() {
                let tested = [$(($core, Effect::$effect)),*];
                assert_eq!(tested.len(), TABLE.len());
                for row in TABLE {
                    assert!(tested.contains(&(row.core, row.effect)), "{:#x} {:?}", row.core, row.effect);
                }
            }
        };
    }

    cores! {
        c1_ultra_3683289: 0x41_d8c, DirectSize, [0x00, 0x10], [0x11, 0x20];
        c1_premium_3683289: 0x41_d90, DirectSize, [0x00, 0x10], [0x11, 0x20];
        cortex_a55_1024718: 0x41_d05, DirtyState, [0x00, 0x20], [];
        cortex_a510_2051678: 0x41_d46, DirtyState, [0x00, 0x02], [0x03, 0x10];
        ampere1_ac03_cpu_38: 0xc0_ac3, DirtyState, [0x00, 0x10], [];
        ampere1a_ac04_cpu_10: 0xc0_ac4, DirtyState, [0x00, 0x10], [];
        falkor_1009: 0x51_800, EarlyCompletion, [0x00], [0x01, 0x10, 0xa1];
        kryo_1009: 0x51_200, EarlyCompletion, [0x00, 0x21], [];
        kryo_4xx_silver_1024718: 0x51_805, DirtyState, [0xde], [0xdd, 0xdf];
        kryo_4xx_gold_1286807: 0x51_804, EarlyCompletion, [0xce, 0xde, 0xfe], [0xcd, 0xff, 0x00];
        cortex_a55_2441007: 0x41_d05, EarlyCompletion, [0x00, 0x20], [];
        cortex_a510_2441009: 0x41_d46, EarlyCompletion, [0x00, 0x03, 0x11], [0x12, 0x13];
        c1_premium_4193780: 0x41_d90, EarlyCompletion, [0x00, 0x11, 0xff], [];
        c1_ultra_4193780: 0x41_d8c, EarlyCompletion, [0x00, 0x11, 0xff], [];
        cortex_a76_1286807_4193800: 0x41_d0b, EarlyCompletion, [0x00, 0x30, 0x41], [];
        cortex_a76ae_4193801: 0x41_d0e, EarlyCompletion, [0x00, 0xff], [];
        cortex_a77_4193798: 0x41_d0d, EarlyCompletion, [0x00, 0xff], [];
        cortex_a78_4193791: 0x41_d41, EarlyCompletion, [0x00, 0xff], [];
        cortex_a78ae_4193793: 0x41_d42, EarlyCompletion, [0x00, 0xff], [];
        cortex_a78c_4193794: 0x41_d4b, EarlyCompletion, [0x00, 0xff], [];
        cortex_a710_4193788: 0x41_d47, EarlyCompletion, [0x00, 0xff], [];
        cortex_x1_4193791: 0x41_d44, EarlyCompletion, [0x00, 0xff], [];
        cortex_x1c_4193792: 0x41_d4c, EarlyCompletion, [0x00, 0xff], [];
        cortex_x2_4193788: 0x41_d48, EarlyCompletion, [0x00, 0xff], [];
        cortex_x3_4193786: 0x41_d4e, EarlyCompletion, [0x00, 0xff], [];
        cortex_x4_4118414: 0x41_d82, EarlyCompletion, [0x00, 0x03, 0xff], [];
        cortex_x925_4193781: 0x41_d85, EarlyCompletion, [0x00, 0xff], [];
        neoverse_n1_4193800: 0x41_d0c, EarlyCompletion, [0x00, 0xff], [];
        neoverse_n2_4193789: 0x41_d49, EarlyCompletion, [0x00, 0xff], [];
        neoverse_v1_4193790: 0x41_d40, EarlyCompletion, [0x00, 0xff], [];
        neoverse_v2_4193787: 0x41_d4f, EarlyCompletion, [0x00, 0xff], [];
        neoverse_v3_4193784: 0x41_d84, EarlyCompletion, [0x00, 0x02, 0xff], [];
        neoverse_v3ae_4193784: 0x41_d83, EarlyCompletion, [0x00, 0x02, 0xff], [];
        nvidia_olympus_1029: 0x4e_010, EarlyCompletion, [0x00, 0xff], [];
        azure_cobalt_100_4193789: 0x6d_d49, EarlyCompletion, [0x00, 0xff], [];
        cortex_a715_2645198: 0x41_d4d, ExecuteNeedsBreak, [0x00, 0xff], [];
        c1_pro_4193714: 0x41_d8b, EarlySme, [0x00, 0x12], [0x13, 0x20];
    }

    #[test]
    fn cores_that_linux_does_not_list_are_free() {
        // Cortex-A53, A57, A72, A73, A75, A715, A720, A725, Neoverse-N3, C1-Nano, C1-Pro, AMPERE1, QEMU's `max`.
        for core in [
            0x41_d03, 0x41_d07, 0x41_d08, 0x41_d09, 0x41_d0a, 0x41_d4d, 0x41_d81, 0x41_d87, 0x41_d8e, 0x41_d8a,
            0x41_d8b, 0xc0_ac3, 0x00_051, 0x51_300, 0x51_803,
        ] {
            assert!(!has(midr(core, 0), EarlyCompletion), "{core:#x}");
        }
        assert_eq!(Errata::of(0x000f_0510), Errata::default());
    }
}
