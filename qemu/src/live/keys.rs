//! What keys do.

use super::state::Wish;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Something of the session.
    Wish(Wish),
    /// The end.
    Leave,
    /// The picture drawn anew: the terminal has another size, or was written to.
    Redraw,
}

/// What an event of the terminal's asks for.
pub fn key(event: &Event) -> Option<Key> {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else {
        return matches!(event, Event::Resize(..)).then_some(Key::Redraw);
    };
    if *kind == KeyEventKind::Release {
        return None;
    }
    let control = modifiers.contains(KeyModifiers::CONTROL);
    match code {
        // The terminal is in raw mode, in which Ctrl-C is a key like others.
        KeyCode::Char('c' | 'd') if control => Some(Key::Leave),
        KeyCode::Char('l') if control => Some(Key::Redraw),
        _ if control => None,
        KeyCode::Char('q') => Some(Key::Leave),
        KeyCode::Char('h') => Some(Key::Wish(Wish::Harvest)),
        KeyCode::Char('f') => Some(Key::Wish(Wish::Freeze)),
        KeyCode::Char('l') => Some(Key::Wish(Wish::Log)),
        KeyCode::Char('s') => Some(Key::Wish(Wish::Save)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_ask_for_what_the_line_says() {
        let press = |c, modifiers| key(&Event::Key(KeyEvent::new(KeyCode::Char(c), modifiers)));
        for (c, expected) in [
            ('h', Key::Wish(Wish::Harvest)),
            ('f', Key::Wish(Wish::Freeze)),
            ('l', Key::Wish(Wish::Log)),
            ('s', Key::Wish(Wish::Save)),
            ('q', Key::Leave),
        ] {
            assert_eq!(press(c, KeyModifiers::NONE), Some(expected));
        }
        assert_eq!(press('c', KeyModifiers::CONTROL), Some(Key::Leave));
        assert_eq!(press('h', KeyModifiers::CONTROL), None);
        assert_eq!(press('x', KeyModifiers::NONE), None);
        assert_eq!(key(&Event::Resize(1, 1)), Some(Key::Redraw));
    }
}
