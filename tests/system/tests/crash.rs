//! A crash of the hypervisor is reported so that one can work with the report.

use qemu::console::End;
use qemu::machine::Machine;
use system_tests::{assert_end, bytes, machine, run, scratch};

/// Crashes the hypervisor and returns its report.
fn crash(how: &str) -> String {
    let scratch = scratch();
    let mut machine = Machine { smp: 2, append: format!("log=info crash={how}"), ..machine() };
    machine.load_guest(&scratch.file("guest", &bytes::guest()), None, "").unwrap();
    let outcome = run(&machine);
    assert_end!(outcome, End::Panic);
    let report = outcome.console.hypervisor().join("\n");
    assert!(report.contains("unbroken::el2::"), "no function's name in the backtrace:\n{report}");
    assert!(report.to_lowercase().contains("x0"), "no registers:\n{report}");
    report
}

#[test]
fn a_rust_panic() {
    let report = crash("panic");
    assert!(report.contains(".rs:"), "no line of source:\n{report}");
}

#[test]
fn a_data_abort_at_el2() {
    let report = crash("abort");
    assert!(report.contains("exception from EL2"), "no cause:\n{report}");
}

#[test]
fn a_stack_overflow() {
    let report = crash("overflow").to_lowercase();
    assert!(report.contains("stack") || report.contains("guard"), "no cause:\n{report}");
}
