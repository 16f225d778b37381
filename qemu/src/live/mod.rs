//! A live view of a dirty log, for a terminal: memory as a grid, rates, splits, exits, and the guest's last lines.
//!
//! [`Screen`] owns the terminal on a thread of its own. The session tells it what it has found and asks it for the user's
//! wishes; the guest's output goes through it as plain text.

mod draw;
mod keys;
mod plain;
pub mod state;
mod terminal;

pub use state::{Harvest, State, Wish};

use anyhow::{Context, Result, ensure};
use keys::Key;
use ratatui::crossterm::event;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use terminal::Terminal;

/// From one look at the keys to the next, and so the longest time that something new waits for the screen.
const PERIOD: Duration = Duration::from_millis(100);

/// What the terminal's thread shares with others.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wishes: Mutex<VecDeque<Wish>>,
    changed: AtomicBool,
    over: AtomicBool,
}

/// The view on the terminal. When it is closed or dropped, the terminal is as it was.
#[derive(Debug)]
pub struct Screen {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Screen {
    /// Takes the terminal. `leave` is called, on another thread, when the user wants the end.
    ///
    /// # Errors
    /// If the terminal can't be taken.
    pub fn open(leave: impl Fn() + Send + 'static) -> Result<Self> {
        let mut terminal = Terminal::take()?;
        let shared = Arc::new(Shared::default());
        shared.changed.store(true, Relaxed);
        let theirs = Arc::clone(&shared);
        let run = move || {
            while !theirs.over.load(Relaxed) {
                if theirs.turn(&mut terminal, &leave).is_err() {
                    // Without a terminal to draw on there is nobody to tell; the run goes on.
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("screen".into()).spawn(run).context("can't start a thread")?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Changes what is shown.
    pub fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.shared.state));
        self.shared.changed.store(true, Relaxed);
    }

    /// The oldest wish that was not taken yet.
    pub fn take_wish(&self) -> Option<Wish> {
        lock(&self.shared.wishes).pop_front()
    }

    /// Gives the terminal back.
    pub fn close(&self) {
        self.shared.over.store(true, Relaxed);
        let thread = lock(&self.thread).take();
        // A thread that has panicked has given the terminal back too.
        let _ = thread.map(JoinHandle::join);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits a while for a key. A terminal that has gone is an error: `event::poll` would read its end again and again.
fn wait_for_input() -> Result<()> {
    let stdin = std::io::stdin();
    let mut inputs = [PollFd::new(&stdin, PollFlags::IN)];
    let period = Timespec { tv_sec: 0, tv_nsec: PERIOD.subsec_nanos().into() };
    match rustix::event::poll(&mut inputs, Some(&period)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error).context("can't wait for a key"),
    }
    ensure!(!inputs[0].revents().intersects(PollFlags::HUP | PollFlags::ERR), "the terminal has gone");
    Ok(())
}

impl Shared {
    /// Draws what is new, and waits for a key for a while.
    fn turn(&self, terminal: &mut Terminal, leave: &impl Fn()) -> Result<()> {
        if self.changed.swap(false, Relaxed) {
            let state = lock(&self.state);
            terminal.draw(|frame| draw::draw(frame, &state))?;
        }
        wait_for_input()?;
        // A size that has changed comes without input.
        while event::poll(Duration::ZERO)? {
            match keys::key(&event::read()?) {
                Some(Key::Wish(wish)) => {
                    lock(&self.state).said = format!("{wish}: asked for");
                    lock(&self.wishes).push_back(wish);
                }
                Some(Key::Leave) => {
                    lock(&self.state).said = "leaving: the log is ended and written".into();
                    leave();
                }
                Some(Key::Redraw) => terminal.clear()?,
                None => continue,
            }
            self.changed.store(true, Relaxed);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
