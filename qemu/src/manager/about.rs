//! What a recorded run was: `run.json`, beside the log's files, for whoever looks at them later.

use crate::placement::RAM_BASE;
use crate::workspace::write_whole;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The file's name.
pub const FILE: &str = "run.json";
/// The version of its form. Readers refuse others.
const VERSION: u32 = 1;

/// A range of memory with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What is there, for people.
    pub name: String,
    /// Its first address, guest physical.
    pub start: u64,
    /// The first address past it.
    pub end: u64,
}

/// What is known before the machine starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The command that the guest ran, if it was given one.
    pub command: Option<String>,
    /// The file of the guest's kernel, or what was started in its stead.
    pub kernel: String,
    /// QEMU's name of the CPU model.
    pub cpu: String,
    /// The guest's CPUs.
    pub cpus: u32,
    /// Bytes of the machine's RAM.
    pub memory: u64,
    /// Where kernel and initramfs were loaded.
    pub marks: Vec<Mark>,
}

/// A run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct About {
    version: u32,
    /// What was known before it started.
    pub setup: Setup,
    /// The guest's memory: ranges of guest physical addresses.
    pub guest: Vec<(u64, u64)>,
    /// How the log was kept, for people.
    pub mechanism: String,
    /// Seconds from the log's start to the first harvest that found the guest's command begun.
    pub begun: Option<f64>,
    /// Bytes of stage-2 tables before the log and after its end.
    pub table_bytes: Option<(u64, u64)>,
    /// The audit's line.
    pub audit: Option<String>,
    /// Stores that met a policy: reported, denied, and those that there was no room for.
    pub stores: Option<[u64; 3]>,
    /// What was asked for and did not happen, in sentences.
    pub failures: Vec<String>,
}

impl About {
    /// Of a run with this set-up.
    pub fn new(setup: Setup) -> Self {
        Self { version: VERSION, setup, ..Self::default() }
    }

    /// Writes it to a folder.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).context("can't write a run as JSON")?;
        text.push(b'\n');
        write_whole(&folder.join(FILE), &text)
    }

    /// Reads it from a folder.
    ///
    /// # Errors
    /// If there is no such file, or its form is another.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        let about: Self =
            serde_json::from_slice(&text).with_context(|| format!("{} does not describe a run", path.display()))?;
        ensure!(
            about.version == VERSION,
            "{} has the form {}, and this tool reads {VERSION}",
            path.display(),
            about.version
        );
        Ok(about)
    }

    /// The machine's RAM.
    pub fn ram(&self) -> (u64, u64) {
        (RAM_BASE, RAM_BASE.saturating_add(self.setup.memory))
    }

    /// The parts of RAM that the guest has not got: the hypervisor's, and what firmware keeps.
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let (mut at, end) = self.ram();
        let mut ranges = self.guest.clone();
        ranges.sort_unstable();
        let mut gaps = Vec::new();
        for (start, past) in ranges.into_iter().chain([(end, end)]) {
            if at < start {
                gaps.push((at, start));
            }
            at = at.max(past);
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let folder = std::env::temp_dir().join(format!("hv-about-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut about = About::new(Setup { command: Some("echo '<\"'".into()), ..Setup::default() });
        about.begun = Some(1.5);
        about.write(&folder).unwrap();
        assert_eq!(About::read(&folder).unwrap(), about);
        let other = std::fs::read_to_string(folder.join(FILE)).unwrap().replace("\"version\": 1", "\"version\": 2");
        std::fs::write(folder.join(FILE), other).unwrap();
        assert!(About::read(&folder).unwrap_err().to_string().contains("has the form 2"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn gaps_are_what_the_guest_has_not_got() {
        let setup = Setup { memory: 20, ..Setup::default() };
        let at = |offset| RAM_BASE + offset;
        let gaps = |guest: &[(u64, u64)]| {
            let guest = guest.iter().map(|range| (at(range.0), at(range.1))).collect();
            About { guest, setup: setup.clone(), ..About::default() }.gaps()
        };
        assert_eq!(gaps(&[(9, 12), (1, 4), (4, 6)]), [(at(0), at(1)), (at(6), at(9)), (at(12), at(20))]);
        assert_eq!(gaps(&[(0, 16)]), [(at(16), at(20))]);
        assert_eq!(gaps(&[(0, 20)]), []);
        assert_eq!(gaps(&[]), [(at(0), at(20))]);
    }
}
