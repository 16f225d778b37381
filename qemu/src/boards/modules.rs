//! The guest's kernel and initramfs in a board's RAM.

use crate::guest_kernel;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Where the modules lie behind the start of RAM, clear of what QEMU and U-Boot put there.
const KERNEL_OFFSET: u64 = 0x1800_0000;
const INITRD_OFFSET: u64 = 0x2000_0000;
/// The guest's files, placed in RAM.
#[derive(Debug)]
pub(super) struct Modules {
    pub kernel: Module,
    pub initrd: Module,
}

/// A file in RAM.
#[derive(Debug)]
pub(super) struct Module {
    pub file: PathBuf,
    pub address: u64,
    pub bytes: u64,
}

/// The kernel's arguments: the console is the one that the device tree names.
pub(super) const BOOTARGS: &str = "quiet loglevel=1 panic=-1 rdinit=/hv/init";

impl Modules {
    /// Places them behind the start of RAM.
    pub fn place(ram: u64, kernel: &Path, initrd: &Path) -> Result<Self> {
        let size = |path: &Path| anyhow::Ok(std::fs::metadata(path).with_context(|| path.display().to_string())?.len());
        let kernel_at = ram + KERNEL_OFFSET + guest_kernel::shape(kernel)?.text_offset;
        Ok(Self {
            kernel: Module { file: kernel.to_owned(), address: kernel_at, bytes: size(kernel)? },
            initrd: Module { file: initrd.to_owned(), address: ram + INITRD_OFFSET, bytes: size(initrd)? },
        })
    }

    /// Them and their addresses.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        [&self.kernel, &self.initrd].map(|module| (module.file.clone(), module.address)).to_vec()
    }
}
