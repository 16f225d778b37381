//! What is left of a session.

use hypervisor_abi::manager::{Census, Findings, Mechanism};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What is left of a session when it is over.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// How the log was kept.
    pub mechanism: Option<Mechanism>,
    /// Harvests and audits.
    pub rounds: u64,
    /// Dirty pages of all rounds together.
    pub pages: u64,
    /// Where the log's files are.
    pub out: Option<PathBuf>,
    /// Sums over all audits, and how many there were.
    pub audit: Option<(u64, Findings)>,
    /// Leaves and tables before the log and after it.
    pub restored: Option<(Census, Census)>,
    /// Stores that met a policy: reported, denied, and lost.
    pub stores: Option<[u64; 3]>,
    /// Rounds of splitting and collapsing, and what the engine counted meanwhile.
    pub storm: Option<(u64, BTreeMap<String, u64>)>,
    /// Rounds of random changes.
    pub churn: Option<u64>,
    /// Where the engine's events are.
    pub events: Option<PathBuf>,
    /// The file that the machine was saved in, and its pages.
    pub saved: Option<(PathBuf, u64)>,
    /// The machine was gone before the plan was done.
    pub cut_short: bool,
    /// What was asked for and did not happen, in sentences.
    pub failures: Vec<String>,
}

impl Summary {
    /// The audit's last line.
    pub fn audit_line(&self) -> Option<String> {
        let (rounds, found) = self.audit?;
        Some(format!(
            "audit: rounds {rounds}, pages changed {}, reported {}, missed {}, over-reported {}",
            found.changed, found.reported, found.missed, found.over_reported
        ))
    }

    /// Whether everything is as it should be.
    pub fn is_good(&self) -> bool {
        self.failures.is_empty()
    }
}

/// A mechanism in words.
pub fn describe(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::Auto => "the best mechanism there is",
        Mechanism::WriteProtect => "write protection",
        Mechanism::WriteProtectEager => "write protection, split eagerly",
        Mechanism::HardwarePage => "hardware, by pages",
        Mechanism::HardwareBlock => "hardware, by blocks",
    }
}
