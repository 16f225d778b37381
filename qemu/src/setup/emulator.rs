//! QEMU: chosen by the user, found in `PATH`, or installed.

use super::{Finding, apt};
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The emulator's name in `PATH`.
const PROGRAM: &str = "qemu-system-aarch64";
/// The package that Debian and Ubuntu have it in.
const PACKAGE: &str = "qemu-system-arm";

/// The packages of a newer one: the program, and the files that it reads.
const NEWER_PACKAGES: [&str; 3] = ["qemu-system-arm", "qemu-system-common", "qemu-system-data"];

/// Where a newer one is unpacked.
fn newer_folder(workspace: &Workspace) -> Result<PathBuf> {
    Ok(workspace.folder("qemu-newer")?.join("root"))
}

/// A QEMU that runs.
#[derive(Debug, Clone)]
pub struct Emulator {
    /// The program.
    pub path: PathBuf,
    /// What it calls itself, as `7.2.22`.
    pub version: String,
}

impl Emulator {
    /// The one that the user chose (`--qemu` or `HV_QEMU`), the one in `PATH`, or one that is installed now.
    ///
    /// # Errors
    /// If the chosen one does not run, or none can be installed.
    pub fn find_or_install(chosen: Option<&Path>) -> Result<Self> {
        if let Some(path) = named(chosen) {
            return Self::at(path)
                .context("--qemu (or HV_QEMU) names no QEMU that runs; name another, or leave it out");
        }
        if apt::find_program(PROGRAM).is_none() {
            apt::install(&[PACKAGE]).with_context(|| format!("QEMU ({PROGRAM}) is missing"))?;
        }
        let path = apt::find_program(PROGRAM).with_context(|| format!("{PACKAGE} has no {PROGRAM}; see --qemu"))?;
        Self::at(&path)
    }

    /// One of at least this version (the first number of it) that is there: the one that the user chose, the one in `PATH`, or
    /// one that [`Emulator::newer`] has fetched before.
    ///
    /// # Errors
    /// If there is none; the sentence says how to get one.
    pub fn at_least(workspace: &Workspace, chosen: Option<&Path>, least: u32) -> Result<Self> {
        let unpacked = newer_folder(workspace)?.join("usr/bin").join(PROGRAM);
        let found = [chosen.map(Path::to_owned), apt::find_program(PROGRAM), Some(unpacked)].into_iter().flatten();
        let mut found = found.filter_map(|path| Self::at(&path).ok());
        found.find(|emulator| emulator.major() >= least).with_context(|| {
            format!("no QEMU {least}.0 or newer was found: name one in HV_QEMU, or let `cargo hv boards` fetch one")
        })
    }

    /// The same, fetched from Debian's backports (13 MB) if there is none, and unpacked below `target/`.
    ///
    /// # Errors
    /// If it can't be fetched, or does not run.
    pub fn newer(workspace: &Workspace, chosen: Option<&Path>, least: u32) -> Result<Self> {
        if let Ok(found) = Self::at_least(workspace, chosen, least) {
            return Ok(found);
        }
        {
            let _lock = workspace.lock("apt")?;
            let apt = apt::Foreign::backports(workspace)?;
            apt.update()?;
            apt.unpack(&NEWER_PACKAGES, &newer_folder(workspace)?)
                .with_context(|| format!("there is no QEMU {least}.0 or newer; name one in HV_QEMU"))?;
        }
        let path = newer_folder(workspace)?.join("usr/bin").join(PROGRAM);
        // What it is linked with is what Debian's older one needs too.
        let found = Self::at(&path).with_context(|| format!("install {PACKAGE} for the libraries, or see HV_QEMU"))?;
        ensure!(found.major() >= least, "Debian's backports have QEMU {} and no newer one", found.version);
        Ok(found)
    }

    fn major(&self) -> u32 {
        self.version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// What there is, for `doctor`.
    pub fn examine(chosen: Option<&Path>) -> Finding {
        let found = |path: &Path| match Self::at(path) {
            Ok(emulator) => Finding::Found(format!("{} (QEMU {})", emulator.path.display(), emulator.version)),
            Err(error) => Finding::Missing(format!("{error:#}")),
        };
        match (named(chosen).map(Path::to_owned)).or_else(|| apt::find_program(PROGRAM)) {
            Some(path) => found(&path),
            None if apt::is_available() && apt::root_prefix().is_some() => {
                Finding::WillGet(format!("apt-get install {PACKAGE}"))
            }
            None => Finding::Missing(format!("install {PACKAGE}, or name a {PROGRAM} in HV_QEMU")),
        }
    }

    fn at(path: &Path) -> Result<Self> {
        let output =
            Command::new(path).arg("--version").output().with_context(|| format!("can't run {}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split("version ").nth(1).and_then(|rest| rest.split_whitespace().next());
        let Some(version) = version.filter(|_| text.starts_with("QEMU")) else {
            bail!("{} does not seem to be a QEMU", path.display());
        };
        Ok(Self { path: path.to_owned(), version: version.to_owned() })
    }

    /// Checks a `-cpu` model's name (what stands before the first comma).
    ///
    /// # Errors
    /// If this QEMU has no such model; the sentence names those it has.
    pub fn check_cpu(&self, model: &str) -> Result<()> {
        let name = model.split(',').next().unwrap_or_default();
        let help = apt::checked(Command::new(&self.path).args(["-M", "virt", "-cpu", "help"]))?;
        // 32-bit models are listed too, but can't run an arm64 Image.
        let known: Vec<&str> = help
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| is_64_bit(name))
            .collect();
        ensure!(
            known.contains(&name),
            "--cpu {name} is not a 64-bit CPU model of QEMU {}; use one of {}",
            self.version,
            known.join(", ")
        );
        Ok(())
    }
}

/// What the user chose. An empty name is none: an empty `HV_QEMU` in the environment is one that is not set.
fn named(chosen: Option<&Path>) -> Option<&Path> {
    chosen.filter(|path| !path.as_os_str().is_empty())
}

/// Whether a model of QEMU's list is a 64-bit one.
fn is_64_bit(name: &str) -> bool {
    // The number may be followed by a variant: cortex-a78ae.
    let number = |rest: &str| rest.trim_end_matches(|c: char| c.is_ascii_lowercase()).parse::<u32>().ok();
    let cortex_a = name.strip_prefix("cortex-a").and_then(number);
    // A5 to A17 are Armv7, A32 is AArch32 only; all later ones are 64-bit.
    cortex_a.is_some_and(|number| number > 32) || name.starts_with("neoverse") || ["max", "a64fx"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_bit_models_will_do() {
        for model in ["max", "cortex-a35", "cortex-a53", "cortex-a710", "cortex-a78ae", "neoverse-n1", "a64fx"] {
            assert!(is_64_bit(model), "{model}");
        }
        for model in ["cortex-a15", "cortex-a7", "cortex-m33", "cortex-r5f", "arm926", "pxa250", "host", ""] {
            assert!(!is_64_bit(model), "{model}");
        }
    }
}
