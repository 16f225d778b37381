//! The checks, in the order in which they run.

use super::changed;
use super::semver::semver;
use super::tally::{Tally, quiet, tests};
use crate::cli::Payload;
use crate::commands::{payload, secure_partition};
use crate::ending::Status;
use crate::images::{self, Image};
use crate::progress::Step;
use crate::setup::emulator::Emulator;
use crate::setup::firmware::Firmware;
use crate::setup::guest::Guest;
use crate::setup::rootfs::Rootfs;
use crate::setup::rust::Toolchain;
use crate::workspace::{Workspace, cargo};
use anyhow::{Context, Result, ensure};
use std::borrow::Cow;
use std::path::Path;
use std::process::Command;

/// The tests that boot machines: run last, and alone, for they need the whole host.
const SYSTEM_TESTS: &str = "system-tests";
/// The engine, whose instructions only the images' target has.
const ENGINE: &str = "stage2";
/// The oracle, which is published like it.
const ORACLE: &str = "stage2-oracle";
/// Links, for the images' target, only if the engine can't panic.
const NO_PANIC: &str = "no-panic";
/// Packages that a host can't build: bare-metal binaries.
const BARE_METAL: &str = "guest-payload";
/// Where this is set in the environment, the oracle's random runs are whole; elsewhere they are a tenth.
const WHOLE_RUNS: &str = "CI";

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// What is worth waiting for between two changes.
    Quick,
    /// What CI checks.
    Default,
    /// Everything, also what takes long.
    All,
}

/// What a check needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// The workspace.
    pub workspace: &'a Workspace,
    /// How much is checked.
    pub tier: Tier,
    /// Of tests, only those whose name contains this.
    pub filter: Option<&'a str>,
    /// The check's line in a terminal.
    pub step: &'a Step,
}

/// A check.
pub struct Check {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, in words.
    pub what: &'static str,
    /// When it runs without being named.
    pub tiers: &'static [Tier],
    /// Whether it has tests that can be named.
    pub has_tests: bool,
    /// Whether it runs machines.
    pub boots: bool,
    /// Seconds that it may take in the default tier on two idle cores, from an empty build folder. Nothing fails if it takes
    /// longer (another host may be slower, or busy); but what has outgrown its share is named at the end.
    pub budget: u64,
    /// Runs it.
    pub run: fn(Task<'_>) -> Result<Tally>,
}

const ALWAYS: &[Tier] = &[Tier::Quick, Tier::Default, Tier::All];
const QUICK: &[Tier] = &[Tier::Quick];
const USUAL: &[Tier] = &[Tier::Default, Tier::All];
const LONG: &[Tier] = &[Tier::All];

/// All of them.
pub const CHECKS: &[Check] = &[
    check("set-up", "Set-up", ALWAYS, 60, set_up),
    check("format", "Format", ALWAYS, 5, |task| quiet(host(task, &["fmt", "--all", "--", "--check"]), task.step)),
    check("lints-changed", "Lints of what has changed", QUICK, 60, lints_of_what_has_changed),
    check("lints", "Lints for the host", USUAL, 90, |task| {
        quiet(host(task, &["clippy", "--all-targets", "--", "-D", "warnings"]), task.step)
    }),
    check("image-lints", "Lints for the images", USUAL, 90, |task| lints_for_images(task, |_| true)),
    check("docs", "Documentation", USUAL, 60, |task| {
        let mut command = host(task, &["doc", "--no-deps"]);
        command.env("RUSTDOCFLAGS", "-D warnings");
        quiet(command, task.step)
    }),
    check("images", "Images", USUAL, 90, |task| {
        for image in [Image::Hypervisor, Image::Payload] {
            images::build(task.workspace, image)?;
        }
        Ok(Tally::one())
    }),
    check("no-panic", "No panic can be reached in the engine", USUAL, 30, |task| {
        let mut command = Toolchain::find_or_install(task.workspace)?.cargo("build");
        command.args(["--profile", images::PROFILE, "--package", NO_PANIC]);
        images::run_cargo(task.workspace, command, task.step).map(|()| Tally::one())
    }),
    check("package", "The crates as they are published", USUAL, 60, packages),
    check("semver", "The engine's interface against its last version", USUAL, 10, |task| {
        semver(task.workspace, task.step, task.tier == Tier::All)
    }),
    with_tests("engine", "The engine", QUICK, 40, |task| some_tests(task, &["--package", ENGINE, "--lib", "--tests"])),
    with_tests("oracle", "The engine under the oracle", QUICK, 60, |task| {
        some_tests(task, &["--package", ORACLE, "--tests"])
    }),
    with_tests("house", "Which way imports run", QUICK, 10, |task| some_tests(task, &["--package", "house"])),
    with_tests("host", "Tests on the host", USUAL, 300, |task| {
        let exclude = ["--exclude", SYSTEM_TESTS, "--exclude", BARE_METAL];
        some_tests(task, &[&["--workspace"], &exclude[..]].concat())
    }),
    with_tests("engine-small", "The engine, built for size", USUAL, 30, |task| {
        some_tests(task, &["--package", ENGINE, "--features", "small", "--lib", "--test", "engine"])
    }),
    with_tests("embedder", "A crate that embeds the engine", USUAL, 30, |task| {
        some_tests(task, &["--manifest-path", "tests/embedder/Cargo.toml"])
    }),
    machines(check("secure-partition", "The engine embedded at S-EL2", USUAL, 90, |task| {
        let mut tally = Tally::default();
        for options in secure_partition::checks(task.tier == Tier::All) {
            let passed = secure_partition::secure_partition(task.workspace, &options)? == Status::Success;
            tally.add(if passed { Tally::one() } else { Tally::failure() });
        }
        Ok(tally)
    })),
    machines(with_tests("boot", "Linux boots", QUICK, 40, |task| one_machine(task, "max_gicv3_1_cpu_512_mib"))),
    machines(with_tests("payload", "The payload on one machine", QUICK, 40, |task| {
        one_machine(task, "on_cortex_a53_with_1_cpu")
    })),
    machines(with_tests("system", "Tests that boot machines", USUAL, 600, |task| {
        some_tests(task, &["--package", SYSTEM_TESTS])
    })),
    machines(check("matrix", "The payload on every machine", LONG, 0, |task| {
        let passed = payload::payload(task.workspace, &Payload::matrix())? == Status::Success;
        Ok(if passed { Tally::one() } else { Tally::failure() })
    })),
];

type Run = fn(Task<'_>) -> Result<Tally>;

const fn check(name: &'static str, what: &'static str, tiers: &'static [Tier], budget: u64, run: Run) -> Check {
    Check { name, what, tiers, has_tests: false, boots: false, budget, run }
}

const fn with_tests(name: &'static str, what: &'static str, tiers: &'static [Tier], budget: u64, run: Run) -> Check {
    Check { has_tests: true, ..check(name, what, tiers, budget, run) }
}

/// The same check, of machines.
const fn machines(check: Check) -> Check {
    Check { boots: true, ..check }
}

/// All that is fetched is fetched first: what follows may then take its time without a download in between.
fn set_up(task: Task<'_>) -> Result<Tally> {
    task.step.detail("Rust, QEMU, the guest and its root file system");
    Toolchain::find_or_install(task.workspace)?.ensure_clippy()?;
    Emulator::find_or_install(std::env::var_os("HV_QEMU").as_deref().map(Path::new))?;
    Guest::get(task.workspace)?;
    Firmware::get(task.workspace)?;
    Rootfs::debian(task.workspace)?;
    Ok(Tally::one())
}

/// Cargo, for the host.
fn host(task: Task<'_>, words: &[&str]) -> Command {
    let mut command = Command::new(cargo());
    command.args(words).current_dir(task.workspace.root()).env("CARGO_TARGET_DIR", task.workspace.target());
    command
}

/// Packages the crates that are published, builds them from what is in the packages, and lets no warning pass.
fn packages(task: Task<'_>) -> Result<Tally> {
    let published = ["--package", ENGINE, "--package", ORACLE];
    let mut command = host(task, &[&["package", "--allow-dirty", "--color", "never"], &published[..]].concat());
    let output = command.output().context("can't run cargo")?;
    let written = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && !written.contains("warning:"),
        "cargo package must succeed without a warning:\n{}",
        written.trim_end()
    );
    Ok(Tally::one())
}

/// Runs the tests that Cargo finds with these words: in all, the long ones too; by name, also one that is long.
fn some_tests(task: Task<'_>, words: &[&str]) -> Result<Tally> {
    let (file, filter) = file_and_name(task.workspace.root(), task.filter);
    let whole = |word: &&str| file.is_some() && ["--lib", "--tests"].contains(word);
    let words: Vec<&str> = words.iter().copied().filter(|word| !whole(word)).collect();
    let mut command = host(task, &[&["test", "--no-fail-fast"], &words[..]].concat());
    if let Some(file) = file {
        command.args(["--test", file]);
    }
    command.args(filter.as_deref()).arg("--");
    if task.tier == Tier::All || task.filter.is_some() {
        command.arg("--include-ignored");
    }
    if task.tier == Tier::All {
        command.env(WHOLE_RUNS, "true");
    } else {
        command.env_remove(WHOLE_RUNS);
    }
    tests(command, task.step)
}

/// A test can be named by its file of a `tests` folder too: `FILE` for all that are in it, `FILE::NAME` for some. The file is
/// a program of its own, or a module of `main.rs` beside it, whose name stands before those of its tests.
fn file_and_name<'a>(root: &Path, filter: Option<&'a str>) -> (Option<&'a str>, Option<Cow<'a, str>>) {
    let Some(wanted) = filter else { return (None, None) };
    let (first, rest) = wanted.split_once("::").map_or((wanted, None), |(first, rest)| (first, Some(rest)));
    let packages = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let folder = packages(root)
        .chain(packages(&root.join("tests")))
        .map(|package| package.join("tests"))
        .find(|folder| folder.join(format!("{first}.rs")).is_file());
    match folder {
        None => (None, Some(wanted.into())),
        Some(folder) if folder.join("main.rs").is_file() => {
            (None, Some(format!("{first}::{}", rest.unwrap_or("")).into()))
        }
        Some(_) => (Some(first), rest.map(Cow::from)),
    }
}

/// Runs one of the tests that boot machines.
fn one_machine(task: Task<'_>, name: &str) -> Result<Tally> {
    let filter = task.filter.or(Some(name));
    some_tests(Task { filter, ..task }, &["--package", SYSTEM_TESTS])
}

/// Lints, for the images' target, of the packages that `wanted` picks.
fn lints_for_images(task: Task<'_>, wanted: impl Fn(&str) -> bool) -> Result<Tally> {
    let toolchain = Toolchain::find_or_install(task.workspace)?;
    // One by one: together, one image's features would be the other's too.
    let libraries = [Image::Hypervisor.package(), ENGINE].map(|package| (package, "--lib"));
    let binaries = [Image::Hypervisor.package(), Image::Payload.package(), NO_PANIC].map(|package| (package, "--bins"));
    let plain = libraries.into_iter().chain(binaries).map(|(package, kind)| (package, kind, ""));
    let with_features = [
        (Image::EventKeeper.package(), "--bins", Image::EventKeeper.features()),
        // What the larger granules have of their own is the same for both.
        (Image::Granule64K.package(), "--bins", Image::Granule64K.features()),
        (secure_partition::PACKAGE, "--bins", secure_partition::FEATURE),
        (images::QUICKSTART, "--bins", "image"),
    ];
    for (package, kind, features) in plain.chain(with_features).filter(|(package, ..)| wanted(package)) {
        let mut command = toolchain.cargo("clippy");
        command.args(["--package", package, kind, "--features", features, "--", "-D", "warnings"]);
        images::run_cargo(task.workspace, command, task.step)?;
    }
    Ok(Tally::one())
}

fn lints_of_what_has_changed(task: Task<'_>) -> Result<Tally> {
    let changed = changed::packages(task.workspace)?;
    let for_host: Vec<&str> =
        changed.iter().map(String::as_str).filter(|name| ![BARE_METAL, NO_PANIC].contains(name)).collect();
    if !for_host.is_empty() {
        let packages = for_host.iter().flat_map(|name| ["--package", name]);
        let mut command = host(task, &["clippy", "--all-targets"]);
        command.args(packages).args(["--", "-D", "warnings"]);
        quiet(command, task.step)?;
    }
    lints_for_images(task, |name| changed.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cargo hv test` in 25 minutes, `--quick` in three: what a check is given, another has to give up. (What `--quick`
    /// takes is for a build folder that has been used, as it is between two changes.)
    #[test]
    fn budgets_add_up() {
        let sum = |tier: Tier| -> u64 {
            CHECKS
                .iter()
                .filter(|check| check.tiers.contains(&tier) && check.name != "set-up")
                .map(|check| check.budget)
                .sum()
        };
        assert!(sum(Tier::Default) <= 25 * 60, "{} s", sum(Tier::Default));
        assert!(sum(Tier::Quick) <= 5 * 60, "{} s", sum(Tier::Quick));
    }

    #[test]
    fn a_test_is_named_by_its_file_too() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let found = |filter| file_and_name(&root, Some(filter));
        assert_eq!(found("uefi"), (None, Some("uefi::".into())));
        assert_eq!(found("save::a_worker"), (None, Some("save::a_worker".into())));
        assert_eq!(found("interleaved"), (Some("interleaved"), None));
        assert_eq!(found("interleaved::two_"), (Some("interleaved"), Some("two_".into())));
        assert_eq!(found("no_such_file::x"), (None, Some("no_such_file::x".into())));
        assert_eq!(file_and_name(&root, None), (None, None));
    }

    #[test]
    fn names_are_unique() {
        for (index, check) in CHECKS.iter().enumerate() {
            assert!(CHECKS[..index].iter().all(|other| other.name != check.name), "{}", check.name);
        }
    }
}
