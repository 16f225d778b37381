//! Saving, resuming and moving on the command line.

use super::{Common, Devices, Log, Services, values};
use crate::manager::saving::When;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Saving a machine that runs.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Saving (keeps one more CPU back from the guest)")]
pub struct Saving {
    /// Save the machine in this file, from which `cargo hv resume` goes on, and end it
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// When: at the end of the command of --run (without it, when the shell is there), so long after its begin, or when it is asked
    /// for, by `s` in the live view or by SIGUSR1, which count in any case [default: end]
    #[arg(long, value_name = "end|TIME|asked", requires = "save", value_parser = values::when)]
    pub save_when: Option<When>,
    /// Let the guest run on after it was saved
    #[arg(long, requires = "save")]
    pub save_and_go: bool,
}

/// `cargo hv resume`.
#[derive(Debug, Args)]
pub struct Resume {
    /// The file that --save has written
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Run this in a guest that was saved when its command was done, and exit with its status. A command that ran when the guest was
    /// saved goes on without this, and its status is the one
    #[arg(long, value_name = "SHELL COMMAND", allow_hyphen_values = true)]
    pub run: Option<String>,
    /// The QEMU to use [default: qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH", env = "HV_QEMU", value_parser = values::qemu())]
    pub qemu: Option<PathBuf>,
    /// End the run after this time: 90, 5m, 1h [default: never for a shell, otherwise 5m]
    #[arg(long, value_name = "TIME", value_parser = values::limit)]
    pub timeout: Option<Duration>,
    /// What the hypervisor logs; `debug` also shows what else is on the console
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Log::Info)]
    pub log: Log,
    /// Do not give the guest one register back, as the Arm ARM calls it, to see it missed
    #[arg(long, value_name = "REGISTER", hide = true)]
    pub leave_out: Option<String>,
    /// Saving it again.
    #[command(flatten)]
    pub saving: Saving,
    /// What is done while the guest runs.
    #[command(flatten)]
    pub services: Services,
}

/// `cargo hv migrate`.
#[derive(Debug, Args)]
pub struct Migrate {
    /// Run this in the guest: it begins on one machine, and ends on the other [default: a command that writes memory for a
    /// while]
    #[arg(long, value_name = "SHELL COMMAND", allow_hyphen_values = true)]
    pub run: Option<String>,
    /// Stop the guest for the last pages when no more than so many are dirty
    #[arg(long, value_name = "PAGES", default_value_t = 512)]
    pub max_downtime: u64,
    /// Give up after so many rounds of dirty pages; the guest then runs on where it is
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub rounds: u64,
    /// Begin so long after the command has begun
    #[arg(long, value_name = "TIME", value_parser = values::pause)]
    pub after: Option<Duration>,
    /// Then have QEMU itself move the same guest, with no hypervisor below it, and show both
    #[arg(long)]
    pub beside_qemu: bool,
    /// End one of the two, or the file, at a step of the move, to see what becomes of the guest
    #[arg(long, value_name = "WHAT@STEP", hide = true)]
    pub fail: Option<String>,
    /// Disks and a network, which move with it.
    #[command(flatten)]
    pub devices: Devices,
    /// The machine.
    #[command(flatten)]
    pub common: Common,
}
