//! Random operations one after the other, at each BBM level, with and without contiguous runs and hardware dirty state, on
//! IPA spaces of different shape: one million of them over all.

mod common;

use common::driver::Driver;
use common::operations::{Mix, Op, operations};
use common::{MIB, Machine, property, range, scaled};
use stage2::{Attributes, BbmLevel, Granule4K, Mechanism};
use stage2_oracle::Model;

/// Operations in one case: enough for tables to come and go many times.
const STEPS: usize = 250;

fn run(bbm: BbmLevel, contiguous: bool, mix: Mix, cases: u32) {
    for (ipa_bits, tlbi_range, hardware_dirty) in
        [(32, true, false), (40, false, true), (43, true, true), (48, false, false)]
    {
        let machine = Machine { bbm, contiguous, hardware_dirty, ipa_bits, tlbi_range };
        let name = format!("{bbm:?} contiguous {contiguous} {mix:?} {ipa_bits} bits");
        property(&name, scaled(cases / 4), operations::<Granule4K>(machine, mix, STEPS), |steps| {
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

/// Found by the runs above: the log took DBM from pages that the first one had left with it, and invalidated nothing, since
/// their writes go unnoticed all the same. The descriptors did not tell any more, and the collapse at the end replaced their
/// table while a PE could hold one that hardware marks.
#[test]
fn a_log_that_starts_all_dirty_invalidates_what_hardware_marks() {
    for bbm in [BbmLevel::Level1, BbmLevel::Level2, BbmLevel::Level3] {
        let machine = Machine { bbm, contiguous: false, hardware_dirty: true, ipa_bits: 43, tlbi_range: true };
        let model = Model::new(machine.setup());
        let mut driver = Driver::new(&model, machine);
        let at = machine.middle::<Granule4K>() + 2 * MIB;
        let page = range(machine.middle::<Granule4K>() - 8 * MIB, machine.middle::<Granule4K>() - 8 * MIB + 0x1000);
        for step in [
            Op::Start(range(at, at + 6 * MIB), Mechanism::HardwarePage, false),
            Op::Unmap(page),
            Op::End(0),
            Op::Start(range(at - 0x9_0000, at + 0x1_0000), Mechanism::WriteProtect, true),
            Op::Store(page.start().0),
            Op::Map(page, 0, Attributes::RAM),
        ] {
            driver.step(&step);
        }
        driver.finish();
    }
}
