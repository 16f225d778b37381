//! Disks of the guest's: files of the user's, looked at before anything is built.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A disk that a user has named: `FILE` or `FILE,ro`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The file.
    pub file: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// How an image's file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte what the guest sees.
    Raw,
    /// QEMU's own format.
    Qcow2,
}

/// What begins a file that is no disk's image to this tool, and what it is.
const OTHERS: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"\xfd7zXZ", "compressed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it"),
    (b"BZh", "compressed by bzip2: unpack it"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"KDMV", "a VMDK image: convert it with `qemu-img convert -O qcow2`"),
    (b"vhdxfile", "a VHDX image: convert it with `qemu-img convert -O qcow2`"),
    (b"QED\0", "a QED image: convert it with `qemu-img convert -O qcow2`"),
    (b"<<< ", "a VDI image: convert it with `qemu-img convert -O qcow2`"),
];

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (file, read_only) = match text.strip_suffix(",ro") {
            // A file of such a name is still a file.
            Some(file) if !Path::new(text).exists() => (file, true),
            _ => (text, false),
        };
        if file.is_empty() {
            return Err("name a disk's image".into());
        }
        Ok(Self { file: file.into(), read_only })
    }
}

impl Disk {
    /// Looks at the file: whether it is there and can be used as it shall be, and how it is laid out.
    ///
    /// # Errors
    /// If it is not there, is no image, or can't be read or written.
    pub fn examine(&self) -> Result<Format> {
        let shown = self.file.display();
        let data = fs::metadata(&self.file).with_context(|| format!("can't find the disk {shown}"))?;
        ensure!(!data.is_dir(), "{shown} is a folder; a disk is a file");
        ensure!(data.is_file() || data.file_type().is_block_device(), "{shown} is neither a file nor a disk");
        let mut file = fs::File::open(&self.file).with_context(|| format!("can't read the disk {shown}"))?;
        let mut head = Vec::new();
        (&mut file).take(16).read_to_end(&mut head).with_context(|| format!("can't read the disk {shown}"))?;
        ensure!(!head.is_empty(), "the disk {shown} is empty: make it as large as it shall be (truncate -s 1G FILE)");
        let format = format(&head).with_context(|| format!("{shown} can't be a disk"))?;
        if !self.read_only {
            OpenOptions::new().write(true).open(&self.file).with_context(|| {
                format!("can't write to the disk {shown}; if the guest shall only read it, write {shown},ro")
            })?;
        }
        let bytes = file.seek(SeekFrom::End(0)).with_context(|| format!("can't read the disk {shown}"))?;
        ensure!(
            format != Format::Raw || bytes.is_multiple_of(SECTOR),
            "the disk {shown} has {bytes} bytes, and a raw disk's sectors have {SECTOR}: truncate -s %{SECTOR} makes it whole"
        );
        Ok(format)
    }
}

/// Bytes of a sector, virtio's unit.
const SECTOR: u64 = 512;

/// Refuses a file that stands twice and could be written by one of the two.
///
/// # Errors
/// If there is one.
pub fn refuse_twice(disks: &[&Disk]) -> Result<()> {
    let mut seen: Vec<(PathBuf, bool)> = Vec::new();
    for disk in disks {
        let file = fs::canonicalize(&disk.file).unwrap_or_else(|_| disk.file.clone());
        let twice = seen.iter().any(|(other, read_only)| *other == file && !(*read_only && disk.read_only));
        ensure!(!twice, "the disk {} is named twice: two writers would destroy it", disk.file.display());
        seen.push((file, disk.read_only));
    }
    Ok(())
}

/// An image's format, from its first bytes.
fn format(head: &[u8]) -> Result<Format> {
    if let Some(version) = head.strip_prefix(b"QFI\xfb") {
        return match version.get(..4) {
            Some([0, 0, 0, 2 | 3]) => Ok(Format::Qcow2),
            _ => bail!("it is a qcow image of a version that is neither 2 nor 3"),
        };
    }
    match OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, what)) => bail!("it is {what}"),
        None => Ok(Format::Raw),
    }
}

impl Format {
    /// QEMU's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(file: impl Into<PathBuf>, read_only: bool) -> String {
        format!("{:#}", Disk { file: file.into(), read_only }.examine().unwrap_err())
    }

    #[test]
    fn a_disk_is_a_file_and_perhaps_ro() {
        assert_eq!("a.img".parse(), Ok(Disk { file: "a.img".into(), read_only: false }));
        assert_eq!("a.img,ro".parse(), Ok(Disk { file: "a.img".into(), read_only: true }));
        assert_eq!("a.img,rw".parse(), Ok(Disk { file: "a.img,rw".into(), read_only: false }));
        assert!(",ro".parse::<Disk>().is_err() && "".parse::<Disk>().is_err());
    }

    #[test]
    fn a_format_is_told_by_its_magic() {
        assert_eq!(format(b"QFI\xfb\0\0\0\x03").unwrap(), Format::Qcow2);
        assert_eq!(format(&[0; 16]).unwrap(), Format::Raw);
        assert!(format(b"QFI\xfb\0\0\0\x01").unwrap_err().to_string().contains("version"));
        assert!(format(b"QFI\xfb").is_err());
        assert!(format(b"\xfd7zXZ\0\0").unwrap_err().to_string().contains("unpack"));
        assert!(format(b"KDMV\x01\0\0\0").unwrap_err().to_string().contains("qemu-img"));
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert!(refused("/no/such/disk", false).contains("/no/such/disk"));
        assert!(refused("/", false).contains("folder"));
        assert!(refused("/dev/null", false).contains("neither"));
        let scratch = std::env::temp_dir().join(format!("hv-disk-{}", std::process::id()));
        fs::write(&scratch, "").unwrap();
        assert!(refused(&scratch, false).contains("empty"));
        fs::write(&scratch, [0; 700]).unwrap();
        assert!(refused(&scratch, false).contains("700 bytes"));
        fs::write(&scratch, [0; 1024]).unwrap();
        let disk = Disk { file: scratch.clone(), read_only: false };
        assert_eq!(disk.examine().unwrap(), Format::Raw);
        let reader = Disk { read_only: true, ..disk.clone() };
        assert!(refuse_twice(&[&disk, &disk]).is_err() && refuse_twice(&[&disk, &reader]).is_err());
        assert!(refuse_twice(&[&reader, &reader]).is_ok() && refuse_twice(&[&disk]).is_ok());
        fs::remove_file(scratch).unwrap();
    }

    /// A program that runs can't be opened for writing, by root neither.
    #[test]
    fn what_can_not_be_written_may_be_read() {
        let running = std::env::current_exe().unwrap();
        let text = refused(&running, false);
        assert!(text.contains("can't write") && text.contains(",ro"), "{text}");
        // Its size is any: only what is said of writing counts here.
        let reader = Disk { file: running, read_only: true }.examine();
        assert!(reader.is_ok() || format!("{:#}", reader.unwrap_err()).contains("sectors"));
    }
}
