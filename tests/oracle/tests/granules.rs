//! Random operations with the granules of 16 and 64 KiB, and with 52-bit addresses, as `sequential.rs` has them for 4 KiB: at
//! each BBM level, on IPA spaces with every start level and with concatenated roots.

mod common;

use common::driver::Driver;
use common::operations::{Mix, operations};
use common::{Machine, property, scaled};
use stage2::{BbmLevel, Granule, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Granule64KLpa};
use stage2_oracle::{Model, Setup, Shape};

/// Operations in one case: fewer where a table has 8192 entries, all of which the model looks at, and where the granule's other
/// runs have done as many.
const fn steps<G: Granule>() -> usize {
    match (G::ENTRIES, G::ADDRESS_BITS) {
        (8192, 48) => 100,
        (8192, _) => 40,
        (_, 48) => 250,
        _ => 120,
    }
}

/// Bits of IPA, contiguous runs, range TLBIs, hardware dirty state.
type Kind = (u8, bool, bool, bool);

/// Starts at level 2 with one table, with sixteen, at level 1 with one table, with two.
const KINDS_16K: [Kind; 4] =
    [(36, true, true, false), (40, false, true, true), (47, true, false, true), (48, true, true, true)];

/// Starts at level 2 with one table, with four, with sixteen, and at level 1.
const KINDS_64K: [Kind; 4] =
    [(40, true, true, false), (44, false, true, true), (46, true, false, true), (48, true, true, true)];

/// Starts at level 1 with four tables (and no blocks of 512 GiB), at level 0 with one, with two, with sixteen.
const KINDS_4K_LPA2: [Kind; 4] =
    [(41, true, true, true), (45, true, false, false), (49, false, true, true), (52, true, true, false)];

/// Starts at level 2 with sixteen tables, at level 1 with two, with sixteen, and at level 0.
const KINDS_16K_LPA2: [Kind; 4] =
    [(40, true, true, true), (48, true, false, false), (51, false, true, true), (52, true, true, false)];

/// Starts at level 2 with four tables, with sixteen, and at level 1.
const KINDS_64K_LPA: [Kind; 4] =
    [(44, true, true, true), (46, true, false, false), (48, false, true, true), (52, true, true, false)];

fn run<G: Granule>(bbm: BbmLevel, kinds: [Kind; 4], mix: Mix, cases: u32) {
    for (ipa_bits, contiguous, tlbi_range, hardware_dirty) in kinds {
        let machine = Machine { bbm, contiguous, hardware_dirty, ipa_bits, tlbi_range };
        let name = format!("{:?} {bbm:?} {mix:?} {ipa_bits} bits", Shape::of::<G>());
        property(&name, scaled(cases / 4), operations::<G>(machine, mix, steps::<G>()), |steps| {
            let model = Model::new(Setup { granule: Shape::of::<G>(), ..machine.setup() });
            let mut driver = Driver::<G>::with_granule(&model, machine);
            steps.iter().for_each(|step| driver.step(step));
            driver.finish();
        });
    }
}

macro_rules! runs {
    ($($name:ident: $granule:ident, $kinds:ident, $level:ident, $mix:ident, $cases:literal;)*) => {
        $(#[test]
        fn $name() {
            run::<$granule>(BbmLevel::$level, $kinds, Mix::$mix, $cases);
        })*
    };
}

runs! {
    level_0_16k: Granule16K, KINDS_16K, Level0, Mappings, 8;
    level_1_16k: Granule16K, KINDS_16K, Level1, Mappings, 8;
    level_2_16k: Granule16K, KINDS_16K, Level2, Mappings, 8;
    level_3_16k: Granule16K, KINDS_16K, Level3, Mappings, 8;
    level_0_16k_logs: Granule16K, KINDS_16K, Level0, Logs, 8;
    level_1_16k_logs: Granule16K, KINDS_16K, Level1, Logs, 8;
    level_2_16k_logs: Granule16K, KINDS_16K, Level2, Logs, 8;
    level_3_16k_logs: Granule16K, KINDS_16K, Level3, Logs, 8;
    level_0_64k: Granule64K, KINDS_64K, Level0, Mappings, 4;
    level_1_64k: Granule64K, KINDS_64K, Level1, Mappings, 4;
    level_2_64k: Granule64K, KINDS_64K, Level2, Mappings, 4;
    level_3_64k: Granule64K, KINDS_64K, Level3, Mappings, 4;
    level_0_64k_logs: Granule64K, KINDS_64K, Level0, Logs, 4;
    level_1_64k_logs: Granule64K, KINDS_64K, Level1, Logs, 4;
    level_2_64k_logs: Granule64K, KINDS_64K, Level2, Logs, 4;
    level_3_64k_logs: Granule64K, KINDS_64K, Level3, Logs, 4;
    level_0_4k_lpa2: Granule4KLpa2, KINDS_4K_LPA2, Level0, Mappings, 4;
    level_1_4k_lpa2: Granule4KLpa2, KINDS_4K_LPA2, Level1, Mappings, 4;
    level_2_4k_lpa2: Granule4KLpa2, KINDS_4K_LPA2, Level2, Mappings, 4;
    level_3_4k_lpa2: Granule4KLpa2, KINDS_4K_LPA2, Level3, Mappings, 4;
    level_0_4k_lpa2_logs: Granule4KLpa2, KINDS_4K_LPA2, Level0, Logs, 4;
    level_1_4k_lpa2_logs: Granule4KLpa2, KINDS_4K_LPA2, Level1, Logs, 4;
    level_2_4k_lpa2_logs: Granule4KLpa2, KINDS_4K_LPA2, Level2, Logs, 4;
    level_3_4k_lpa2_logs: Granule4KLpa2, KINDS_4K_LPA2, Level3, Logs, 4;
    level_0_16k_lpa2: Granule16KLpa2, KINDS_16K_LPA2, Level0, Mappings, 4;
    level_1_16k_lpa2: Granule16KLpa2, KINDS_16K_LPA2, Level1, Mappings, 4;
    level_2_16k_lpa2: Granule16KLpa2, KINDS_16K_LPA2, Level2, Mappings, 4;
    level_3_16k_lpa2: Granule16KLpa2, KINDS_16K_LPA2, Level3, Mappings, 4;
    level_0_16k_lpa2_logs: Granule16KLpa2, KINDS_16K_LPA2, Level0, Logs, 4;
    level_1_16k_lpa2_logs: Granule16KLpa2, KINDS_16K_LPA2, Level1, Logs, 4;
    level_2_16k_lpa2_logs: Granule16KLpa2, KINDS_16K_LPA2, Level2, Logs, 4;
    level_3_16k_lpa2_logs: Granule16KLpa2, KINDS_16K_LPA2, Level3, Logs, 4;
    level_0_64k_lpa: Granule64KLpa, KINDS_64K_LPA, Level0, Mappings, 4;
    level_1_64k_lpa: Granule64KLpa, KINDS_64K_LPA, Level1, Mappings, 4;
    level_2_64k_lpa: Granule64KLpa, KINDS_64K_LPA, Level2, Mappings, 4;
    level_3_64k_lpa: Granule64KLpa, KINDS_64K_LPA, Level3, Mappings, 4;
    level_0_64k_lpa_logs: Granule64KLpa, KINDS_64K_LPA, Level0, Logs, 4;
    level_1_64k_lpa_logs: Granule64KLpa, KINDS_64K_LPA, Level1, Logs, 4;
    level_2_64k_lpa_logs: Granule64KLpa, KINDS_64K_LPA, Level2, Logs, 4;
    level_3_64k_lpa_logs: Granule64KLpa, KINDS_64K_LPA, Level3, Logs, 4;
}
