//! What the tests that boot machines share.

pub mod bytes;
pub mod tree;

use qemu::console::Extract;
use qemu::images::{self, Image};
use qemu::initramfs::{self, Command};
use qemu::machine::Machine;
use qemu::run::{self, Flow, Outcome};
use qemu::setup::emulator::Emulator;
use qemu::setup::firmware::Firmware;
use qemu::setup::guest::Guest;
use qemu::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Machines that run at the same time: an emulated CPU takes a whole one of the host's.
const MACHINES: usize = 2;

/// The workspace.
pub fn workspace() -> &'static Workspace {
    static WORKSPACE: OnceLock<Workspace> = OnceLock::new();
    WORKSPACE.get_or_init(|| Workspace::locate().expect("the workspace is where it was built"))
}

/// The QEMU under test.
pub fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| {
        let chosen = std::env::var_os("HV_QEMU");
        Emulator::find_or_install(chosen.as_deref().map(Path::new)).expect("there is a QEMU")
    })
}

/// The guest Linux.
pub fn guest() -> &'static Guest {
    static GUEST: OnceLock<Guest> = OnceLock::new();
    GUEST.get_or_init(|| Guest::get(workspace()).expect("there is a guest"))
}

/// UEFI firmware and GRUB.
pub fn firmware() -> &'static Firmware {
    static FIRMWARE: OnceLock<Firmware> = OnceLock::new();
    FIRMWARE.get_or_init(|| Firmware::get(workspace()).expect("there is firmware"))
}

/// The hypervisor's flat image.
pub fn hypervisor() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| images::build(workspace(), Image::Hypervisor).expect("the hypervisor builds"))
}

/// The payload's flat image.
pub fn payload() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| images::build(workspace(), Image::Payload).expect("the payload builds"))
}

/// A turn to run machines, so many at a time; the next test's begins when this is dropped.
#[derive(Debug)]
pub struct Turn(usize);

static FREE: Mutex<usize> = Mutex::new(MACHINES);
static FREED: Condvar = Condvar::new();

/// Waits until a machine may run.
pub fn turn() -> Turn {
    turn_of(1)
}

/// Waits until a machine may run that needs the host for itself: its CPUs wait for each other, and two such machines at
/// once take much longer than one after the other.
pub fn turn_alone() -> Turn {
    turn_of(MACHINES)
}

fn turn_of(machines: usize) -> Turn {
    let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut free = FREED.wait_while(free, |free| *free < machines).unwrap_or_else(PoisonError::into_inner);
    *free -= machines;
    Turn(machines)
}

impl Drop for Turn {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += self.0;
        FREED.notify_all();
    }
}

/// A folder for one test's files, removed at its end.
#[derive(Debug)]
pub struct Scratch(PathBuf);

/// A new, empty folder.
pub fn scratch() -> Scratch {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = workspace().folder("scratch").expect("the build folder is writable").join(name);
    std::fs::create_dir_all(&folder).expect("the build folder is writable");
    Scratch(folder)
}

impl Scratch {
    /// A file's path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, contents).expect("the build folder is writable");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed is in the build folder and harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Seconds that any one machine gets before its test fails.
const LIMIT: Duration = Duration::from_secs(240);

/// Runs a machine until it ends, in its turn.
///
/// # Panics
/// If QEMU can't be run.
pub fn run(machine: &Machine) -> Outcome {
    observe(machine, |_, _| Flow::Continue)
}

/// Runs a machine in its turn, and lets the test watch and type.
///
/// # Panics
/// If QEMU can't be run.
pub fn observe(machine: &Machine, observer: impl FnMut(&[u8], &qemu::console::Console) -> Flow) -> Outcome {
    let _turn = turn();
    run::capture(emulator(), machine, LIMIT, observer).expect("QEMU runs")
}

/// What a command in the guest wrote, and its status.
#[derive(Debug)]
pub struct Ran {
    /// What it wrote, to standard error too.
    pub output: String,
    /// Its exit status, if it got that far.
    pub status: Option<u8>,
    /// The run.
    pub outcome: Outcome,
}

/// The hypervisor on a machine of this shape, without a guest.
pub fn machine() -> Machine {
    Machine { append: "log=info".into(), ..Machine::new(hypervisor()) }
}

/// Boots Linux under the hypervisor on `machine` and runs a shell command in it.
///
/// # Panics
/// If the guest can't be loaded.
pub fn linux(machine: Machine, shell: &str) -> Ran {
    linux_started(machine, shell, |_, _| ())
}

/// The same on a machine that `start` changes when its guest is known; what it returns is kept until the end.
///
/// # Panics
/// If the guest can't be loaded.
pub fn linux_started<T>(mut machine: Machine, shell: &str, start: impl FnOnce(&mut Machine, &Scratch) -> T) -> Ran {
    let command = Command::new(shell);
    let scratch = scratch();
    let archive = initramfs::archive(&guest().busybox, Some(&command)).expect("busybox can be read");
    let initrd = scratch.file("initrd", &archive);
    let bootargs = "console=ttyAMA0 quiet loglevel=1 panic=-1 rdinit=/hv/init";
    machine.load_guest(&guest().kernel, Some(&initrd), bootargs).expect("the guest fits");
    let _kept = start(&mut machine, &scratch);
    let (mut extract, mut output) = (Extract::new(&command.nonce), Vec::new());
    let outcome = observe(&machine, |bytes, _| {
        extract.push(bytes, |_, bytes| output.extend_from_slice(bytes));
        Flow::Continue
    });
    Ran { output: String::from_utf8_lossy(&output).into_owned(), status: extract.status(), outcome }
}

/// `cargo hv` with these words, and nothing on its standard input.
#[must_use]
pub fn hv(words: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(qemu::workspace::cargo());
    command.args(["run", "--quiet", "--package", "qemu", "--bin", "hv", "--"]).args(words);
    command.current_dir(workspace().root()).env("CARGO_TARGET_DIR", workspace().target()).stdin(Stdio::null());
    command
}

/// Runs `cargo hv linux` in its turn and alone, as a user does, with these options and this shell command.
///
/// # Panics
/// If Cargo can't be run.
pub fn hv_linux(options: &[&str], shell: &str) -> Output {
    hv_linux_with(options, shell, &[])
}

/// [`hv_linux`], with arguments for QEMU behind.
///
/// # Panics
/// If Cargo can't be run.
pub fn hv_linux_with(options: &[&str], shell: &str, qemu: &[&str]) -> Output {
    let _turn = turn_alone();
    hv(&["linux", "--timeout", "500"])
        .args(options)
        .args(["--run", shell, "--"])
        .args(qemu)
        .output()
        .expect("cargo runs")
}

/// What a command wrote to standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command wrote to standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts how the hypervisor says it ended, and shows the console if it did not end so.
#[macro_export]
macro_rules! assert_end {
    ($outcome:expr, $end:expr) => {{
        let outcome: &qemu::run::Outcome = &$outcome;
        assert_eq!(
            outcome.end,
            Some($end),
            "the run is over because: {:?}\n{}\n{}",
            outcome.stop,
            outcome.complaints,
            outcome.console.tail(60)
        );
    }};
}
