//! A guest's output as plain text: nothing that it writes may move the cursor, change the terminal, or hide what it wrote.

use anstream::adapter::StripBytes;

/// The longest line that is kept: what follows is cut off.
const LONGEST: usize = 500;
/// Columns from one tab stop to the next.
const TAB: usize = 8;

/// Makes lines of plain text out of a stream of bytes, however it is cut.
#[derive(Debug, Default)]
pub struct Plain {
    strip: StripBytes,
    /// Bytes of a character whose end has not come.
    broken: Vec<u8>,
    line: String,
    /// A carriage return has come: what follows begins the line anew, unless it is a newline.
    returned: bool,
}

impl Plain {
    /// Takes bytes and calls `line` with each line that they finish.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        let mut text = std::mem::take(&mut self.broken);
        for piece in self.strip.strip_next(bytes) {
            text.extend_from_slice(piece);
        }
        let whole = match std::str::from_utf8(&text) {
            // Four bytes are the most that a character has.
            Err(error) if error.error_len().is_none() && text.len() - error.valid_up_to() < 4 => error.valid_up_to(),
            _ => text.len(),
        };
        self.broken = text.split_off(whole);
        for c in String::from_utf8_lossy(&text).chars() {
            match c {
                '\n' => {
                    self.returned = false;
                    line(std::mem::take(&mut self.line));
                }
                '\r' => self.returned = true,
                '\t' => {
                    let columns = self.line.chars().count();
                    (0..TAB - columns % TAB).for_each(|_| self.add(' '));
                }
                c if c.is_control() || is_invisible(c) => {}
                c => self.add(c),
            }
        }
    }

    /// The line that has no end yet.
    pub fn unfinished(&self) -> &str {
        &self.line
    }

    fn add(&mut self, c: char) {
        if std::mem::take(&mut self.returned) {
            self.line.clear();
        }
        if self.line.len() < LONGEST {
            self.line.push(c);
        }
    }
}

/// Characters that change how others are shown: directions, joiners, marks without a width, tags.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of bytes that come in pieces of `step`.
    fn plain(bytes: &[u8], step: usize) -> (Vec<String>, String) {
        let (mut plain, mut lines) = (Plain::default(), Vec::new());
        for piece in bytes.chunks(step) {
            plain.push(piece, |line| lines.push(line));
        }
        (lines, plain.unfinished().to_owned())
    }

    #[test]
    fn nothing_reaches_the_terminal() {
        for (bytes, line) in [
            (&b"\x1b[2J\x1b[31mred\x1b[0m"[..], "red"),
            (b"\x1b]2;title\x07text", "text"),
            (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            (b"\x1bPq#0;2;0;0;0\x1b\\sixel", "sixel"),
            (b"\x1bcreset", "reset"),
            (b"a\x07b\x08c\x00d\x0e\x7f", "abcd"),
            (b"10 %\r20 %\r30 %", "30 %"),
            (b"a\tb", "a       b"),
            ("grün \u{202e}txt\u{9b}31m".as_bytes(), "grün txt31m"),
        ] {
            for step in [1, 2, 3, 1000] {
                let (lines, rest) = plain(bytes, step);
                assert!(lines.is_empty() && !rest.chars().any(char::is_control), "{rest:?}");
                assert_eq!(rest, line, "in pieces of {step}");
            }
        }
    }

    #[test]
    fn lines_end_at_newlines_only() {
        for step in [1, 1000] {
            assert_eq!(plain(b"one\r\ntwo\n\nthree", step).0, ["one", "two", ""]);
        }
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let (lines, rest) = plain(&[b'x'; 100_000], 4096);
        assert_eq!((lines.len(), rest.len()), (0, LONGEST));
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_such() {
        for step in [1, 7] {
            let (lines, _) = plain(b"a\xff\xfeb\xe2\x82\n", step);
            assert!(lines[0].starts_with('a') && lines[0].contains('b') && lines[0].contains('\u{fffd}'), "{lines:?}");
        }
    }
}
