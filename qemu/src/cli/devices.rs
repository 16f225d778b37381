//! Devices of the guest's on the command line.

use crate::disk::Disk;
use crate::setup::rootfs::Choice;
use clap::Args;

/// Disks, a network, and other devices.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Devices")]
pub struct Devices {
    /// Boot a root file system: Debian's, which is made the first time (50 MB to download) and is new in every run, or that of a
    /// disk's image, which keeps what is written. With --run, systemd starts and runs the command as root
    #[arg(long, value_name = "debian|FILE")]
    pub rootfs: Option<Choice>,
    /// Give the guest a disk: a raw or qcow2 image, with `,ro` only to read; may be repeated. It is /dev/vda (behind
    /// that of --rootfs /dev/vdb)
    #[arg(long, value_name = "FILE[,ro]")]
    pub disk: Vec<Disk>,
    /// Give the guest a network, eth0: QEMU's user network with its options, as hostfwd=tcp:127.0.0.1:2222-:22
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, default_missing_value = "")]
    pub net: Option<String>,
    /// Give the guest another virtio-mmio device (as virtio-rng-device); may be repeated
    #[arg(long, value_name = "DEVICE")]
    pub mediate: Vec<String>,
}

impl Devices {
    /// Whether any is named.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.rootfs.is_some() || !self.disk.is_empty() || self.net.is_some() || !self.mediate.is_empty()
    }

    /// Looks at what is named.
    ///
    /// # Errors
    /// If it can't be.
    pub fn examine(&self) -> anyhow::Result<crate::devices::Devices> {
        crate::devices::Devices::examine(self.rootfs.as_ref(), &self.disk, self.net.as_deref(), &self.mediate)
    }
}
