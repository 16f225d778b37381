//! `cargo hv audit`: the dirty log's completeness, over mechanisms, CPUs and ways to change sizes.

use crate::cli::{Audit, Bbm, Cli, Command, Granule, Linux};
use crate::commands::linux;
use crate::ending::Status;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use clap::Parser;
use std::path::Path;

/// What the guest does meanwhile: large writes, hashing, sorting, many processes, many small files; until the time is
/// over.
const WORKLOAD: &str = include_str!("workload.sh");

/// The same for a disk and a network: files that are written, synchronized and read back from the disk, and downloads.
const DISK_WORKLOAD: &str = include_str!("workload_disk.sh");

/// Bytes of the disk.
const DISK_BYTES: u64 = 64 << 20;

/// The network: what answers the guest's downloads.
const NET: &str = "guestfwd=tcp:10.0.2.100:7-cmd:seq 200000";

/// A kernel that uses 52-bit addresses where the CPU can (`max`): its stage-1 walks start at level −1.
const WIDE: &str = "debian-6.12";

/// One run of the matrix.
struct Run {
    /// The kernel; nothing for Debian's that is the default.
    kernel: Option<&'static str>,
    cpu: &'static str,
    smp: u32,
    bbm: Bbm,
    granule: Granule,
    dirty: &'static [&'static str],
    /// Whether the guest works on a disk and a network.
    devices: bool,
}

const LAZY: &[&str] = &["--dirty", "write-protect"];
const EAGER: &[&str] = &["--dirty", "write-protect", "--eager"];
const PAGE: &[&str] = &["--dirty", "hardware", "--granularity", "page"];
const BLOCK: &[&str] = &["--dirty", "hardware", "--granularity", "block"];

/// All runs, or those that CI has time for.
fn matrix(short: bool) -> Vec<Run> {
    if short {
        return vec![
            Run::on("max", 2, Bbm::Direct, PAGE),
            Run::on("cortex-a72", 2, Bbm::Break, LAZY),
            Run { kernel: Some(WIDE), ..Run::on("max", 2, Bbm::Break, LAZY) },
            Run { devices: true, ..Run::on("max", 2, Bbm::Direct, PAGE) },
        ];
    }
    let mut runs = Vec::new();
    for dirty in [LAZY, PAGE] {
        for bbm in [Bbm::Direct, Bbm::Break] {
            runs.push(Run { kernel: Some(WIDE), ..Run::on("max", 2, bbm, dirty) });
        }
    }
    for granule in [Granule::K16, Granule::K64] {
        for dirty in [LAZY, EAGER, PAGE, BLOCK] {
            runs.push(Run { granule, ..Run::on("max", 2, Bbm::Direct, dirty) });
        }
        runs.push(Run { granule, ..Run::on("max", 2, Bbm::Break, LAZY) });
    }
    for smp in [1, 2, 4] {
        for dirty in [LAZY, EAGER, PAGE, BLOCK] {
            for bbm in [Bbm::Direct, Bbm::Break] {
                runs.push(Run::on("max", smp, bbm, dirty));
                // What devices write is marked in one way, whichever pages are split: by page and by hardware will do.
                if [LAZY, PAGE].contains(&dirty) {
                    runs.push(Run { devices: true, ..Run::on("max", smp, bbm, dirty) });
                }
            }
        }
        for dirty in [LAZY, EAGER] {
            // No FEAT_BBM and no hardware dirty state.
            runs.push(Run::on("cortex-a72", smp, Bbm::Break, dirty));
        }
    }
    runs
}

/// Runs the command: as many runs of `cargo hv linux --audit`, each with its own verdict.
///
/// # Errors
/// If something can't be set up.
pub fn audit(workspace: &Workspace, options: &Audit) -> Result<Status> {
    let mut runs = matrix(options.short);
    runs.retain(|run| run.devices || !options.devices);
    let count = runs.len();
    let mut failed = 0;
    for (index, run) in runs.into_iter().enumerate() {
        let name = run.words().join(" ");
        let disk = workspace.folder("images")?.join(format!("audit-{}.img", std::process::id()));
        if run.devices {
            // It is new in every run: the guest makes a file system on it.
            let file = std::fs::File::create(&disk).and_then(|file| file.set_len(DISK_BYTES));
            file.with_context(|| format!("can't write {}", disk.display()))?;
        }
        eprintln!("hv: audit {} of {count}: {name}", index + 1);
        let status = command(options, &run, &disk).and_then(|command| linux::linux(workspace, &command));
        // It may not have been there.
        let _ = std::fs::remove_file(&disk);
        let status = status?;
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
    /// With the kernel that is the default, and all its work in memory.
    fn on(cpu: &'static str, smp: u32, bbm: Bbm, dirty: &'static [&'static str]) -> Self {
        Self { kernel: None, cpu, smp, bbm, granule: Granule::K4, dirty, devices: false }
    }

    /// What is special about it, as words of a command line.
    fn words(&self) -> Vec<String> {
        let kernel = self.kernel.map(|kernel| ["--kernel", kernel]);
        let (smp, bbm) = (self.smp.to_string(), crate::cli::name(self.bbm));
        let machine = ["--cpu", self.cpu, "--smp", &smp, "--bbm", &bbm];
        let granule = crate::cli::name(self.granule);
        let granule = (self.granule != Granule::K4).then_some(["--granule", &granule]);
        let words = kernel.iter().flatten().chain(&machine).chain(granule.iter().flatten()).chain(self.dirty);
        words.map(ToString::to_string).chain(self.devices.then(|| format!("--net={NET}"))).collect()
    }
}

/// The command line of one run, as a user would write it.
fn command(options: &Audit, run: &Run, disk: &Path) -> Result<Linux> {
    let shell = if run.devices { DISK_WORKLOAD } else { WORKLOAD };
    let shell = shell.replace("@SECONDS@", &options.seconds.to_string());
    let timeout = (options.seconds * 8 + 240).to_string();
    let always = ["--audit", "--every", "1", "--memory", "512M", "--timeout", &timeout, "--run", &shell];
    let mut words = vec!["hv".to_owned(), "linux".to_owned()];
    words.extend(always.map(str::to_owned));
    words.extend(run.words());
    if run.devices {
        words.extend(["--disk".to_owned(), disk.to_string_lossy().into_owned()]);
    }
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
            let options = Audit { short, devices: false, seconds: 5, qemu: None };
            for run in matrix(short) {
                let linux = command(&options, &run, Path::new("audit.img")).unwrap();
                assert!(linux.services.plan().unwrap().is_some_and(|plan| plan.audit));
                assert_eq!((linux.common.smp, linux.common.bbm, linux.granule), (run.smp, run.bbm, run.granule));
                assert_eq!((linux.devices.disk.len(), linux.devices.net.is_some()), (run.devices.into(), run.devices));
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
