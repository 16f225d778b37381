//! Machines of QEMU's other than `virt` started by `-kernel`: boards with trees of their own, and boot loaders as firmware.

use super::files::{double_commas, file_size};
use crate::size::Size;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// How such a machine is started. What a board has no options for in QEMU does not count: the CPU's model, the interrupt
/// controller, and `guest-loader`, whose nodes do not arrive where `-dtb` is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Board {
    /// QEMU's `-machine`.
    pub machine: String,
    /// The `-cpu`, where the machine does not have one of its own.
    pub cpu: Option<String>,
    /// The device tree, where QEMU does not make one: modules stand in it.
    pub tree: Option<PathBuf>,
    /// A boot loader that is started instead of the kernel, which then is one of `files` if the loader needs it.
    pub loader: Option<PathBuf>,
    /// Serial ports in front of the one that is the console.
    pub serials_before: usize,
    /// Files that are in RAM when the machine starts, each with its address.
    pub files: Vec<(PathBuf, u64)>,
}

impl Board {
    /// QEMU's arguments for so many CPUs and so much RAM, a kernel and its command line.
    ///
    /// # Errors
    /// If a file is missing, or its name is no text.
    pub(super) fn arguments(&self, cpus: u32, memory: Size, kernel: &Path, line: &str) -> Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        add(&["-M", &self.machine, "-smp", &cpus.to_string(), "-m", &format!("{}K", memory.0 >> 10)]);
        add(&["-display", "none", "-nic", "none", "-no-reboot"]);
        if let Some(cpu) = &self.cpu {
            add(&["-cpu", cpu]);
        }
        (0..self.serials_before).for_each(|_| add(&["-serial", "null"]));
        let mut file = |option: &str, path: &Path| {
            file_size(path)?;
            arguments.extend([option.into(), path.into()]);
            anyhow::Ok(())
        };
        match &self.loader {
            Some(loader) => file("-bios", loader)?,
            None => {
                file("-kernel", kernel)?;
                self.tree.iter().try_for_each(|tree| file("-dtb", tree))?;
                arguments.extend(["-append".into(), line.into()]);
            }
        }
        for (path, address) in &self.files {
            file_size(path)?;
            let path = path.to_str().with_context(|| format!("{} is not valid UTF-8", path.display()))?;
            let device = format!("loader,addr={address:#x},force-raw=on,file={}", double_commas(path));
            arguments.extend(["-device".into(), device.into()]);
        }
        Ok(arguments)
    }
}
