//! Random operations one after the other, at each BBM level, with and without contiguous runs and hardware dirty state, on
//! IPA spaces of different shape: one million of them over all.

mod common;

use common::driver::Driver;
use common::operations::{Mix, operations};
use common::{Machine, property, scaled};
use stage2::BbmLevel;
use stage2_oracle::Model;

/// Operations in one case: enough for tables to come and go many times.
const STEPS: usize = 250;

fn run(bbm: BbmLevel, contiguous: bool, mix: Mix, cases: u32) {
    for (ipa_bits, tlbi_range, hardware_dirty) in
        [(32, true, false), (40, false, true), (43, true, true), (48, false, false)]
    {
        let machine = Machine { bbm, contiguous, hardware_dirty, ipa_bits, tlbi_range };
        let name = format!("{bbm:?} contiguous {contiguous} {mix:?} {ipa_bits} bits");
        property(&name, scaled(cases / 4), operations(machine, mix, STEPS), |steps| {
            let model = Model::new(machine.setup());
            let mut driver = Driver::new(&model, machine);
            steps.iter().for_each(|step| driver.step(step));
            driver.finish();
        });
    }
}

macro_rules! runs {
    ($($name:ident: $level:ident, $contiguous:literal, $mix:ident;)*) => {
        $(#[test]
        fn $name() {
            // 16 such tests of 252 cases of 250 operations: over one million.
            run(BbmLevel::$level, $contiguous, Mix::$mix, 252);
        })*
    };
}

runs! {
    level_0_plain: Level0, false, Mappings;
    level_0_runs: Level0, true, Mappings;
    level_1_plain: Level1, false, Mappings;
    level_1_runs: Level1, true, Mappings;
    level_2_plain: Level2, false, Mappings;
    level_2_runs: Level2, true, Mappings;
    level_3_plain: Level3, false, Mappings;
    level_3_runs: Level3, true, Mappings;
    level_0_plain_logs: Level0, false, Logs;
    level_0_runs_logs: Level0, true, Logs;
    level_1_plain_logs: Level1, false, Logs;
    level_1_runs_logs: Level1, true, Logs;
    level_2_plain_logs: Level2, false, Logs;
    level_2_runs_logs: Level2, true, Logs;
    level_3_plain_logs: Level3, false, Logs;
    level_3_runs_logs: Level3, true, Logs;
}
