//! `cargo hv report` and `cargo hv replay` on the command line.

use clap::Args;
use std::path::PathBuf;

/// `cargo hv report`.
#[derive(Debug, Args)]
pub struct Report {
    /// The folder of the run
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Write the page here [default: DIR/report.html]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `cargo hv replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}
