//! The options of `cargo hv debug`.

use super::Common;
use clap::Args;
use std::path::PathBuf;

/// `cargo hv debug`.
#[derive(Debug, Args)]
pub struct Debug {
    /// The guest is the EL1 test suite, whose names gdb is told
    #[arg(long, conflicts_with_all = ["kernel", "symbols"])]
    pub payload: bool,
    /// The guest's kernel: an arm64 Image [default: Debian's cloud kernel, with a shell]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Its initramfs
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// The kernel's ELF file (vmlinux), for its names; it is started without KASLR
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub symbols: Option<PathBuf>,
    /// More arguments for the guest
    #[arg(long, value_name = "STR", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub append: String,
    /// The machine.
    #[command(flatten)]
    pub common: Common,
}
