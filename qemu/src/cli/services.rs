//! What the management core can be asked for on the command line.

use crate::manager::about::Setup;
use crate::manager::plan::{Plan, Protect};
use clap::{Args, ValueEnum};
use hypervisor_abi::manager::Mechanism;
use std::path::PathBuf;
use std::time::Duration;

/// What the management core does while the guest runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Services (they keep one more CPU back from the guest)")]
pub struct Services {
    /// Log which pages the guest writes
    #[arg(long, value_enum, value_name = "MODE")]
    pub dirty: Option<Dirty>,
    /// With write protection: split all blocks to pages at the start, not at their first write
    #[arg(long, requires = "dirty")]
    pub eager: bool,
    /// With hardware: what is marked
    #[arg(long, value_enum, value_name = "page|block", default_value_t = Granularity::Page)]
    pub granularity: Granularity,
    /// From one harvest to the next
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub every: Duration,
    /// Write the log here: dirty.csv, dirty.bitmaps, dirty.png (and stores.csv with --protect)
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Report stores to these guest physical addresses, or deny them; may be repeated, and `deny` wins
    #[arg(long, value_name = "START-END:deny|report")]
    pub protect: Vec<Protect>,
    /// Protect when the command of --run begins, not from the guest's first instruction on: Linux writes its own code
    /// while it boots
    #[arg(long, requires = "protect")]
    pub protect_late: bool,
    /// Freeze the guest at each harvest and check that no page changed without being reported
    #[arg(long)]
    pub audit: bool,
    /// End the log, or the audit, after so many rounds [default: when the guest ends]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: Option<u64>,
    /// Split all memory to pages and collapse it again, at least so often, one round every --every seconds
    #[arg(long, value_name = "ROUNDS", conflicts_with_all = ["dirty", "audit"])]
    pub split_storm: Option<u64>,
    /// Split, protect and collapse ranges of the guest's memory at random, every --every seconds
    #[arg(long, value_name = "SEED", conflicts_with_all = ["dirty", "audit", "split_storm"])]
    pub churn: Option<u64>,
    /// Log everything that the engine does, and let the oracle judge it at the end (slow)
    #[arg(long)]
    pub oracle: bool,
    /// Keep the oracle's log in a file, for `cargo hv replay`
    #[arg(long, value_name = "FILE", requires = "oracle")]
    pub events: Option<PathBuf>,
    /// Keep a CPU back for management [default: on if a service is used]
    #[arg(long, value_enum, value_name = "on|off")]
    pub manager: Option<Switch>,
    /// Leave every Nth dirty page out of the reports, to see an audit fail
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub drop_dirty: Option<u64>,
    /// Let this CPU come without FEAT_BBM when the guest turns it on, and repaint for it
    #[arg(long, value_name = "AFFINITY", hide = true)]
    pub weaken: Option<u64>,
}

impl Services {
    /// What a session is to do; nothing if there is to be none.
    ///
    /// # Errors
    /// A service without its management core, or a choice that belongs to another mode.
    pub fn plan(&self) -> anyhow::Result<Option<Plan>> {
        let mechanism = self.dirty.or(self.audit.then_some(Dirty::Auto)).map(|dirty| match (dirty, self.granularity) {
            (Dirty::Auto, Granularity::Page) => Mechanism::Auto,
            (Dirty::WriteProtect, _) if self.eager => Mechanism::WriteProtectEager,
            (Dirty::WriteProtect, _) => Mechanism::WriteProtect,
            (Dirty::Hardware, Granularity::Page) => Mechanism::HardwarePage,
            (Dirty::Auto | Dirty::Hardware, Granularity::Block) => Mechanism::HardwareBlock,
        });
        anyhow::ensure!(
            !self.eager || mechanism == Some(Mechanism::WriteProtectEager),
            "--eager belongs to --dirty write-protect"
        );
        let changes = self.split_storm.is_some() || self.churn.is_some();
        let used = mechanism.is_some() || !self.protect.is_empty() || changes || self.oracle;
        match self.manager {
            Some(Switch::Off) if used => {
                anyhow::bail!("--manager off leaves nobody to do what is asked for: leave it out")
            }
            Some(Switch::Off) => return Ok(None),
            None if !used => return Ok(None),
            Some(Switch::On) | None => {}
        }
        Ok(Some(Plan {
            dirty: mechanism,
            every: self.every,
            out: self.out.clone(),
            // The caller knows the machine.
            setup: Setup::default(),
            protect: self.protect.clone(),
            protect_late: self.protect_late,
            audit: self.audit,
            rounds: self.rounds,
            storm: self.split_storm,
            churn: self.churn,
            events: self.events.clone(),
            drop_dirty: self.drop_dirty,
        }))
    }
}

/// How dirty pages are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dirty {
    /// By hardware where all CPUs can, otherwise by write protection
    Auto,
    /// By the fault of each page's first write
    WriteProtect,
    /// By the CPUs' own dirty state (FEAT_HAFDBS)
    Hardware,
}

/// What hardware marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Granularity {
    /// Pages of 4 KiB; all blocks are split at the start
    Page,
    /// Blocks of 2 MiB; only those that are written again and again are split
    Block,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "they say it themselves")]
pub enum Switch {
    On,
    Off,
}

/// A time from 10 ms to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "that is no number of seconds")?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if (0.01..=86_400.0).contains(&seconds) => Ok(time),
        _ => Err("from 0.01 to 86400 seconds".into()),
    }
}
