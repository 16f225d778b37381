//! The command line.

mod devices;
mod report;
mod services;

pub use devices::Devices;
pub use report::Report;
pub use services::{Dirty, Granularity, Services, Switch};

use crate::machine::Gic;
use crate::setup::guest::Kernel;
use crate::size::Size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// `cargo hv`.
#[derive(Debug, Parser)]
#[command(
    name = "hv",
    bin_name = "cargo hv",
    version,
    about = "Builds the Unbroken hypervisor and runs it in QEMU",
    after_help = EXAMPLES,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo hv linux                              Debian's kernel and a shell under the hypervisor; Ctrl-A X leaves
  cargo hv linux --run 'nproc; free'          run a command in the guest, print its output, exit with its status
  cargo hv linux --cpu cortex-a72 --gic 2 --smp 4 --memory 4G
  cargo hv linux --kernel Image --initrd rootfs.cpio.gz --append 'loglevel=8'
  cargo hv linux --kernel debian-6.12         a newer kernel of Debian's; it uses 52-bit addresses where the CPU can
  cargo hv linux --firmware uefi              the same, started by UEFI and GRUB as on a server
  cargo hv linux --rootfs debian --net        Debian with systemd from a disk, and a network
  cargo hv linux --dirty auto --out dirty     see in dirty/dirty.png which memory the guest writes
  cargo hv report dirty                       the same as a page: dirty/report.html
  cargo hv linux --churn 1 --oracle --run 'sha256sum /hv/busybox'
  cargo hv linux --audit --run 'sha256sum /hv/busybox'
  cargo hv payload                            the EL1 test suite
  cargo hv payload --matrix --junit out.xml   the same on every kind of CPU
  cargo hv payload --image FILE --append ARGS another's guest, run in the same way
  cargo hv bench                              what the hot paths cost, in instructions, beside KVM
  cargo hv secure-partition                   the engine in another program: a secure-partition manager at S-EL2
  cargo hv quickstart                         the engine in 300 lines at EL2: a page is protected under a guest
  cargo hv test                               everything that CI checks, in 25 minutes; --quick in three
  cargo hv doctor                             what is installed, what is missing

Whatever is missing (the Rust target, QEMU, the guest's kernel, firmware) is fetched the first time and kept under target/hv.

Environment:
  HV_QEMU         the QEMU to use, as --qemu
  HV_APT_SOURCES  a sources.list to fetch the guest's arm64 packages from, where the system's own archives have none
  HV_SHOW_QEMU    if set, QEMU's command line is shown

Exit status: 0 the guest powered off or rebooted; with --run, the command's own status. Otherwise:
  2 wrong arguments           120 the hypervisor refused to start      121 the hypervisor crashed
  122 QEMU ended unexpectedly 123 the run ended without a result       124 timeout
  125 set-up or build failed";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot Linux under the hypervisor: a shell, or one command
    Linux(Box<Linux>),
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
    /// Count what the hot paths cost, in instructions, and print it beside KVM
    Bench(Bench),
    /// Check everything that CI checks: format, lints, docs, host tests, system tests
    Test(Test),
    /// Print what is installed, what is missing, and what would be done about it
    Doctor(Doctor),
}

/// `cargo hv trees`.
#[derive(Debug, Args)]
pub struct Trees {
    /// A tree, or a folder with trees (*.dtb) in it [default: those of Debian's kernel package, which is fetched]
    #[arg(value_name = "FILE|DIR")]
    pub path: Option<PathBuf>,
    /// Only the counts, by reason
    #[arg(long)]
    pub summary: bool,
}

/// `cargo hv linux`.
#[derive(Debug, Args)]
pub struct Linux {
    /// The guest's kernel: an arm64 Image, or Debian's newest cloud kernel of a series, as in debian-6.12 [default:
    /// Debian's cloud kernel]
    #[arg(long, value_name = "FILE|debian-N.N")]
    pub kernel: Option<Kernel>,
    /// The guest's initramfs [default: busybox and a shell]
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// More arguments for the guest's kernel
    #[arg(long, value_name = "STR", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Run this in a shell in the guest, print what it prints, and exit with its status
    #[arg(long, value_name = "SHELL COMMAND", allow_hyphen_values = true)]
    pub run: Option<String>,
    /// What starts the hypervisor: QEMU itself, or UEFI firmware and GRUB, as on a server
    #[arg(long, value_enum, value_name = "none|uefi", default_value_t = Firmware::None)]
    pub firmware: Firmware,
    /// The guest's devices.
    #[command(flatten)]
    pub devices: Devices,
    /// What is done while the guest runs.
    #[command(flatten)]
    pub services: Services,
    /// The machine.
    #[command(flatten)]
    pub common: Common,
}

/// `cargo hv payload`.
#[derive(Debug, Args)]
pub struct Payload {
    /// Run only the tests whose name contains this
    #[arg(long, value_name = "NAME", value_parser = filter)]
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
    /// Arguments for the guest; the suite's own are described in guest-payload/src/options.rs
    #[arg(long, value_name = "STR", default_value = "", allow_hyphen_values = true)]
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
    #[arg(long)]
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
    #[arg(long, value_name = "PATH", env = "HV_QEMU")]
    pub qemu: Option<PathBuf>,
    /// End the run after so many seconds [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
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
    /// How long the guest works in each run
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// The QEMU to use [default: qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH", env = "HV_QEMU")]
    pub qemu: Option<PathBuf>,
}

/// `cargo hv replay`.
#[derive(Debug, Args)]
pub struct Replay {
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
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
    #[arg(long, conflicts_with_all = ["kvm", "check", "renew", "json"])]
    pub native: bool,
    /// With --native: only the ratios that have limits
    #[arg(long, requires = "native")]
    pub quick: bool,
    /// Compare ways to keep a dirty log instead, on one workload: a table, and a picture in --out
    #[arg(long, conflicts_with_all = ["kvm", "check", "json", "native"])]
    pub strategies: bool,
    /// With --strategies: write strategies.png here [default: target/hv/bench]
    #[arg(long, value_name = "DIR", requires = "strategies")]
    pub out: Option<PathBuf>,
    /// Fail if a row is over its limit, two runs differ, or a row got 2 % worse than the stored baseline
    #[arg(long)]
    pub check: bool,
    /// Store what is measured now (the baseline; KVM's column too, with --kvm; the ways to keep a log, with --strategies), and
    /// write it into README and docs
    #[arg(long, conflicts_with = "check")]
    pub renew: bool,
    /// Measure nothing: write the stored figures into README and docs
    #[arg(long, exclusive = true)]
    pub documents: bool,
    /// Write what was measured, and KVM's column, to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// The QEMU to use [default: qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH", env = "HV_QEMU")]
    pub qemu: Option<PathBuf>,
    /// End each measurement after so many seconds [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
}

/// `cargo hv doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The QEMU to look at
    #[arg(long, value_name = "PATH", env = "HV_QEMU")]
    pub qemu: Option<PathBuf>,
}

/// What all commands that run a machine have in common.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Machine")]
pub struct Common {
    /// CPU model, as QEMU names it (max, cortex-a72, cortex-a76, neoverse-n1, ...)
    #[arg(long, value_name = "MODEL", default_value = "max")]
    pub cpu: String,
    /// Version of the interrupt controller
    #[arg(long, value_name = "2|3", default_value = "3", value_parser = gic)]
    pub gic: Gic,
    /// The guest's CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub smp: u32,
    /// RAM of the machine: 512M, 4G [default: 1G; 4G for the payload]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// The QEMU to use [default: qemu-system-aarch64 in PATH]
    #[arg(long, value_name = "PATH", env = "HV_QEMU")]
    pub qemu: Option<PathBuf>,
    /// End the run after so many seconds [default: none for a shell, otherwise 300]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
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
        Duration::from_secs(self.timeout.unwrap_or(default))
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

fn gic(text: &str) -> Result<Gic, String> {
    match text {
        "2" => Ok(Gic::V2),
        "3" => Ok(Gic::V3),
        _ => Err("there are versions 2 and 3".into()),
    }
}

/// A filter becomes one word of the payload's arguments.
fn filter(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("a test's name has no spaces".into());
    }
    Ok(text.to_owned())
}

/// What starts the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Firmware {
    /// QEMU itself, as a boot loader that knows nothing but arm64 Images
    None,
    /// EDK2 and GRUB, from Debian's packages
    Uefi,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_are_read() {
        let cli = Cli::try_parse_from([
            "hv", "linux", "--run", "-x 'y'", "--memory", "4G", "--gic", "2", "--smp", "4", "--bbm", "nt", "--",
            "-seed", "1",
        ]);
        let Command::Linux(linux) = cli.unwrap().command else { panic!("not linux") };
        assert_eq!(linux.run.as_deref(), Some("-x 'y'"));
        assert_eq!((linux.common.memory, linux.common.gic), (Some(Size::mib(4096)), Gic::V2));
        assert_eq!(name(linux.common.bbm), "nt");
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
