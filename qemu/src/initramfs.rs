//! The initramfs that the tool makes itself: a static busybox and an `/hv/init` of its own.

use crate::newc::Archive;
use anyhow::{Context, Result};
use std::path::Path;

/// The first process's script.
const INIT: &[u8] = include_bytes!("init.sh");

/// A command to run in the guest.
#[derive(Debug, Clone)]
pub struct Command {
    /// What a shell shall run.
    pub shell: String,
    /// A word that marks the command's begin and end on the console, so that its output can't be taken for them.
    pub nonce: String,
}

impl Command {
    /// A shell command, with a nonce that is new in every call.
    pub fn new(shell: impl Into<String>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { shell: shell.into(), nonce: format!("{:08x}{:08x}", std::process::id(), now.subsec_nanos()) }
    }
}

/// Makes an archive with busybox, init and, if given, the command. It is a whole root file system, and can also be
/// appended to another initramfs: all it brings is below `/hv`. The kernel argument `rdinit=/hv/init` starts it.
///
/// # Errors
/// If busybox can't be read.
pub fn archive(busybox: &Path, command: Option<&Command>) -> Result<Vec<u8>> {
    let busybox = std::fs::read(busybox).with_context(|| format!("can't read {}", busybox.display()))?;
    let mut archive = Archive::new();
    archive.directory("hv").file("hv/busybox", 0o755, &busybox).file("hv/init", 0o755, INIT);
    // The kernel opens /dev/console for init before anything is mounted.
    archive.directory("dev").character_device("dev/console", 5, 1);
    if let Some(Command { shell, nonce }) = command {
        archive.file("hv/run", 0o755, shell.as_bytes()).file("hv/nonce", 0o644, nonce.as_bytes());
    }
    Ok(archive.finish())
}
