//! U-Boot for QEMU's machine: Debian's package, unpacked.

use super::apt::Foreign;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// The package; it is for every architecture.
const PACKAGE: &str = "u-boot-qemu";

/// U-Boot as QEMU's `-bios` takes it, in the cache or fetched now.
///
/// # Errors
/// If it can't be fetched.
pub fn get(workspace: &Workspace) -> Result<PathBuf> {
    let _lock = workspace.lock("apt")?;
    let root = workspace.folder("u-boot")?.join("root");
    let file = root.join("usr/lib/u-boot/qemu_arm64/u-boot.bin");
    if !file.is_file() {
        let apt = Foreign::arm64(workspace)?;
        apt.update()?;
        apt.unpack(&[PACKAGE], &root).context("there is no U-Boot to boot with")?;
        ensure!(file.is_file(), "the package {PACKAGE} has no u-boot.bin for qemu_arm64");
    }
    Ok(file)
}
