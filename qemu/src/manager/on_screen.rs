//! News and the guest's output beside a live view: shown in it, and written out once it has given the terminal back.

use crate::live::Screen;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A live view, and what is written after it.
#[derive(Debug)]
pub struct OnScreen {
    screen: Screen,
    later: Mutex<Later>,
}

/// What is written once the view has given the terminal back.
#[derive(Debug, Default)]
struct Later {
    /// The terminal is ours again: nothing waits any more.
    over: bool,
    /// What the guest wrote, if standard output is the same terminal; and what it wrote to standard error.
    output: Vec<u8>,
    complaints: Vec<u8>,
    /// What was said and stays.
    said: Vec<String>,
}

impl OnScreen {
    /// Beside this view.
    pub fn new(screen: Screen) -> Self {
        Self { screen, later: Mutex::default() }
    }

    /// The view.
    pub fn screen(&self) -> &Screen {
        &self.screen
    }

    /// Something that is said once and stays.
    pub fn say(&self, text: &str) {
        let mut later = self.later();
        if later.over {
            eprintln!("hv: {text}");
            return;
        }
        self.screen.update(|state| state.said = text.to_owned());
        later.said.push(text.to_owned());
    }

    /// Writes what the guest has written to standard output.
    ///
    /// # Errors
    /// If that can't be written to.
    pub fn guest_wrote(&self, bytes: &[u8]) -> io::Result<()> {
        self.screen.update(|state| state.guest_wrote(bytes));
        let mut later = self.later();
        // On the terminal itself it would be drawn over; a file or a pipe gets it at once.
        if later.over || !io::stdout().is_terminal() {
            return write(bytes);
        }
        later.output.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what the guest has written to standard error.
    pub fn guest_complained(&self, bytes: &[u8]) {
        self.screen.update(|state| state.guest_wrote(bytes));
        let mut later = self.later();
        if later.over {
            let _ = io::stderr().write_all(bytes);
            return;
        }
        later.complaints.extend_from_slice(bytes);
    }

    /// Gives the terminal back, and writes what has waited for it.
    pub fn clear(&self) {
        let mut later = self.later();
        if std::mem::replace(&mut later.over, true) {
            return;
        }
        self.screen.close();
        for line in later.said.drain(..) {
            eprintln!("hv: {line}");
        }
        // A terminal that takes nothing any more has nobody in front of it.
        let _ = io::stderr().write_all(&std::mem::take(&mut later.complaints));
        let _ = write(&std::mem::take(&mut later.output));
    }

    fn later(&self) -> MutexGuard<'_, Later> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}
