//! `cargo hv doctor`, and which checkout a binary works on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder that is removed at the test's end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("hv-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder.canonicalize().unwrap())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A binary of the tool's, run in a folder as by hand: not by Cargo.
fn doctor(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("doctor").current_dir(folder).env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_TARGET_DIR");
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_copied_binary_works_on_the_checkout_that_it_is_run_in() {
    let folder = Folder::new("checkout");
    let program = folder.0.join("hv");
    fs::copy(env!("CARGO_BIN_EXE_hv"), &program).unwrap();
    // In no checkout at all, it says so.
    let output = doctor(&program, &folder.0).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output));
    let sentence = format!("{} is not inside a checkout of Unbroken", folder.0.display());
    assert!(text(&output).contains(&sentence), "{}", text(&output));
    let members = ["hypervisor", "stage2", "qemu"];
    for (count, expected) in [(1, "is inside another Cargo workspace"), (3, "checkout ")] {
        let list: Vec<String> = members[..count].iter().map(|name| format!("{name:?}")).collect();
        fs::write(folder.0.join("Cargo.toml"), format!("[workspace]\nmembers = [{}]\n", list.join(", "))).unwrap();
        for name in &members[..count] {
            fs::create_dir_all(folder.0.join(name).join("src")).unwrap();
            fs::write(folder.0.join(name).join("Cargo.toml"), format!("[package]\nname = {name:?}\n")).unwrap();
            fs::write(folder.0.join(name).join("src/lib.rs"), "").unwrap();
        }
        let output = doctor(&program, &folder.0.join("hypervisor")).output().unwrap();
        assert!(text(&output).contains(expected), "{}", text(&output));
        if count == members.len() {
            assert!(text(&output).contains(&format!("checkout {}, ", folder.0.display())), "{}", text(&output));
        }
    }
}

#[test]
fn a_build_folder_that_can_t_be_written_is_missing() {
    let mut command = doctor(Path::new(env!("CARGO_BIN_EXE_hv")), Path::new(env!("CARGO_MANIFEST_DIR")));
    // Not even root can make a folder there.
    let output = command.env("CARGO_TARGET_DIR", "/proc/no-such-folder").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("MISSING  Build folder: /proc/no-such-folder can't be written to"),
        "{}",
        text(&output)
    );
    assert!(text(&output).contains("CARGO_TARGET_DIR"), "{}", text(&output));
}

#[test]
fn nobody_reading_is_no_reason_to_panic() {
    let mut command = doctor(Path::new(env!("CARGO_BIN_EXE_hv")), Path::new(env!("CARGO_MANIFEST_DIR")));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!text(&output).contains("panicked"), "{}", text(&output));
    // As of a program that SIGPIPE ends.
    assert_eq!(output.status.code(), Some(141), "{}", text(&output));
}
