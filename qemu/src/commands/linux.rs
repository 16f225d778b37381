//! `cargo hv linux`: Linux under the hypervisor, with a shell or with one command.

use super::command::{TIMEOUT, Watch, kernel_panic};
use super::saving;
use crate::added;
use crate::cli::{self, Common, Linux, Log, Saving};
use crate::commands::check;
use crate::console::Extract;
use crate::devices::Devices;
use crate::ending::{self, Status};
use crate::events;
use crate::feed;
use crate::images::{self, Image};
use crate::initramfs::{self, Command, Extras};
use crate::interrupt;
use crate::machine::Machine;
use crate::manager::about::{Mark, Setup};
use crate::manager::plan::Plan;
use crate::manager::saving::When;
use crate::manager::session::Summary;
use crate::manager::show::Show;
use crate::manager::{self, session};
use crate::progress::Step;
use crate::run::{self, Stop, Stopper};
use crate::setup::drivers;
use crate::setup::firmware::Firmware;
use crate::setup::guest::Guest;
use crate::size;
use crate::temporary::{self, Temporary};
use crate::uefi;
use crate::workspace::{Workspace, write_whole};
use anyhow::{Context, Result};
use rustix::process::{Signal, getpid, kill_process};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

/// Runs the command.
///
/// # Errors
/// If something can't be set up.
pub fn linux(workspace: &Workspace, options: &Linux) -> Result<Status> {
    let mut plan = check::linux(options)?;
    let devices = options.devices.examine()?;
    let emulator = super::emulator(&options.common)?;
    let mut machine = super::machine(&options.common)?;
    let oracle = options.services.oracle;
    let kernel = match &options.kernel {
        Some(kernel) => kernel.get(workspace)?,
        None => Guest::get(workspace)?.kernel,
    };
    if let Some(plan) = &mut plan {
        plan.kernel = Some(kernel.clone());
    }
    let _removed_after_the_judgement =
        plan.as_mut().filter(|_| oracle).map(|plan| keep_events(workspace, plan)).transpose()?;
    // Behind --rootfs, another init starts the command.
    let saves = options.saving.save.is_some();
    let has_input = !options.without_input && !devices.has_root() && !saves && feed::is_wanted();
    let more = saves && options.saving.save_when.is_none_or(|when| when == When::End);
    let command = options.run.as_ref().map(|shell| Command { has_input, more, ..Command::new(shell) });
    if let Some(affinity) = options.services.weaken {
        machine.append += &format!(" late-cpu=repaint weaken={affinity}");
    }
    let extras = attach(workspace, &mut machine, &devices, options, &kernel)?;
    let (initrd, _removed_at_the_end) = initrd(workspace, options, command.as_ref(), &extras)?;
    machine.load_guest(&kernel, Some(&initrd), &bootargs(options))?;
    machine.kernel = images::build(workspace, if oracle { Image::EventKeeper } else { options.granule.image() })?;
    let (typing, mut typed) = mpsc::channel();
    let console = workspace.folder("logs")?.join("linux.log");
    let save = saving::begin(options, &mut machine, command.as_ref(), typing, &console)?;
    let plan = plan.map(|plan| Plan { setup: setup(&machine, &kernel, options), save: save.clone(), ..plan });
    let show = Arc::new(match command {
        Some(_) if plan.as_ref().is_some_and(|plan| has_a_screen(plan, options)) => Show::on_a_screen(leave)?,
        Some(_) => Show::beside_output(Step::begin(booting(options.firmware))),
        None => Show::beside_shell(),
    });
    let stopper = Stopper::default();
    let session =
        plan.map(|plan| manager::attach(&mut machine, plan, Arc::clone(&show), stopper.clone())).transpose()?;
    let interrupted = Interrupted::listen(&stopper, session.as_ref());
    let _disk = match options.firmware {
        cli::Firmware::None => None,
        cli::Firmware::Uefi => {
            let firmware = Firmware::get(workspace)?;
            let folder = workspace.folder("images")?.join(format!("disk-{}", std::process::id()));
            Some(uefi::start_by_grub(&mut machine, &firmware, &folder)?)
        }
    };
    let status = match &command {
        None => {
            shell(&options.common, || run::interact(&emulator, &machine, options.common.timeout, &stopper, &console))
        }
        Some(command) => {
            let mut watch =
                Watch::new(&show, options.common.log, Extract::new(&command.nonce)).with_save(save.as_ref());
            if command.has_input {
                typed = watch.feed(std::io::stdin());
            }
            watch.run(&emulator, &machine, options.common.timeout_or(TIMEOUT), &stopper, typed)
        }
    };
    let summary = session.map(manager::Running::finish).transpose();
    show.clear();
    // A session that has failed has stopped the machine: its reason is the one to tell.
    let summary = summary?;
    let status = interrupted.status().unwrap_or(status?);
    summary.map_or(Ok(status), |summary| conclude(options, &summary, status, interrupted.status().is_some()))
}

/// Has the events kept in a file, the user's or one for the time of this run.
fn keep_events(workspace: &Workspace, plan: &mut Plan) -> Result<Option<Temporary>> {
    if plan.events.is_some() {
        return Ok(None);
    }
    let path = workspace.folder("images")?.join(format!("events-{}.bin", std::process::id()));
    Ok(Some(Temporary::new(plan.events.insert(path).clone())))
}

/// Says what a session has found, and what the status is then of a run that has ended with `status`.
fn conclude(options: &Linux, summary: &Summary, status: Status, interrupted: bool) -> Result<Status> {
    let ended = matches!(status, Status::Success | Status::Command(_));
    let mut good = tell(summary, ended);
    if !ended && !interrupted {
        eprintln!("hv: the guest did not come to the end of its work, so what the services found is no result");
    }
    if ended && summary.cut_short && options.run.is_some() {
        eprintln!("hv: the machine was gone before the services had ended: their last round is missing");
        good = false;
    }
    if let Some(status) = tell_saved(summary, &options.saving, good) {
        return Ok(status);
    }
    if let Some(path) = &summary.events {
        let judgement = events::judge(path)?;
        events::tell(&judgement);
        good &= judgement.is_good();
    }
    Ok(if good || !matches!(status, Status::Success | Status::Command(0)) { status } else { Status::Failure })
}

/// Says where the machine was saved. Returns the status, if that was its end.
pub(super) fn tell_saved(summary: &Summary, saving: &Saving, good: bool) -> Option<Status> {
    let (path, pages) = summary.saved.as_ref()?;
    println!("saved: {}, {pages} pages", path.display());
    (!saving.save_and_go).then_some(if good { Status::Success } else { Status::Failure })
}

/// Says what a session has found, the audit's line last. Says whether all is well.
///
/// Unless the guest has `ended` by itself, with its work done, no verdict goes to standard output: nothing missed by a guest
/// that is dead proves nothing.
pub(super) fn tell(summary: &Summary, ended: bool) -> bool {
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
    summary.is_good()
}

/// Whether a live view has a terminal, and is not unwanted.
fn has_a_screen(plan: &Plan, options: &Linux) -> bool {
    let terminals = io::stdin().is_terminal() && io::stderr().is_terminal();
    plan.dirty.is_some() && terminals && !options.services.plain && options.common.log < Log::Debug
}

/// Ends the run as Ctrl-C does.
fn leave() {
    // The listener for signals is there as long as the process is.
    let _ = kill_process(getpid(), Signal::INT);
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

/// The kernel's arguments for a command in the tool's own initramfs.
pub(super) const COMMAND_BOOTARGS: &str = "console=ttyAMA0 rdinit=/hv/init quiet loglevel=1 panic=-1";

/// The kernel's arguments; the user's come last and win.
fn bootargs(options: &Linux) -> String {
    let mut words = vec!["console=ttyAMA0"];
    let size = console::Term::stdout().size_checked().map(|(rows, columns)| format!("HV_SIZE={rows}x{columns}"));
    if options.run.is_none() && options.initrd.is_none() && options.devices.rootfs.is_none() {
        words.extend(size.as_deref());
    }
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

/// Gives the guest its devices, and returns what the initramfs brings for them.
fn attach(
    workspace: &Workspace,
    machine: &mut Machine,
    devices: &Devices,
    options: &Linux,
    kernel: &Path,
) -> Result<Extras> {
    devices.attach(workspace, machine, options.common.grant_dma.len())?;
    extras(devices, kernel)
}

/// What the initramfs brings for a guest with these devices.
pub(super) fn extras(devices: &Devices, kernel: &Path) -> Result<Extras> {
    if devices.is_empty() {
        return Ok(Extras::default());
    }
    let drivers = drivers::of(kernel)?;
    if drivers.is_empty() {
        eprintln!("hv: {} has no modules beside it: its virtio drivers must be built in", kernel.display());
    }
    Ok(Extras { drivers, root: devices.has_root() })
}

/// The user's initramfs, the tool's own, or, to run a command in the user's, both in one file, with what the user adds; and
/// what removes the file, where it is of this run alone.
fn initrd(
    workspace: &Workspace,
    options: &Linux,
    command: Option<&Command>,
    extras: &Extras,
) -> Result<(PathBuf, Option<Temporary>)> {
    let user = options.initrd.as_deref();
    if let (Some(user), None, true) = (user, command, options.add.is_empty()) {
        return Ok((user.to_owned(), None));
    }
    let mut whole = Vec::new();
    if let Some(user) = user {
        whole = std::fs::read(user).with_context(|| format!("can't read {}", user.display()))?;
        // The kernel looks for the next archive at a multiple of four bytes.
        whole.resize(whole.len().next_multiple_of(4), 0);
    }
    if user.is_none() || command.is_some() {
        whole.extend_from_slice(&initramfs::archive_with(&Guest::get(workspace)?.busybox, command, extras)?);
    }
    whole.extend_from_slice(&added::archive(&options.add)?);
    let folder = workspace.folder("images")?;
    temporary::sweep(&folder, "run-", ".cpio");
    let path = match command {
        Some(command) => folder.join(format!("run-{}.cpio", command.nonce)),
        None => folder.join(format!("run-{:08x}.cpio", std::process::id())),
    };
    let removed = Temporary::new(&path);
    write_whole(&path, &whole)?;
    Ok((path, Some(removed)))
}

/// What is waited for until the guest's command begins.
fn booting(firmware: cli::Firmware) -> &'static str {
    match firmware {
        cli::Firmware::None => "Booting Linux",
        cli::Firmware::Uefi => "Booting Linux by UEFI and GRUB",
    }
}

/// The signal that has asked for the end of a run, if one has.
pub(super) struct Interrupted {
    signal: Arc<AtomicU8>,
    _asked: interrupt::Asked,
}

impl Interrupted {
    /// Lets a signal end the run: with a session, once that has written what it knows.
    pub(super) fn listen(stopper: &Stopper, session: Option<&manager::Running>) -> Self {
        /// A session gets so long.
        const PATIENCE: Duration = Duration::from_secs(20);
        let signal = Arc::new(AtomicU8::new(0));
        let (seen, stopper) = (Arc::clone(&signal), stopper.clone());
        let end_session = session.map(manager::Running::end_asker);
        let asked = interrupt::ask_first(move |signal| {
            seen.store(signal as u8, Relaxed);
            match end_session {
                Some(end) => {
                    end();
                    stopper.stop_within(PATIENCE);
                }
                None => stopper.stop(),
            }
        });
        Self { signal, _asked: asked }
    }

    pub(super) fn status(&self) -> Option<Status> {
        Some(self.signal.load(Relaxed)).filter(|&signal| signal != 0).map(Status::Signal)
    }
}

/// A guest whose shell has the terminal.
pub(super) fn shell(common: &Common, interact: impl FnOnce() -> Result<run::Outcome>) -> Result<Status> {
    eprintln!("hv: Booting Linux; Ctrl-A X leaves");
    let outcome = interact()?;
    let status = match ending::judge(&outcome) {
        // QEMU ended well and the hypervisor knows nothing of it: the user left, unless because the guest had crashed.
        Status::NoResult if !kernel_panic(&outcome) => Status::Success,
        other => other,
    };
    let text = ending::explain(status, &outcome, common.timeout.unwrap_or_default().as_secs());
    // The console itself was on the screen.
    if let Some(sentence) = text.lines().last().filter(|_| outcome.stop != Stop::Stopped) {
        eprintln!("{sentence}");
    }
    Ok(status)
}
