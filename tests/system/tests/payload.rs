//! The EL1 test suite passes: on a part of the matrix that `cargo hv payload --matrix` runs.

use qemu::ending::Status;
use qemu::machine::{Gic, Machine};
use qemu::payload::{matrix, suite};
use qemu::run::Limits;
use qemu::size::Size;
use std::time::{Duration, SystemTime};
use system_tests::{emulator, machine, payload, turn};

/// How long one machine may take before its test fails.
const LIMIT: Duration = Duration::from_secs(300);

fn passes(cpu: &str, gic: Gic, smp: u32, bbm: &str) {
    // What goes on for a set time is given less of it than a user gives; a busy host may take its time.
    run(cpu, gic, smp, bbm, &["storm=2", "timeout=2"], 151);
}

/// Runs the suite with these words on its command line; at least `least` tests have to pass, and none may fail.
fn run(cpu: &str, gic: Gic, smp: u32, bbm: &str, words: &[&str], least: usize) {
    // Room for two leaves of 1 GiB side by side, between the payload and the hypervisor.
    let memory = Size::mib(4096);
    let mut machine = Machine { cpu: cpu.into(), gic, smp, memory, ..machine() };
    machine.append += &format!(" hypercalls=on bbm={bbm}");
    let limits = Limits { total: LIMIT, silence: suite::SILENCE };
    let _turn = turn();
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    let results = suite::run(emulator(), &machine, payload(), &words, limits, |_| ()).unwrap();
    let counts = results.counts();
    assert!(
        results.status == Status::Success && results.restarts == 0 && counts.passed >= least,
        "{words:?}: {counts}, {} restarts\n{}{}",
        results.restarts,
        matrix::failures(&results.tests),
        results.explanation
    );
}

#[test]
fn on_max_with_gicv3_and_4_cpus() {
    passes("max", Gic::V3, 4, "auto");
}

#[test]
fn on_max_with_break_before_make_and_2_cpus() {
    passes("max", Gic::V3, 2, "break");
}

#[test]
fn on_cortex_a72_with_gicv2_and_2_cpus() {
    passes("cortex-a72", Gic::V2, 2, "auto");
}

#[test]
#[ignore = "long"]
fn on_cortex_a53_with_1_cpu() {
    passes("cortex-a53", Gic::V3, 1, "auto");
}

/// A minute of everything that the hostile guest does, half of it on each kind of interrupt controller. The seed is another one
/// each time, and stands in the failure's message.
#[test]
fn a_minute_of_a_hostile_guest() {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = format!("seed={seconds}");
    for (cpu, gic) in [("max", Gic::V3), ("cortex-a72", Gic::V2)] {
        run(cpu, gic, 2, "auto", &["filter=hostile::everything", "storm=30", "timeout=2", &seed], 1);
    }
}
