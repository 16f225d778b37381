//! What the management core can be asked for on the command line.

use super::values;
use crate::manager::about::Setup;
use crate::manager::plan::{Plan, Protect};
use anyhow::{bail, ensure};
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
    /// With hardware: what is marked [default: page]
    #[arg(long, value_enum, value_name = "page|block")]
    pub granularity: Option<Granularity>,
    /// From one harvest, or one round, to the next: 0.5, 200ms, 2 [default: 1]
    #[arg(long, value_name = "TIME", value_parser = values::pause)]
    pub every: Option<Duration>,
    /// With --run in a terminal: plain lines below the guest's output, not the live view that takes the screen
    #[arg(long)]
    pub plain: bool,
    /// Write the log here: dirty.csv, dirty.bitmaps, dirty.png; stores.csv with --protect
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
    #[arg(long, value_name = "N", value_parser = values::count)]
    pub rounds: Option<u64>,
    /// At each harvest, reset mediated devices and let them go on where they were, as a save does, and as a log's last harvest
    /// should
    #[arg(long)]
    pub quiesce: bool,
    /// Split all memory to pages and collapse it again, at least so often, one round every --every seconds
    #[arg(long, value_name = "ROUNDS", value_parser = values::count, conflicts_with_all = ["dirty", "audit"])]
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
    #[arg(long, value_name = "N", hide = true, value_parser = values::count)]
    pub drop_dirty: Option<u64>,
    /// Do not mark what mediated devices write in one of two cases, to see an audit fail: in-flight or completed
    #[arg(long, value_name = "CASE", hide = true)]
    pub unmarked: Option<String>,
    /// Let this CPU come without FEAT_BBM when the guest turns it on, and repaint for it
    #[arg(long, value_name = "AFFINITY", hide = true)]
    pub weaken: Option<u64>,
}

impl Services {
    /// What a session is to do; nothing if there is to be none.
    ///
    /// # Errors
    /// A service without its management core, or an option that would have no effect.
    pub fn plan(&self) -> anyhow::Result<Option<Plan>> {
        let mechanism = self.dirty.or(self.audit.then_some(Dirty::Auto)).map(|dirty| match (dirty, self.granularity) {
            (Dirty::Auto, None | Some(Granularity::Page)) => Mechanism::Auto,
            (Dirty::WriteProtect, _) if self.eager => Mechanism::WriteProtectEager,
            (Dirty::WriteProtect, _) => Mechanism::WriteProtect,
            (Dirty::Hardware, None | Some(Granularity::Page)) => Mechanism::HardwarePage,
            (Dirty::Auto | Dirty::Hardware, Some(Granularity::Block)) => Mechanism::HardwareBlock,
        });
        let changes = self.split_storm.is_some() || self.churn.is_some();
        let used = mechanism.is_some() || !self.protect.is_empty() || changes || self.oracle;
        self.check_effects(mechanism, used)?;
        match self.manager {
            Some(Switch::Off) if used => bail!(
                "--manager off leaves no CPU that could do what the other options ask for; leave it out, or leave them out"
            ),
            Some(Switch::Off) => return Ok(None),
            None if !used => return Ok(None),
            Some(Switch::On) | None => {}
        }
        Ok(Some(Plan {
            dirty: mechanism,
            every: self.every.unwrap_or(Duration::from_secs(1)),
            out: self.out.clone(),
            // The caller knows the machine.
            setup: Setup::default(),
            kernel: None,
            protect: self.protect.clone(),
            protect_late: self.protect_late,
            audit: self.audit,
            rounds: self.rounds,
            quiesce: self.quiesce,
            storm: self.split_storm,
            churn: self.churn,
            events: self.events.clone(),
            drop_dirty: self.drop_dirty,
            save: None,
            resume: None,
            unmarked: self.unmarked.clone(),
        }))
    }

    /// Refuses options that would do nothing.
    fn check_effects(&self, mechanism: Option<Mechanism>, used: bool) -> anyhow::Result<()> {
        let logs = mechanism.is_some();
        ensure!(
            !self.eager || mechanism == Some(Mechanism::WriteProtectEager),
            "--eager has no effect without write protection; add --dirty write-protect, or leave --eager out"
        );
        ensure!(
            self.granularity.is_none() || (logs && self.dirty != Some(Dirty::WriteProtect)),
            "--granularity has no effect unless hardware marks what is written; add --dirty hardware, or leave it out"
        );
        ensure!(
            self.out.is_none() || logs || !self.protect.is_empty(),
            "--out has no effect, for nothing would be written there; add --dirty auto or --protect, or leave it out"
        );
        ensure!(
            self.rounds.is_none() || logs,
            "--rounds has no effect without a log or an audit; add --dirty auto or --audit, or leave it out"
        );
        ensure!(
            !self.quiesce || logs,
            "--quiesce has no effect without a log or an audit; add --dirty auto or --audit, or leave it out"
        );
        ensure!(
            self.every.is_none() || used,
            "--every has no effect without a service; add one, as --dirty auto, or leave it out"
        );
        Ok(())
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
