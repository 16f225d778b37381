//! One line at the bottom of a terminal that changes in place, below what a guest writes.
//!
//! It is drawn only where the guest's last line is whole, so that it stands in a row of its own, and erased before the guest
//! writes on.

use console::{Term, truncate_str};
use std::io::{self, Write};

/// Back to the row's first column, and the row is empty.
const ERASE: &str = "\r\x1b[2K";

/// The line, on standard error; the guest writes to standard output.
#[derive(Debug)]
pub struct StatusLine {
    text: String,
    /// It is on the screen.
    drawn: bool,
    /// The cursor is where a row begins: the guest has written nothing behind its last newline.
    at_row_start: bool,
    /// The guest's newline is on its way: it is the guest's, unless its command ends now.
    newline_held: bool,
    /// It was written already, to make room.
    newline_given: bool,
    /// Both go to one terminal. If standard output goes elsewhere, the guest's rows are not on the screen.
    shared: bool,
}

impl StatusLine {
    /// A line without a text: nothing is drawn. `shared` says whether standard output is a terminal too.
    pub fn new(shared: bool) -> Self {
        Self {
            text: String::new(),
            drawn: false,
            at_row_start: true,
            newline_held: false,
            newline_given: false,
            shared,
        }
    }

    /// Replaces the text.
    pub fn set(&mut self, text: &str) {
        self.text = text.to_owned();
        self.draw(&mut io::stderr());
    }

    /// Writes what the guest has written.
    ///
    /// # Errors
    /// If standard output can't be written to.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.shared {
            self.erase(&mut io::stderr());
        }
        let bytes = self.not_yet_written(bytes);
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        self.wrote(bytes);
        self.draw(&mut io::stderr());
        Ok(())
    }

    /// Writes what the guest has written to standard error.
    pub fn complain(&mut self, bytes: &[u8]) {
        let mut out = io::stderr();
        self.erase(&mut out);
        let _ = out.write_all(bytes);
        if let Some(last) = bytes.last() {
            self.at_row_start = *last == b'\n';
        }
        self.draw(&mut out);
    }

    /// Whether the last newline that the guest wrote is still to come.
    pub fn hold_newline(&mut self, held: bool) {
        self.newline_held = held;
    }

    /// Without the newline that was written to make room.
    fn not_yet_written<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        match bytes {
            [b'\n', rest @ ..] if std::mem::take(&mut self.newline_given) => rest,
            _ => bytes,
        }
    }

    /// Writes a line that stays, to standard error.
    pub fn say(&mut self, line: &str) {
        let mut out = io::stderr();
        self.erase(&mut out);
        // What can't be said for want of a terminal is said to nobody.
        let _ = writeln!(out, "{}{line}", if self.at_row_start { "" } else { "\r\n" });
        self.at_row_start = true;
        self.draw(&mut out);
    }

    /// Takes it away for good.
    pub fn clear(&mut self) {
        self.erase(&mut io::stderr());
        self.text.clear();
    }

    fn wrote(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last().filter(|_| self.shared) {
            self.at_row_start = *last == b'\n';
        }
    }

    fn draw(&mut self, out: &mut impl Write) {
        if !self.at_row_start && self.newline_held && !self.newline_given && !self.text.is_empty() {
            let _ = write!(out, "\r\n");
            (self.newline_given, self.at_row_start) = (true, true);
        }
        if self.at_row_start && !self.text.is_empty() {
            let width = usize::from(Term::stderr().size().1);
            // A line as wide as the screen would go on in the next row; so would the `^C` that the terminal writes behind it.
            let text = truncate_str(&self.text, width.saturating_sub(3), "…");
            let _ = write!(out, "{ERASE}{text}").and_then(|()| out.flush());
            self.drawn = true;
        }
    }

    fn erase(&mut self, out: &mut impl Write) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(out, "{ERASE}").and_then(|()| out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_drawn_only_where_a_row_begins() {
        let mut line = StatusLine { text: "state".into(), ..StatusLine::new(true) };
        let mut screen = Vec::new();
        line.draw(&mut screen);
        assert_eq!(screen, format!("{ERASE}state").as_bytes());
        // The guest's line is not whole: there is no room.
        for part in [&b"half"[..], b"10 %\r", b""] {
            screen.clear();
            line.erase(&mut screen);
            line.wrote(part);
            line.drawn = false;
            screen.clear();
            line.draw(&mut screen);
            assert!(screen.is_empty(), "{part:?}");
        }
        line.wrote(b" a line\n");
        line.draw(&mut screen);
        assert!(line.drawn && screen.ends_with(b"state"));
    }

    #[test]
    fn a_newline_that_is_on_its_way_makes_room_and_is_written_once() {
        let mut line = StatusLine { text: "state".into(), ..StatusLine::new(true) };
        line.wrote(b"one");
        line.hold_newline(true);
        let mut screen = Vec::new();
        line.draw(&mut screen);
        assert_eq!(screen, format!("\r\n{ERASE}state").as_bytes());
        assert_eq!([line.not_yet_written(b"\n"), line.not_yet_written(b"\n")], [&b""[..], b"\n"]);
    }

    #[test]
    fn a_guest_that_writes_elsewhere_leaves_the_row_alone() {
        let mut line = StatusLine { text: "state".into(), ..StatusLine::new(false) };
        line.wrote(b"half");
        let mut screen = Vec::new();
        line.draw(&mut screen);
        assert!(screen.ends_with(b"state"));
    }
}
