//! What a test found out: checks that failed, and lines that explain them.

use crate::machine::{conduit, cpu};
use core::fmt::{self, Write};
use spin::mutex::SpinMutex;

/// Why a test ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A check failed; its lines are in the report.
    Failed,
    /// The test can't be run on this machine.
    Skipped(&'static str),
}

/// What a test returns. `Ok` still fails if a check failed on the way.
pub type Outcome = Result<(), Stop>;

const CAPACITY: usize = 6144;

/// Lines of a test that are kept; what fails once in a loop fails a hundred times.
const LINES: u32 = 12;

struct Report {
    text: [u8; CAPACITY],
    length: usize,
    lines: u32,
    failed: u32,
    lost: u32,
    counters: u32,
}

static REPORT: SpinMutex<Report> =
    SpinMutex::new(Report { text: [0; CAPACITY], length: 0, lines: 0, failed: 0, lost: 0, counters: 0 });

impl Write for Report {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Text of several lines stays indented.
        for (index, part) in text.split('\n').enumerate() {
            if index > 0 {
                self.push("\n    ")?;
            }
            self.push(part)?;
        }
        Ok(())
    }
}

impl Report {
    fn push(&mut self, text: &str) -> fmt::Result {
        let room = self.text.get_mut(self.length..self.length + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }

    /// Appends an indented line; one that does not fit is counted instead.
    fn line(&mut self, arguments: fmt::Arguments<'_>) {
        if self.lines == LINES {
            self.lost += 1;
            return;
        }
        let before = self.length;
        let written = self.push("    ").and_then(|()| self.write_fmt(arguments)).and_then(|()| self.push("\n"));
        if written.is_err() {
            self.length = before;
            self.lost += 1;
        } else {
            self.lines += 1;
        }
    }
}

fn with_report<R>(f: impl FnOnce(&mut Report) -> R) -> R {
    // With interrupts masked no test ends while it holds the lock.
    cpu::without_interrupts(|| f(&mut REPORT.lock()))
}

/// Empties the report, for the next test.
pub fn clear() {
    with_report(|report| {
        report.length = 0;
        report.lines = 0;
        report.failed = 0;
        report.lost = 0;
        report.counters = 0;
    });
}

/// Adds a line that is printed if the test fails.
pub fn note(arguments: fmt::Arguments<'_>) {
    with_report(|report| report.line(arguments));
}

/// Adds a line and makes the test fail.
pub fn failure(arguments: fmt::Arguments<'_>) {
    with_report(|report| {
        report.failed += 1;
        report.line(arguments);
    });
}

/// Adds a counter and by how much it has grown to the last line, which it begins if there was no counter before it.
pub fn counter(name: &str, grown: u64) {
    with_report(|report| {
        if report.counters == 0 {
            report.lines = report.lines.min(LINES - 1);
            report.line(format_args!("counters of the engine: {name} +{grown}"));
        } else if report.length > 0 && report.text[report.length - 1] == b'\n' {
            report.length -= 1;
            let before = report.length;
            if write!(report, ", {name} +{grown}").and_then(|()| report.push("\n")).is_err() {
                report.length = before + 1;
            }
        }
        report.counters += 1;
    });
}

/// How many checks failed since [`clear`].
pub fn failures() -> u32 {
    with_report(|report| report.failed)
}

/// Prints the report's lines.
pub fn print_lines() {
    with_report(|report| {
        let text = core::str::from_utf8(&report.text[..report.length]).unwrap_or("    (unreadable)\n");
        print!("{text}");
        if report.lost > 0 {
            println!("    and {} more lines", report.lost);
        }
    });
}

/// Reports an exception that no test can be blamed for, and ends the machine with a failure.
pub fn fatal(arguments: fmt::Arguments<'_>) -> ! {
    println!("\nfatal: {arguments}");
    print_lines();
    println!("0 passed, 1 failed");
    conduit::system_off()
}

/// Fails the test, with a line, unless the condition holds; the test goes on.
macro_rules! check {
    ($condition:expr, $($argument:tt)+) => {
        if !$condition {
            $crate::machine::report::failure(format_args!($($argument)+));
        }
    };
}

/// Fails the test, with what was expected and seen, unless the two are equal; the test goes on.
macro_rules! check_eq {
    ($seen:expr, $expected:expr, $($argument:tt)+) => {{
        let (seen, expected) = (&$seen, &$expected);
        if seen != expected {
            $crate::machine::report::failure(format_args!("{}: expected {:#x?}, seen {:#x?}", format_args!($($argument)+), expected, seen));
        }
    }};
}

/// Ends the test as failed, with a line.
macro_rules! fail {
    ($($argument:tt)+) => {{
        $crate::machine::report::failure(format_args!($($argument)+));
        return Err($crate::machine::report::Stop::Failed);
    }};
}

/// Ends the test as skipped, with the reason.
macro_rules! skip {
    ($reason:literal) => {
        return Err($crate::machine::report::Stop::Skipped($reason))
    };
}
