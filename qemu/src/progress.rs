//! What the user sees while something takes its time: a spinner in a terminal, plain lines elsewhere.
//!
//! All of it goes to standard error; standard output is the guest's.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Seconds after which a step that is not done says so, where there is no terminal; then every so many.
const FIRST: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(10);

/// A step that is under way. Dropped without [`Step::done`], it leaves no success message behind.
#[derive(Debug)]
pub struct Step {
    shown: Shown,
    what: String,
    begun: Instant,
}

#[derive(Debug)]
enum Shown {
    /// A spinner.
    Terminal(ProgressBar),
    /// A line now and then.
    Lines(Lines),
    /// The step is over.
    Nothing,
}

/// A thread that says what is waited for, until this is dropped.
#[derive(Debug)]
struct Lines {
    /// What, and what it is about now.
    text: Arc<Mutex<String>>,
    /// Never sent to: dropped, it ends the thread.
    _ends: Sender<()>,
}

impl Lines {
    fn begin(what: &str) -> Self {
        let text = Arc::new(Mutex::new(what.to_owned()));
        let (sender, ends) = mpsc::channel();
        let (shared, begun) = (Arc::clone(&text), Instant::now());
        thread::spawn(move || {
            let mut next = FIRST;
            while ends.recv_timeout(next.saturating_sub(begun.elapsed())) == Err(RecvTimeoutError::Timeout) {
                let text = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
                eprintln!("hv: {text} ... {} s", begun.elapsed().as_secs());
                next = if next < LATER { LATER } else { next + LATER };
            }
        });
        Self { text, _ends: sender }
    }

    fn set(&self, text: String) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

impl Step {
    /// Says that `what` begins.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let shown = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner().with_message(fit(&what));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            Shown::Terminal(bar)
        } else {
            eprintln!("hv: {what} ...");
            Shown::Lines(Lines::begin(&what))
        };
        Self { shown, what, begun: Instant::now() }
    }

    /// Goes over to something else, in the same place.
    pub fn next(&mut self, what: &str) {
        what.clone_into(&mut self.what);
        match &self.shown {
            Shown::Terminal(bar) => bar.set_message(fit(what)),
            Shown::Lines(lines) => {
                lines.set(what.to_owned());
                eprintln!("hv: {what} ...");
            }
            Shown::Nothing => {}
        }
    }

    /// Is about something else from now on, without a word: without a terminal, its time is told when it is long.
    pub fn rename(&mut self, what: &str) {
        if self.what == what {
            return;
        }
        what.clone_into(&mut self.what);
        match &mut self.shown {
            Shown::Terminal(bar) => {
                bar.set_message(fit(what));
                bar.reset_elapsed();
            }
            Shown::Lines(lines) => *lines = Lines::begin(what),
            Shown::Nothing => {}
        }
    }

    /// Shows a detail behind the step's name (without a terminal, when the next line is due).
    pub fn detail(&self, detail: &str) {
        let text = format!("{}: {detail}", self.what);
        match &self.shown {
            Shown::Terminal(bar) => bar.set_message(fit(&text)),
            Shown::Lines(lines) => lines.set(text),
            Shown::Nothing => {}
        }
    }

    /// Prints a line to standard output, above the spinner.
    pub fn print(&self, line: &str) {
        match &self.shown {
            Shown::Terminal(bar) => bar.suspend(|| println!("{line}")),
            _ => println!("{line}"),
        }
    }

    /// Prints a line to standard error, above the spinner.
    pub fn say(&self, line: &str) {
        match &self.shown {
            Shown::Terminal(bar) => bar.suspend(|| eprintln!("{line}")),
            _ => eprintln!("{line}"),
        }
    }

    /// Says that the step is done, and how long it took if that was noticeable.
    pub fn done(mut self, result: &str) {
        self.clear();
        let seconds = self.begun.elapsed().as_secs();
        if seconds >= 2 {
            eprintln!("hv: {}: {result} ({seconds} s)", self.what);
        } else {
            eprintln!("hv: {}: {result}", self.what);
        }
    }

    /// Ends the step without a word: what follows speaks for itself.
    pub fn clear(&mut self) {
        if let Shown::Terminal(bar) = std::mem::replace(&mut self.shown, Shown::Nothing) {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What a row has room for, behind spinner and time and before the `^C` that the terminal itself writes there: in the next row
/// it would stay.
fn fit(text: &str) -> String {
    const OTHERS: usize = 12;
    let columns = usize::from(console::Term::stderr().size().1);
    console::truncate_str(text, columns.saturating_sub(OTHERS).max(1), "…").into_owned()
}
