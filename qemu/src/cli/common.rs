//! What the commands that run a machine have in common.

use super::values;
use crate::images::Image;
use crate::machine::Gic;
use crate::size::Size;
use clap::builder::UnknownArgumentValueParser;
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// What all commands that run a machine have in common.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Machine")]
pub struct Common {
    /// CPU model, as QEMU names it (max, cortex-a72, cortex-a76, neoverse-n1, ...)
    #[arg(long, value_name = "MODEL", default_value = "max")]
    pub cpu: String,
    /// Version of the interrupt controller
    #[arg(long, value_name = "2|3", default_value = "3", value_parser = values::gic)]
    pub gic: Gic,
    /// The guest's CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = values::cpus)]
    pub smp: u32,
    #[arg(long, hide = true, value_parser = UnknownArgumentValueParser::suggest_arg("--smp"))]
    cpus: Option<String>,
    /// RAM of the machine: 512M, 1.5G, 4G [default: 1G; 4G for the payload]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// The QEMU to use [default: qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH", env = "HV_QEMU", value_parser = values::qemu())]
    pub qemu: Option<PathBuf>,
    /// End the run after this time: 90, 5m, 1h [default: never for a shell, otherwise 5m]
    #[arg(long, value_name = "TIME", value_parser = values::limit)]
    pub timeout: Option<Duration>,
    /// How stage-2 leaves change their size; `auto` is what the CPUs allow
    #[arg(long, value_enum, default_value_t = Bbm::Auto)]
    pub bbm: Bbm,
    /// Count instructions: deterministic, one tick of the counter is one instruction
    #[arg(long)]
    pub icount: bool,
    /// What the hypervisor logs; `debug` also shows the guest's boot
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Log::Info)]
    pub log: Log,
    /// Give the guest a virtio-mmio device (as virtio-rng-device), which can then write to ANY memory, the
    /// hypervisor's too; may be repeated
    #[arg(long, value_name = "DEVICE")]
    pub grant_dma: Vec<String>,
    /// More arguments for QEMU (as back ends for granted devices)
    #[arg(last = true, value_name = "QEMU ARGUMENTS")]
    pub extra: Vec<OsString>,
}

impl Common {
    /// The time limit, or `default` seconds.
    pub fn timeout_or(&self, default: u64) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(default))
    }
}

/// Ways to change a leaf's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bbm {
    /// The best that all CPUs have.
    Auto,
    /// Break-before-make.
    Break,
    /// The nT bit (FEAT_BBML1).
    Nt,
    /// Directly (FEAT_BBML2).
    Direct,
}

/// Granules of the guest's stage-2 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Granule {
    /// 4 KiB, which every CPU has
    #[value(name = "4k")]
    K4,
    /// 16 KiB
    #[value(name = "16k")]
    K16,
    /// 64 KiB
    #[value(name = "64k")]
    K64,
}

impl Granule {
    /// Bytes of a page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::K4 => 4 << 10,
            Self::K16 => 16 << 10,
            Self::K64 => 64 << 10,
        }
    }

    /// The hypervisor that is built for it.
    pub const fn image(self) -> Image {
        match self {
            Self::K4 => Image::Hypervisor,
            Self::K16 => Image::Granule16K,
            Self::K64 => Image::Granule64K,
        }
    }
}

/// Log levels of the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[expect(missing_docs, reason = "the log crate's levels")]
pub enum Log {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// A value's name on the command line, which is also its name for the hypervisor.
pub fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// What starts the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// QEMU itself, as a boot loader that knows nothing but arm64 Images
    None,
    /// EDK2 and GRUB, from Debian's packages
    Uefi,
}
