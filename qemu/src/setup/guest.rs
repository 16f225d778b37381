//! The guests that the tool brings: a Debian kernel and busybox for arm64, and Debian's installer.

use super::apt::Foreign;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The kernels to take (not the packages that only name the newest of a series), best first: the newest that matches the first pattern that any matches.
const KERNELS: [&str; 2] =
    [r"^linux-image-6\.1\.0-[0-9]+-cloud-arm64$", r"^linux-image-[0-9]+\.[0-9]+\.[0-9][^-]*(-[0-9]+)?-cloud-arm64$"];
/// The kernels whose KVM is measured; the newest is taken.
const KVM_KERNEL: &str = r"^linux-image-[0-9]+\.[0-9]+\.[0-9][^-]*(-[0-9]+)?-cloud-arm64$";
/// The kernels whose package has the boards' device trees; the newest is taken.
const BOARD_KERNEL: &str = r"^linux-image-[0-9]+\.[0-9]+\.[0-9][^-]*(-[0-9]+)?-arm64$";
/// A shell and its tools in one static program.
const BUSYBOX: &str = "busybox-static";
/// Debian's installer for network boot.
const INSTALLER: &str = "debian-installer-12-netboot-arm64";

/// What boots without the user having brought anything.
#[derive(Debug, Clone)]
pub struct Guest {
    /// An arm64 Image.
    pub kernel: PathBuf,
    /// A static busybox for arm64.
    pub busybox: PathBuf,
}

/// A kernel and the initramfs that belongs to it.
#[derive(Debug, Clone)]
pub struct Installer {
    /// An arm64 Image.
    pub kernel: PathBuf,
    /// Debian's own initramfs.
    pub initrd: PathBuf,
}

/// A kernel that runs at EL2, with KVM built in.
#[derive(Debug, Clone)]
pub struct KvmHost {
    /// An arm64 Image.
    pub kernel: PathBuf,
}

/// The kernel that a user has named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kernel {
    /// A file, an arm64 Image.
    File(PathBuf),
    /// The newest of a series of Debian's.
    Debian(Series),
}

impl FromStr for Kernel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("debian-") {
            // A file of such a name is still a file.
            Some(series) if !Path::new(text).exists() => series.parse().map(Self::Debian),
            _ => Ok(Self::File(text.into())),
        }
    }
}

impl Kernel {
    /// The file, fetched if it is Debian's and not in the cache.
    ///
    /// # Errors
    /// If the user's file is not there, or Debian's can't be fetched.
    pub fn get(&self, workspace: &Workspace) -> Result<PathBuf> {
        match self {
            Self::File(file) => {
                fs::metadata(file).with_context(|| format!("can't find the file {}", file.display()))?;
                Ok(file.clone())
            }
            Self::Debian(series) => series.get(workspace),
        }
    }
}

/// A series of Debian's cloud kernels, as `6.12`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series(String);

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |text: &str| !text.is_empty() && text.len() < 4 && text.bytes().all(|digit| digit.is_ascii_digit());
        match text.split_once('.') {
            Some((major, minor)) if number(major) && number(minor) => Ok(Self(text.to_owned())),
            _ => Err("not a series of Debian's kernels; write two numbers, as in debian-6.12, or a file's path".into()),
        }
    }
}

impl Series {
    /// The newest kernel of the series, an arm64 Image: the one in the cache, or one fetched now.
    ///
    /// # Errors
    /// If it can't be fetched, or the archives have none of this series.
    pub fn get(&self, workspace: &Workspace) -> Result<PathBuf> {
        let Self(series) = self;
        let _lock = workspace.lock("apt")?;
        let root = workspace.folder(&format!("kernel-{series}"))?.join("root");
        if let Some(kernel) = kernel_in(&root.join("boot")) {
            return Ok(kernel);
        }
        let apt = Foreign::arm64(workspace)?;
        apt.update()?;
        let package = newest(apt.search(&self.pattern())?).with_context(|| {
            format!("the archives have no linux-image-{series}.*-cloud-arm64; pass a kernel's file with --kernel")
        })?;
        apt.unpack(&[&package], &root)?;
        kernel_in(&root.join("boot")).with_context(|| format!("{package} has no kernel in it"))
    }

    /// The names of the series' packages, without those that only name the newest one.
    fn pattern(&self) -> String {
        format!(r"^linux-image-{}\.[0-9][^-]*(-[0-9]+)?-cloud-arm64$", self.0.replace('.', r"\."))
    }
}

impl KvmHost {
    /// The kernel in the cache, or one fetched now.
    ///
    /// # Errors
    /// If it can't be fetched.
    pub fn get(workspace: &Workspace) -> Result<Self> {
        let _lock = workspace.lock("apt")?;
        let root = workspace.folder("kvm")?.join("root");
        if kernel_in(&root.join("boot")).is_none() {
            let apt = Foreign::arm64(workspace)?;
            apt.update()?;
            let package = newest(apt.search(KVM_KERNEL)?)
                .context("the archives have no linux-image-*-cloud-arm64; name a kernel with --kernel")?;
            apt.unpack(&[&package], &root)?;
        }
        let kernel = kernel_in(&root.join("boot")).context("the kernel's package has no kernel in it")?;
        Ok(Self { kernel })
    }
}

/// The folder with the device trees of Debian's kernel package, in the cache or fetched now.
///
/// # Errors
/// If they can't be fetched.
pub fn board_trees(workspace: &Workspace) -> Result<PathBuf> {
    let root = board_package(workspace)?;
    trees_in(&root).context("the kernel's package has no device trees in it")
}

/// The kernel of that package, which has the drivers of all boards: an arm64 Image.
///
/// # Errors
/// If it can't be fetched.
pub fn board_kernel(workspace: &Workspace) -> Result<PathBuf> {
    let root = board_package(workspace)?;
    kernel_in(&root.join("boot")).context("the kernel's package has no kernel in it")
}

/// Where that package is unpacked.
fn board_package(workspace: &Workspace) -> Result<PathBuf> {
    let _lock = workspace.lock("apt")?;
    let root = workspace.folder("boards")?.join("root");
    if trees_in(&root).is_none() {
        let apt = Foreign::arm64(workspace)?;
        apt.update()?;
        let package = newest(apt.search(BOARD_KERNEL)?)
            .context("the archives have no linux-image-*-arm64; name a folder with trees")?;
        apt.unpack(&[&package], &root)?;
    }
    Ok(root)
}

fn trees_in(root: &Path) -> Option<PathBuf> {
    let folders = fs::read_dir(root.join("usr/lib")).ok()?.flatten().map(|entry| entry.path());
    folders.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("linux-image-"))).max()
}

impl Guest {
    /// The guest in the cache, or one fetched now.
    ///
    /// # Errors
    /// If it can't be fetched; the sentence says what else to do.
    pub fn get(workspace: &Workspace) -> Result<Self> {
        let _lock = workspace.lock("apt")?;
        if let Some(guest) = Self::cached(workspace) {
            return Ok(guest);
        }
        Self::fetch(workspace).context("there is no guest to boot")?;
        Self::cached(workspace).context("the guest's packages have no kernel or no busybox in them")
    }

    /// The guest in the cache.
    pub fn cached(workspace: &Workspace) -> Option<Self> {
        let root = workspace.folder("guest").ok()?.join("root");
        let busybox =
            [root.join("bin/busybox"), root.join("usr/bin/busybox")].into_iter().find(|path| path.is_file())?;
        let kernel = kernel_in(&root.join("boot"))?;
        Some(Self { kernel, busybox })
    }

    fn fetch(workspace: &Workspace) -> Result<()> {
        let apt = Foreign::arm64(workspace)?;
        apt.update()?;
        let mut kernel = None;
        for pattern in KERNELS {
            kernel = kernel.or(newest(apt.search(pattern)?));
        }
        let kernel = kernel.context("the archives have no linux-image-*-cloud-arm64; pass a kernel with --kernel")?;
        apt.unpack(&[&kernel, BUSYBOX], &workspace.folder("guest")?.join("root"))
    }
}

impl Installer {
    /// The installer in the cache, or fetched now.
    ///
    /// # Errors
    /// If it can't be fetched.
    pub fn get(workspace: &Workspace) -> Result<Self> {
        let _lock = workspace.lock("apt")?;
        let root = workspace.folder("installer")?.join("root");
        let folder = root.join("usr/lib/debian-installer/images/12/arm64/text/debian-installer/arm64");
        let installer = Self { kernel: folder.join("linux"), initrd: folder.join("initrd.gz") };
        if !(installer.kernel.is_file() && installer.initrd.is_file()) {
            let apt = Foreign::arm64(workspace)?;
            apt.update()?;
            apt.unpack(&[INSTALLER], &root)?;
        }
        Ok(installer)
    }
}

/// The highest version; runs of digits count as numbers.
fn newest(names: Vec<String>) -> Option<String> {
    names.into_iter().max_by_key(|name| {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u64>().ok()).collect::<Vec<_>>()
    })
}

fn kernel_in(boot: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(boot).ok()?.flatten().map(|entry| entry.path());
    files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_two_numbers() {
        assert_eq!("debian-6.12".parse(), Ok(Kernel::Debian(Series("6.12".into()))));
        assert_eq!("Image".parse(), Ok(Kernel::File("Image".into())));
        let series: Series = "6.12".parse().unwrap();
        assert_eq!(series.pattern(), r"^linux-image-6\.12\.[0-9][^-]*(-[0-9]+)?-cloud-arm64$");
        for text in ["", "6", "6.", ".12", "6.12.1", "6.x", "6.12/../..", "-6.12", "6.1234"] {
            assert!(text.parse::<Series>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let names =
            ["linux-image-6.1.0-9-cloud-arm64", "linux-image-6.1.0-56-cloud-arm64", "linux-image-6.1.0-10-cloud-arm64"];
        assert_eq!(newest(names.map(String::from).to_vec()).as_deref(), Some("linux-image-6.1.0-56-cloud-arm64"));
        assert_eq!(newest(vec![]), None);
    }
}
