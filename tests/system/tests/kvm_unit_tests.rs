//! kvm-unit-tests as a guest: each prints the same results under the hypervisor and without it. They are not part of this
//! repository: `HV_KVM_UNIT_TESTS` names the folder where a checkout has its `.flat` files (`arm/`); without it nothing runs.

use qemu::console::End;
use qemu::machine::{Gic, Machine};
use qemu::run::Stop;
use qemu::size::Size;
use std::path::{Path, PathBuf};
use system_tests::{machine, run};

/// File, arguments, and the CPUs that it needs. `setup` wants two values: the memory's size is left out, for the hypervisor
/// takes its own from it.
const TESTS: [(&str, &str, u32); 10] = [
    ("selftest", "setup smp={smp} smp={smp}", 1),
    ("selftest", "vectors-kernel", 1),
    ("selftest", "vectors-user", 1),
    ("selftest", "smp", 1),
    ("psci", "", 1),
    ("gic", "ipi", 2),
    ("gic", "active", 2),
    ("timer", "vtimer", 1),
    ("timer", "ptimer", 1),
    ("pmu", "", 1),
];

/// The lines with a verdict, in alphabetical order, for CPUs print as they come. What depends on the host's load is left out:
/// times, a verdict on a time, and with it the count of failures, each of which has a line of its own.
fn results(console: &[String]) -> Vec<String> {
    let verdict = |line: &str| {
        let words = ["PASS: ", "FAIL: ", "XPASS: ", "XFAIL: ", "SKIP: ", "ABORT: ", "SUMMARY: ", "Unhandled "];
        words.iter().any(|word| line.starts_with(word)) || line.contains(": assert failed: ")
    };
    let lines = console.iter().filter(|line| verdict(line) && !line.contains("latency within"));
    let mut lines: Vec<String> = lines.map(|line| steady(line).to_owned()).collect();
    lines.sort();
    lines
}

fn steady(line: &str) -> &str {
    match line.split_once(" in ") {
        Some((before, time)) if time.ends_with(" ms") => before,
        _ if line.starts_with("SUMMARY: ") => line.split(',').next().unwrap_or(line),
        _ => line,
    }
}

/// One test on one machine; nothing if it ended otherwise than by switching the machine off.
fn outcome(machine: &Machine, powered_off: impl Fn(&qemu::run::Outcome) -> bool) -> Vec<String> {
    let outcome = run(machine);
    assert!(powered_off(&outcome), "{:?}\n{}", outcome.stop, outcome.console.tail(30));
    results(&outcome.console.lines())
}

fn compare(file: &Path, arguments: &str, shape: impl Fn(Machine) -> Machine) {
    let bare = Machine { virtualization: false, append: arguments.into(), ..Machine::new(file) };
    let bare = outcome(&shape(bare), |outcome| matches!(outcome.stop, Stop::Exited(status) if status.success()));
    let mut guest = shape(machine());
    guest.load_guest(file, None, arguments).expect("the test fits");
    let guest = outcome(&guest, |outcome| outcome.console.end() == Some(End::PowerOff));
    assert_eq!(guest, bare, "{} {arguments}", file.display());
    assert!(bare.iter().any(|line| line.starts_with("SUMMARY: ")), "{}: {bare:?}", file.display());
}

#[test]
fn results_are_those_without_the_hypervisor() {
    let Some(folder) = std::env::var_os("HV_KVM_UNIT_TESTS").map(PathBuf::from) else {
        println!("skipped: HV_KVM_UNIT_TESTS names no folder of kvm-unit-tests' .flat files");
        return;
    };
    let mut compared = 0;
    for (gic, smp) in [(Gic::V3, 1), (Gic::V3, 4), (Gic::V2, 1), (Gic::V2, 4)] {
        for (name, arguments, cpus) in TESTS {
            let file = folder.join(name).with_extension("flat");
            if smp < cpus || !file.exists() {
                continue;
            }
            let arguments = arguments.replace("{smp}", &smp.to_string());
            compare(&file, &arguments, |machine| Machine { gic, smp, memory: Size::mib(1024), ..machine });
            println!("{name} {arguments}, {gic:?}, {smp} CPUs: the same");
            compared += 1;
        }
    }
    assert!(compared > 0, "{} has none of the tests", folder.display());
}
