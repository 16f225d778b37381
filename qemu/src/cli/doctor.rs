//! What `cargo hv doctor` can be told.

use super::values;
use clap::Args;
use std::path::PathBuf;

/// `cargo hv doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 all is there, or the first command that needs it gets it; 1 something is missing that you have to get."
)]
pub struct Doctor {
    /// The QEMU to look at
    #[arg(long, value_name = "PATH", env = "HV_QEMU", value_parser = values::qemu())]
    pub qemu: Option<PathBuf>,
}
