//! Files that machines are saved in: what this tool writes into them, and what it checks before it starts anything.

use crate::console::Cut;
use crate::temporary::Temporary;
use anyhow::{Context, Result, bail, ensure};
use hypervisor_abi::page_hash::WORDS;
use hypervisor_abi::saved::{
    BLOCK_BYTES, Block, Checksum, Contents, Damage, Error, FIRST, Header, Kind, TOOL_BLOCKS, check,
};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// What this tool wants to know of a saved machine to start one like it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// QEMU's CPU model.
    pub cpu: String,
    /// Version of the interrupt controller.
    pub gic: u8,
    /// The guest's CPUs.
    pub smp: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// How sizes change (`--bbm`).
    pub bbm: String,
    /// The guest's disks.
    #[serde(default)]
    pub disks: Vec<Image>,
    /// The options of its network.
    #[serde(default)]
    pub net: Option<String>,
    /// Its other devices.
    #[serde(default)]
    pub mediate: Vec<String>,
    /// What the guest does.
    pub guest: Guest,
}

/// A disk's image, and what it was like when the guest was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The file, from the root on.
    pub file: PathBuf,
    /// The guest only reads it.
    pub read_only: bool,
    /// Bytes.
    size: u64,
    /// When it was written last, in nanoseconds since 1970.
    modified: u64,
}

impl Machine {
    /// The same with the disks as they are now: its devices are quiet, and nobody writes them.
    ///
    /// # Errors
    /// If one is gone.
    pub fn with_disks_now(self) -> Result<Self> {
        let disks = self.disks.iter().map(|disk| Image::of(&disk.file, disk.read_only)).collect::<Result<_>>()?;
        Ok(Self { disks, ..self })
    }
}

impl Image {
    /// A file as it is now.
    ///
    /// # Errors
    /// If it is not there.
    pub fn of(file: &Path, read_only: bool) -> Result<Self> {
        let failed = || format!("can't look at the disk {}", file.display());
        let data = std::fs::metadata(file).with_context(failed)?;
        let modified = data.modified().with_context(failed)?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified = u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self { file: file.canonicalize().with_context(failed)?, read_only, size: data.len(), modified })
    }

    /// Refuses an image that is not what it was: what the guest remembers of it would be wrong.
    ///
    /// # Errors
    /// If it has changed, or is gone.
    pub fn check(&self) -> Result<()> {
        let now = Self::of(&self.file, self.read_only)?;
        ensure!(
            now == *self,
            "the disk {} was written since the guest was saved, whose memory would not fit it; put back what it was, or boot anew",
            self.file.display()
        );
        Ok(())
    }
}

/// What a guest does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guest {
    /// It runs a command, which was given this nonce.
    Runs {
        /// The nonce.
        nonce: String,
        /// What of its output is not finished.
        cut: Cut,
    },
    /// Its command has ended, and it waits for another one.
    Waits,
    /// It has a shell for someone at a terminal.
    Shell,
}

/// A file in the making. Unless it is finished, nothing is left of it.
#[derive(Debug)]
pub struct Draft {
    file: File,
    temporary: Temporary,
    path: PathBuf,
}

impl Draft {
    /// Begins a file that will be at `path`, with room for so many bytes: see [`room_for`].
    ///
    /// # Errors
    /// If no file can be made there.
    pub fn begin(path: &Path, room: u64) -> Result<Self> {
        ensure!(!path.is_dir(), "{} is a folder; name a file", path.display());
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        let unfinished = path.with_file_name(format!("{}.{:08x}.part", name.to_string_lossy(), std::process::id()));
        let temporary = Temporary::new(&unfinished);
        // One of another process with this number, which is no more.
        let _ = std::fs::remove_file(&unfinished);
        // All of a guest's memory is in it: nobody else reads it, and nobody else has made it, in a folder that all can write.
        let options = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unfinished);
        let file = options.with_context(|| format!("can't write {}", unfinished.display()))?;
        let size = room.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(room);
        file.set_len(size).with_context(|| format!("can't make {} large", unfinished.display()))?;
        Ok(Self { file, temporary, path: path.to_owned() })
    }

    /// [`Draft::begin`], with what there is in the file `from`.
    ///
    /// # Errors
    /// If no file can be made there, or `from` can't be read.
    pub fn begin_with(path: &Path, room: u64, from: &Path) -> Result<Self> {
        let failed = || format!("can't read {}", from.display());
        let mut old = File::open(from).with_context(failed)?;
        let mut draft = Self::begin(path, room.max(old.metadata().with_context(failed)?.len()))?;
        let shown = draft.unfinished().display().to_string();
        std::io::copy(&mut old, &mut draft.file).with_context(|| format!("can't write {shown}"))?;
        Ok(draft)
    }

    /// The file as it is called until it is finished.
    pub fn unfinished(&self) -> &Path {
        self.temporary.path()
    }

    /// Ends the file behind its first `end` bytes, puts in what this tool wants to know, and gives it its name. It is then on the
    /// disk, whatever happens.
    ///
    /// # Errors
    /// If it can't be written; a file that was at its place before is still there.
    pub fn finish(self, end: u64, machine: &Machine) -> Result<PathBuf> {
        let failed = || format!("can't write {}", self.path.display());
        self.file.set_len(end).with_context(failed)?;
        self.file.write_all_at(&tool_record(machine)?, 0).with_context(failed)?;
        self.file.sync_all().with_context(failed)?;
        std::fs::rename(self.temporary.path(), &self.path).with_context(failed)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Its name is to be there, too.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(self.path)
    }
}

/// Bytes that a file may take, of a machine with so many bytes of memory, all of which may be sent so often. What is not written
/// takes no room on the host's disk.
pub fn room_for(memory: u64, times: u64) -> u64 {
    // A header for each record, which may have few pages; then the state.
    memory.saturating_add(memory / 16).saturating_mul(times).saturating_add(FIRST * BLOCK_BYTES + (64 << 20))
}

/// The file's first record.
fn tool_record(machine: &Machine) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(machine).context("can't write down the machine")?;
    let room = (TOOL_BLOCKS * BLOCK_BYTES) as usize;
    ensure!(text.len() <= room, "the machine takes {} bytes to write down, and there is room for {room}", text.len());
    text.resize(room, b' ');
    let mut checksum = Checksum::new();
    text.chunks(BLOCK_BYTES as usize).for_each(|bytes| checksum.add(&block(bytes)));
    let header = Header { kind: Kind::Tool, number: 0, bytes: room as u64, checksum: checksum.value() };
    let mut bytes: Vec<u8> = header.encode(&[]).into_iter().flat_map(u64::to_le_bytes).collect();
    bytes.extend(text);
    Ok(bytes)
}

/// The words of a block.
fn block(bytes: &[u8]) -> Block {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// A file that was checked.
#[derive(Debug, Clone)]
pub struct Saved {
    /// Where it is.
    pub path: PathBuf,
    /// What this tool has put in.
    pub machine: Machine,
    /// What is in it.
    pub contents: Contents,
}

impl Saved {
    /// Reads all of a file, and checks it.
    ///
    /// # Errors
    /// If it can't be read, or is not whole.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
        let contents = whole(&mut file).with_context(|| format!("{} can't be resumed", path.display()))?;
        let mut text = vec![0; (TOOL_BLOCKS * BLOCK_BYTES) as usize];
        file.read_exact_at(&mut text, BLOCK_BYTES).with_context(|| format!("can't read {}", path.display()))?;
        let machine = serde_json::from_slice(&text)
            .with_context(|| format!("{} was saved by another version of this tool", path.display()))?;
        Ok(Self { path: path.to_owned(), machine, contents })
    }
}

/// Checks a file from its beginning to its end.
fn whole(file: &mut File) -> Result<Contents> {
    let length = file.metadata()?.len();
    let mut bytes = [0; BLOCK_BYTES as usize];
    let mut failed = None;
    let mut next = 0;
    let mut read = |number: u64, into: &mut Block| {
        // The tail of a file that is no multiple of a block is none.
        if (number + 1).saturating_mul(BLOCK_BYTES) > length {
            return false;
        }
        let seek = if number == next { Ok(0) } else { file.seek(SeekFrom::Start(number * BLOCK_BYTES)) };
        next = number + 1;
        match seek.and_then(|_| file.read_exact(&mut bytes)) {
            Ok(()) => *into = block(&bytes),
            Err(error) => failed = Some(error),
        }
        failed.is_none()
    };
    let result = check(&mut read);
    if let Some(error) = failed {
        bail!(error);
    }
    let contents = match result {
        // A file of another program is rarely as long as a record.
        Err(Error { block: 0, damage: Damage::CutOff }) if length < FIRST * BLOCK_BYTES && !begins_right(file) => {
            bail!(Error { block: 0, damage: Damage::Foreign })
        }
        other => other?,
    };
    ensure!(contents.blocks * BLOCK_BYTES == length, "it is damaged: it goes on behind its end");
    Ok(contents)
}

/// Whether the first bytes are those of a saved machine.
fn begins_right(file: &mut File) -> bool {
    let mut magic = [0; 8];
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut magic)).is_ok()
        && u64::from_le_bytes(magic) == hypervisor_abi::saved::MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor_abi::saved::{End, Fact, Field};
    use std::os::unix::fs::PermissionsExt;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("hv-saved-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn machine() -> Machine {
        let cut = Cut { rest: b"half".to_vec(), inside: true };
        let guest = Guest::Runs { nonce: "7".into(), cut };
        let (disks, net, mediate) = (Vec::new(), Some(String::new()), vec!["virtio-rng-device".into()]);
        Machine { cpu: "max".into(), gic: 3, smp: 2, memory: 1 << 30, bbm: "auto".into(), disks, net, mediate, guest }
    }

    /// A file as the hypervisor and the tool make it together, with no pages.
    fn made(folder: &Path) -> PathBuf {
        let draft = Draft::begin(&folder.join("file"), room_for(1 << 20, 1)).unwrap();
        let facts = [Fact::new(Field::Ranges, 0)].into_iter().flat_map(Fact::words);
        let end = End { records: 3, hash: 5 }.block();
        let mut at = FIRST;
        for (number, kind, bytes, payload) in [
            (1, Kind::Machine, 16, block(&facts.flat_map(u64::to_le_bytes).collect::<Vec<_>>())),
            (2, Kind::End, 16, end),
        ] {
            let mut checksum = Checksum::new();
            checksum.add(&payload);
            let header = Header { kind, number, bytes, checksum: checksum.value() }.encode(&[]);
            for block in [header, payload] {
                let bytes: Vec<u8> = block.into_iter().flat_map(u64::to_le_bytes).collect();
                draft.file.write_all_at(&bytes, at * BLOCK_BYTES).unwrap();
                at += 1;
            }
        }
        draft.finish(at * BLOCK_BYTES, &machine()).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = folder("read");
        let path = made(&folder);
        let saved = Saved::open(&path).unwrap();
        assert_eq!((saved.machine, saved.contents.hash), (machine(), 5));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "a part was left");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_image_that_was_written_is_told_from_one_that_was_not() {
        let folder = folder("image");
        let file = folder.join("disk");
        std::fs::write(&file, b"before").unwrap();
        let image = Image::of(&file, false).unwrap();
        image.check().unwrap();
        std::fs::write(&file, b"behind").unwrap();
        let times = std::fs::FileTimes::new().set_modified(UNIX_EPOCH);
        File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
        assert!(image.check().unwrap_err().to_string().contains("was written since"));
        std::fs::remove_dir_all(folder).unwrap();
        assert!(image.check().is_err());
    }

    #[test]
    fn damage_is_told_of() {
        let folder = folder("damage");
        let path = made(&folder);
        let whole = std::fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            format!("{:#}", Saved::open(&path).unwrap_err())
        };
        assert!(refused(b"").contains("no saved machine") && refused(b"#!/bin/sh\n").contains("no saved machine"));
        for length in [100, 4096, 70_000, whole.len() - 1] {
            assert!(refused(&whole[..length]).contains("cut off"), "{length}");
        }
        assert!(refused(&[&whole[..], b"x"].concat()).contains("behind its end"));
        let mut flipped = whole.clone();
        flipped[5000] ^= 1;
        assert!(refused(&flipped).contains("checksum"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_draft_that_is_dropped_leaves_nothing_and_harms_nothing() {
        let folder = folder("draft");
        let path = folder.join("file");
        std::fs::write(&path, b"before").unwrap();
        let draft = Draft::begin(&path, room_for(1 << 30, 1)).unwrap();
        let data = std::fs::metadata(draft.unfinished()).unwrap();
        assert!(data.len() > 1 << 30 && data.len().is_multiple_of(BLOCK_BYTES));
        assert_eq!(data.permissions().mode() & 0o777, 0o600, "nobody else reads a guest's memory");
        let unfinished = draft.unfinished().to_owned();
        drop(draft);
        // Somebody else's link in its place is not followed.
        std::os::unix::fs::symlink(&path, &unfinished).unwrap();
        drop(Draft::begin(&path, 1).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        assert!(Draft::begin(&folder, 1).is_err() && Draft::begin(Path::new("/no/such/folder/file"), 1).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
