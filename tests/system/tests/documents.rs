//! Commands of the documents that no other test runs.

use std::process::{Command, Output, Stdio};
use system_tests::{scratch, stderr, stdout, workspace};

/// Runs `cargo hv` with these words. None of them runs a machine.
fn hv(words: &[&str]) -> Output {
    Command::new(qemu::workspace::cargo())
        .args(["run", "--quiet", "--package", "qemu", "--bin", "hv", "--"])
        .args(words)
        .current_dir(workspace().root())
        .env("CARGO_TARGET_DIR", workspace().target())
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs")
}

#[test]
fn the_doctor_says_what_is_there() {
    let output = hv(&["doctor"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for word in ["checkout ", "found    QEMU", "found    Rust"] {
        assert!(stdout(&output).contains(word), "`{word}`: {}", stdout(&output));
    }
}

#[test]
fn a_tree_is_read_and_told_of() {
    let scratch = scratch();
    let file = scratch.file("none.dtb", b"this is no tree");
    let output = hv(&["trees", file.to_str().unwrap()]);
    assert!(stdout(&output).contains("none.dtb") || stderr(&output).contains("none.dtb"), "{}", stderr(&output));
}
