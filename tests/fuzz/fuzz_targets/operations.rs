//! Bytes become operations on a table, which the oracle judges and a flat reference map is compared with.
//!
//! The choices are those of the property tests (`tests/oracle/tests/common`), made from the fuzzer's bytes instead of a
//! random number generator's.
#![no_main]

#[path = "../../oracle/tests/common/mod.rs"]
mod common;

use common::Machine;
use common::driver::Driver;
use common::operations::{Mix, operations};
use libfuzzer_sys::{Corpus, fuzz_target};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use stage2_oracle::Model;

/// Operations in a run, on average.
const STEPS: usize = 40;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((&[kind, ipa_bits], choices)) = bytes.split_first_chunk() else { return Corpus::Reject };
    let machine = Machine {
        bbm: Machine::LEVELS[usize::from(kind & 3)],
        contiguous: kind & 4 != 0,
        hardware_dirty: kind & 8 != 0,
        tlbi_range: kind & 16 != 0,
        ipa_bits: [32, 40, 43, 48][usize::from(ipa_bits & 3)],
    };
    let mix = if kind & 32 != 0 { Mix::Logs } else { Mix::Mappings };
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::PassThrough, choices));
    let Ok(steps) = operations(machine, mix, STEPS).new_tree(&mut runner) else { return Corpus::Reject };
    let model = Model::new(machine.setup());
    let mut driver = Driver::new(&model, machine);
    steps.current().iter().for_each(|step| driver.step(step));
    driver.finish();
    Corpus::Keep
});
