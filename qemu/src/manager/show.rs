//! What the user sees of a session while it runs.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
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
    /// A line that changes in place, below the guest's output.
    Live(ProgressBar),
    /// Lines one after another, not more than one in a while.
    Lines(Mutex<Option<Instant>>),
    /// The terminal is the guest's: its title only.
    Title,
}

/// Between two lines of the same news, where they stay on the screen.
const PAUSE: Duration = Duration::from_secs(5);

impl Show {
    /// For a guest that runs one command.
    pub fn beside_output() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::new(Kind::Lines(Mutex::new(None)));
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self::new(Kind::Live(bar))
    }

    /// For a guest whose shell has the terminal.
    pub fn beside_shell() -> Self {
        Self::new(Kind::Title)
    }

    fn new(kind: Kind) -> Self {
        // With a shell, the user decides what counts.
        let begun = AtomicBool::new(matches!(kind, Kind::Title));
        Self { kind, begun }
    }

    /// The guest's command has begun.
    pub fn begin(&self) {
        self.begun.store(true, Relaxed);
    }

    /// Whether the guest's command has begun; a shell begins with the guest.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Relaxed)
    }

    /// The state of things, which the next call replaces.
    pub fn state(&self, text: &str) {
        match &self.kind {
            Kind::Live(bar) => {
                bar.set_message(text.to_owned());
                bar.tick();
            }
            Kind::Lines(last) => {
                let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if last.is_none_or(|last| last.elapsed() >= PAUSE) {
                    *last = Some(Instant::now());
                    eprintln!("hv: {text}");
                }
            }
            // OSC 2: the window's title; it moves neither cursor nor text.
            Kind::Title if std::io::stderr().is_terminal() => eprint!("\x1b]2;{text}\x07"),
            Kind::Title => {}
        }
    }

    /// Something that is said once and stays.
    pub fn say(&self, text: &str) {
        match &self.kind {
            Kind::Live(bar) => bar.suspend(|| eprintln!("hv: {text}")),
            Kind::Lines(_) => eprintln!("hv: {text}"),
            Kind::Title => {}
        }
    }

    /// Does something to the terminal with the live line out of the way.
    pub fn aside<R>(&self, act: impl FnOnce() -> R) -> R {
        match &self.kind {
            Kind::Live(bar) => bar.suspend(act),
            _ => act(),
        }
    }

    /// Takes the live line away.
    pub fn clear(&self) {
        if let Kind::Live(bar) = &self.kind {
            bar.finish_and_clear();
        }
    }
}
