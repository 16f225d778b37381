//! What the user sees while something takes its time: a spinner in a terminal, plain lines elsewhere.
//!
//! All of it goes to standard error; standard output is the guest's.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// A step that is under way. Dropped without [`Step::done`], it leaves no success message behind.
#[derive(Debug)]
pub struct Step {
    bar: Option<ProgressBar>,
    what: String,
    begun: Instant,
}

impl Step {
    /// Says that `what` begins.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(what.clone());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("hv: {what} ...");
        }
        Self { bar, what, begun: Instant::now() }
    }

    /// Shows a detail behind the step's name (terminals only: a log wants no ticker).
    pub fn detail(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.what));
        }
    }

    /// Prints a line to standard output, above the spinner.
    pub fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
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
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
    }
}
