//! `cargo hv` itself, as a user calls it.

use qemu::boards::LEAST_QEMU;
use qemu::setup::emulator::Emulator;
use std::path::Path;
use std::process::{Command, Output};
use system_tests::{scratch, stderr, stdout, turn, workspace};

/// Runs `cargo hv` with these words.
fn hv(words: &[&str]) -> Output {
    let _turn = turn();
    system_tests::hv(words).output().expect("cargo runs")
}

#[test]
fn a_command_s_output_and_status_come_through() {
    let output = hv(&["linux", "--run", "printf '%s\\n' \"it's\" $((6 * 7)) '[unbroken]'; exit 42"]);
    assert_eq!(output.status.code(), Some(42), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "it's\n42\n[unbroken]\n");
}

/// More than the guest's terminal or a pipe can hold, of all bytes that there are; and both streams of output, with lines that
/// have no end.
#[test]
fn standard_input_and_both_outputs_come_through() {
    let _turn = turn();
    let scratch = scratch();
    let bytes: Vec<u8> = (0..80_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = scratch.file("input", &bytes);
    let shell =
        "printf out; echo oops >&2; cat >/tmp/in; printf ' put\\n'; md5sum </tmp/in; printf 'no end' >&2; exit 5";
    let output = Command::new(qemu::workspace::cargo())
        .args(["run", "--quiet", "--package", "qemu", "--bin", "hv", "--", "linux", "--run", shell])
        .current_dir(workspace().root())
        .env("CARGO_TARGET_DIR", workspace().target())
        .stdin(std::fs::File::open(&file).unwrap())
        .output()
        .expect("cargo runs");
    let sum = Command::new("md5sum").stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert_eq!(stdout(&output), format!("out put\n{}", String::from_utf8(sum.stdout).unwrap()));
    let told = stderr(&output);
    assert!(told.contains("oops\n") && told.ends_with("no end"), "{told}");
}

#[test]
fn a_user_s_initramfs_and_files_serve_a_command_too() {
    let scratch = scratch();
    let mut archive = qemu::newc::Archive::new();
    archive.directory("etc").file("etc/motd", 0o644, b"hello from the user's own\n");
    let initrd = scratch.file("initrd", &archive.finish());
    let program = scratch.file("program", b"#!/bin/sh\necho I am $0\n");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let added = format!("{}:/opt/own/", program.display());
    let words =
        ["linux", "--initrd", initrd.to_str().unwrap(), "--add", &added, "--run", "cat /etc/motd; /opt/own/program"];
    let output = hv(&words);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello from the user's own\nI am /opt/own/program\n");
}

#[test]
fn a_command_may_end_the_machine() {
    for command in ["poweroff -f; sleep 1000", "reboot -f; sleep 1000"] {
        let output = hv(&["linux", "--run", command]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
}

#[test]
fn a_kernel_that_crashes_is_a_failure() {
    let output = hv(&["linux", "--run", "echo c >/proc/sysrq-trigger; sleep 1000"]);
    assert_eq!(output.status.code(), Some(123), "{}", stderr(&output));
    assert!(stderr(&output).contains("Kernel panic"));
}

#[test]
fn a_timeout_ends_the_run() {
    let output = hv(&["linux", "--timeout", "3", "--run", "sleep 1000"]);
    assert_eq!(output.status.code(), Some(124), "{}", stderr(&output));
    assert!(stderr(&output).contains("3 s"));
}

#[test]
fn a_refusal_has_a_status_and_the_reason() {
    let output = hv(&["payload", "--cpu", "cortex-a72", "--bbm", "direct"]);
    assert_eq!(output.status.code(), Some(120), "{}", stderr(&output));
    assert!(stderr(&output).contains("refused"));
}

#[test]
fn a_filter_that_matches_nothing_is_a_failure() {
    let output = hv(&["payload", "--filter", "surely-no-such-test"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn a_test_that_takes_the_machine_down_does_not_stop_the_others() {
    let scratch = scratch();
    let junit = scratch.path("junit.xml");
    let output = hv(&["payload", "--smp", "2", "--append", "must-fail", "--junit", junit.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    for name in ["check", "panic", "abort", "hang", "hang_elsewhere", "abort_elsewhere", "stack_overflow"] {
        assert!(text.contains(&format!("test must-fail::{name} ... FAILED\n")), "{name} did not fail:\n{text}");
    }
    // It fails by switching the machine off; the last one runs on the next machine.
    assert!(text.contains("test must-fail::passes ... ok\n"), "{text}");
    assert!(text.contains("1 passed, 8 failed, 0 skipped in all; the machine was started anew 1 times"), "{text}");
    let xml = std::fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("tests=\"9\" disabled=\"0\" errors=\"0\" failures=\"8\""), "{xml}");
}

#[test]
fn another_s_guest_is_run_and_its_result_passed_on() {
    let image = system_tests::payload().to_str().unwrap();
    let run = |append: &str| hv(&["payload", "--image", image, "--append", append]);
    let output = run("filter=psci::version");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("test psci::version ... ok\n1 passed, 0 failed\n"));
    assert_eq!(run("must-fail filter=must-fail::check").status.code(), Some(1));
}

/// By the model of TLBs, for a hash table, where there is a QEMU that has plugins of this kind; and two runs are the same.
#[test]
fn blocks_save_a_quarter_of_what_walks_read() {
    let chosen = std::env::var_os("HV_QEMU");
    if let Err(why) = Emulator::at_least(workspace(), chosen.as_deref().map(Path::new), LEAST_QEMU) {
        return eprintln!("skipped: {why:#}");
    }
    let output = hv(&["bench", "--tlb", "--check"]);
    let (said, complaints) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{said}\n{complaints}");
    assert!(said.contains("small pages: blocks have") && said.contains("passed"), "{said}");
}

/// Every row within its limit, none 2 % worse than the stored baseline, and a second run that prints the same: counts are
/// exact, so that a figure which differs from one run to the next is no figure.
#[test]
fn the_hot_paths_stay_within_their_limits() {
    let output = hv(&["bench", "--check"]);
    let (table, complaints) = (stdout(&output), stderr(&output));
    assert!(table.contains("collapse 512 pages") && table.contains("harvest, one page"), "{table}\n{complaints}");
    assert!(!complaints.contains("two runs gave different figures"), "{complaints}");
    // Another compiler than the baseline's makes other instructions: what it makes is for whoever renews the baseline.
    if !complaints.contains("no comparison with") {
        assert_eq!(output.status.code(), Some(0), "{complaints}");
        assert!(table.contains("bench: passed"), "{table}");
    }
}
