//! The command line.

mod boards;
mod common;
mod debug;
mod devices;
mod doctor;
mod help;
mod report;
mod saving;
mod services;
mod tlb;
mod values;

pub use boards::{Boards, Trees};
pub use common::{Bbm, Common, Firmware, Granule, Log, name};
pub use debug::Debug;
pub use devices::Devices;
pub use doctor::Doctor;
pub use report::{Replay, Report};
pub use saving::{Migrate, Resume, Saving};
pub use services::{Dirty, Granularity, Services, Switch};

use crate::added::Added;
use crate::setup::guest::Kernel;
use crate::workspace;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use std::time::Duration;

/// `cargo hv`.
#[derive(Debug, Parser)]
#[command(
    name = "hv",
    bin_name = "cargo hv",
    version,
    about = "Builds the Unbroken hypervisor and runs it in QEMU",
    after_help = help::AFTER,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads this process's command line; a mistake in it, `--help` and `--version` end the process. The version is that of
    /// the checkout which `cargo hv` was built from, its commit included.
    pub fn read() -> Self {
        let asks = std::env::args_os().any(|word| word == "--version" || word == "-V");
        let version = match workspace::commit().filter(|_| asks) {
            Some(commit) => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
            None => env!("CARGO_PKG_VERSION").to_owned(),
        };
        // Once in a process, and to its end.
        let version: &'static str = version.leak();
        let matches = Self::command().version(version).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot Linux under the hypervisor: a shell, or one command
    Linux(Box<Linux>),
    /// Go on with a machine that `cargo hv linux --save FILE` has saved
    Resume(Box<Resume>),
    /// Move a running Linux from one machine to another while it works, and print a table
    Migrate(Box<Migrate>),
    /// Run the EL1 test suite under the hypervisor
    Payload(Payload),
    /// Run the engine inside a secure-partition manager at S-EL2 (examples/secure-partition)
    SecurePartition(SecurePartition),
    /// Run the engine in the smallest program at EL2 that runs a guest (examples/quickstart)
    Quickstart {
        /// QEMU's CPU: its FEAT_BBM level decides how sizes change (cortex-a53 has level 0)
        #[arg(long, value_name = "CPU", default_value = "max")]
        cpu: String,
    },
    /// Check on Linux that no dirty page is missed: every mechanism, 1, 2 and 4 CPUs, with and without FEAT_BBM
    Audit(Audit),
    /// Let the oracle judge the events that `cargo hv linux --oracle --events FILE` has kept
    Replay(Replay),
    /// Make a page of a run that `cargo hv linux --out DIR` has recorded
    Report(Report),
    /// Let the hypervisor read device trees of boards, and say what it makes of each
    Trees(Trees),
    /// Boot Linux under the hypervisor on boards that QEMU models and by U-Boot, and print a table
    Boards(Boards),
    /// Start a machine that waits for gdb, which then knows the hypervisor's and the guest's names
    Debug(Box<Debug>),
    /// Count what the hot paths cost, in instructions, and print it beside KVM
    Bench(Bench),
    /// Check everything that CI checks: format, lints, docs, host tests, system tests
    Test(Test),
    /// Print what is installed, what is missing, and what would be done about it
    Doctor(Doctor),
    /// Print what a shell is to know of this command line: eval "$(cargo hv completion bash)"
    ///
    /// bash completes `cargo hv` and `hv`; zsh and fish complete `hv`, as after alias hv='cargo hv'.
    Completion {
        /// The shell
        #[arg(value_name = "bash|zsh|fish")]
        shell: Shell,
    },
}

/// `cargo hv linux`.
#[derive(Debug, Args)]
pub struct Linux {
    /// The guest's kernel: an arm64 Image, or Debian's newest cloud kernel of a series, as in debian-6.12 [default:
    /// Debian's cloud kernel]
    #[arg(long, value_name = "FILE|debian-N.N")]
    pub kernel: Option<Kernel>,
    /// Start the file of --kernel at its first byte though it is no arm64 Image
    #[arg(long, requires = "kernel")]
    pub raw: bool,
    /// The guest's initramfs [default: busybox and a shell]
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Put a file or a folder into the guest's initramfs, at PATH or at /NAME; may be repeated
    #[arg(long, value_name = "FILE[:PATH]")]
    pub add: Vec<Added>,
    /// More arguments for the guest's kernel
    #[arg(long, value_name = "STR", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub append: String,
    /// Run this in a shell in the guest, print what it prints, and exit with its status. A file or a pipe that is standard
    /// input is the command's, too
    #[arg(long, value_name = "SHELL COMMAND", allow_hyphen_values = true)]
    pub run: Option<String>,
    /// The command has no standard input, whatever this process has.
    #[arg(skip)]
    pub without_input: bool,
    /// What starts the hypervisor: QEMU itself, or UEFI firmware and GRUB, as on a server
    #[arg(long, value_enum, value_name = "none|uefi", default_value_t = Firmware::None)]
    pub firmware: Firmware,
    /// The guest's devices.
    #[command(flatten)]
    pub devices: Devices,
    /// What is done while the guest runs.
    #[command(flatten)]
    pub services: Services,
    /// Saving it.
    #[command(flatten)]
    pub saving: Saving,
    /// The machine.
    #[command(flatten)]
    pub common: Common,
    /// Pages of the guest's stage-2 table. The CPUs must have them at stage 2; a device that does not fill its page is reached
    /// through EL2
    #[arg(long, value_enum, value_name = "4k|16k|64k", default_value_t = Granule::K4, help_heading = "Machine")]
    pub granule: Granule,
}

/// `cargo hv payload`.
#[derive(Debug, Args)]
pub struct Payload {
    /// Run only the tests whose name contains this
    #[arg(long, value_name = "NAME", value_parser = values::filter)]
    pub filter: Option<String>,
    /// Run the suite on every machine: CPU models, ways to change sizes, ways to keep dirty logs, 1, 2 and 4 CPUs
    #[arg(long, conflicts_with_all = ["image", "cpu", "gic", "smp", "bbm"])]
    pub matrix: bool,
    /// Write the results as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Run this guest, an arm64 Image, instead of the suite; a result that it prints is passed on
    #[arg(long, value_name = "FILE", conflicts_with = "filter")]
    pub image: Option<PathBuf>,
    /// Start the file of --image at its first byte though it is no arm64 Image
    #[arg(long, requires = "image")]
    pub raw: bool,
    /// Arguments for the guest; the suite's own are described in guest-payload/src/options.rs
    #[arg(long, value_name = "STR", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub append: String,
    /// The machine.
    #[command(flatten)]
    pub common: Common,
}

impl Payload {
    /// The suite on every machine, as `cargo hv payload --matrix` runs it.
    pub fn matrix() -> Self {
        let words = ["hv", "payload", "--matrix"];
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Payload(payload)) => payload,
            other => unreachable!("{words:?} are understood: {other:?}"),
        }
    }
}

/// `cargo hv secure-partition`.
#[derive(Debug, Args)]
pub struct SecurePartition {
    /// Print the size of the engine's code in the example, and the stack that its calls take, instead of running it
    #[arg(long, conflicts_with_all = ["bbm", "moves", "seed", "cpu", "timeout"])]
    pub size: bool,
    /// With --size: store it, and write it into the docs
    #[arg(long, requires = "size")]
    pub renew: bool,
    /// How stage-2 leaves change their size; `auto` is what the CPUs allow
    #[arg(long, value_enum, default_value_t = Bbm::Auto)]
    pub bbm: Bbm,
    /// How often memory moves from one partition to the other and back
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub moves: u64,
    /// What the moves are made of
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// CPU model, as QEMU names it; it needs a Secure EL2
    #[arg(long, value_name = "MODEL", default_value = "max")]
    pub cpu: String,
    /// The QEMU to use [default: qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH", env = "HV_QEMU", value_parser = values::qemu())]
    pub qemu: Option<PathBuf>,
    /// End the run after this time: 90, 5m, 1h [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = values::limit)]
    pub timeout: Option<Duration>,
}

/// `cargo hv test`.
#[derive(Debug, Args)]
pub struct Test {
    /// Only what is worth waiting for between two changes, in three minutes: lints of what has changed, the engine, the oracle
    /// in short, one boot, the payload on one machine
    #[arg(long, conflicts_with_all = ["all", "names"])]
    pub quick: bool,
    /// The long tests, too, and the payload on every machine
    #[arg(long)]
    pub all: bool,
    /// Print the checks' names, and run none
    #[arg(long)]
    pub list: bool,
    /// Only these: a check, or one of its tests [default: all that CI checks]
    #[arg(value_name = "CHECK[::TEST]")]
    pub names: Vec<String>,
}

/// `cargo hv audit`.
#[derive(Debug, Clone, Args)]
pub struct Audit {
    /// Only the runs that `cargo hv test` makes
    #[arg(long)]
    pub short: bool,
    /// Only the runs whose guest works on a disk and a network
    #[arg(long)]
    pub devices: bool,
    /// How long the guest works in each run
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// The QEMU to use [default: qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH", env = "HV_QEMU", value_parser = values::qemu())]
    pub qemu: Option<PathBuf>,
}

/// `cargo hv bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Measure KVM anew, with Debian's kernel at EL2 in the same QEMU
    #[arg(long)]
    pub kvm: bool,
    /// With --kvm: the kernel, an arm64 Image [default: Debian's newest cloud kernel]
    #[arg(long, value_name = "FILE", requires = "kvm")]
    pub kernel: Option<PathBuf>,
    /// Time the engine on this host instead, beside memset, plain reads and peer crates; fail if a ratio is missed
    #[arg(long, conflicts_with_all = ["kvm", "check", "renew", "json", "timeout"])]
    pub native: bool,
    /// With --native: only the ratios that have limits
    #[arg(long, requires = "native")]
    pub quick: bool,
    /// Compare ways to keep a dirty log instead, on one workload: a table, and a picture in --out
    #[arg(long, group = "picture", conflicts_with_all = ["kvm", "check", "json", "native"])]
    pub strategies: bool,
    /// Time the engine's calls on this host by the size of the guest's memory, 1 to 256 GiB, and print a table
    #[arg(long, conflicts_with_all = ["kvm", "check", "json", "native", "picture", "timeout", "qemu"])]
    pub scale: bool,
    /// Count first writes of 1, 2, 4 and 8 CPUs at once, and how often they meet in the oracle, and print a table
    #[arg(long, conflicts_with_all = ["kvm", "check", "json", "native", "picture", "scale"])]
    pub vcpus: bool,
    /// The model of TLBs.
    #[command(flatten)]
    pub tlb: tlb::Tlb,
    /// With --strategies or --tlb: write the picture here [default: target/hv/bench]
    #[arg(long, value_name = "DIR", requires = "picture")]
    pub out: Option<PathBuf>,
    /// Fail if a row is over its limit, two runs differ, or a row got 2 % worse than the stored baseline
    #[arg(long)]
    pub check: bool,
    /// Store what is measured now (the baseline; KVM's column too, with --kvm; with --strategies, --scale, --vcpus or
    /// --tlb, those figures), and write it into README and docs
    #[arg(long, conflicts_with = "check")]
    pub renew: bool,
    /// Measure nothing: write the stored figures into README and docs
    #[arg(long, exclusive = true)]
    pub documents: bool,
    /// Write what was measured, and KVM's column, to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The QEMU to use [default: qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH", env = "HV_QEMU", value_parser = values::qemu())]
    pub qemu: Option<PathBuf>,
    /// End each measurement after this time: 90, 5m, 1h [default: 10m; 15m with --tlb]
    #[arg(long, value_name = "TIME", value_parser = values::limit)]
    pub timeout: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Gic;
    use crate::size::Size;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_are_read() {
        let cli = Cli::try_parse_from([
            "hv",
            "linux",
            "--run",
            "-x 'y'",
            "--memory",
            "4G",
            "--gic",
            "2",
            "--smp",
            "4",
            "--bbm",
            "nt",
            "--granule",
            "16k",
            "--",
            "-seed",
            "1",
        ]);
        let Command::Linux(linux) = cli.unwrap().command else { panic!("not linux") };
        assert_eq!(linux.run.as_deref(), Some("-x 'y'"));
        assert_eq!((linux.common.memory, linux.common.gic), (Some(Size::mib(4096)), Gic::V2));
        assert_eq!((name(linux.common.bbm), linux.granule), ("nt".to_owned(), Granule::K16));
        assert_eq!(linux.common.extra, ["-seed", "1"]);
    }

    #[test]
    fn the_matrix_is_what_its_option_says() {
        assert!(Payload::matrix().matrix);
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["linux", "--gic", "4"][..],
            &["linux", "--smp", "0"],
            &["linux", "--memory", "big"],
            &["linux", "--firmware", "bios"],
            &["payload", "--filter", "a b"],
            &["payload", "--matrix", "--cpu", "max"],
            &["payload", "--image", "x", "--filter", "y"],
            &["linux", "--timeout", "0"],
            &["linux", "--raw"],
            &["payload", "--raw"],
            &["secure-partition", "--size", "--moves", "3"],
            &["linux", "--kernel", "debian-new"],
            &["bench", "--kernel", "Image"],
            &["bench", "--check", "--renew"],
            &["bench", "--quick"],
            &["bench", "--native", "--kvm"],
            &["test", "--quick", "--all"],
            &["test", "--quick", "format"],
            &["fly"],
            &[],
        ] {
            assert!(Cli::try_parse_from([&["hv"], words].concat()).is_err(), "{words:?}");
        }
    }
}
