//! The EL1 test suite passes.

use qemu::console::{End, PREFIX, passed_and_failed};
use qemu::machine::{Gic, Machine};
use qemu::size::Size;
use system_tests::{assert_end, machine, payload, run};

fn passes(cpu: &str, gic: Gic, smp: u32) {
    // Room for two leaves of 1 GiB side by side.
    let memory = Size::mib(3072);
    let mut machine = Machine { cpu: cpu.into(), gic, smp, memory, ..machine() };
    machine.append += " hypercalls=on";
    machine.load_guest(payload(), None, "").unwrap();
    let outcome = run(&machine);
    assert_end!(outcome, End::PowerOff);
    let lines = outcome.console.lines();
    let last = lines.iter().rfind(|line| !line.starts_with(PREFIX) && !line.trim().is_empty());
    let (passed, failed) = last.and_then(|line| passed_and_failed(line)).expect("the payload ends with its result");
    // Behind a failed test's line stand its reasons, indented.
    let of_interest = |line: &&String| line.starts_with(' ') || line.ends_with("FAILED");
    let failures: Vec<&str> = lines.iter().filter(of_interest).map(String::as_str).collect();
    assert!(passed > 0 && failed == 0, "{passed} passed, {failed} failed\n{}", failures.join("\n"));
}

#[test]
fn on_max_with_gicv3_and_4_cpus() {
    passes("max", Gic::V3, 4);
}

#[test]
fn on_cortex_a72_with_gicv2_and_2_cpus() {
    passes("cortex-a72", Gic::V2, 2);
}
