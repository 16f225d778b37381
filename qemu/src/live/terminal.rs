//! Taking the terminal, and giving it back whatever happens.

use crate::temporary;
use anyhow::{Context, Result};
use ratatui::Frame;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use std::io::{Stderr, stderr};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Whether the terminal is taken: in raw mode, on its alternate screen.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, taken. Standard output stays the guest's: the view is on standard error.
pub struct Terminal(ratatui::Terminal<CrosstermBackend<Stderr>>);

impl Terminal {
    /// Takes it.
    pub fn take() -> Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            temporary::undo_at_the_end(give_back);
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // First the terminal, or nobody sees what the panic says.
                give_back();
                before(panic);
            }));
        });
        TAKEN.store(true, SeqCst);
        let taken = || -> std::io::Result<_> {
            enable_raw_mode()?;
            execute!(stderr(), EnterAlternateScreen)?;
            ratatui::Terminal::new(CrosstermBackend::new(stderr()))
        };
        taken().map(Self).inspect_err(|_| give_back()).context("can't take the terminal for the live view")
    }

    /// Draws a picture.
    pub fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> Result<()> {
        self.0.draw(picture).context("can't draw on the terminal")?;
        Ok(())
    }

    /// Forgets what is on the screen, so that the next picture is drawn whole.
    pub fn clear(&mut self) -> Result<()> {
        self.0.clear().context("can't clear the terminal")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back, if it is taken.
fn give_back() {
    if TAKEN.swap(false, SeqCst) {
        // There is nothing left to do with a terminal that takes none of it.
        let _ = execute!(stderr(), LeaveAlternateScreen, ratatui::crossterm::cursor::Show);
        let _ = disable_raw_mode();
    }
}
