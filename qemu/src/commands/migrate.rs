//! `cargo hv migrate`: a running Linux moves from one machine to another.

mod beside;
mod side;
mod steps;

use super::command::{TIMEOUT, Watch};
use super::{check, linux, saving};
use crate::cli::Migrate;
use crate::console::{Cut, Extract};
use crate::devices::Devices;
use crate::ending::Status;
use crate::images::{self, Image};
use crate::initramfs::{self, Command};
use crate::interrupt;
use crate::machine::Machine;
use crate::manager;
use crate::manager::show::Show;
use crate::progress::Step;
use crate::run::{self, Limits};
use crate::saved::{self, Draft, Guest};
use crate::setup::emulator::Emulator;
use crate::setup::guest;
use crate::temporary::Temporary;
use crate::workspace::{Workspace, write_whole};
use anyhow::Result;
use beside::Theirs;
use side::{Coming, Side};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use steps::{Fail, Move, Moved, Outcome};

/// What the guest does if it is not told: it writes memory for a while.
const WORK: &str =
    "i=0; while [ $i -lt 10 ]; do head -c 8388608 /dev/urandom >/tmp/work; i=$((i + 1)); echo work $i; sleep 1; done";
/// Where files are memory.
const MEMORY: &str = "/dev/shm";

/// Runs the command.
///
/// # Errors
/// If something can't be set up.
pub fn migrate(workspace: &Workspace, options: &Migrate) -> Result<Status> {
    saving::common(&options.common, "migrate")?;
    saving::devices(&options.devices, "migrate")?;
    check::moved(options)?;
    let devices = options.devices.examine()?;
    let emulator = super::emulator(&options.common)?;
    let guest = guest::Guest::get(workspace)?;
    let command = Command::new(options.run.as_deref().unwrap_or(WORK));
    let initrd = workspace.folder("images")?.join(format!("run-{}.cpio", command.nonce));
    let _removed_at_the_end = Temporary::new(&initrd);
    let extras = linux::extras(&devices, &guest.kernel)?;
    write_whole(&initrd, &initramfs::archive_with(&guest.busybox, Some(&command), &extras)?)?;
    let folder = if Path::new(MEMORY).is_dir() { MEMORY.into() } else { workspace.folder("images")? };
    let traveller = Traveller { kernel: guest.kernel, initrd, nonce: command.nonce, devices, folder };
    let status = by_hypervisor(workspace, options, &emulator, &traveller)?;
    if options.beside_qemu && !matches!(status, Status::Signal(_)) {
        by_qemu(options, &emulator, &traveller)?;
    }
    Ok(status)
}

/// A guest that is to be moved, and where files for that are made.
struct Traveller {
    kernel: PathBuf,
    initrd: PathBuf,
    nonce: String,
    devices: Devices,
    folder: PathBuf,
}

/// Has QEMU move the guest, with no EL2 below it, and says what that took.
fn by_qemu(options: &Migrate, emulator: &Emulator, traveller: &Traveller) -> Result<()> {
    let machine = Machine {
        virtualization: false,
        kernel: traveller.kernel.clone(),
        initrd: Some(traveller.initrd.clone()),
        append: linux::COMMAND_BOOTARGS.to_owned(),
        ..super::machine(&options.common)?
    };
    let step = Step::begin("Moving the same guest by QEMU itself");
    let when = (&traveller.nonce[..], options.after.unwrap_or_default());
    let Theirs { rounds, pages, zero_pages, milliseconds } =
        beside::measure(emulator, &machine, when, &traveller.folder)?;
    drop(step);
    eprintln!(
        "hv: beside it QEMU itself, without a hypervisor: {rounds} rounds, {pages} pages, {zero_pages} zero pages; downtime \
         {milliseconds:.0} ms"
    );
    Ok(())
}

/// Has the hypervisor move the guest.
fn by_hypervisor(
    workspace: &Workspace,
    options: &Migrate,
    emulator: &Emulator,
    traveller: &Traveller,
) -> Result<Status> {
    let fail = options.fail.as_deref().map(str::parse::<Fail>).transpose().map_err(anyhow::Error::msg)?;
    let [mut source, mut destination] = [super::machine(&options.common)?, super::machine(&options.common)?];
    traveller.devices.attach(workspace, &mut source, 0)?;
    traveller.devices.elsewhere().attach(workspace, &mut destination, 0)?;
    source.load_guest(&traveller.kernel, Some(&traveller.initrd), linux::COMMAND_BOOTARGS)?;
    source.kernel = images::build(workspace, Image::Hypervisor)?;
    destination.kernel.clone_from(&source.kernel);
    destination.append += " resume=on";

    let file = traveller.folder.join(format!("unbroken-{:08x}.saved", std::process::id()));
    /// Less than a Linux that has booted takes.
    const TOO_LITTLE: u64 = 16 << 20;
    // Every round may send all of memory.
    let room = saved::room_for(source.memory.0, options.rounds + 2);
    let room = if fail.is_some_and(Fail::fills_the_file) { TOO_LITTLE } else { room };
    let draft = Draft::begin(&file, room)?;
    source.add_store(draft.unfinished(), false)?;
    destination.add_store(draft.unfinished(), true)?;
    let known = Guest::Runs { nonce: traveller.nonce.clone(), cut: Cut::default() };
    let known = saving::with_devices(saving::machine(&options.common, source.memory.0, known), &options.devices)?;

    let show = Show::beside_output(Step::begin("Booting Linux"));
    let watch = Mutex::new(Watch::new(&show, options.common.log, Extract::new(&traveller.nonce)));
    let sides = [Side::new(manager::connect(&mut source)?), Side::new(manager::connect(&mut destination)?)];
    let signal = Arc::new(AtomicU8::new(0));
    let stoppers = sides.each_ref().map(|side| side.stopper.clone());
    let seen = Arc::clone(&signal);
    let _asked = interrupt::ask_first(move |signal| {
        seen.store(signal as u8, Relaxed);
        stoppers.iter().for_each(run::Stopper::stop);
    });
    let total = options.common.timeout_or(TIMEOUT);
    let limits = Limits { total, silence: total };
    let read = Condvar::new();
    let see = |bytes: &[u8]| {
        let flow = watch.lock().unwrap_or_else(PoisonError::into_inner).see(bytes);
        read.notify_all();
        flow
    };
    let run = |machine: &Machine, side: &Side, mut coming: Option<Coming>| {
        let see = |bytes: &[u8], _: &_| match &mut coming {
            Some(coming) => see(&coming.take(bytes)),
            None => see(bytes),
        };
        let outcome = run::capture_within(emulator, machine, limits, &side.stopper, None, see);
        side.is_over();
        outcome
    };
    let (made, [source, destination]) = thread::scope(|scope| {
        let (run, source, destination, [first, second]) = (&run, &source, &destination, &sides);
        let coming = Some(Coming::default());
        let runs =
            [scope.spawn(move || run(source, first, None)), scope.spawn(move || run(destination, second, coming))];
        let made = Move { options, fail, sides: &sides, watch: &watch, read: &read, show: &show, known }.perform(draft);
        (made, runs.map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))))
    });
    let there = matches!(made.result, Ok(_) | Err((_, Some(_))));
    let outcome = if there { destination? } else { source? };
    let watch = watch.into_inner().unwrap_or_else(PoisonError::into_inner);
    let signal = signal.load(Relaxed);
    let status = if signal == 0 { watch.finish(&outcome, total)? } else { Status::Signal(signal) };
    show.clear();
    tell(made, status, &file, options.common.icount)
}

/// Says what has become of a move, and what the status is of a guest whose command has ended with `status`. With `icount` a tick is an
/// instruction.
fn tell(made: Outcome, status: Status, file: &Path, icount: bool) -> Result<Status> {
    eprintln!("hv: round    pages   zero pages   pages/s    dirty again");
    for (number, round) in made.rounds.iter().enumerate() {
        let left = round.left.map_or("stopped".to_owned(), |left| left.to_string());
        let rate = round.pages as f64 / round.seconds.max(0.001);
        eprintln!("hv: {number:>5} {:>8} {:>12} {rate:>9.0} {left:>14}", round.pages, round.zero_pages);
    }
    match made.result {
        Ok(Moved { pages, ticks, hash_ticks, frequency, hash, stood_still }) => {
            let took = |ticks: u64| match icount {
                true => format!("{ticks} instructions"),
                false => format!("{:.1} ms", ticks as f64 * 1000.0 / frequency.max(1) as f64),
            };
            eprintln!(
                "hv: downtime: {pages} pages; {} to send them, {} more to hash all memory for the comparison; {:.1} ms in all until the \
                 guest went on",
                took(ticks.saturating_sub(hash_ticks)),
                took(hash_ticks),
                stood_still.as_secs_f64() * 1000.0
            );
            // The hashes were compared before the guest was let go.
            println!("migrate: equal, {hash:#018x} on both sides");
            // It runs, so nobody needs the file.
            let _ = std::fs::remove_file(file);
            Ok(status)
        }
        Err((_, None)) => {
            // The reason was told when the guest went on.
            Ok(if matches!(status, Status::Success | Status::Command(0)) { Status::Failure } else { status })
        }
        Err((error, Some(kept))) => {
            eprintln!("hv: {error:#}; the guest is whole in a file: cargo hv resume {}", kept.display());
            Ok(Status::Failure)
        }
    }
}
