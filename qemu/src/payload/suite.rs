//! The suite on one machine.

use super::reader::Reader;
use super::{Counts, Test};
use crate::ending::{self, Status};
use crate::machine::Machine;
use crate::run::{self, Flow, Limits, Stop, Stopper};
use crate::setup::emulator::Emulator;
use crate::workspace::write_whole;
use anyhow::Result;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the console may stay silent: longer than the suite itself gives any of its tests.
pub const SILENCE: Duration = Duration::from_secs(100);

/// How long the console may stay silent where the suite's command line tells tests to go on for so many seconds (`storm=`).
fn silence(usual: Duration, arguments: &[String]) -> Duration {
    let storm = arguments.iter().filter_map(|word| word.strip_prefix("storm=")?.parse().ok()).next_back();
    usual + Duration::from_secs(storm.unwrap_or(0))
}

/// How often a machine that a test took down is started anew. After that the hypervisor is what is broken.
const RESTARTS: usize = 8;

/// The disk's transport: the last in its page, since tests look for devices at the start of each.
const DISK_TRANSPORT: usize = 7;

/// Bytes of the disk that the suite attacks: 64 sectors of numbers, and as much of nothing.
const DISK_BYTES: u64 = 64 << 10;

/// Gives the machine the disk that the suite's group `virtio` works on, by way of the hypervisor. What the suite writes there is
/// forgotten with the machine.
///
/// # Errors
/// If the file can't be made.
pub fn add_disk(machine: &mut Machine, file: &Path) -> Result<()> {
    let words = (0..DISK_BYTES / 8).map(|word| if word < DISK_BYTES / 16 { word } else { 0 });
    let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    if std::fs::read(file).ok().as_ref() != Some(&bytes) {
        write_whole(file, &bytes)?;
    }
    machine.add_mediated_disk(file, DISK_TRANSPORT)
}

/// What a run of the suite came to.
#[derive(Debug, Clone)]
pub struct Results {
    /// All tests that ran, in their order.
    pub tests: Vec<Test>,
    /// Success if some passed and none failed.
    pub status: Status,
    /// What to tell the user besides, with the console's last lines: empty if there is nothing to tell.
    pub explanation: String,
    /// How often the machine had to be started anew.
    pub restarts: usize,
    /// How long it took.
    pub time: Duration,
}

impl Results {
    /// How many tests ended how.
    pub fn counts(&self) -> Counts {
        Counts::of(&self.tests)
    }
}

/// What is told of a run while it goes on.
#[derive(Debug, Clone, Copy)]
pub enum News<'a> {
    /// A line of the console.
    Line(&'a str),
    /// This test runs now.
    Runs(&'a str),
}

/// Runs the suite, an arm64 Image at `payload`, with the command line `arguments`, on `machine`. `show` sees each line of
/// the console, and which test runs.
///
/// A test that takes the machine down, or keeps it from ending, has failed; the machine is started anew, and the suite
/// goes on behind that test.
///
/// # Errors
/// If the machine can't be run at all.
pub fn run(
    emulator: &Emulator,
    machine: &Machine,
    payload: &Path,
    arguments: &[String],
    limits: Limits,
    mut show: impl FnMut(News<'_>),
) -> Result<Results> {
    let begun = Instant::now();
    let mut results = Results {
        tests: Vec::new(),
        status: Status::Success,
        explanation: String::new(),
        restarts: 0,
        time: Duration::ZERO,
    };
    let limits = Limits { silence: silence(limits.silence, arguments), ..limits };
    loop {
        let mut words = arguments.to_vec();
        words.extend(results.tests.last().map(|test| format!("after={}", test.name)));
        let mut machine = machine.clone();
        machine.load_guest(payload, None, &words.join(" "))?;
        let mut reader = Reader::default();
        let left = Limits { total: limits.total.saturating_sub(begun.elapsed()), ..limits };
        let outcome = run::capture_within(emulator, &machine, left, &Stopper::default(), None, |bytes, _| {
            reader.push(bytes, |line| show(News::Line(line)));
            if let Some(test) = reader.running() {
                show(News::Runs(test));
            }
            Flow::Continue
        })?;
        let ended = ending::judge(&outcome);
        results.time = begun.elapsed();
        if let (Status::Success, Some((passed, failed))) = (ended, reader.result()) {
            let read = Counts::of(reader.tests());
            let agrees = (read.passed as u64, read.failed as u64) == (passed, failed);
            results.tests.extend(reader.into_tests());
            let counts = results.counts();
            results.status = if counts.is_success() && agrees { Status::Success } else { Status::Failure };
            if !agrees && counts.failed == 0 {
                let said = format!("{passed} passed, {failed} failed");
                results.explanation = format!("hv: the payload says: {said}; what was read of its tests: {read}");
            }
            return Ok(results);
        }
        let status = if ended == Status::Success { Status::NoResult } else { ended };
        let explanation = match outcome.stop {
            Stop::Silent => format!("nothing came from the console for {} s: the test hangs", limits.silence.as_secs()),
            _ => ending::explain(status, &outcome, limits.total.as_secs()),
        };
        show(News::Line(&format!("FAILED: {explanation}")));
        let blamed = reader.blame(explanation.lines().map(str::to_owned).collect());
        results.tests.extend(reader.into_tests());
        // Without a test to blame, or time to go on, this is the end.
        if !blamed || outcome.stop == Stop::TimedOut || results.restarts == RESTARTS {
            (results.status, results.explanation) = (status, explanation);
            return Ok(results);
        }
        results.restarts += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_told_to_take_long_may() {
        let silent =
            |words: &[&str]| silence(SILENCE, &words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()).as_secs();
        assert_eq!([silent(&[]), silent(&["seed=1", "storm=600"]), silent(&["storm=x"])], [100, 700, 100]);
    }
}
