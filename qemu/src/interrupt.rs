//! Signals that ask the tool to end: SIGINT (Ctrl-C), SIGTERM, SIGHUP.
//!
//! A run that has something to finish registers how; the first signal asks it to. Without one, or at the second signal, the
//! process ends at once, and only temporary files are removed.

use crate::temporary;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::{Mutex, PoisonError};

/// Who is asked.
type Ask = Box<dyn FnOnce(i32) + Send>;

static ASK: Mutex<Option<Ask>> = Mutex::new(None);

/// Starts to listen.
///
/// # Errors
/// If the system has no room for a thread or a pipe.
pub fn listen() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("can't listen to signals")?;
    let listener = move || {
        for signal in signals.forever() {
            let ask = ASK.lock().unwrap_or_else(PoisonError::into_inner).take();
            match ask {
                Some(ask) => ask(signal),
                None => {
                    temporary::remove_all();
                    std::process::exit(128 + signal);
                }
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(listener).context("can't start a thread")?;
    Ok(())
}

/// Something is to be finished before the process ends, as long as this value is there.
#[derive(Debug)]
#[must_use = "dropped at once, it asks nobody"]
pub struct Asked(());

/// Lets the next signal call `ask`, with the signal's number, on the listener's thread.
pub fn ask_first(ask: impl FnOnce(i32) + Send + 'static) -> Asked {
    *ASK.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(ask));
    Asked(())
}

impl Drop for Asked {
    fn drop(&mut self) {
        *ASK.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
