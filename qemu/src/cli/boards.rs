//! The options of the commands about boards.

use clap::Args;
use std::path::PathBuf;

/// `cargo hv trees`.
#[derive(Debug, Args)]
pub struct Trees {
    /// A tree, or a folder with trees (*.dtb) in it [default: those of Debian's kernel package, which is fetched]
    #[arg(value_name = "FILE|DIR")]
    pub path: Option<PathBuf>,
    /// Only the counts, by reason
    #[arg(long)]
    pub summary: bool,
    /// Compare the timer's and the UART's interrupts of the boards that docs/boards.md lists with what another program has read;
    /// the exit status is 1 if one differs
    #[arg(long)]
    pub check_interrupts: bool,
}

/// `cargo hv boards`.
///
/// The boards need QEMU 10.0 or newer: HV_QEMU's, the one in PATH, or else Debian's backports' one (13 MB), unpacked below
/// target/. Their device trees are Linux's own, from Debian's kernel package (93 MB), with the guest's files added as modules in
/// /chosen. U-Boot is Debian's u-boot-qemu, driven over its console.
///
/// The exit status is 1 if one of them does not get to a Linux that prints on the board's own UART and powers off.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Boards {
    /// Only this one (may be given more than once): u-boot, xlnx-versal-virt, xlnx-zcu102, imx8mp-evk
    #[arg(long, value_name = "BOARD")]
    pub only: Vec<String>,
    /// Seconds that each may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// QEMU [default: one that is found, or fetched]
    #[arg(long, value_name = "FILE", env = "HV_QEMU")]
    pub qemu: Option<PathBuf>,
}
