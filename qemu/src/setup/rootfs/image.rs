//! A file system out of a folder, with owners that the folder does not have: by e2fsprogs, and without being root.

use super::packages::Owners;
use crate::setup::apt::{self, checked, find_program};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The image's file.
pub const NAME: &str = "root.img";
/// The file system's size. What it does not use takes no room on the host.
const SIZE: &str = "1G";
/// Its label.
pub const LABEL: &str = "unbroken";

/// Installs what makes file systems, where it is missing.
///
/// # Errors
/// If it can't be installed.
pub fn ensure_tools() -> Result<()> {
    if ["mke2fs", "debugfs"].iter().any(|name| program(name).is_none()) {
        apt::install(&["e2fsprogs"]).context("file systems are made by mke2fs")?;
    }
    Ok(())
}

/// These programs are root's on most systems, and their folder is in root's `PATH` only.
fn program(name: &str) -> Option<PathBuf> {
    let in_sbin = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(name));
    find_program(name).or_else(|| in_sbin.into_iter().find(|file| file.is_file()))
}

/// Makes an ext4 file system of the folder `root`, in which all belongs to root but what is in `owners`, and returns its path
/// in `folder`.
///
/// # Errors
/// If the programs fail.
pub fn make(root: &Path, owners: &Owners, folder: &Path) -> Result<PathBuf> {
    let image = folder.join(NAME);
    let tool = |name: &str| program(name).map(Command::new).with_context(|| format!("there is no {name}"));
    // Tables and journal are written now: a guest that did it later would write when nobody has asked it to.
    let options = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0";
    let mut make = tool("mke2fs")?;
    make.args(["-q", "-F", "-t", "ext4", "-L", LABEL, "-E", options, "-d"]).arg(root).arg(&image).arg(SIZE);
    checked(&mut make)?;
    let mut script = String::new();
    change_owners(root, "", owners, &mut script)?;
    let commands = folder.join("owners");
    fs::write(&commands, script)?;
    let mut change = tool("debugfs")?;
    change.arg("-w").arg("-f").arg(&commands).arg(&image);
    checked(&mut change)?;
    fs::remove_file(&commands)?;
    // debugfs does not fail when one of its commands does.
    checked(tool("e2fsck")?.args(["-f", "-n"]).arg(&image)).context("the new file system is not sound")?;
    Ok(image)
}

/// The commands for debugfs that give what is below `path` the owners that it shall have, where the folder has others.
fn change_owners(root: &Path, path: &str, owners: &Owners, script: &mut String) -> Result<()> {
    let folder = root.join(path.trim_start_matches('/'));
    for entry in fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))? {
        let entry = entry?;
        let path = format!("{path}/{}", entry.file_name().display());
        let data = entry.metadata()?;
        let (user, group) = owners.get(&path).copied().unwrap_or((0, 0));
        for (field, is, wanted) in [("uid", data.uid(), user), ("gid", data.gid(), group)] {
            if is != wanted {
                let _ = writeln!(script, "set_inode_field \"{path}\" {field} {wanted}");
            }
        }
        if data.is_dir() {
            change_owners(root, &path, owners, script)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `debugfs` says of a file's owner, group and mode.
    fn look(image: &Path, path: &str) -> String {
        let mut debugfs = Command::new(program("debugfs").expect("e2fsprogs is there"));
        let text = checked(debugfs.arg("-R").arg(format!("stat \"{path}\"")).arg(image)).unwrap();
        let words: Vec<&str> = text.split_whitespace().collect();
        let of = |key: &str| words.iter().position(|word| *word == key).map_or("?", |at| words[at + 1]);
        format!("{} {} {}", of("User:"), of("Group:"), of("Mode:"))
    }

    #[test]
    fn owners_are_what_they_shall_be() {
        if program("mke2fs").is_none() {
            eprintln!("skipped: this host has no mke2fs");
            return;
        }
        let scratch = std::env::temp_dir().join(format!("hv-image-{}", std::process::id()));
        let root = scratch.join("root");
        fs::create_dir_all(root.join("usr/my files")).unwrap();
        for file in ["usr/my files/plain", "usr/chage"] {
            fs::write(root.join(file), "x").unwrap();
        }
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(root.join("usr/chage"), fs::Permissions::from_mode(0o2755)).unwrap();
        // Where the test runs as root, it makes the folder look as if a user had unpacked it.
        let _ = std::os::unix::fs::chown(root.join("usr/my files/plain"), Some(1234), Some(70_000));
        let owners = Owners::from([("/usr/chage".to_owned(), (0, 42))]);
        let image = make(&root, &owners, &scratch).unwrap();
        assert_eq!(look(&image, "/usr/my files/plain"), "0 0 0644");
        assert_eq!(look(&image, "/usr/my files"), "0 0 0755");
        assert_eq!(look(&image, "/usr/chage"), "0 42 02755");
        fs::remove_dir_all(&scratch).unwrap();
    }
}
