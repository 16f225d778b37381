//! Where the workspace and its build folder are.

use crate::progress::Step;
use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The checkout of Unbroken that this tool works on: a Cargo workspace.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

/// What Cargo sets for a program that it runs: the folder of the program's package.
const PACKAGE: &str = "CARGO_MANIFEST_DIR";

impl Workspace {
    /// Asks Cargo where the workspace and its target folder are, so that `CARGO_TARGET_DIR` and configuration count. It is
    /// the one that Cargo runs this tool from, otherwise the one that the current folder is in.
    ///
    /// # Errors
    /// If Cargo can't be run, or there is no checkout of Unbroken.
    pub fn locate() -> Result<Self> {
        let mut command = Command::new(cargo());
        command.args(["metadata", "--no-deps", "--format-version", "1"]);
        let package = std::env::var_os(PACKAGE).map(|folder| Path::new(&folder).join("Cargo.toml"));
        if let Some(manifest) = package.filter(|manifest| manifest.is_file()) {
            command.arg("--manifest-path").arg(manifest);
        }
        let output = command.output().context("can't run cargo; install Rust and call this tool as `cargo hv`")?;
        let here = || std::env::current_dir().map_or_else(|_| ".".into(), |folder| folder.display().to_string());
        if !output.status.success() {
            bail!(
                "{} is not inside a checkout of Unbroken, where `cargo hv` works; change into one:\n{}",
                here(),
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("can't read cargo metadata's answer")?;
        let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_ours = ["hypervisor", "stage2", "qemu"]
            .iter()
            .all(|name| packages.iter().any(|package| package["name"].as_str() == Some(name)));
        if !is_ours {
            bail!("{} is inside another Cargo workspace, not a checkout of Unbroken; change into one", here());
        }
        let path = |key: &str| {
            metadata[key].as_str().map(PathBuf::from).with_context(|| format!("cargo metadata has no `{key}`"))
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")? })
    }

    /// The folder with the workspace's `Cargo.toml`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target folder.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The folder `target/hv/NAME`, created if need be: everything this tool makes or fetches is below `target/hv`.
    ///
    /// # Errors
    /// If the folder can't be created.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.target.join("hv").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
        Ok(folder)
    }

    /// Keeps other runs of this tool out of a shared step (a download, an installation) until the result is dropped.
    ///
    /// # Errors
    /// If the lock file can't be created or locked.
    pub fn lock(&self, name: &str) -> Result<File> {
        let path = self.folder("locks")?.join(name);
        let file = File::create(&path).with_context(|| format!("can't create {}", path.display()))?;
        let lock = |operation| rustix::fs::flock(&file, operation);
        if lock(FlockOperation::NonBlockingLockExclusive).is_err() {
            let _step =
                Step::begin(format!("Waiting for another run of this tool that fetches or builds (lock {name})"));
            lock(FlockOperation::LockExclusive).with_context(|| format!("can't lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// The commit of the checkout that Cargo runs this tool from, or that the current folder is in: its first digits, and whether
/// files have changed since.
pub fn commit() -> Option<String> {
    let folder = std::env::var_os(PACKAGE).unwrap_or_else(|| ".".into());
    let git = |words: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&folder).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    Some(if changed { format!("{commit}, changed") } else { commit })
}

/// The Cargo that called this tool, or the one in `PATH`.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Writes a file whole or not at all: to a temporary name first, then renamed over the target.
///
/// # Errors
/// If writing or renaming fails; the target is then what it was.
pub fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, contents).with_context(|| format!("can't write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("can't rename {} into place", temporary.display()))
}
