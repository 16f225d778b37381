//! `cargo hv linux`: Linux under the hypervisor, with a shell or with one command.

use crate::cli::{self, Linux, Log};
use crate::console::Extract;
use crate::devices::Devices;
use crate::ending::{self, Status};
use crate::events;
use crate::images::Image;
use crate::initramfs::{self, Command, Extras};
use crate::machine::Machine;
use crate::manager::about::{Mark, Setup};
use crate::manager::plan::Plan;
use crate::manager::session::Summary;
use crate::manager::show::Show;
use crate::manager::{self, session};
use crate::progress::Step;
use crate::run::{self, Flow};
use crate::setup::drivers;
use crate::setup::firmware::Firmware;
use crate::setup::guest::Guest;
use crate::size;
use crate::uefi;
use crate::workspace::{Workspace, write_whole};
use anyhow::{Context, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Seconds that a command in the guest may take, unless `--timeout` says otherwise.
const TIMEOUT: u64 = 300;

/// Runs the command.
///
/// # Errors
/// If something can't be set up.
pub fn linux(workspace: &Workspace, options: &Linux) -> Result<Status> {
    if let Some(file) = &options.initrd {
        std::fs::metadata(file).with_context(|| format!("can't find the file {}", file.display()))?;
    }
    let devices = options.devices.examine()?;
    let kernel = options.kernel.as_ref().map(|kernel| kernel.get(workspace)).transpose()?;
    let mut plan = options.services.plan()?;
    anyhow::ensure!(
        plan.is_none() || !options.common.icount,
        "--icount counts the instructions of all CPUs together, and the management core never rests: use one of them"
    );
    anyhow::ensure!(
        !options.services.protect_late || options.run.is_some(),
        "--protect-late waits for a command: give one with --run"
    );
    let oracle = options.services.oracle;
    anyhow::ensure!(
        !oracle || options.common.smp < events::MAX_CPUS,
        "--oracle models {} CPUs, the management core included: use --smp {} or less",
        events::MAX_CPUS,
        events::MAX_CPUS - 1
    );
    let mut _removed_after_the_judgement = None;
    if let Some(plan) = plan.as_mut().filter(|plan| oracle && plan.events.is_none()) {
        let path = workspace.folder("images")?.join(format!("events-{}.bin", std::process::id()));
        _removed_after_the_judgement = Some(Temporary(path.clone()));
        plan.events = Some(path);
    }
    let command = options.run.as_ref().map(Command::new);
    let image = if oracle { Image::EventKeeper } else { Image::Hypervisor };
    let (emulator, mut machine) = super::prepare(workspace, &options.common, image)?;
    if let Some(affinity) = options.services.weaken {
        machine.append += &format!(" late-cpu=repaint weaken={affinity}");
    }
    let kernel = match kernel {
        Some(kernel) => kernel,
        None => Guest::get(workspace)?.kernel,
    };
    let extras = attach(workspace, &mut machine, &devices, options, &kernel)?;
    let (initrd, _removed_at_the_end) = initrd(workspace, options.initrd.as_deref(), command.as_ref(), &extras)?;
    machine.load_guest(&kernel, Some(&initrd), &bootargs(options))?;
    let plan = plan.map(|plan| Plan { setup: setup(&machine, &kernel, options), ..plan });
    let show = Arc::new(if command.is_some() { Show::beside_output() } else { Show::beside_shell() });
    let session = plan.map(|plan| manager::attach(&mut machine, plan, Arc::clone(&show))).transpose()?;
    let _disk = match options.firmware {
        cli::Firmware::None => None,
        cli::Firmware::Uefi => {
            let firmware = Firmware::get(workspace)?;
            let folder = workspace.folder("images")?.join(format!("disk-{}", std::process::id()));
            Some(uefi::start_by_grub(&mut machine, &firmware, &folder)?)
        }
    };
    let status = match &command {
        None => shell(workspace, options, |log| {
            run::interact(&emulator, &machine, options.common.timeout.map(std::time::Duration::from_secs), log)
        }),
        Some(command) => {
            let by = if machine.uefi.is_some() { " by UEFI and GRUB" } else { "" };
            let step = Step::begin(format!("Booting Linux{by}"));
            run_command(options, command, step, &show, |observe| {
                run::capture(&emulator, &machine, options.common.timeout_or(TIMEOUT), observe)
            })
        }
    };
    let summary = session.map(manager::Running::finish).transpose();
    let status = status?;
    let Some(summary) = summary? else { return Ok(status) };
    let ended = matches!(status, Status::Success | Status::Command(_));
    let mut good = tell(&summary, ended);
    if ended && summary.cut_short && options.run.is_some() {
        eprintln!("hv: the machine was gone before the services had ended: their last round is missing");
        good = false;
    }
    if let Some(path) = &summary.events {
        let judgement = events::judge(path)?;
        events::tell(&judgement);
        good &= judgement.is_good();
    }
    Ok(if good || !matches!(status, Status::Success | Status::Command(0)) { status } else { Status::Failure })
}

/// Says what a session has found, the audit's line last. Says whether all is well.
///
/// Unless the guest has `ended` by itself, with its work done, no verdict goes to standard output: nothing missed by a guest
/// that is dead proves nothing.
fn tell(summary: &Summary, ended: bool) -> bool {
    let verdict = |line: &str| match ended {
        true => println!("{line}"),
        false => eprintln!("hv: no verdict, but up to then: {line}"),
    };
    if let Some(mechanism) = summary.mechanism {
        let how = session::describe(mechanism);
        eprintln!("hv: dirty log by {how}: {} rounds, {} dirty pages in all", summary.rounds, summary.pages);
    }
    if let Some(out) = &summary.out {
        eprintln!("hv: {}: dirty.csv, dirty.bitmaps, dirty.png", out.display());
    }
    if let Some((before, after)) = summary.restored {
        let [before, after] = [before, after].map(|census| size::short(census.table_bytes));
        eprintln!("hv: tables took {before} before the log and take {after} after it");
    }
    if let Some([reported, denied, lost]) = summary.stores {
        eprintln!("hv: stores to protected memory: {reported} reported, {denied} denied, {lost} more not kept");
    }
    if let Some((rounds, counters)) = &summary.storm {
        let counted = counters.iter().filter(|(_, count)| **count > 0);
        let counted: Vec<String> = counted.map(|(name, count)| format!("{name} {count}")).collect();
        let of = |name: &str| counters.get(name).copied().unwrap_or(0);
        eprintln!("hv: meanwhile on all CPUs: {}", counted.join(", "));
        verdict(&format!(
            "split-storm: rounds {rounds}, invalid windows {}, translation faults {}",
            of("invalid-windows"),
            of("fault-translation")
        ));
    }
    if let Some(rounds) = summary.churn {
        eprintln!("hv: {rounds} rounds of random changes of the table");
    }
    for failure in &summary.failures {
        eprintln!("hv: {failure}");
    }
    if let Some(line) = summary.audit_line() {
        verdict(&line);
    }
    if !ended {
        eprintln!("hv: the guest did not come to the end of its work, so what the services found is no result");
    }
    summary.is_good()
}

/// What the log's files are told of the machine.
fn setup(machine: &Machine, kernel: &Path, options: &Linux) -> Setup {
    let mut marks = Vec::new();
    for (name, module) in ["the guest's kernel", "the guest's initramfs"].into_iter().zip(&machine.modules) {
        // What can't be read is refused when the machine starts.
        let size = std::fs::metadata(&module.file).map_or(0, |data| data.len());
        marks.push(Mark { name: name.into(), start: module.address, end: module.address + size });
    }
    // Firmware loads them where it likes.
    if options.firmware != cli::Firmware::None {
        marks.clear();
    }
    Setup {
        command: options.run.clone(),
        kernel: kernel.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        cpu: machine.cpu.clone(),
        cpus: machine.smp,
        memory: machine.memory.0,
        marks,
    }
}

/// The kernel's arguments; the user's come last and win.
fn bootargs(options: &Linux) -> String {
    let mut words = vec!["console=ttyAMA0"];
    // Someone else's initramfs starts its own init, unless a command is to be run.
    if options.initrd.is_none() || options.run.is_some() {
        words.push("rdinit=/hv/init");
    }
    if options.common.log >= Log::Debug {
        words.push("earlycon");
    } else {
        // Between a command's lines the kernel's would stand out.
        words.push(if options.run.is_some() { "quiet loglevel=1" } else { "quiet" });
    }
    if options.run.is_some() {
        words.push("panic=-1");
    }
    if options.common.icount {
        words.push("nokaslr");
    }
    if options.devices.rootfs.is_some() {
        // The network is eth0, as without a root file system.
        words.push("net.ifnames=0");
        if options.run.is_some() {
            words.push("systemd.show_status=error");
        }
    }
    words.push(&options.append);
    words.join(" ").trim_end().to_owned()
}

/// Whether the guest's kernel said that it crashed.
fn kernel_panic(outcome: &run::Outcome) -> bool {
    outcome.console.lines().iter().any(|line| line.contains("Kernel panic - not syncing"))
}

/// Gives the guest its devices, and returns what the initramfs brings for them.
fn attach(
    workspace: &Workspace,
    machine: &mut Machine,
    devices: &Devices,
    options: &Linux,
    kernel: &Path,
) -> Result<Extras> {
    if devices.is_empty() {
        return Ok(Extras::default());
    }
    devices.attach(workspace, machine, options.common.grant_dma.len())?;
    let drivers = drivers::of(kernel)?;
    if drivers.is_empty() {
        eprintln!("hv: {} has no modules beside it: its virtio drivers must be built in", kernel.display());
    }
    Ok(Extras { drivers, root: devices.has_root() })
}

/// The user's initramfs, the tool's own, or, to run a command in the user's, both in one file; and what removes a file that is
/// for this run alone.
fn initrd(
    workspace: &Workspace,
    user: Option<&Path>,
    command: Option<&Command>,
    extras: &Extras,
) -> Result<(PathBuf, Option<Temporary>)> {
    if let (Some(user), None) = (user, command) {
        return Ok((user.to_owned(), None));
    }
    let own = initramfs::archive_with(&Guest::get(workspace)?.busybox, command, extras)?;
    let mut whole = Vec::new();
    if let Some(user) = user {
        whole = std::fs::read(user).with_context(|| format!("can't read {}", user.display()))?;
        // The kernel looks for the next archive at a multiple of four bytes.
        whole.resize(whole.len().next_multiple_of(4), 0);
    }
    whole.extend_from_slice(&own);
    let folder = workspace.folder("images")?;
    let (name, is_for_this_run) = match command {
        Some(command) => (format!("run-{}.cpio", command.nonce), true),
        None if extras.is_empty() => ("shell.cpio".to_owned(), false),
        None => (format!("shell-{}.cpio", std::process::id()), true),
    };
    let path = folder.join(name);
    write_whole(&path, &whole)?;
    let temporary = is_for_this_run.then(|| Temporary(path.clone()));
    Ok((path, temporary))
}

/// A file that is removed with this value.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is in the build folder, and the next run doesn't mind it.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn shell(
    workspace: &Workspace,
    options: &Linux,
    interact: impl FnOnce(&Path) -> Result<run::Outcome>,
) -> Result<Status> {
    eprintln!("hv: Booting Linux; Ctrl-A X leaves");
    let outcome = interact(&workspace.folder("logs")?.join("linux.log"))?;
    let status = match ending::judge(&outcome) {
        // QEMU ended well and the hypervisor knows nothing of it: the user left, unless because the guest had crashed.
        Status::NoResult if !kernel_panic(&outcome) => Status::Success,
        other => other,
    };
    let text = ending::explain(status, &outcome, options.common.timeout.unwrap_or_default());
    // The console itself was on the screen.
    if let Some(sentence) = text.lines().last() {
        eprintln!("{sentence}");
    }
    Ok(status)
}

fn run_command(
    options: &Linux,
    command: &Command,
    mut step: Step,
    show: &Show,
    capture: impl FnOnce(&mut dyn FnMut(&[u8], &crate::console::Console) -> Flow) -> Result<run::Outcome>,
) -> Result<Status> {
    let everything = options.common.log >= Log::Debug;
    let mut extract = Extract::new(&command.nonce);
    let mut failed = None;
    let mut print = |bytes: &[u8]| {
        let mut out = std::io::stdout().lock();
        if let Err(error) = show.aside(|| out.write_all(bytes).and_then(|()| out.flush())) {
            failed = Some(error);
        }
    };
    if everything {
        step.clear();
    }
    let outcome = capture(&mut |bytes, _| {
        if everything {
            print(bytes);
            extract.push(bytes, |_| {});
        } else {
            extract.push(bytes, |output| {
                step.clear();
                print(output);
            });
        }
        if extract.has_begun() {
            show.begin();
        }
        Flow::Continue
    })?;
    step.clear();
    if let Some(error) = failed {
        return Err(error).context("can't print what the command wrote");
    }
    let status = match (ending::judge(&outcome), extract.status()) {
        (Status::Success, Some(status)) => Status::Command(status),
        // The command itself ended the machine, unless the kernel crashed: then it reboots too (panic=-1).
        (Status::Success, None) if extract.has_begun() && !kernel_panic(&outcome) => Status::Success,
        (Status::Success, None) => Status::NoResult,
        (other, _) => other,
    };
    let text = ending::explain(status, &outcome, options.common.timeout_or(TIMEOUT).as_secs());
    if !text.is_empty() {
        eprintln!("{text}");
    }
    Ok(status)
}
