//! Root file systems: Debian's, made here without a foreign program having run, or a user's.
//!
//! No maintainer script of a package runs: what they would have made (accounts, PAM's stacks, enabled units, keys) is written by
//! `configure`. It is a laboratory's image: root logs in on the console without a password, and by ssh with a key that lies
//! beside the image.

mod accounts;
mod configure;
mod files;
mod image;
mod keys;
mod packages;

use super::apt::Foreign;
use crate::progress::Step;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Counted up when the code of this folder makes another image out of the same packages and files.
const RECIPE: u32 = 1;

/// The root file system that a user has named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Debian's, made the first time.
    Debian,
    /// A disk's image of the user's own.
    File(PathBuf),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("name `debian`, or a disk's image".into()),
            "debian" => Ok(Self::Debian),
            _ => Ok(Self::File(text.into())),
        }
    }
}

/// A root file system in the cache.
#[derive(Debug, Clone)]
pub struct Rootfs {
    /// An ext4 file system, raw. It is never written: who boots it does so with a layer of their own.
    pub image: PathBuf,
    /// What `ssh -F` wants, if this host can make keys: its host `unbroken` is the guest.
    pub ssh_config: Option<PathBuf>,
}

impl Rootfs {
    /// Debian's root file system for arm64: the one in the cache, or one that is made now.
    ///
    /// # Errors
    /// If its packages can't be fetched, or the image can't be made.
    pub fn debian(workspace: &Workspace) -> Result<Self> {
        let _lock = workspace.lock("apt")?;
        let folder = workspace.folder("rootfs")?;
        let name = format!("debian-{:016x}", recipe());
        let whole = folder.join(&name);
        if !whole.is_dir() {
            let partial = folder.join(format!("{name}.partial"));
            remove(&partial)?;
            fs::create_dir_all(&partial).with_context(|| format!("can't create {}", partial.display()))?;
            make(workspace, &partial, &whole).context("can't make Debian's root file system")?;
            fs::rename(&partial, &whole).with_context(|| format!("can't rename {} into place", partial.display()))?;
            // Those of older recipes are of no use any more.
            for entry in fs::read_dir(&folder)?.flatten().filter(|entry| entry.path() != whole) {
                remove(&entry.path())?;
            }
        }
        let ssh_config = Some(whole.join(keys::SSH_CONFIG)).filter(|file| file.is_file());
        Ok(Self { image: whole.join(image::NAME), ssh_config })
    }
}

/// What an image depends on, in a number.
fn recipe() -> u64 {
    let mut hasher = DefaultHasher::new();
    RECIPE.hash(&mut hasher);
    packages::PACKAGES.hash(&mut hasher);
    packages::LEFT_OUT.hash(&mut hasher);
    configure::hash(&mut hasher);
    hasher.finish()
}

/// Makes the image and its keys in `folder`, which will be renamed to `whole`.
fn make(workspace: &Workspace, folder: &Path, whole: &Path) -> Result<()> {
    image::ensure_tools()?;
    let apt = Foreign::arm64(workspace)?;
    apt.update()?;
    let debs = apt.download_all(packages::PACKAGES, &folder.join("debs"))?;
    let step = Step::begin("Making Debian's root file system");
    let root = folder.join("root");
    let owners = packages::unpack(&debs, &root, |name| step.detail(name))?;
    step.detail("its files");
    let sources = apt.sources()?;
    configure::configure(&root, &sources)?;
    let has_keys = keys::make(folder, whole, &root)?;
    configure::finish(&root, has_keys)?;
    step.detail("the file system");
    let image = image::make(&root, &owners, folder)?;
    for folder in ["debs", "root"].map(|name| folder.join(name)) {
        remove(&folder)?;
    }
    let size = fs::metadata(&image)?.blocks() * 512;
    step.done(&format!("{:.1} MB in {}", size as f64 / 1e6, whole.display()));
    if !has_keys {
        eprintln!("hv: this host has no ssh-keygen (Debian: openssh-client), so the guest's sshd is off");
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_debian_or_a_file() {
        assert_eq!("debian".parse(), Ok(Choice::Debian));
        assert_eq!("./debian".parse(), Ok(Choice::File("./debian".into())));
        assert!("".parse::<Choice>().is_err());
    }
}
