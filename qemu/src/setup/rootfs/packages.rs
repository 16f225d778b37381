//! The packages that a root file system is made of, unpacked by hand: no `dpkg` installs, no script of theirs runs.

use crate::setup::apt::checked;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is asked for; what they need comes with them.
pub const PACKAGES: &[&str] = &[
    "?essential",
    // Instead of usrmerge, which would bring all of Perl: /usr is merged here, before anything is unpacked.
    "usr-is-merged",
    "apt",
    "systemd-sysv",
    "udev",
    "dbus",
    "iproute2",
    "kmod",
    "e2fsprogs",
    "openssh-server",
];

/// What is left out of them, as `tar` matches it: a quarter of the image that a laboratory does not read.
pub const LEFT_OUT: &[&str] = &["./usr/share/man/*", "./usr/share/info/*", "./usr/share/locale/*", "./usr/share/doc/*"];

/// Owner and group of what does not belong to root, by its path in the image (`/usr/bin/chage`).
pub type Owners = BTreeMap<String, (u32, u32)>;

/// Unpacks packages into the folder `root`, tells dpkg's database there about them, and returns who owns what.
///
/// The database says that they are unpacked and not configured, for that is so: `dpkg --configure -a` in the guest does the rest.
///
/// # Errors
/// If a package can't be unpacked.
pub fn unpack(debs: &[PathBuf], root: &Path, mut detail: impl FnMut(&str)) -> Result<Owners> {
    let database = root.join("var/lib/dpkg");
    for folder in [root.join("usr"), database.join("info"), database.join("updates")] {
        fs::create_dir_all(&folder).with_context(|| format!("can't create {}", folder.display()))?;
    }
    for name in ["bin", "sbin", "lib"] {
        fs::create_dir(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    let (mut owners, mut status) = (Owners::new(), String::new());
    for deb in debs {
        let control = checked(Command::new("dpkg-deb").arg("-f").arg(deb)).context("a package can't be read")?;
        let field = |key: &str| {
            let value = control.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            value.with_context(|| format!("{} has no field {key}", deb.display()))
        };
        let (package, architecture) = (field("Package")?, field("Architecture")?);
        detail(package);
        let listing = extract(deb, root).with_context(|| format!("can't unpack {}", deb.display()))?;
        let files: Vec<File> = listing.lines().filter_map(File::of_line).collect();
        let foreign = files.iter().filter(|file| file.owner != (0, 0));
        owners.extend(foreign.map(|file| (file.path.to_owned(), file.owner)));
        // Packages that may be there for two architectures have theirs in the names of their files.
        let same = field("Multi-Arch").is_ok_and(|value| value == "same");
        let name = if same { format!("{package}:{architecture}") } else { package.to_owned() };
        let list: String = files.iter().map(|file| format!("{}\n", file.path)).collect();
        fs::write(database.join(format!("info/{name}.list")), list)?;
        scripts(deb, &name, &database)?;
        status += &record(&control);
    }
    fs::write(database.join("status"), status)?;
    fs::write(database.join("available"), "")?;
    fs::write(database.join("info/format"), "1\n")?;
    Ok(owners)
}

/// A package's record in dpkg's database.
fn record(control: &str) -> String {
    let (first, rest) = control.split_once('\n').unwrap_or((control, ""));
    format!("{first}\nStatus: install ok unpacked\n{}\n\n", rest.trim_end())
}

/// Unpacks one package; returns what `tar` lists.
fn extract(deb: &Path, root: &Path) -> Result<String> {
    let mut contents = Command::new("dpkg-deb");
    let mut contents = contents.arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn().context("no dpkg-deb")?;
    let pipe = contents.stdout.take().context("a pipe was asked for")?;
    let mut tar = Command::new("tar");
    // Owners are set in the image, for where the tool does not run as root it can't set them here.
    tar.args(["-x", "-p", "-vv", "--numeric-owner", "--no-same-owner", "--keep-directory-symlink", "-C"]).arg(root);
    tar.args(LEFT_OUT.iter().map(|pattern| format!("--exclude={pattern}"))).env("LC_ALL", "C").stdin(pipe);
    let listing = checked(&mut tar);
    let status = contents.wait().context("can't wait for dpkg-deb")?;
    if listing.is_ok() && !status.success() {
        bail!("dpkg-deb failed ({status})");
    }
    listing
}

/// Puts a package's scripts and lists where dpkg looks for them.
fn scripts(deb: &Path, name: &str, database: &Path) -> Result<()> {
    let folder = database.join("tmp.ci");
    checked(Command::new("dpkg-deb").arg("-e").arg(deb).arg(&folder)).context("a package can't be read")?;
    for entry in fs::read_dir(&folder)?.flatten().filter(|entry| entry.file_name() != "control") {
        fs::rename(entry.path(), database.join(format!("info/{name}.{}", entry.file_name().display())))?;
    }
    fs::remove_dir_all(&folder).with_context(|| format!("can't remove {}", folder.display()))
}

/// A line of `tar`'s listing.
#[derive(Debug, PartialEq, Eq)]
struct File<'a> {
    path: &'a str,
    owner: (u32, u32),
}

impl<'a> File<'a> {
    /// Reads `-rwxr-sr-x 0/42 31184 2023-03-23 12:40 ./usr/bin/chage`; nothing for the archive's own root.
    fn of_line(line: &'a str) -> Option<Self> {
        let mut rest = line;
        let mut word = || {
            let (word, behind) = rest.trim_start().split_once(' ')?;
            rest = behind;
            Some(word)
        };
        let (mode, owner) = (word()?, word()?);
        let _size_date_time = (word()?, word()?, word()?);
        let end = match mode.as_bytes().first()? {
            b'l' => " -> ",
            b'h' => " link to ",
            _ => "\n",
        };
        let path = rest.split_once(end).map_or(rest, |(path, _)| path).strip_prefix('.')?.trim_end_matches('/');
        let (user, group) = owner.split_once('/')?;
        (!path.is_empty()).then_some(File { path, owner: (user.parse().ok()?, group.parse().ok()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_s_listing_is_read() {
        for (line, path, owner) in [
            ("-rwxr-sr-x 0/42           80376 2023-03-23 12:40 ./usr/bin/chage", "/usr/bin/chage", (0, 42)),
            ("drwxr-xr-x 0/0                0 2022-12-19 21:35 ./usr/share/", "/usr/share", (0, 0)),
            ("lrwxrwxrwx 0/0                0 2022-12-19 21:35 ./bin/a b -> ./c", "/bin/a b", (0, 0)),
            ("hrwxr-xr-x 0/0                0 2022-12-19 21:35 ./usr/bin/x link to ./usr/bin/y", "/usr/bin/x", (0, 0)),
        ] {
            assert_eq!(File::of_line(line), Some(File { path, owner }), "{line}");
        }
        for line in ["", "drwxr-xr-x 0/0 0 2022-12-19 21:35 ./", "drwxr-xr-x root/root 0 2022-12-19 21:35 ./x"] {
            assert_eq!(File::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn a_package_is_recorded_as_it_is() {
        let record = record("Package: a\nVersion: 1\nDescription: b\n c\n");
        assert_eq!(record, "Package: a\nStatus: install ok unpacked\nVersion: 1\nDescription: b\n c\n\n");
    }
}
