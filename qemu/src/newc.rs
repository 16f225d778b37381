//! Writes cpio archives in the `newc` format, the one that Linux unpacks as an initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// Type bits of a mode: directory, regular file, symbolic link, character device (`S_IF...`).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; parents come first.
    pub fn directory(&mut self, name: &str) -> &mut Self {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a regular file with the permission bits `mode`.
    pub fn file(&mut self, name: &str, mode: u32, contents: &[u8]) -> &mut Self {
        self.entry(name, REGULAR | mode, (0, 0), contents)
    }

    /// Adds a symbolic link that points to `target`.
    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> &mut Self {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Ends the archive. The result is a multiple of four bytes, so another one may follow directly.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) -> &mut Self {
        self.inode += 1;
        let size = u32::try_from(contents.len()).expect("an initramfs file is smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a file name is short");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, rdev, contents.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Reads an archive back the way the kernel does.
    fn read(mut bytes: &[u8]) -> Vec<Entry> {
        let whole = bytes.len();
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701", "at {}", whole - bytes.len());
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, rdev, name_size) =
                (field(1), field(6) as usize, (field(9), field(10)), field(11) as usize);
            assert_eq!(bytes[110 + name_size - 1], 0);
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap().to_owned();
            let data = (110 + name_size).next_multiple_of(4);
            let contents = bytes[data..data + size].to_vec();
            bytes = &bytes[(data + size).next_multiple_of(4)..];
            if name == TRAILER {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode, rdev, contents));
        }
    }

    #[test]
    fn every_kind_of_entry_reads_back() {
        let mut archive = Archive::new();
        archive.directory("dev").character_device("dev/console", 5, 1);
        archive.file("init", 0o755, b"#!/bin/sh\n").symlink("bin", "hv/bin").file("empty", 0o644, b"");
        assert_eq!(
            read(&archive.finish()),
            [
                ("dev".into(), 0o040_755, (0, 0), vec![]),
                ("dev/console".into(), 0o020_600, (5, 1), vec![]),
                ("init".into(), 0o100_755, (0, 0), b"#!/bin/sh\n".to_vec()),
                ("bin".into(), 0o120_777, (0, 0), b"hv/bin".to_vec()),
                ("empty".into(), 0o100_644, (0, 0), vec![]),
            ]
        );
    }

    #[test]
    fn archives_can_be_joined() {
        for length in 0..8 {
            let mut archive = Archive::new();
            archive.file(&"x".repeat(length + 1), 0o644, &vec![7; length]);
            assert!(archive.finish().len().is_multiple_of(4));
        }
    }
}
