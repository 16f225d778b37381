//! Running QEMU: with the console captured, or with the user's terminal as the console; never without an end.

use crate::console::{Console, End};
use crate::machine::Machine;
use crate::setup::emulator::Emulator;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use wait_timeout::ChildExt;

/// How long QEMU may live on after the hypervisor's last line, or after it was asked to end.
const GRACE: Duration = Duration::from_secs(10);

/// Why a run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// QEMU ended by itself.
    Exited(ExitStatus),
    /// The hypervisor said its last line and QEMU did not follow it, so it was ended.
    Lingered,
    /// The time was over, so QEMU was ended.
    TimedOut,
    /// The console had been silent for too long, so QEMU was ended.
    Silent,
    /// The observer had seen enough.
    Satisfied,
    /// A [`Stopper`] was used.
    Stopped,
}

/// Ends a run from another thread.
#[derive(Debug, Clone, Default)]
pub struct Stopper(Arc<Mutex<Option<Instant>>>);

impl Stopper {
    /// How often a run looks.
    const PERIOD: Duration = Duration::from_millis(100);

    /// The run is to end now.
    pub fn stop(&self) {
        self.stop_within(Duration::ZERO);
    }

    /// The run is to end after so long, if it has not by then.
    pub fn stop_within(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *at = Some(at.map_or(end, |at| at.min(end)));
    }

    fn is_due(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at <= Instant::now())
    }
}

/// How long a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In all.
    pub total: Duration,
    /// Without a byte on the console.
    pub silence: Duration,
}

/// What a captured run left behind.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// All that the machine's serial port said.
    pub console: Console,
    /// What QEMU itself had to say.
    pub complaints: String,
    /// The hypervisor's last line.
    pub end: Option<End>,
    /// Why the run is over.
    pub stop: Stop,
}

/// What an observer of the console wants next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flow {
    /// More.
    Continue,
    /// To type something.
    Send(Vec<u8>),
    /// The end.
    Stop,
}

/// What the reading threads report.
enum Event {
    Console(Vec<u8>),
    Complaint(Vec<u8>),
    Keys(Vec<u8>),
    Ended,
}

/// Runs a machine with its console captured. `observe` sees every piece of it, together with all that came before.
///
/// # Errors
/// If the machine can't be run at all. A guest that fails is an [`Outcome`], not an error.
pub fn capture(
    emulator: &Emulator,
    machine: &Machine,
    timeout: Duration,
    observe: impl FnMut(&[u8], &Console) -> Flow,
) -> Result<Outcome> {
    capture_within(emulator, machine, Limits { total: timeout, silence: timeout }, &Stopper::default(), None, observe)
}

/// The same, with a limit for how long nothing may come, with a way to end it, and with what is typed from elsewhere.
///
/// # Errors
/// As for [`capture`].
pub fn capture_within(
    emulator: &Emulator,
    machine: &Machine,
    limits: Limits,
    stopper: &Stopper,
    typed: Option<Receiver<Vec<u8>>>,
    mut observe: impl FnMut(&[u8], &Console) -> Flow,
) -> Result<Outcome> {
    let mut command = command(emulator, machine)?;
    command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-monitor", "none"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C in the terminal is for this tool, which then ends QEMU when it has what it wants of it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut qemu = Qemu::spawn(emulator, command)?;
    let mut input = qemu.0.stdin.take();
    let (sender, events) = mpsc::channel();
    read_all(qemu.0.stdout.take(), Event::Console, sender.clone());
    read_all(qemu.0.stderr.take(), Event::Complaint, sender.clone());
    if let Some(typed) = typed {
        thread::spawn(move || typed.into_iter().all(|keys| sender.send(Event::Keys(keys)).is_ok()));
    }
    // If QEMU is gone, its output ends too, and that is what counts.
    let mut press = |keys: &[u8]| {
        let _ = input.as_mut().map(|input| input.write_all(keys).and_then(|()| input.flush()));
    };

    let mut console = Console::default();
    let mut complaints = Vec::new();
    let mut deadline = Instant::now() + limits.total;
    let mut quiet = Instant::now() + limits.silence;
    let mut over = Stop::TimedOut;
    let mut open = 2;
    let stop = loop {
        if stopper.is_due() {
            break Stop::Stopped;
        }
        let due = deadline.min(quiet).saturating_duration_since(Instant::now());
        match events.recv_timeout(due.min(Stopper::PERIOD)) {
            Ok(Event::Console(bytes)) => {
                quiet = Instant::now() + limits.silence;
                console.push(&bytes);
                match observe(&bytes, &console) {
                    Flow::Continue => {}
                    Flow::Send(keys) => press(&keys),
                    Flow::Stop => break Stop::Satisfied,
                }
                if over == Stop::TimedOut && console.end().is_some() {
                    over = Stop::Lingered;
                    deadline = deadline.min(Instant::now() + GRACE);
                }
            }
            Ok(Event::Keys(keys)) => press(&keys),
            Ok(Event::Complaint(bytes)) => complaints.extend_from_slice(&bytes),
            Ok(Event::Ended) if open > 1 => open -= 1,
            Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => {
                let ended = qemu.0.wait_timeout(GRACE).context("can't wait for QEMU")?;
                break ended.map_or(over, Stop::Exited);
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline.min(quiet) => {}
            Err(RecvTimeoutError::Timeout) if quiet < deadline => break Stop::Silent,
            Err(RecvTimeoutError::Timeout) => break over,
        }
    };
    drop(qemu);
    let complaints = String::from_utf8_lossy(&complaints).trim_end().to_owned();
    Ok(Outcome { end: console.end(), console, complaints, stop })
}

/// Runs a machine with the user's terminal as its console (Ctrl-A X leaves). A copy of the console goes to `log`.
///
/// # Errors
/// If the machine can't be run at all.
pub fn interact(
    emulator: &Emulator,
    machine: &Machine,
    timeout: Option<Duration>,
    stopper: &Stopper,
    log: &Path,
) -> Result<Outcome> {
    // QEMU adds to the file.
    std::fs::write(log, b"").with_context(|| format!("can't write {}", log.display()))?;
    let mut command = command(emulator, machine)?;
    let path = log.to_string_lossy().replace(',', ",,");
    command.args(["-chardev", &format!("stdio,id=console,mux=on,signal=off,logfile={path}")]);
    command.args(["-serial", "chardev:console", "-mon", "chardev=console"]);
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let terminal = Terminal::keep();
    let mut qemu = Qemu::spawn(emulator, command)?;
    let stop = loop {
        if let Some(status) = qemu.0.wait_timeout(Stopper::PERIOD).context("can't wait for QEMU")? {
            break Stop::Exited(status);
        }
        if stopper.is_due() {
            break Stop::Stopped;
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            break Stop::TimedOut;
        }
    };
    drop(qemu);
    drop(terminal);
    let mut console = Console::default();
    console.push(&std::fs::read(log).with_context(|| format!("can't read {}", log.display()))?);
    Ok(Outcome { end: console.end(), console, complaints: String::new(), stop })
}

/// The settings of the terminal that is standard input, set again when this is dropped: a QEMU that has to be killed leaves
/// it raw.
struct Terminal(Option<rustix::termios::Termios>);

impl Terminal {
    fn keep() -> Self {
        Self(rustix::termios::tcgetattr(std::io::stdin()).ok())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            // A terminal that is gone needs none.
            let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, settings);
        }
    }
}

fn command(emulator: &Emulator, machine: &Machine) -> Result<Command> {
    let mut command = Command::new(&emulator.path);
    command.args(machine.arguments()?);
    // Elsewhere a killed tool leaves its QEMU behind.
    #[cfg(target_os = "linux")]
    // SAFETY: between fork and exec only async-signal-safe functions may run; the closure makes one system call
    // (prctl) and allocates nothing.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            // A tool that dies takes its QEMU with it.
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(Into::into)
        });
    }
    if std::env::var_os("HV_SHOW_QEMU").is_some() {
        let words = command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>();
        eprintln!("hv: {} {}", emulator.path.display(), words.join(" "));
    }
    Ok(command)
}

/// A QEMU that does not outlive this value.
struct Qemu(Child);

impl Qemu {
    fn spawn(emulator: &Emulator, mut command: Command) -> Result<Self> {
        command.spawn().map(Self).with_context(|| format!("can't run {}", emulator.path.display()))
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        // Politely first: QEMU then gives the terminal back as it found it.
        let _ = rustix::process::kill_process(Pid::from_child(&self.0), Signal::TERM);
        if !matches!(self.0.wait_timeout(GRACE), Ok(Some(_))) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn read_all(stream: Option<impl Read + Send + 'static>, event: fn(Vec<u8>) -> Event, sender: Sender<Event>) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        if let Some(mut stream) = stream {
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                if sender.send(event(buffer[..count].to_vec())).is_err() {
                    return;
                }
            }
        }
        let _ = sender.send(Event::Ended);
    });
}
