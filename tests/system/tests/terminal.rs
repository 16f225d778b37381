//! `cargo hv linux` in a terminal: what a user sees on the screen, and what is left when it is interrupted.

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use std::io::{Read, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use system_tests::{scratch, turn, workspace};

const SIZE: PtySize = PtySize { rows: 37, cols: 101, pixel_width: 0, pixel_height: 0 };
/// No test waits longer for anything.
const LIMIT: Duration = Duration::from_secs(300);

/// The tool in a terminal of its own.
struct Terminal {
    _master: Box<dyn MasterPty + Send>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    output: Receiver<Vec<u8>>,
    screen: vt100::Parser,
    bytes: Vec<u8>,
    begun: Instant,
}

impl Terminal {
    fn hv(words: &[&str]) -> Self {
        let pair = native_pty_system().openpty(SIZE).unwrap();
        let mut command = CommandBuilder::new(qemu::workspace::cargo());
        command.args(["run", "--quiet", "--package", "qemu", "--bin", "hv", "--"]);
        command.args(words);
        command.cwd(workspace().root());
        command.env("CARGO_TARGET_DIR", workspace().target());
        command.env("TERM", "xterm-256color");
        let child = pair.slave.spawn_command(command).unwrap();
        let (sender, output) = mpsc::channel();
        let mut reader = pair.master.try_clone_reader().unwrap();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let keys = pair.master.take_writer().unwrap();
        let screen = vt100::Parser::new(SIZE.rows.try_into().unwrap(), SIZE.cols.try_into().unwrap(), 1000);
        Self { _master: pair.master, keys, child, output, screen, bytes: Vec::new(), begun: Instant::now() }
    }

    /// Goes on until the screen is as wanted. Says whether the tool is still there.
    fn until(&mut self, mut wanted: impl FnMut(&vt100::Screen) -> bool) -> bool {
        loop {
            if wanted(self.screen.screen()) {
                return true;
            }
            match self.output.recv_timeout(LIMIT.saturating_sub(self.begun.elapsed())) {
                Ok(bytes) => {
                    self.bytes.extend_from_slice(&bytes);
                    self.screen.process(&bytes);
                }
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => panic!("nothing more after {LIMIT:?}:\n{}", self.text()),
            }
        }
    }

    /// Goes on to the tool's end. Returns its exit status.
    fn end(&mut self) -> u32 {
        self.until(|_| false);
        self.child.wait().unwrap().exit_code()
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).unwrap();
        self.keys.flush().unwrap();
    }

    fn text(&self) -> String {
        self.screen.screen().contents()
    }

    /// The rows of the screen from the first with `word` on.
    fn rows_from(&self, word: &str) -> Vec<String> {
        self.text().lines().map(|row| row.trim_end().to_owned()).skip_while(|row| row != word).collect()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended, unless the test has failed.
        let _ = self.child.kill();
    }
}

/// Whole lines and half ones, with time in between.
const TALK: &str = "echo one; printf two; sleep 3; echo; sleep 2; echo three; echo; echo four; exit 3";

#[test]
fn the_guest_s_lines_are_all_that_a_terminal_shows_without_a_service() {
    let _turn = turn();
    let mut terminal = Terminal::hv(&["linux", "--run", TALK]);
    assert_eq!(terminal.end(), 3, "{}", terminal.text());
    assert_eq!(terminal.rows_from("one"), ["one", "two", "three", "", "four"], "{}", terminal.text());
}

#[test]
fn the_live_line_is_in_a_row_of_its_own_and_leaves_nothing_behind() {
    let _turn = turn();
    let mut terminal = Terminal::hv(&["linux", "--audit", "--plain", "--every", "0.2", "--run", TALK]);
    let mut seen = 0;
    terminal.until(|screen| {
        let text = screen.contents();
        let rows: Vec<&str> = text.lines().collect();
        if let Some(row) = rows.iter().position(|row| row.starts_with("two")) {
            assert_eq!(rows[row].trim_end(), "two", "{text}");
        }
        // Below the guest's last whole line.
        seen += usize::from(rows.last().is_some_and(|row| row.contains("dirty pages (")) && rows.len() > 2);
        false
    });
    assert!(seen > 0, "no live line was seen");
    assert_eq!(terminal.end(), 3, "{}", terminal.text());
    let rows = terminal.rows_from("one");
    assert_eq!(rows[..5], ["one", "two", "three", "", "four"], "{}", terminal.text());
    // Then comes what stays: each line the tool's, or the audit's.
    assert!(rows[5..].iter().all(|row| row.starts_with("hv: ") || row.starts_with("audit: ")), "{rows:?}");
    assert!(!terminal.text().contains("MiB/s"), "{}", terminal.text());
}

#[test]
fn ctrl_c_ends_a_log_and_keeps_what_it_has_found() {
    let _turn = turn();
    let scratch = scratch();
    let out = scratch.path("dirty");
    let work = "while :; do echo x >/tmp/x; done";
    let out_name = out.to_str().unwrap();
    let options = ["linux", "--dirty", "auto", "--plain", "--every", "0.2", "--out", out_name, "--run", work];
    let mut terminal = Terminal::hv(&options);
    // The file is written in large pieces, so it says nothing of how far things are; the screen does.
    assert!(terminal.until(|screen| screen.contents().contains("The command runs: ")), "{}", terminal.text());
    terminal.press(b"\x03");
    let status = terminal.end();
    let text = terminal.text();
    assert_eq!(status, 130, "{text}");
    assert!(text.contains("hv: dirty log by hardware"), "{text}");
    let csv = std::fs::read_to_string(out.join("dirty.csv")).unwrap();
    assert!(csv.lines().count() >= 2, "{csv}");
    let picture = std::fs::read(out.join("dirty.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5000);
    let images = workspace().folder("images").unwrap();
    let left: Vec<_> = std::fs::read_dir(images)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("run-"))
        .filter(|name| !still_runs(&name[4..12]))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Whether there is a process with this number, in hexadecimal.
fn still_runs(number: &str) -> bool {
    let number = u32::from_str_radix(number, 16).unwrap();
    std::path::Path::new(&format!("/proc/{number}")).exists()
}

#[test]
fn a_shell_knows_the_terminal_s_size_and_a_signal_gives_the_terminal_back() {
    let _turn = turn();
    let mut terminal = Terminal::hv(&["linux", "--dirty", "auto"]);
    assert!(terminal.until(|screen| screen.contents().contains("/ # ")), "{}", terminal.text());
    terminal.press(b"stty size\r");
    assert!(terminal.until(|screen| screen.contents().contains("\n37 101")), "{}", terminal.text());
    // The window's title is taken, and given back at the end.
    let group = rustix::process::Pid::from_raw(terminal.child.process_id().unwrap() as i32).unwrap();
    rustix::process::kill_process(group, rustix::process::Signal::TERM).unwrap();
    assert_eq!(terminal.end(), 143, "{}", terminal.text());
    assert!(terminal.text().contains("hv: dirty log by hardware"), "{}", terminal.text());
    let find = |word: &[u8]| terminal.bytes.windows(word.len()).rposition(|part| part == word);
    let (kept, named, back) = (find(b"\x1b[22;2t"), find(b"\x1b]2;"), find(b"\x1b[23;2t"));
    assert!(kept < named && named < back, "{kept:?} {named:?} {back:?}");
}

#[test]
fn a_live_view_shows_the_log_does_what_keys_say_and_gives_the_terminal_back() {
    let _turn = turn();
    let work = "printf '\\033[2J\\033[31mred\\n'; while :; do echo x >/tmp/x; done";
    let mut terminal = Terminal::hv(&["linux", "--dirty", "auto", "--every", "0.2", "--run", work]);
    let mut shows = |keys: &[u8], words: &str| {
        terminal.press(keys);
        let seen = terminal.until(|screen| screen.contents().contains(words));
        assert!(seen, "`{words}` is missing:\n{}", terminal.text());
    };
    shows(b"", "harvests, by hardware, by pages: running");
    // The guest's own escape sequences are not the terminal's.
    shows(b"", "red");
    shows(b"f", "FROZEN");
    shows(b"l", "press f first");
    shows(b"f", ": running");
    shows(b"l", ": the log is off");
    shows(b"l", ": running");
    shows(b"h", "MiB/s written");
    assert!(!terminal.bytes.windows(8).any(|part| part == b"\x1b[31mred"), "the guest's bytes reached the terminal");
    terminal.press(b"q");
    assert_eq!(terminal.end(), 130, "{}", terminal.text());
    assert!(terminal.text().contains("hv: dirty log by hardware"), "{}", terminal.text());
    let find = |word: &[u8]| terminal.bytes.windows(word.len()).rposition(|part| part == word);
    let (taken, back) = (find(b"\x1b[?1049h"), find(b"\x1b[?1049l"));
    assert!(taken.is_some() && taken < back, "{taken:?} {back:?}");
}
