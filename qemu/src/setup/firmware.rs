//! UEFI firmware for QEMU's machine, and GRUB for it: Debian's packages, unpacked.

use super::apt::Foreign;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// EDK2 for QEMU's `virt` machine, and GRUB with its modules.
const PACKAGES: [&str; 2] = ["qemu-efi-aarch64", "grub-efi-arm64-bin"];

/// What starts the hypervisor as a server's firmware would.
#[derive(Debug, Clone)]
pub struct Firmware {
    /// EDK2, as QEMU's `-bios` takes it.
    pub code: PathBuf,
    /// GRUB as an EFI application; it reads `/boot/grub/grub.cfg` on the disk that has `/.disk/info`.
    pub grub: PathBuf,
    /// GRUB's module with `xen_hypervisor` and `xen_module`, which the application does not have built in.
    pub xen_boot: PathBuf,
}

impl Firmware {
    /// The firmware in the cache, or fetched now.
    ///
    /// # Errors
    /// If it can't be fetched.
    pub fn get(workspace: &Workspace) -> Result<Self> {
        let _lock = workspace.lock("apt")?;
        let root = workspace.folder("firmware")?.join("root");
        let grub = root.join("usr/lib/grub/arm64-efi");
        let firmware = Self {
            code: root.join("usr/share/qemu-efi-aarch64/QEMU_EFI.fd"),
            grub: grub.join("monolithic/gcdaa64.efi"),
            xen_boot: grub.join("xen_boot.mod"),
        };
        if !firmware.is_there() {
            let apt = Foreign::arm64(workspace)?;
            apt.update()?;
            apt.unpack(&PACKAGES, &root).context("there is no UEFI firmware to boot with")?;
            ensure!(firmware.is_there(), "the packages {} lack a file that is needed", PACKAGES.join(" and "));
        }
        Ok(firmware)
    }

    fn is_there(&self) -> bool {
        [&self.code, &self.grub, &self.xen_boot].into_iter().all(|file| file.is_file())
    }
}
