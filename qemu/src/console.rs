//! Reading the console: lines, how the hypervisor says that it ended, and what came from the guest.

use serde::{Deserialize, Serialize};

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
    /// The guest was saved.
    Saved,
}

impl End {
    /// Reads a console line.
    fn of_line(line: &str) -> Option<Self> {
        match line.strip_prefix(END)?.trim_end() {
            "power-off" => Some(Self::PowerOff),
            "reset" => Some(Self::Reset),
            "refused" => Some(Self::Refused),
            "panic" => Some(Self::Panic),
            "saved" => Some(Self::Saved),
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
    /// The guest waits for another command.
    ready: bool,
    /// The guest was stopped, or has not come yet: what the console has is not the guest's.
    away: bool,
    /// What there was when the guest was stopped last.
    cut: Option<Cut>,
    /// A line of the hypervisor's that has no end yet, while the guest is away.
    aside: Vec<u8>,
}

/// Where a guest was stopped in what its command wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The line that has no end yet.
    pub rest: Vec<u8>,
    /// The command runs.
    pub inside: bool,
}

/// What the hypervisor says where the guest's part of the console ends.
const AWAY: &[u8] = b"[unbroken] saved";
/// What it says where that begins again.
pub const BACK: &[u8] = b"[unbroken] goes on";

impl Extract {
    /// For a command that was given this nonce.
    pub fn new(nonce: &str) -> Self {
        let mark = format!("hv-{nonce} ");
        Self {
            mark,
            lines: Lines::default(),
            inside: false,
            newline: false,
            result: None,
            asked: 0,
            ready: false,
            away: false,
            cut: None,
            aside: Vec::new(),
        }
    }

    /// For a command with this nonce that goes on where it was cut, once the hypervisor has said so.
    pub fn resumed(nonce: &str, cut: Cut) -> Self {
        let Cut { rest, inside } = cut;
        Self { lines: Lines { rest }, inside, away: true, ..Self::new(nonce) }
    }

    /// Takes more of the console and calls `wrote` with what the command wrote.
    pub fn push(&mut self, bytes: &[u8], mut wrote: impl FnMut(Stream, &[u8])) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.push_piece(piece, &mut wrote);
        }
    }

    /// Takes bytes that have a newline at their end, or none.
    fn push_piece(&mut self, bytes: &[u8], mut wrote: impl FnMut(Stream, &[u8])) {
        let Self { mark, lines, inside, newline, result, asked, ready, away, cut, aside } = self;
        let whole = [lines.rest(), bytes].concat();
        let line = whole.strip_suffix(b"\r\n").unwrap_or_default();
        if *away {
            // The rest is kept for what the guest writes next; the hypervisor's own lines come whole or in pieces.
            aside.extend_from_slice(bytes);
            if bytes.ends_with(b"\n") {
                *away = !std::mem::take(aside).trim_ascii_end().ends_with(BACK);
            }
            return;
        }
        if let Some(rest) = line.strip_suffix(AWAY) {
            *away = true;
            *cut = Some(Cut { rest: rest.to_vec(), inside: *inside });
            lines.rest = rest.to_vec();
            return;
        }
        lines.push(bytes, |line| {
            let without_end = line.strip_suffix(b"\n").unwrap_or(line);
            let marked = without_end.strip_prefix(mark.as_bytes());
            // Only what is told of a stream is the command's own, to the last byte.
            let word = marked.map(|word| word.strip_suffix(b"\r").unwrap_or(word));
            match (marked, word) {
                (_, Some(b"begin")) if !*inside && result.is_none() => (*inside, *asked) = (true, 1),
                (_, Some(b"ready")) if !*inside => *ready = true,
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

    /// Whether the guest waits for another command.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether the guest was stopped, and has not gone on in what was read.
    pub fn is_away(&self) -> bool {
        self.away
    }

    /// Where the guest was stopped, if that is new.
    pub fn take_cut(&mut self) -> Option<Cut> {
        self.cut.take()
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

/// What a line of kvm-unit-tests says of the whole run: whether it went well; nothing if the line says nothing of that.
///
/// `EXIT: STATUS=N` has the status shifted left by one and bit 0 set; 38 (77 in the line) is a test that was skipped. Older
/// checkouts print `SUMMARY: N tests, N unexpected failures, ...` alone, and switch off after a failed assertion as they do at
/// their end, so that words which precede an abort count as well.
pub fn kvm_unit_tests(line: &str) -> Option<bool> {
    let line = line.trim();
    if let Some(status) = line.strip_prefix("EXIT: STATUS=") {
        return status.parse().ok().map(|status: u64| matches!(status, 1 | 77));
    }
    if line.starts_with("ABORT: ") || line.contains(": assert failed: ") || line.starts_with("Unhandled exception ") {
        return Some(false);
    }
    let (tests, others) = line.strip_prefix("SUMMARY: ")?.split_once(" tests")?;
    tests.parse::<u64>().ok()?;
    Some(!others.contains(" unexpected failures"))
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
    fn what_was_cut_by_a_stop_is_one_again() {
        let before = b"hv-7 begin\none\n\nhv-7 error no\ntw";
        let stop = b"[unbroken] saved\r\n[unbroken] exits: 7\r\n[unbroken] end: saved\r\n";
        let start = b"[unbroken] Unbroken 0.1.0\r\nno guest's\r\n[unbroken] goes on\r\n";
        let after = b"o\n\nhv-7 status 3\n";
        for step in [1, 4, 1000] {
            let (mut output, mut error) = (Vec::new(), Vec::new());
            let mut sort = |stream: Stream, bytes: &[u8]| match stream {
                Stream::Output => output.extend_from_slice(bytes),
                Stream::Error => error.extend_from_slice(bytes),
            };
            // The same reader sees both sides, or two see one each.
            let mut both = Extract::new("7");
            let whole = [&before[..], stop, start, after].concat();
            whole.chunks(step).for_each(|piece| both.push(piece, &mut sort));
            assert_eq!((both.status(), both.is_away()), (Some(3), false));
            let (mut first, whole) = (Extract::new("7"), [&before[..], stop].concat());
            whole.chunks(step).for_each(|piece| first.push(piece, &mut sort));
            assert!(first.is_away());
            let cut = first.take_cut().unwrap();
            assert_eq!((&cut.rest[..], cut.inside, first.take_cut()), (&b"tw"[..], true, None));
            let mut second = Extract::resumed("7", cut);
            let whole = [&start[..], after].concat();
            whole.chunks(step).for_each(|piece| second.push(piece, &mut sort));
            assert_eq!(second.status(), Some(3));
            assert_eq!(String::from_utf8(output).unwrap(), "one\ntwo\none\ntwo\n");
            assert_eq!(String::from_utf8(error).unwrap(), "no\nno\n");
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

    #[test]
    fn results_of_kvm_unit_tests_are_read() {
        for (line, result) in [
            ("EXIT: STATUS=1\r", Some(true)),
            ("EXIT: STATUS=77", Some(true)),
            ("EXIT: STATUS=3", Some(false)),
            ("EXIT: STATUS=x", None),
            ("SUMMARY: 3 tests\r", Some(true)),
            ("SUMMARY: 3 tests, 1 expected failures, 1 skipped", Some(true)),
            ("SUMMARY: 3 tests, 2 unexpected failures, 1 skipped", Some(false)),
            ("SUMMARY: of tests", None),
            ("ABORT: selftest: no test specified", Some(false)),
            ("lib/arm/setup.c:97: assert failed: primary.end != 0", Some(false)),
            ("Unhandled exception ec=0x25 (DABT_EL1)", Some(false)),
            ("PASS: selftest", None),
            ("FAIL: selftest", None),
            ("", None),
        ] {
            assert_eq!(kvm_unit_tests(line), result, "{line}");
        }
    }
}
