//! Bytes become operations on a table, which the oracle judges and a flat reference map is compared with.
//!
//! The choices are those of the property tests (`tests/oracle/tests/common`). Eight bytes choose one operation, so that the
//! fuzzer can leave one out, repeat it, or put another in its place.
#![no_main]

#[path = "../../oracle/tests/common/mod.rs"]
mod common;

use common::Machine;
use common::driver::Driver;
use common::operations::{Mix, operation};
use libfuzzer_sys::{Corpus, fuzz_target};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use stage2_oracle::Model;

/// The most operations in a run.
const STEPS: usize = 100;

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
    let operation = operation::<stage2::Granule4K>(machine, mix);
    let model = Model::new(machine.setup());
    let mut driver = Driver::new(&model, machine);
    for choice in choices.chunks_exact(8).take(STEPS) {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(choice);
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let Ok(step) = operation.new_tree(&mut runner) else { return Corpus::Reject };
        driver.step(&step.current());
    }
    driver.finish();
    Corpus::Keep
});
