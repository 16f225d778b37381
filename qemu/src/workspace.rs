//! Where the workspace and its build folder are.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Cargo workspace that this tool was built from.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Asks Cargo where the workspace and its target folder are, so that `CARGO_TARGET_DIR` and configuration count.
    ///
    /// # Errors
    /// If Cargo can't be run, or does not find the workspace (the source tree was moved after building).
    pub fn locate() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let output = Command::new(cargo())
            .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
            .arg(&manifest)
            .output()
            .context("can't run cargo; install Rust and call this tool as `cargo hv`")?;
        if !output.status.success() {
            bail!("cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        let metadata: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("can't read cargo metadata's answer")?;
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
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .with_context(|| format!("can't lock {}", path.display()))?;
        Ok(file)
    }
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
