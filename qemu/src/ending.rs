//! From how a run ended to an exit status and a sentence.

use crate::console::End;
use crate::run::{Outcome, Stop};
use std::process::ExitCode;

/// How a command of this tool ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// All went well.
    Success,
    /// Tests failed.
    Failure,
    /// A guest's command ended with this status.
    Command(u8),
    /// The hypervisor refused to start.
    Refused,
    /// The hypervisor crashed.
    Panic,
    /// QEMU ended when it should not have.
    Emulator,
    /// The run ended but what was asked for did not come.
    NoResult,
    /// The time was over.
    Timeout,
    /// Something could not be set up or built, or can't work.
    SetUp,
    /// The user ended it by this signal.
    Signal(u8),
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(match status {
            Status::Success => 0,
            Status::Failure => 1,
            Status::Command(status) => status,
            Status::Refused => 120,
            Status::Panic => 121,
            Status::Emulator => 122,
            Status::NoResult => 123,
            Status::Timeout => 124,
            Status::SetUp => 125,
            // As shells do.
            Status::Signal(signal) => 128 + signal,
        })
    }
}

/// Judges a run by the hypervisor's last line: `Success` if the guest ended the machine.
pub fn judge(outcome: &Outcome) -> Status {
    match (outcome.end, outcome.stop) {
        (Some(End::Panic), _) => Status::Panic,
        (Some(End::Refused), _) => Status::Refused,
        (_, Stop::TimedOut | Stop::Silent) => Status::Timeout,
        (Some(End::PowerOff | End::Reset | End::Saved), _) => Status::Success,
        (None, Stop::Stopped) => Status::NoResult,
        (None, Stop::Exited(status)) if !status.success() => Status::Emulator,
        // Firmware ran on, so there is no last line.
        (None, _) if outcome.console.hypervisor().iter().any(|line| line.starts_with("refused: ")) => Status::Refused,
        (None, _) => Status::NoResult,
    }
}

/// What to tell the user about a failed run, with the console's last lines.
pub fn explain(status: Status, outcome: &Outcome, seconds: u64) -> String {
    let sentence = match status {
        Status::Success | Status::Failure | Status::Command(_) | Status::SetUp | Status::Signal(_) => {
            return String::new();
        }
        Status::Refused => "the hypervisor refused to start; its reason is above".to_owned(),
        Status::Panic => "the hypervisor crashed; its report is above".to_owned(),
        Status::Emulator => match outcome.stop {
            Stop::Exited(exit) => format!("QEMU ended unexpectedly ({exit})"),
            _ => "QEMU had to be ended".to_owned(),
        },
        Status::NoResult => "the machine ended without a result".to_owned(),
        Status::Timeout => format!("not done after {seconds} s, so QEMU was ended (--timeout sets the limit)"),
    };
    // Crash reports, the hypervisor's and the guest kernel's, are long, and their beginning says most.
    let count = if matches!(status, Status::Panic | Status::NoResult) { 80 } else { 25 };
    let mut text = String::new();
    let tail = outcome.console.tail(count);
    if tail.is_empty() {
        text += "hv: the console stayed empty\n";
    } else {
        text += &format!("hv: the console's last lines:\n{tail}\n");
    }
    if !outcome.complaints.is_empty() {
        text += &format!("hv: QEMU says:\n{}\n", outcome.complaints);
    }
    text + "hv: " + &sentence
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Console;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn outcome(text: &str, stop: Stop) -> Outcome {
        let mut console = Console::default();
        console.push(text.as_bytes());
        Outcome { end: console.end(), console, complaints: String::new(), stop }
    }

    #[test]
    fn every_ending_has_its_status() {
        let exited = |code| Stop::Exited(ExitStatus::from_raw(code << 8));
        for (text, stop, status) in [
            ("[unbroken] end: power-off\r\n", exited(0), Status::Success),
            ("[unbroken] end: reset\r\n", exited(0), Status::Success),
            ("[unbroken] end: power-off\r\n", Stop::Lingered, Status::Success),
            ("[unbroken] end: saved\r\n", exited(0), Status::Success),
            ("[unbroken] end: refused\r\n", Stop::Lingered, Status::Refused),
            ("[unbroken] end: panic\r\n", exited(0), Status::Panic),
            ("[unbroken] end: panic\r\n", Stop::TimedOut, Status::Panic),
            ("[unbroken] refused: why\r\n", exited(0), Status::Refused),
            ("[unbroken] refused: why\r\n", Stop::TimedOut, Status::Timeout),
            ("Linux", Stop::TimedOut, Status::Timeout),
            ("Linux", exited(1), Status::Emulator),
            ("Linux", exited(0), Status::NoResult),
        ] {
            let outcome = outcome(text, stop);
            assert_eq!(judge(&outcome), status, "{text} {stop:?}");
            let words = explain(status, &outcome, 7);
            assert_eq!(words.is_empty(), status == Status::Success);
            assert!(words.is_empty() || words.contains(text.trim()));
        }
    }
}
