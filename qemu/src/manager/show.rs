//! What the user sees of a guest and of a session while they run.

use crate::live::Screen;
use crate::manager::on_screen::OnScreen;
use crate::progress::Step;
use crate::status_line::StatusLine;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where a session's news go. Standard output stays the guest's.
#[derive(Debug)]
pub struct Show {
    kind: Kind,
    /// The guest has booted, and the user's command runs.
    begun: AtomicBool,
}

#[derive(Debug)]
enum Kind {
    /// Below the guest's output on a terminal.
    Live(Mutex<Output<StatusLine>>),
    /// Lines one after another, and when the last one was about the state of things: not more than one in a while.
    Lines(Mutex<Output<Option<Instant>>>),
    /// The terminal is the guest's: its title only, which is to be given back.
    Title(AtomicBool),
    /// A view that takes the terminal whole.
    Screen(OnScreen),
}

/// The guest's output, and what stands beside it.
#[derive(Debug)]
struct Output<T> {
    /// What is waited for, until the guest's first byte.
    step: Option<Step>,
    beside: T,
}

/// Between two lines of the same news, where they stay on the screen.
const PAUSE: Duration = Duration::from_secs(5);
/// OSC 2: the window's title; it moves neither cursor nor text. XTWINOPS 22 and 23 keep the title and give it back.
const TITLE: &str = "\x1b]2;";
const TITLE_END: &str = "\x07";
const KEEP_TITLE: &str = "\x1b[22;2t";
const GIVE_TITLE_BACK: &str = "\x1b[23;2t";

impl Show {
    /// For a guest that runs one command. `step` says what is waited for.
    pub fn beside_output(step: Step) -> Self {
        let step = Some(step);
        Self::new(if io::stderr().is_terminal() {
            let beside = StatusLine::new(io::stdout().is_terminal());
            Kind::Live(Mutex::new(Output { step, beside }))
        } else {
            Kind::Lines(Mutex::new(Output { step, beside: None }))
        })
    }

    /// For a guest that runs one command, with a live view of its dirty log. `leave` is called when the user wants the end.
    ///
    /// # Errors
    /// If the terminal can't be taken.
    pub fn on_a_screen(leave: impl Fn() + Send + 'static) -> anyhow::Result<Self> {
        let screen = Screen::open(leave)?;
        screen.update(|state| state.said = "Linux boots".into());
        Ok(Self::new(Kind::Screen(OnScreen::new(screen))))
    }

    /// The live view, if there is one.
    pub fn screen(&self) -> Option<&Screen> {
        match &self.kind {
            Kind::Screen(on_screen) => Some(on_screen.screen()),
            _ => None,
        }
    }

    /// For a guest whose shell has the terminal.
    pub fn beside_shell() -> Self {
        let is_terminal = io::stderr().is_terminal();
        if is_terminal {
            eprint!("{KEEP_TITLE}");
        }
        Self::new(Kind::Title(AtomicBool::new(is_terminal)))
    }

    fn new(kind: Kind) -> Self {
        // With a shell, the user decides what counts.
        let begun = AtomicBool::new(matches!(kind, Kind::Title(_)));
        Self { kind, begun }
    }

    /// The guest's command has begun.
    pub fn begin(&self) {
        if self.begun.swap(true, Relaxed) {
            return;
        }
        let next = |step: &mut Option<Step>| {
            if let Some(step) = step {
                step.next("The command runs");
            }
        };
        match &self.kind {
            Kind::Live(output) => next(&mut lock(output).step),
            Kind::Lines(output) => next(&mut lock(output).step),
            Kind::Screen(on_screen) => on_screen.screen().update(|state| state.said = "the command runs".into()),
            Kind::Title(_) => {}
        }
    }

    /// Whether the guest's command has begun; a shell begins with the guest.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Relaxed)
    }

    /// The state of things, which the next call replaces.
    pub fn state(&self, text: &str) {
        match &self.kind {
            Kind::Live(output) => {
                let Output { step, beside } = &mut *lock(output);
                match step {
                    Some(step) => step.detail(text),
                    None => beside.set(text),
                }
            }
            Kind::Lines(output) => {
                let last = &mut lock(output).beside;
                if last.is_none_or(|last| last.elapsed() >= PAUSE) {
                    *last = Some(Instant::now());
                    eprintln!("hv: {text}");
                }
            }
            Kind::Title(taken) if taken.load(Relaxed) => eprint!("{TITLE}{text}{TITLE_END}"),
            // The view shows it all in its own way.
            Kind::Title(_) | Kind::Screen(_) => {}
        }
    }

    /// Something that is said once and stays.
    pub fn say(&self, text: &str) {
        match &self.kind {
            Kind::Live(output) => {
                let Output { step, beside } = &mut *lock(output);
                match step {
                    Some(step) => step.say(&format!("hv: {text}")),
                    None => beside.say(&format!("hv: {text}")),
                }
            }
            Kind::Lines(_) => eprintln!("hv: {text}"),
            // The guest's shell and its line editor know nothing of other lines: they would be wrong from then on.
            Kind::Title(_) => self.state(text),
            Kind::Screen(on_screen) => on_screen.say(text),
        }
    }

    /// Writes what the guest has written to standard output.
    ///
    /// # Errors
    /// If that can't be written to.
    pub fn guest_wrote(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.kind {
            Kind::Live(output) => {
                let Output { step, beside } = &mut *lock(output);
                *step = None;
                beside.write(bytes)
            }
            Kind::Lines(output) => {
                lock(output).step = None;
                write(bytes)
            }
            Kind::Title(_) => write(bytes),
            Kind::Screen(on_screen) => on_screen.guest_wrote(bytes),
        }
    }

    /// Writes what the guest has written to standard error.
    pub fn guest_complained(&self, bytes: &[u8]) {
        match &self.kind {
            Kind::Live(output) => {
                let Output { step, beside } = &mut *lock(output);
                *step = None;
                beside.complain(bytes);
            }
            Kind::Lines(output) => {
                lock(output).step = None;
                let _ = io::stderr().write_all(bytes);
            }
            Kind::Title(_) => {}
            Kind::Screen(on_screen) => on_screen.guest_complained(bytes),
        }
    }

    /// Whether the guest's last newline is still to come, so that it makes room for a line below.
    pub fn hold_newline(&self, held: bool) {
        if let Kind::Live(output) = &self.kind {
            lock(output).beside.hold_newline(held);
        }
    }

    /// Takes away what changes in place.
    pub fn clear(&self) {
        match &self.kind {
            Kind::Live(output) => {
                let Output { step, beside } = &mut *lock(output);
                *step = None;
                beside.clear();
            }
            Kind::Lines(output) => lock(output).step = None,
            Kind::Title(taken) if taken.swap(false, Relaxed) => eprint!("{GIVE_TITLE_BACK}"),
            Kind::Title(_) => {}
            Kind::Screen(on_screen) => on_screen.clear(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}
