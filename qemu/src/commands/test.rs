//! `cargo hv test`: everything that CI checks.

use crate::commands::secure_partition;
use crate::ending::Status;
use crate::images::{self, Image};
use crate::progress::Step;
use crate::setup::emulator::Emulator;
use crate::setup::firmware::Firmware;
use crate::setup::guest::Guest;
use crate::setup::rust::Toolchain;
use crate::workspace::{Workspace, cargo};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// The tests that boot machines: run last, and alone, for they need the whole host.
const SYSTEM_TESTS: &str = "system-tests";
/// The engine, whose instructions only the images' target has.
const ENGINE: &str = "stage2";
/// Links, for the images' target, only if the engine can't panic.
const NO_PANIC: &str = "no-panic";
/// Packages that a host can't build: bare-metal binaries.
const BARE_METAL: &str = "guest-payload";

/// Tests that passed and failed. A check that is no test (a lint, a build) counts as one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// Reads the line with which a Rust test program ends: `test result: ok. 12 passed; 0 failed; ...`.
    fn of_line(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let number = |word: &str| {
            let text = counts.split("; ").find_map(|count| count.strip_suffix(word))?;
            text.trim().parse().ok()
        };
        Some(Self { passed: number("passed")?, failed: number("failed")? })
    }
}

/// Runs the command. The last line on standard output is `N passed, N failed`.
///
/// # Errors
/// None so far: a check that can't be run has failed.
pub fn test(workspace: &Workspace) -> Result<Status> {
    let mut tally = Tally::default();
    let mut check = |what: &str, run: &mut dyn FnMut(&Step) -> Result<Tally>| {
        let step = Step::begin(what);
        let result = match run(&step) {
            Ok(result) => {
                step.done(&format!("{} passed, {} failed", result.passed, result.failed));
                result
            }
            Err(error) => {
                drop(step);
                eprintln!("hv: {what}: FAILED: {error:#}");
                Tally { passed: 0, failed: 1 }
            }
        };
        tally.add(result);
        result.failed == 0
    };

    // Set-up first: what follows may then take its time without a download in between.
    let ready = check("Set-up", &mut |step| {
        step.detail("Rust, QEMU, the guest, firmware");
        Toolchain::find_or_install(workspace)?.ensure_clippy()?;
        Emulator::find_or_install(std::env::var_os("HV_QEMU").as_deref().map(std::path::Path::new))?;
        Guest::get(workspace)?;
        Firmware::get(workspace)?;
        Ok(ONE)
    });
    let host = |words: &[&str]| {
        let mut command = Command::new(cargo());
        command.args(words).current_dir(workspace.root()).env("CARGO_TARGET_DIR", workspace.target());
        command
    };
    check("Format", &mut |step| quiet(host(&["fmt", "--all", "--", "--check"]), step));
    check("Lints for the host", &mut |step| quiet(host(&["clippy", "--all-targets", "--", "-D", "warnings"]), step));
    check("Lints for the images", &mut |step| {
        let toolchain = Toolchain::find_or_install(workspace)?;
        // One by one: together, one image's features would be the other's too.
        let libraries = [Image::Hypervisor.package(), ENGINE].map(|package| (package, "--lib"));
        let binaries =
            [Image::Hypervisor.package(), Image::Payload.package(), NO_PANIC].map(|package| (package, "--bins"));
        let plain = libraries.into_iter().chain(binaries).map(|(package, kind)| (package, kind, ""));
        let with_features = [
            (Image::EventKeeper.package(), "--bins", Image::EventKeeper.features()),
            (secure_partition::PACKAGE, "--bins", secure_partition::FEATURE),
        ];
        for (package, kind, features) in plain.chain(with_features) {
            let mut command = toolchain.cargo("clippy");
            command.args(["--package", package, kind, "--features", features, "--", "-D", "warnings"]);
            images::run_cargo(workspace, command, step)?;
        }
        Ok(ONE)
    });
    check("Documentation", &mut |step| {
        let mut command = host(&["doc", "--no-deps"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        quiet(command, step)
    });
    check("Images", &mut |_| {
        for image in [Image::Hypervisor, Image::Payload] {
            images::build(workspace, image)?;
        }
        Ok(ONE)
    });
    check("No panic can be reached in the engine", &mut |step| {
        let mut command = Toolchain::find_or_install(workspace)?.cargo("build");
        command.args(["--profile", images::PROFILE, "--package", NO_PANIC]);
        images::run_cargo(workspace, command, step).map(|()| ONE)
    });
    check("Tests on the host", &mut |step| {
        let exclude = ["--exclude", SYSTEM_TESTS, "--exclude", BARE_METAL];
        tests(host(&[&["test", "--workspace", "--no-fail-fast"], &exclude[..]].concat()), step)
    });
    check("The engine, built for size", &mut |step| {
        tests(host(&["test", "--package", ENGINE, "--features", "small", "--lib", "--test", "engine"]), step)
    });
    check("A crate that embeds the engine", &mut |step| {
        tests(host(&["test", "--manifest-path", "tests/embedder/Cargo.toml"]), step)
    });
    if ready {
        check("The engine embedded at S-EL2", &mut |_| {
            let mut tally = Tally::default();
            for options in secure_partition::checks() {
                let passed = secure_partition::secure_partition(workspace, &options)? == Status::Success;
                tally.add(Tally { passed: passed.into(), failed: (!passed).into() });
            }
            Ok(tally)
        });
        check("Tests that boot machines", &mut |step| {
            tests(host(&["test", "--package", SYSTEM_TESTS, "--no-fail-fast"]), step)
        });
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 { Status::Success } else { Status::Failure })
}

/// A check that passed.
const ONE: Tally = Tally { passed: 1, failed: 0 };

/// Runs a check whose output only matters if it fails.
fn quiet(mut command: Command, step: &Step) -> Result<Tally> {
    step.detail("cargo");
    let output = command.stdin(Stdio::null()).output().context("can't run cargo")?;
    if !output.status.success() {
        bail!("\n{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(ONE)
}

/// Runs test programs, shows what they print, and adds up their results.
fn tests(mut command: Command, step: &Step) -> Result<Tally> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("can't run cargo")?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("can't read what the tests print")?;
            let line = String::from_utf8_lossy(&line);
            step.print(&line);
            tally.add(Tally::of_line(&line).unwrap_or_default());
        }
    }
    let status = child.wait().context("can't wait for cargo")?;
    if !status.success() && tally.failed == 0 {
        // Something does not compile, or a test program died.
        eprintln!("hv: the tests did not run to their end ({status})");
        tally.failed = 1;
    }
    if status.success() && tally == Tally::default() {
        bail!("no test ran");
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.02s";
        assert_eq!(Tally::of_line(line), Some(Tally { passed: 12, failed: 3 }));
        for line in ["test result: ok", "test a ... ok", "test result: ok. x passed; 0 failed", ""] {
            assert_eq!(Tally::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            tests(command, &Step::begin("test"))
        };
        assert_eq!(
            sh("echo 'test result: ok. 2 passed; 0 failed; x'; exit 101").unwrap(),
            Tally { passed: 2, failed: 1 }
        );
        assert!(sh("true").is_err());
    }
}
