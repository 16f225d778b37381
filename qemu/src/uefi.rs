//! Machines that start by UEFI: a folder that firmware sees as its disk, and GRUB's configuration on it.

use crate::machine::{Machine, Module, Uefi};
use crate::setup::firmware::Firmware;
use crate::temporary::Temporary;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// What firmware starts from a disk that it knows nothing of (UEFI 3.5.1.1).
pub const BOOT_FILE: &str = "EFI/BOOT/BOOTAA64.EFI";
/// QEMU's FAT disk has 16-bit cluster numbers.
const MOST_BYTES: u64 = 500 << 20;

/// A folder whose files are the firmware's disk, read-only; removed with this value.
#[derive(Debug)]
pub struct Disk(Temporary);

impl Disk {
    /// An empty one. What was in the folder before is removed.
    ///
    /// # Errors
    /// If the folder can't be made.
    pub fn new(folder: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("can't remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
        Ok(Self(Temporary::new(folder)))
    }

    /// Writes a file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<&Self> {
        let path = self.make_room(name)?;
        fs::write(&path, contents).with_context(|| format!("can't write {}", path.display()))?;
        Ok(self)
    }

    /// Puts another's file there.
    ///
    /// # Errors
    /// If it can't be read, or is too large for such a disk.
    pub fn put(&self, name: &str, file: &Path) -> Result<&Self> {
        let size = fs::metadata(file).with_context(|| format!("can't find the file {}", file.display()))?.len();
        ensure!(size <= MOST_BYTES, "{} is too large for the firmware's disk: 500 MiB", file.display());
        let path = self.make_room(name)?;
        fs::copy(file, &path).with_context(|| format!("can't copy {} to {}", file.display(), path.display()))?;
        Ok(self)
    }

    fn make_room(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.path().join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
        }
        Ok(path)
    }

    /// Puts GRUB on it, which does what `script` says.
    ///
    /// # Errors
    /// If a file can't be read or written.
    pub fn put_grub(&self, firmware: &Firmware, script: &str) -> Result<&Self> {
        self.put(BOOT_FILE, &firmware.grub)?
            .put("boot/grub/arm64-efi/xen_boot.mod", &firmware.xen_boot)?
            // By this file GRUB knows its disk.
            .write(".disk/info", "")?
            .write("boot/grub/grub.cfg", script)
    }

    /// Lets a machine start from it.
    pub fn start(&self, machine: &mut Machine, firmware: &Firmware) {
        machine.uefi = Some(Uefi { code: firmware.code.clone(), disk: self.0.path().to_owned(), acpi: false });
    }
}

/// Makes a machine that QEMU would start by itself one that firmware and GRUB start: with the same hypervisor, arguments
/// and modules. The disk is made in `folder`.
///
/// # Errors
/// If a file is missing, or an argument can't be told to GRUB.
pub fn start_by_grub(machine: &mut Machine, firmware: &Firmware, folder: &Path) -> Result<Disk> {
    let disk = Disk::new(folder)?;
    disk.put("unbroken.img", &machine.kernel)?;
    for (number, module) in machine.modules.iter().enumerate() {
        disk.put(&format!("module{number}"), &module.file)?;
    }
    disk.put_grub(firmware, &script(&machine.append, &machine.modules)?)?;
    disk.start(machine, firmware);
    Ok(disk)
}

/// What GRUB does: a kernel comes first, for it does not tell one module from the other.
fn script(append: &str, modules: &[Module]) -> Result<String> {
    let mut script = format!("insmod xen_boot\nxen_hypervisor /unbroken.img{}\n", words(append)?);
    for (number, module) in modules.iter().enumerate() {
        ensure!((number == 0) == module.bootargs.is_some(), "the kernel is the first module, and the only one");
        let arguments = words(module.bootargs.as_deref().unwrap_or_default())?;
        script += &format!("xen_module --nounzip /module{number}{arguments}\n");
    }
    // Behind `boot` comes what happens if it fails: the hypervisor has told why.
    Ok(script + "boot\nhalt\n")
}

/// A command line as words of GRUB's language, a blank before each.
fn words(line: &str) -> Result<String> {
    ensure!(
        !line.contains(['\'', '"', '\\']),
        "GRUB passes quotes and backslashes on with more backslashes: leave them out of `{line}`, or start without --firmware"
    );
    Ok(line.split_whitespace().map(|word| format!(" '{word}'")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grub_gets_every_word_as_it_is() {
        let module = |bootargs: Option<&str>| Module {
            address: 0,
            file: PathBuf::from("unused"),
            bootargs: bootargs.map(str::to_owned),
        };
        let modules = [module(Some("console=ttyAMA0 a=$b;c  d")), module(None)];
        assert_eq!(
            script("log=info bbm=auto", &modules).unwrap(),
            "insmod xen_boot\nxen_hypervisor /unbroken.img 'log=info' 'bbm=auto'\n\
             xen_module --nounzip /module0 'console=ttyAMA0' 'a=$b;c' 'd'\nxen_module --nounzip /module1\nboot\nhalt\n"
        );
    }

    #[test]
    fn what_grub_would_change_is_refused() {
        for line in ["a='b c'", "a=\"b c\"", "a=b\\"] {
            assert!(words(line).unwrap_err().to_string().contains("backslashes"), "{line}");
        }
    }
}
