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

/// One run of the matrix.
struct Run {
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
            Run { cpu: "max", smp: 2, bbm: Bbm::Direct, dirty: PAGE },
            Run { cpu: "cortex-a72", smp: 2, bbm: Bbm::Break, dirty: LAZY },
        ];
    }
    let mut runs = Vec::new();
    for smp in [1, 2, 4] {
        for dirty in [LAZY, EAGER, PAGE, BLOCK] {
            for bbm in [Bbm::Direct, Bbm::Break] {
                runs.push(Run { cpu: "max", smp, bbm, dirty });
            }
        }
        for dirty in [LAZY, EAGER] {
            // No FEAT_BBM and no hardware dirty state.
            runs.push(Run { cpu: "cortex-a72", smp, bbm: Bbm::Break, dirty });
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
    for (index, Run { cpu, smp, bbm, dirty }) in runs.into_iter().enumerate() {
        let bbm = crate::cli::name(bbm);
        let name = format!("--cpu {cpu} --smp {smp} --bbm {bbm} {}", dirty.join(" "));
        eprintln!("hv: audit {} of {count}: {name}", index + 1);
        let status = linux::linux(workspace, &command(options, cpu, smp, &bbm, dirty)?)?;
        let verdict = if status == Status::Command(0) { "passed" } else { "FAILED" };
        println!("{verdict}: {name}");
        failed += usize::from(status != Status::Command(0));
    }
    println!("{} passed, {failed} failed", count - failed);
    Ok(if failed == 0 { Status::Success } else { Status::Failure })
}

/// The command line of one run, as a user would write it.
fn command(options: &Audit, cpu: &str, smp: u32, bbm: &str, dirty: &[&str]) -> Result<Linux> {
    let shell = WORKLOAD.replace("@SECONDS@", &options.seconds.to_string());
    let timeout = (options.seconds * 8 + 240).to_string();
    let smp = smp.to_string();
    let words = ["hv", "linux", "--audit", "--every", "1", "--cpu", cpu, "--smp", &smp, "--bbm", bbm];
    let machine = ["--memory", "512M", "--timeout", &timeout, "--run", &shell];
    let mut words: Vec<&str> = [&words[..], dirty, &machine].concat();
    let qemu = options.qemu.as_ref().map(|path| path.to_string_lossy().into_owned());
    if let Some(qemu) = &qemu {
        words.extend(["--qemu", qemu]);
    }
    match Cli::try_parse_from(words)?.command {
        Command::Linux(linux) => Ok(*linux),
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
            for Run { cpu, smp, bbm, dirty } in matrix(short) {
                let linux = command(&options, cpu, smp, &crate::cli::name(bbm), dirty).unwrap();
                assert!(linux.services.plan().unwrap().is_some_and(|plan| plan.audit));
                assert_eq!((linux.common.smp, linux.common.bbm), (smp, bbm));
            }
        }
    }
}
