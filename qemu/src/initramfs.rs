//! The initramfs that the tool makes itself: a static busybox and an `/hv/init` of its own.

use crate::newc::Archive;
use crate::setup::drivers::Module;
use anyhow::{Context, Result};
use std::path::Path;

/// The first process's script.
const INIT: &[u8] = include_bytes!("init.sh");
/// What it goes on with where there is a root file system on a disk.
const ROOT: &[u8] = include_bytes!("root.sh");

/// A command to run in the guest.
#[derive(Debug, Clone)]
pub struct Command {
    /// What a shell shall run.
    pub shell: String,
    /// A word that marks the command's begin and end on the console, so that its output can't be taken for them.
    pub nonce: String,
    /// Whether it is fed from outside; otherwise its standard input is empty.
    pub has_input: bool,
    /// Whether the guest waits for another command when it is done.
    pub more: bool,
}

impl Command {
    /// A shell command, with a nonce that is new in every call.
    pub fn new(shell: impl Into<String>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            shell: shell.into(),
            nonce: format!("{:08x}{:08x}", std::process::id(), now.subsec_nanos()),
            has_input: false,
            more: false,
        }
    }
}

/// What an archive may bring beside busybox and init.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// Modules that are loaded first, in this order.
    pub drivers: Vec<Module>,
    /// Whether to hand over to a root file system: the one on the disk with the serial number `hv-root`.
    pub root: bool,
}

impl Extras {
    /// Whether it brings nothing.
    pub fn is_empty(&self) -> bool {
        self.drivers.is_empty() && !self.root
    }
}

/// Makes an archive with busybox, init and, if given, the command. It is a whole root file system, and can also be
/// appended to another initramfs: all it brings is below `/hv`. The kernel argument `rdinit=/hv/init` starts it.
///
/// # Errors
/// If busybox can't be read.
pub fn archive(busybox: &Path, command: Option<&Command>) -> Result<Vec<u8>> {
    archive_with(busybox, command, &Extras::default())
}

/// The same with more in it.
///
/// # Errors
/// If busybox can't be read.
pub fn archive_with(busybox: &Path, command: Option<&Command>, extras: &Extras) -> Result<Vec<u8>> {
    let busybox = std::fs::read(busybox).with_context(|| format!("can't read {}", busybox.display()))?;
    let mut archive = Archive::new();
    archive.directory("hv").file("hv/busybox", 0o755, &busybox).file("hv/init", 0o755, INIT);
    // The kernel opens /dev/console for init before anything is mounted.
    archive.directory("dev").character_device("dev/console", 5, 1);
    if let Some(Command { shell, nonce, has_input, more }) = command {
        archive.file("hv/run", 0o755, shell.as_bytes()).file("hv/nonce", 0o644, nonce.as_bytes());
        if *has_input {
            archive.file("hv/stdin", 0o644, b"");
        }
        if *more {
            archive.file("hv/more", 0o644, b"");
        }
    }
    if !extras.drivers.is_empty() {
        archive.directory("hv/drivers");
    }
    for (index, module) in extras.drivers.iter().enumerate() {
        // The shell goes through them by name.
        archive.file(&format!("hv/drivers/{index:02}-{}", module.name), 0o644, &module.contents);
    }
    if extras.root {
        archive.file("hv/root", 0o755, ROOT);
    }
    Ok(archive.finish())
}
