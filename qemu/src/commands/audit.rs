//! `cargo hv audit`: the dirty log's completeness, over mechanisms, CPUs and ways to change sizes.

use crate::cli::{Audit, Bbm, Cli, Command, Linux};
use crate::commands::linux;
use crate::ending::Status;
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use clap::Parser;

/// What the guest does meanwhile: large writes, hashing, sorting, many processes, many small files; until the time is
/// over.
const WORKLOAD: &str = include_str!("workload.sh");

/// A kernel that uses 52-bit addresses where the CPU can (`max`): its stage-1 walks start at level −1.
const WIDE: &str = "debian-6.12";

/// One run of the matrix.
struct Run {
    /// The kernel; nothing for Debian's that is the default.
    kernel: Option<&'static str>,
    cpu: &'static str,
    smp: u32,
    bbm: Bbm,
    dirty: &'static [&'static str],
}

const LAZY: &[&str] = &["--dirty", "write-protect"];
const EAGER: &[&str] = &["--dirty", "write-protect", "--eager"];
const PAGE: &[&str] = &["--dirty", "hardware", "--granularity", "page"];
const BLOCK: &[&str] = &["--dirty", "hardware", "--granularity", "block"];

/// All runs, or those that CI has time for.
fn matrix(short: bool) -> Vec<Run> {
    if short {
        return vec![
            Run { kernel: None, cpu: "max", smp: 2, bbm: Bbm::Direct, dirty: PAGE },
            Run { kernel: None, cpu: "cortex-a72", smp: 2, bbm: Bbm::Break, dirty: LAZY },
            Run { kernel: Some(WIDE), cpu: "max", smp: 2, bbm: Bbm::Break, dirty: LAZY },
        ];
    }
    let mut runs = Vec::new();
    for dirty in [LAZY, PAGE] {
        for bbm in [Bbm::Direct, Bbm::Break] {
            runs.push(Run { kernel: Some(WIDE), cpu: "max", smp: 2, bbm, dirty });
        }
    }
    for smp in [1, 2, 4] {
        for dirty in [LAZY, EAGER, PAGE, BLOCK] {
            for bbm in [Bbm::Direct, Bbm::Break] {
                runs.push(Run { kernel: None, cpu: "max", smp, bbm, dirty });
            }
        }
        for dirty in [LAZY, EAGER] {
            // No FEAT_BBM and no hardware dirty state.
            runs.push(Run { kernel: None, cpu: "cortex-a72", smp, bbm: Bbm::Break, dirty });
        }
    }
    runs
}

/// Runs the command: as many runs of `cargo hv linux --audit`, each with its own verdict.
///
/// # Errors
/// If something can't be set up.
pub fn audit(workspace: &Workspace, options: &Audit) -> Result<Status> {
    let runs = matrix(options.short);
    let count = runs.len();
    let mut failed = 0;
    for (index, run) in runs.into_iter().enumerate() {
        let name = run.words().join(" ");
        eprintln!("hv: audit {} of {count}: {name}", index + 1);
        let status = linux::linux(workspace, &command(options, &run)?)?;
        if matches!(status, Status::Signal(_)) {
            return Ok(status);
        }
        let verdict = match status {
            Status::Command(0) => "passed",
            Status::Failure => "FAILED (see above)",
            Status::Command(_) => "FAILED (the guest's work went wrong)",
            _ => "FAILED (the guest did not come to the end of its work)",
        };
        println!("{verdict}: {name}");
        failed += usize::from(status != Status::Command(0));
    }
    println!("{} passed, {failed} failed", count - failed);
    Ok(if failed == 0 { Status::Success } else { Status::Failure })
}

impl Run {
    /// What is special about it, as words of a command line.
    fn words(&self) -> Vec<String> {
        let kernel = self.kernel.map(|kernel| ["--kernel", kernel]);
        let (smp, bbm) = (self.smp.to_string(), crate::cli::name(self.bbm));
        let machine = ["--cpu", self.cpu, "--smp", &smp, "--bbm", &bbm];
        kernel.iter().flatten().chain(&machine).chain(self.dirty).map(ToString::to_string).collect()
    }
}

/// The command line of one run, as a user would write it.
fn command(options: &Audit, run: &Run) -> Result<Linux> {
    let shell = WORKLOAD.replace("@SECONDS@", &options.seconds.to_string());
    let timeout = (options.seconds * 8 + 240).to_string();
    let always = ["--audit", "--every", "1", "--memory", "512M", "--timeout", &timeout, "--run", &shell];
    let mut words = vec!["hv".to_owned(), "linux".to_owned()];
    words.extend(always.map(str::to_owned));
    words.extend(run.words());
    if let Some(qemu) = &options.qemu {
        words.extend(["--qemu".to_owned(), qemu.to_string_lossy().into_owned()]);
    }
    match Cli::try_parse_from(words)?.command {
        Command::Linux(linux) => Ok(Linux { without_input: true, ..*linux }),
        _ => bail!("an audit is a run of Linux"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_a_legal_command() {
        for short in [true, false] {
            let options = Audit { short, seconds: 5, qemu: None };
            for run in matrix(short) {
                let linux = command(&options, &run).unwrap();
                assert!(linux.services.plan().unwrap().is_some_and(|plan| plan.audit));
                assert_eq!((linux.common.smp, linux.common.bbm), (run.smp, run.bbm));
                assert_eq!(linux.kernel, run.kernel.map(|kernel| kernel.parse().unwrap()));
            }
        }
    }

    #[test]
    fn a_52_bit_kernel_is_audited_both_ways() {
        for short in [true, false] {
            let wide = |bbm| matrix(short).iter().any(|run| run.kernel == Some(WIDE) && run.smp > 1 && run.bbm == bbm);
            assert!(wide(Bbm::Break) && (short || wide(Bbm::Direct)));
        }
    }
}
