//! When a machine is saved, and what is known of it by then.

use crate::console::{Cut, Extract};
use crate::saved::{Draft, Guest, Machine, Saved};
use anyhow::{Context, Result};
use signal_hook::consts::SIGUSR1;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a machine is saved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// When its command is done, or its shell is there.
    End,
    /// So long after its command has begun, or its shell was there.
    After(Duration),
    /// When the user asks for it.
    Asked,
}

/// What is typed to a guest that waits for a command and is to have none.
pub const NO_COMMAND: &[u8] = b".\n";

/// A save that is to be.
#[derive(Debug)]
pub struct Save {
    when: When,
    /// Whether the guest runs on afterwards.
    pub go_on: bool,
    machine: Machine,
    draft: Mutex<Option<Draft>>,
    seen: Mutex<Seen>,
    /// The user wants it now: by a key, or by SIGUSR1.
    asked: Arc<AtomicBool>,
    changed: Condvar,
    typed: Sender<Vec<u8>>,
    /// Where a shell's console is kept.
    console: Option<PathBuf>,
}

/// What the console has shown.
#[derive(Debug, Default)]
struct Seen {
    begun: Option<Instant>,
    ready: bool,
    cut: Option<Cut>,
}

impl Save {
    /// A save of `machine`, whose guest's nonce is right and whose cut is not known yet. What is sent to `typed` is typed on its
    /// console; `console` has that of a guest with a shell.
    ///
    /// # Errors
    /// If the system has no room for SIGUSR1's handler.
    pub fn new(
        when: When,
        go_on: bool,
        (machine, draft): (Machine, Draft),
        typed: Sender<Vec<u8>>,
        console: Option<PathBuf>,
    ) -> Result<Self> {
        let (draft, seen, asked) = (Mutex::new(Some(draft)), Mutex::default(), Arc::default());
        signal_hook::flag::register(SIGUSR1, Arc::clone(&asked)).context("can't listen to SIGUSR1")?;
        Ok(Self { when, go_on, machine, draft, seen, asked, changed: Condvar::new(), typed, console })
    }

    /// The guest has a shell, which is there from the beginning.
    pub fn shell_is_there(&self) {
        let mut seen = lock(&self.seen);
        (seen.begun, seen.ready) = (Some(Instant::now()), true);
    }

    /// Whether a command that ends is waited for.
    pub fn waits_for_the_end(&self) -> bool {
        self.when == When::End
    }

    /// The console was read up to here.
    pub fn see(&self, extract: &mut Extract) {
        let mut seen = lock(&self.seen);
        if extract.has_begun() && seen.begun.is_none() {
            seen.begun = Some(Instant::now());
        }
        seen.ready |= extract.is_ready();
        if let Some(cut) = extract.take_cut() {
            seen.cut = Some(cut);
            self.changed.notify_all();
        }
    }

    /// The user wants it now.
    pub fn ask(&self) {
        self.asked.store(true, Relaxed);
    }

    /// Whether it is time, and it was not done yet.
    pub fn is_due(&self) -> bool {
        let mut seen = lock(&self.seen);
        if seen.begun.is_none() && self.console.as_ref().is_some_and(shows_a_shell) {
            (seen.begun, seen.ready) = (Some(Instant::now()), true);
        }
        let due = match self.when {
            When::End => seen.ready,
            When::After(time) => seen.begun.is_some_and(|begun| begun.elapsed() >= time),
            When::Asked => false,
        };
        (due || self.asked.load(Relaxed)) && lock(&self.draft).is_some()
    }

    /// The file in the making: once.
    pub fn take_draft(&self) -> Option<Draft> {
        lock(&self.draft).take()
    }

    /// What is written down of the machine, whose guest has been stopped: waits until all that the guest has written by then was
    /// read.
    ///
    /// # Errors
    /// If one of its disks is gone.
    pub fn machine(&self) -> Result<Machine> {
        /// It is in a pipe already.
        const PATIENCE: Duration = Duration::from_secs(10);
        let guest = match &self.machine.guest {
            Guest::Runs { nonce, .. } => {
                let seen = lock(&self.seen);
                let seen = self.changed.wait_timeout_while(seen, PATIENCE, |seen| seen.cut.is_none());
                let (mut seen, _) = seen.unwrap_or_else(PoisonError::into_inner);
                let cut = seen.cut.take().unwrap_or_default();
                if seen.ready { Guest::Waits } else { Guest::Runs { nonce: nonce.clone(), cut } }
            }
            other => other.clone(),
        };
        Machine { guest, ..self.machine.clone() }.with_disks_now()
    }

    /// The guest goes on here. If it waits for a command, there is none.
    pub fn goes_on(&self) {
        if lock(&self.seen).ready {
            // A run that is over types nothing.
            let _ = self.typed.send(NO_COMMAND.to_vec());
        }
    }
}

/// Whether a console ends with a shell's prompt, behind what `/hv/init` says before it starts one.
fn shows_a_shell(console: &PathBuf) -> bool {
    let text = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.rsplit_once("under Unbroken. ")
        .is_some_and(|(_, after)| after.trim_end_matches(['\x1b', '[', '6', 'n']).ends_with("# "))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine that goes on from a file.
#[derive(Debug)]
pub struct Resume {
    /// The file.
    pub saved: Saved,
    /// What is typed to its guest once it runs.
    pub type_first: Mutex<Vec<Vec<u8>>>,
    /// Who types.
    pub typed: Sender<Vec<u8>>,
    /// It runs.
    pub runs: AtomicBool,
}

impl Resume {
    /// The guest runs.
    pub fn goes_on(&self) {
        self.runs.store(true, Relaxed);
        for line in lock(&self.type_first).drain(..) {
            // A run that is over types nothing.
            let _ = self.typed.send(line);
        }
    }
}
