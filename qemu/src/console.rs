//! Reading the console: lines, how the hypervisor says that it ended, and what came from the guest.

/// What every line of the hypervisor begins with.
pub const PREFIX: &str = "[unbroken] ";
/// What its last line begins with.
const END: &str = "[unbroken] end: ";

/// How a run under the hypervisor ended, in its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest called PSCI SYSTEM_OFF.
    PowerOff,
    /// The guest called PSCI SYSTEM_RESET.
    Reset,
    /// The hypervisor did not start a guest; it said why.
    Refused,
    /// The hypervisor crashed.
    Panic,
}

impl End {
    /// Reads a console line.
    fn of_line(line: &str) -> Option<Self> {
        match line.strip_prefix(END)?.trim_end() {
            "power-off" => Some(Self::PowerOff),
            "reset" => Some(Self::Reset),
            "refused" => Some(Self::Refused),
            "panic" => Some(Self::Panic),
            _ => None,
        }
    }
}

/// Cuts a stream of bytes into lines; the rest waits for more.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes more bytes and calls `line` for every line that is complete, its newline included.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                line(&self.rest);
                self.rest.clear();
            }
        }
    }

    /// What came after the last newline.
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }
}

/// A line as text, without its line ending.
pub fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches(['\r', '\n']).to_owned()
}

/// All that a console said.
#[derive(Debug, Clone, Default)]
pub struct Console {
    bytes: Vec<u8>,
}

impl Console {
    /// Adds what came next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Everything, byte for byte.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The lines as text, without line endings.
    pub fn lines(&self) -> Vec<String> {
        self.bytes.split_inclusive(|&byte| byte == b'\n').map(text).collect()
    }

    /// The hypervisor's lines, without the prefix.
    pub fn hypervisor(&self) -> Vec<String> {
        self.lines().iter().filter_map(|line| line.strip_prefix(PREFIX).map(str::to_owned)).collect()
    }

    /// How the hypervisor says that it ended: its last word counts.
    pub fn end(&self) -> Option<End> {
        self.lines().iter().rev().find_map(|line| End::of_line(line))
    }

    /// The last `count` lines that aren't empty, for error messages.
    pub fn tail(&self, count: usize) -> String {
        let lines: Vec<String> = self.lines().into_iter().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// Where a command has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// Finds what a command wrote between the marks that `/hv/init` sets, and its status.
#[derive(Debug)]
pub struct Extract {
    mark: String,
    lines: Lines,
    inside: bool,
    /// The newline before a mark is the mark's own, so the last newline is held back.
    newline: bool,
    result: Option<u8>,
    /// How often more of standard input was asked for.
    asked: u64,
}

impl Extract {
    /// For a command that was given this nonce.
    pub fn new(nonce: &str) -> Self {
        let mark = format!("hv-{nonce} ");
        Self { mark, lines: Lines::default(), inside: false, newline: false, result: None, asked: 0 }
    }

    /// Takes more of the console and calls `wrote` with what the command wrote.
    pub fn push(&mut self, bytes: &[u8], mut wrote: impl FnMut(Stream, &[u8])) {
        let Self { mark, lines, inside, newline, result, asked } = self;
        lines.push(bytes, |line| {
            let without_end = line.strip_suffix(b"\n").unwrap_or(line);
            let marked = without_end.strip_prefix(mark.as_bytes());
            // Only what is told of a stream is the command's own, to the last byte.
            let word = marked.map(|word| word.strip_suffix(b"\r").unwrap_or(word));
            match (marked, word) {
                (_, Some(b"begin")) if !*inside && result.is_none() => (*inside, *asked) = (true, 1),
                _ if !*inside => {}
                (_, Some(b"more")) => (*newline, *asked) = (false, *asked + 1),
                (Some(marked), _) if marked.starts_with(b"error ") => {
                    *newline = false;
                    wrote(Stream::Error, &[&marked[6..], b"\n"].concat());
                }
                (Some(marked), _) if marked.starts_with(b"part ") => {
                    *newline = false;
                    wrote(Stream::Error, &marked[5..]);
                }
                (_, Some(word)) if word.starts_with(b"status ") => {
                    *result = text(&word[7..]).parse().ok();
                    *inside = false;
                }
                _ if without_end.starts_with(PREFIX.as_bytes()) => {}
                _ => {
                    if *newline {
                        wrote(Stream::Output, b"\n");
                    }
                    *newline = line.ends_with(b"\n");
                    wrote(Stream::Output, without_end);
                }
            }
        });
    }

    /// Whether a newline is held back that is the command's unless a mark comes next.
    pub fn holds_newline(&self) -> bool {
        self.inside && self.newline
    }

    /// How many pieces of standard input the command has room for, in all.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// Whether the command was started.
    pub fn has_begun(&self) -> bool {
        self.inside || self.result.is_some()
    }

    /// The command's exit status, once it has ended.
    pub fn status(&self) -> Option<u8> {
        self.result
    }
}

/// Reads a payload's last line: `N passed, N failed`, with `, N skipped` behind it where something was skipped.
pub fn passed_and_failed(line: &str) -> Option<(u64, u64)> {
    let mut counts = line.trim().split(", ");
    let mut count = |word: &str| counts.next().map(|count| count.strip_suffix(word)?.parse::<u64>().ok());
    let (passed, failed) = (count(" passed")??, count(" failed")??);
    // Nothing else may follow.
    count(" skipped").is_none_or(|skipped| skipped.is_some()).then_some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_cut() {
        let stream = b"one\r\ntwo\n\nrest";
        for cut in 0..stream.len() {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            lines.push(&stream[..cut], |line| seen.push(text(line)));
            lines.push(&stream[cut..], |line| seen.push(text(line)));
            assert_eq!(seen, ["one", "two", ""]);
            assert_eq!(lines.rest(), b"rest");
        }
    }

    #[test]
    fn the_last_end_counts() {
        let mut console = Console::default();
        assert_eq!(console.end(), None);
        console.push(b"[unbroken] end: nonsense\r\n  [unbroken] end: panic\r\n[unbroken] end: reset\r\n");
        console.push(b"[unbroken] end: power-off\r\n\r\n");
        assert_eq!(console.end(), Some(End::PowerOff));
        assert_eq!(console.hypervisor(), ["end: nonsense", "end: reset", "end: power-off"]);
        assert_eq!(console.tail(1), "[unbroken] end: power-off");
    }

    /// What an `Extract` makes of a console that comes in pieces of `step` bytes.
    fn extract(console: &[u8], step: usize) -> (Vec<u8>, Option<u8>) {
        let (mut extract, mut output) = (Extract::new("7"), Vec::new());
        for piece in console.chunks(step) {
            extract.push(piece, |stream, bytes| {
                if stream == Stream::Output {
                    output.extend_from_slice(bytes);
                }
            });
        }
        (output, extract.status())
    }

    #[test]
    fn standard_error_is_told_apart_and_leaves_no_trace() {
        let console = b"hv-7 begin\nab\nhv-7 error oh\ncd\n\nhv-7 error  \r\n\nhv-7 more\nef\n\nhv-7 part no end\n\nhv-7 status 4\n";
        for step in [1, 5, 1000] {
            let (mut extract, mut output, mut error) = (Extract::new("7"), Vec::new(), Vec::new());
            for piece in console.chunks(step) {
                extract.push(piece, |stream, bytes| match stream {
                    Stream::Output => output.extend_from_slice(bytes),
                    Stream::Error => error.extend_from_slice(bytes),
                });
            }
            assert_eq!(String::from_utf8(output).unwrap(), "abcd\nef\n");
            assert_eq!(String::from_utf8(error).unwrap(), "oh\n \r\nno end");
            assert_eq!((extract.status(), extract.asked()), (Some(4), 2));
        }
    }

    #[test]
    fn output_is_cut_out_byte_for_byte() {
        for (written, console) in [
            (&b"hello\n"[..], &b"boot\nhv-7 begin\nhello\n\nhv-7 status 3\n[unbroken] end: power-off\r\n"[..]),
            (b"no newline", b"hv-7 begin\r\nno newline\nhv-7 status 3\n"),
            (b"", b"hv-7 begin\n\nhv-7 status 3\nhv-7 begin\nlate\n"),
            (b"\n\nhv-8 status 1\r\n\xff\n", b"hv-7 begin\n\n\nhv-8 status 1\r\n\xff\n\nhv-7 status 3\n"),
            (b"a\nb\n", b"hv-7 begin\na\n[unbroken] warning\r\nb\n\nhv-7 status 3\n"),
        ] {
            for step in [1, 3, 1000] {
                assert_eq!(extract(console, step), (written.to_vec(), Some(3)), "{}", String::from_utf8_lossy(console));
            }
        }
    }

    #[test]
    fn no_status_without_the_mark() {
        assert_eq!(extract(b"hv-7 begin\nhv-7 status x\n", 5).1, None);
        assert_eq!(extract(b"hv-7 status 0\n", 5).1, None);
    }

    #[test]
    fn payload_results() {
        assert_eq!(passed_and_failed("12 passed, 0 failed\r"), Some((12, 0)));
        assert_eq!(passed_and_failed("1 passed, 2 failed, 3 skipped"), Some((1, 2)));
        for line in [
            "12 passed",
            "1 passed, 2 failed, more",
            "x passed, 0 failed",
            "12 passed, 0 failed!",
            "-1 passed, 0 failed",
            "",
        ] {
            assert_eq!(passed_and_failed(line), None, "{line}");
        }
    }
}
