//! Files and folders of the user's that the guest finds in its initramfs.

use crate::newc::Archive;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The tool's own folder in the guest.
const OWN: &str = "/hv";

/// `FILE[:PATH]`: a file or a folder, and its absolute path in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    from: PathBuf,
    to: String,
}

impl FromStr for Added {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = match text.rsplit_once(':') {
            Some((from, to)) if to.starts_with('/') => (from, to),
            _ => (text, "/"),
        };
        if from.is_empty() {
            return Err("there is no file before the colon; write FILE or FILE:PATH, as in notes.txt:/etc/motd".into());
        }
        let mut to = to.to_owned();
        if to.ends_with('/') {
            let name = Path::new(from).file_name().and_then(|name| name.to_str());
            to += name.ok_or("a folder without a name of its own needs a path in the guest; write it, as in .:/src")?;
        }
        let parts: Vec<&str> = to.split('/').skip(1).collect();
        if parts.iter().any(|part| ["", ".", ".."].contains(part)) {
            return Err(format!("{to} is not a plain absolute path in the guest; write it without //, . and .."));
        }
        if to == OWN || to.starts_with("/hv/") {
            return Err(format!("{OWN} is the tool's own folder in the guest; choose another path, as /root"));
        }
        Ok(Self { from: from.into(), to })
    }
}

impl Added {
    /// Whether it is there and can be read.
    ///
    /// # Errors
    /// If it can't.
    pub fn check(&self) -> Result<()> {
        let readable =
            if self.from.is_dir() { fs::read_dir(&self.from).map(drop) } else { fs::File::open(&self.from).map(drop) };
        readable
            .with_context(|| format!("--add {} can't be read; name a file or a folder that can", self.from.display()))
    }

    fn put(&self, archive: &mut Archive) -> Result<()> {
        let path = self.to.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            archive.directory(&path[..at]);
        }
        // What the user names is followed; links inside a folder stay links.
        let data = fs::metadata(&self.from).with_context(|| format!("can't read {}", self.from.display()))?;
        put(archive, &self.from, path, &data)
    }
}

/// An archive with all of them, to be appended to another one.
///
/// # Errors
/// If one can't be read, or is of a kind that an initramfs can't have.
pub fn archive(all: &[Added]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    all.iter().try_for_each(|added| added.put(&mut archive))?;
    Ok(archive.finish())
}

fn put(archive: &mut Archive, from: &Path, to: &str, data: &fs::Metadata) -> Result<()> {
    let read = || format!("can't read {}", from.display());
    if data.is_dir() {
        archive.directory(to);
        let mut names: Vec<_> = fs::read_dir(from).and_then(Iterator::collect).with_context(read)?;
        names.sort_by_key(fs::DirEntry::file_name);
        for entry in names {
            let name = entry.file_name();
            let name = name.to_str().with_context(|| format!("{} is not valid UTF-8", entry.path().display()))?;
            let data = entry.metadata().with_context(read)?;
            put(archive, &entry.path(), &format!("{to}/{name}"), &data)?;
        }
    } else if data.is_file() {
        if data.len() > u64::from(u32::MAX) {
            bail!("--add {} is larger than 4 GiB, which no initramfs can hold; leave it out", from.display());
        }
        archive.file(to, data.permissions().mode() & 0o7777, &fs::read(from).with_context(read)?);
    } else if data.is_symlink() {
        let target = fs::read_link(from).with_context(read)?;
        archive.symlink(to, target.to_str().with_context(|| format!("{} is not valid UTF-8", target.display()))?);
    } else {
        bail!("--add {} is neither a file, a folder nor a link; leave it out", from.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_the_guest_may_be_left_out() {
        for (text, from, to) in [
            ("notes.txt", "notes.txt", "/notes.txt"),
            ("a/b", "a/b", "/b"),
            ("a/b:/etc/motd", "a/b", "/etc/motd"),
            ("a/b:/etc/", "a/b", "/etc/b"),
            ("a:b", "a:b", "/a:b"),
            (".:/src", ".", "/src"),
        ] {
            assert_eq!(text.parse(), Ok(Added { from: from.into(), to: to.into() }), "{text}");
        }
        for text in ["", ":/x", ".", "..:/", "a:/x/../y", "a:/x//y", "a:/hv", "a:/hv/init"] {
            assert!(text.parse::<Added>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_folder_comes_whole() {
        let folder = std::env::temp_dir().join(format!("hv-added-{}", std::process::id()));
        fs::create_dir_all(folder.join("inner")).unwrap();
        fs::write(folder.join("inner/file"), b"text").unwrap();
        std::os::unix::fs::symlink("inner/file", folder.join("link")).unwrap();
        let added: Added = format!("{}:/srv/data", folder.display()).parse().unwrap();
        added.check().unwrap();
        let bytes = archive(&[added]).unwrap();
        let mut wanted = Archive::new();
        wanted.directory("srv").directory("srv/data").directory("srv/data/inner");
        let mode = fs::metadata(folder.join("inner/file")).unwrap().permissions().mode() & 0o7777;
        wanted.file("srv/data/inner/file", mode, b"text").symlink("srv/data/link", "inner/file");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(bytes, wanted.finish());
        assert!("/dev/null".parse::<Added>().is_ok_and(|device| archive(&[device]).is_err()));
    }
}
