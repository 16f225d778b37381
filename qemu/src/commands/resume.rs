//! `cargo hv resume`: a machine that was saved goes on.

use super::check;
use super::command::{TIMEOUT, Watch};
use super::linux::{Interrupted, shell, tell, tell_saved};
use super::saving;
use crate::cli::{self, Cli, Command, Common, Resume};
use crate::console::{Cut, Extract};
use crate::devices::{Devices, check_net_of_file};
use crate::disk::Disk;
use crate::ending::Status;
use crate::images::{self, Image};
use crate::machine::Gic;
use crate::manager;
use crate::manager::plan::Plan;
use crate::manager::saving as save;
use crate::manager::show::Show;
use crate::progress::Step;
use crate::run::{self, Stopper};
use crate::saved::{self, Guest, Saved};
use crate::size::Size;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Parser, ValueEnum};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// The longest command that a guest is given: with base64 it fits into the line of the guest's terminal.
const LONGEST: usize = 2250;

/// Runs the command.
///
/// # Errors
/// If the file is not whole, or something can't be set up.
pub fn resume(workspace: &Workspace, options: &Resume) -> Result<Status> {
    let step = Step::begin(format!("Checking {}", options.file.display()));
    let saved = Saved::open(&options.file)?;
    drop(step);
    saving::services(&options.services, "resume")?;
    let plan = options.services.plan()?.unwrap_or_else(Plan::idle);
    let (nonce, cut, type_first) = given(options, &saved)?;
    let common = common(options, &saved)?;
    let emulator = super::emulator(&common)?;
    let mut machine = super::machine(&common)?;
    machine.append += " resume=on";
    if let Some(register) = &options.leave_out {
        machine.append += &format!(" leave-out={register}");
    }
    // As before the save: the devices' places follow from their order.
    devices(&saved)?.attach(workspace, &mut machine, 0)?;
    machine.kernel = images::build(workspace, Image::Hypervisor)?;
    let has_shell = saved.machine.guest == Guest::Shell;
    let show =
        Arc::new(if has_shell { Show::beside_shell() } else { Show::beside_output(Step::begin("Reading the guest")) });
    let stopper = Stopper::default();
    let (typed, typing) = mpsc::channel();
    let save = saving::begin_again(&options.saving, &mut machine, &saved, &nonce, typed.clone())?;
    if save.is_none() {
        machine.add_store(&saved.path, true)?;
    }
    let runs = AtomicBool::new(false);
    let resume = Arc::new(save::Resume { saved, type_first: Mutex::new(type_first), typed, runs });
    let plan = Plan { resume: Some(Arc::clone(&resume)), save: save.clone(), ..plan };
    let session = manager::attach(&mut machine, plan, Arc::clone(&show), stopper.clone())?;
    let interrupted = Interrupted::listen(&stopper, Some(&session));
    let status = if has_shell {
        let log = workspace.folder("logs")?.join("linux.log");
        shell(&common, || run::interact(&emulator, &machine, options.timeout, &stopper, &log))
    } else {
        let watch = Watch::new(&show, options.log, Extract::resumed(&nonce, cut)).with_save(save.as_ref());
        let total = options.timeout.unwrap_or(Duration::from_secs(TIMEOUT));
        watch.run(&emulator, &machine, total, &stopper, typing)
    };
    let summary = session.finish();
    show.clear();
    let summary = summary?;
    let status = interrupted.status().unwrap_or(status?);
    let ended = matches!(status, Status::Success | Status::Command(_));
    let good = tell(&summary, ended);
    if let Some(status) = tell_saved(&summary, &options.saving, good) {
        return Ok(status);
    }
    Ok(if good || !matches!(status, Status::Success | Status::Command(0)) { status } else { Status::Failure })
}

/// The guest's devices, whose disks have to be what they were.
fn devices(saved: &Saved) -> Result<Devices> {
    let saved::Machine { disks, net, mediate, .. } = &saved.machine;
    disks.iter().try_for_each(saved::Image::check)?;
    net.as_deref().map_or(Ok(()), check_net_of_file)?;
    let disks: Vec<Disk> =
        disks.iter().map(|disk| Disk { file: disk.file.clone(), read_only: disk.read_only }).collect();
    Devices::examine(None, &disks, net.as_deref(), mediate)
}

/// The nonce of the command whose output is to be shown, what has come of it, and what is typed for it.
fn given(options: &Resume, saved: &Saved) -> Result<(String, Cut, Vec<Vec<u8>>)> {
    let file = options.file.display();
    match (&saved.machine.guest, &options.run) {
        (Guest::Runs { nonce, cut }, None) => Ok((nonce.clone(), cut.clone(), Vec::new())),
        (Guest::Shell, None) => Ok(Default::default()),
        (Guest::Waits, Some(command)) => {
            ensure!(
                command.len() <= LONGEST,
                "--run has {} bytes, and a guest that was saved is given {LONGEST} at most; make it shorter",
                command.len()
            );
            let nonce = crate::initramfs::Command::new("").nonce;
            let line = format!("{nonce}\n{}\n.\n", STANDARD.encode(command));
            Ok((nonce, Cut::default(), vec![line.into_bytes()]))
        }
        (Guest::Waits, None) => {
            bail!("{file} was saved when its command was done, and has nothing to do; give it another one with --run")
        }
        (Guest::Runs { .. }, Some(_)) => {
            bail!("{file} was saved while its command ran, which goes on and whose status counts; leave --run out")
        }
        (Guest::Shell, Some(_)) => bail!(
            "{file} was saved with a shell for someone at a terminal; leave --run out, or save a guest with \
             cargo hv linux --run true --save FILE"
        ),
    }
}

/// The options of a machine like the one that was saved.
fn common(options: &Resume, saved: &Saved) -> Result<Common> {
    let words = ["hv", "payload"];
    let Command::Payload(payload) = Cli::try_parse_from(words)?.command else {
        unreachable!("{words:?} are understood")
    };
    let machine = &saved.machine;
    let gic = match machine.gic {
        2 => Gic::V2,
        3 => Gic::V3,
        other => bail!("{} has a GIC of version {other}, which this tool does not know", saved.path.display()),
    };
    let bbm = cli::Bbm::from_str(&machine.bbm, false).ok();
    let bbm = bbm.with_context(|| format!("{}: there is no --bbm {}", saved.path.display(), machine.bbm))?;
    let mut common = payload.common;
    (common.cpu, common.gic, common.smp) = (machine.cpu.clone(), gic, machine.smp);
    (common.memory, common.bbm) = (Some(Size(machine.memory)), bbm);
    (common.qemu, common.timeout, common.log) = (options.qemu.clone(), options.timeout, options.log);
    check::saved(&common).with_context(|| format!("{} can't be resumed", saved.path.display()))?;
    Ok(common)
}
