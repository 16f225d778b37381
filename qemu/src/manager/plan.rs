//! What a session is to do.

use super::about::Setup;
use super::saving::{Resume, Save};
use hypervisor_abi::manager::{Mechanism, Policy};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// All that a session does.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Logs dirty pages.
    pub dirty: Option<Mechanism>,
    /// From one harvest to the next.
    pub every: Duration,
    /// Where the log's files go.
    pub out: Option<PathBuf>,
    /// What these files are told of the machine.
    pub setup: Setup,
    /// The guest's kernel, whose symbols name what stores to protected memory.
    pub kernel: Option<PathBuf>,
    /// Ranges that are protected before anything is logged.
    pub protect: Vec<Protect>,
    /// They are protected only once the guest's command begins.
    pub protect_late: bool,
    /// Checks with the guest frozen that no page is missed.
    pub audit: bool,
    /// Audits or harvests after which it is enough; as many as there is time for if there is no number.
    pub rounds: Option<u64>,
    /// Mediated devices are quiet while the log is harvested, and go on afterwards.
    pub quiesce: bool,
    /// Splits and collapses all of the guest's memory so often.
    pub storm: Option<u64>,
    /// Changes the table at random, from this seed, as long as the guest runs.
    pub churn: Option<u64>,
    /// Where the engine's events go.
    pub events: Option<PathBuf>,
    /// Every so manyth dirty page is left out, to show that an audit finds it.
    pub drop_dirty: Option<u64>,
    /// The machine is saved.
    pub save: Option<Arc<Save>>,
    /// The machine's guest is one that was saved.
    pub resume: Option<Arc<Resume>>,
    /// Which writes of mediated devices are not marked, to see an audit fail.
    pub unmarked: Option<String>,
}

impl Plan {
    /// A session without a service.
    pub fn idle() -> Self {
        Self { every: Duration::from_secs(1), ..Self::default() }
    }
}

/// `START-END:deny` or `START-END:report`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protect {
    /// First address.
    pub start: u64,
    /// First address past the range.
    pub end: u64,
    /// What happens to a store.
    pub policy: Policy,
}

impl FromStr for Protect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str =
            "not a protection; write START-END:deny or START-END:report, as in 0x40800000-0x40a00000:report";
        let (range, policy) = text.rsplit_once(':').ok_or(FORM)?;
        let (start, end) = range.split_once('-').ok_or(FORM)?;
        let address = |text: &str| {
            let digits = text.strip_prefix("0x").unwrap_or(text);
            let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            let address = plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
            let address = address
                .ok_or_else(|| format!("`{text}` is not a hexadecimal address of 64 bits; write one, as 0x40800000"))?;
            if address % 4096 == 0 {
                return Ok(address);
            }
            let near = address / 4096 * 4096;
            Err(format!("{text} is not a multiple of the page size, 4 KiB (0x1000); write {near:#x}"))
        };
        let (start, end) = (address(start)?, address(end)?);
        if start >= end {
            return Err(format!("{range} ends where it begins or before; write the lower address first"));
        }
        let policy = match policy {
            "deny" => Policy::Deny,
            "report" => Policy::Report,
            _ => return Err(FORM.into()),
        };
        Ok(Self { start, end, policy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protections_are_read() {
        let protect = "0x40200000-40300000:deny".parse();
        assert_eq!(protect, Ok(Protect { start: 0x4020_0000, end: 0x4030_0000, policy: Policy::Deny }));
        for text in
            ["", "1000-2000", "1000:deny", "2000-1000:deny", "1001-2000:report", "1000-2000:allow", "-1000:deny"]
        {
            assert!(text.parse::<Protect>().is_err(), "{text}");
        }
    }
}
