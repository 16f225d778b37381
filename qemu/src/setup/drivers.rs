//! The modules that a Debian kernel needs for virtio disks and networks: they are in its package, beside it.

use super::apt::checked_bytes;
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The drivers; what they need comes with them. A kernel that has one built in has no file of it.
const DRIVERS: &[&str] = &["virtio_mmio", "virtio_blk", "virtio_net"];

/// A kernel's module.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its file's name, as `virtio_blk.ko`.
    pub name: String,
    /// The file, unpacked.
    pub contents: Vec<u8>,
}

/// The modules of a kernel out of one of Debian's packages, in the order in which they are loaded; none for any other kernel, which must have
/// its drivers built in.
///
/// # Errors
/// If a module can't be read.
pub fn of(kernel: &Path) -> Result<Vec<Module>> {
    let version = kernel.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_prefix("vmlinuz-"));
    let root = kernel.parent().and_then(Path::parent);
    let (Some(version), Some(root)) = (version, root) else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    for tree in ["lib/modules", "usr/lib/modules"] {
        find(&root.join(tree).join(version).join("kernel"), &mut files);
    }
    let mut modules = Vec::new();
    for name in DRIVERS {
        add(name, &files, &mut modules)?;
    }
    Ok(modules)
}

/// Adds a module behind those that it needs, if the kernel has it as a file.
fn add(name: &str, files: &[PathBuf], modules: &mut Vec<Module>) -> Result<()> {
    let name = format!("{}.ko", name.replace('-', "_"));
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let named = |file: &&PathBuf| file.file_name().and_then(OsStr::to_str).is_some_and(|file| unpacked(file) == name);
    let Some(file) = files.iter().find(named) else { return Ok(()) };
    let contents = read(file).with_context(|| format!("can't read the module {}", file.display()))?;
    for needed in needs(&contents) {
        add(&needed, files, modules)?;
    }
    modules.push(Module { name, contents });
    Ok(())
}

/// The modules that one needs: `depends=A,B` in its section `.modinfo`, whose entries end with a zero.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else { return Vec::new() };
    let list = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(list).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// All files below a folder.
fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => find(&entry.path(), files),
            _ => files.push(entry.path()),
        }
    }
}

/// The name that a module's file has when it is unpacked.
fn unpacked(name: &str) -> String {
    name.strip_suffix(".xz").unwrap_or(name).replace('-', "_")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    match file.extension().and_then(OsStr::to_str) {
        Some("xz") => checked_bytes(Command::new("xz").arg("-dc").arg(file)),
        _ => Ok(fs::read(file)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_behind_those_that_they_need() {
        let root = std::env::temp_dir().join(format!("hv-drivers-{}", std::process::id()));
        let modules = root.join("lib/modules/6.1/kernel/drivers");
        fs::create_dir_all(modules.join("block")).unwrap();
        for (name, text) in [
            ("virtio_net.ko", "\0depends=net-failover,virtio\0x"),
            ("net_failover.ko", "\0depends=\0"),
            ("virtio.ko", "depends=no"),
            ("block/virtio_blk.ko", "\0depends=virtio,built_in\0"),
            ("other.ko", ""),
        ] {
            fs::write(modules.join(name), text).unwrap();
        }
        let found = of(&root.join("boot/vmlinuz-6.1")).unwrap();
        let names: Vec<&str> = found.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["virtio.ko", "virtio_blk.ko", "net_failover.ko", "virtio_net.ko"]);
        assert_eq!(found[0].contents, b"depends=no");
        assert!(of(&root.join("boot/Image")).unwrap().is_empty() && of(Path::new("vmlinuz-6.1")).unwrap().is_empty());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_module_may_be_packed() {
        assert_eq!(["virtio-rng.ko", "virtio.ko.xz"].map(unpacked), ["virtio_rng.ko", "virtio.ko"]);
    }
}
