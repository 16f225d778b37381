//! Building the images: the hypervisor and the payload.

use crate::flatten::flatten;
use crate::progress::Step;
use crate::setup::rust::{TARGET, Toolchain};
use crate::workspace::{Workspace, write_whole};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The Cargo profile of the images (Cargo.toml).
pub const PROFILE: &str = "image";

/// The package of the example that [`quickstart`] builds, and its binary.
pub const QUICKSTART: &str = "quickstart";

/// An image of the workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The EL2 image.
    Hypervisor,
    /// The EL2 image that keeps the engine's events for the oracle.
    EventKeeper,
    /// The EL2 image whose guest's table has pages of 16 KiB.
    Granule16K,
    /// The EL2 image whose guest's table has pages of 64 KiB.
    Granule64K,
    /// The EL1 test suite.
    Payload,
}

impl Image {
    /// Its Cargo package.
    pub fn package(self) -> &'static str {
        match self {
            Self::Payload => "guest-payload",
            _ => "hypervisor",
        }
    }

    /// Its binary in that package.
    pub fn binary(self) -> &'static str {
        match self {
            Self::Payload => "guest-payload",
            _ => "unbroken",
        }
    }

    /// Its Cargo features.
    pub fn features(self) -> &'static str {
        match self {
            Self::Hypervisor | Self::Payload => "",
            Self::EventKeeper => "events",
            Self::Granule16K => "granule-16k",
            Self::Granule64K => "granule-64k",
        }
    }
}

/// Builds an image, setting up the toolchain if need be, and returns the flat file's path.
///
/// # Errors
/// If there is no toolchain, or the build fails; the compiler's words are part of the error.
pub fn build(workspace: &Workspace, image: Image) -> Result<PathBuf> {
    let toolchain = Toolchain::find_or_install(workspace)?;
    let target = build_folder(workspace)?;
    let step = Step::begin(format!("Building {}", image.binary()));
    let mut command = toolchain.cargo("build");
    command.args(["--profile", PROFILE, "--package", image.package(), "--bin", image.binary()]);
    command.args(["--features", image.features()]);
    run_cargo(workspace, command, &step).with_context(|| format!("{} does not build", image.binary()))?;
    let elf = target.join(TARGET).join(PROFILE).join(image.binary());
    let bytes = std::fs::read(&elf).with_context(|| format!("can't read {}", elf.display()))?;
    let flat = flatten(&bytes).with_context(|| format!("{} can't be made into an Image", elf.display()))?;
    let name = [image.binary(), image.features()].join("-");
    let path = workspace.folder("images")?.join(format!("{}.img", name.trim_end_matches('-')));
    write_whole(&path, &flat)?;
    step.done(&format!("{} KiB", flat.len().div_ceil(1024)));
    Ok(path)
}

/// Builds examples/quickstart, setting up the toolchain if need be, and returns the ELF's path: QEMU loads it where it is
/// linked.
///
/// # Errors
/// If there is no toolchain, or the build fails; the compiler's words are part of the error.
pub fn quickstart(workspace: &Workspace) -> Result<PathBuf> {
    elf(workspace, QUICKSTART, &["--features", "image"]).context("the example does not build")
}

/// Builds the program `name` for a guest's Linux, from the package of the same name, and returns the ELF's path.
///
/// # Errors
/// As for [`quickstart`].
pub fn program(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    elf(workspace, name, &[]).with_context(|| format!("{name} does not build"))
}

fn elf(workspace: &Workspace, name: &str, more: &[&str]) -> Result<PathBuf> {
    let toolchain = Toolchain::find_or_install(workspace)?;
    let step = Step::begin(format!("Building {name}"));
    let mut command = toolchain.cargo("build");
    command.args(["--profile", PROFILE, "--package", name, "--bin", name]).args(more);
    run_cargo(workspace, command, &step)?;
    step.done("built");
    Ok(build_folder(workspace)?.join(TARGET).join(PROFILE).join(name))
}

/// Where Cargo builds the images: apart from the host's things, for their compiler may be another one.
///
/// # Errors
/// If the folder can't be created.
pub fn build_folder(workspace: &Workspace) -> Result<PathBuf> {
    workspace.folder("build")
}

/// Runs a Cargo command for the images in the workspace, showing what it does now behind `step`.
///
/// # Errors
/// If it fails; the error holds all it wrote.
pub fn run_cargo(workspace: &Workspace, mut command: Command, step: &Step) -> Result<()> {
    command
        .current_dir(workspace.root())
        .env("CARGO_TARGET_DIR", build_folder(workspace)?)
        .env("CARGO_TERM_COLOR", "never");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("can't run {}", command.get_program().display()))?;
    let mut written = String::new();
    if let Some(stderr) = child.stderr.take() {
        let mut reader = BufReader::new(stderr);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
            // Cargo's own lines are indented; the rest is for the error, if there is one.
            if line.starts_with(' ') {
                step.detail(line.trim());
            }
            written.push_str(&line);
            line.clear();
        }
        // A line that is not UTF-8 ended the loop: let the writer finish all the same.
        let _ = reader.read_to_end(&mut Vec::new());
    }
    let status = child.wait().context("can't wait for cargo")?;
    if !status.success() {
        bail!("cargo failed ({status}):\n{}", written.trim_end());
    }
    Ok(())
}
