//! `cargo hv payload`: the EL1 test suite under the hypervisor, on one machine or on many; or another's guest.

use crate::cli::{Log, Payload};
use crate::commands::check;
use crate::console::{self, Lines, PREFIX};
use crate::ending::{self, Status};
use crate::images::{self, Image};
use crate::machine::Machine;
use crate::payload::matrix::{self, Row};
use crate::payload::suite::{self, News, Results, SILENCE};
use crate::payload::{Counts, Verdict, junit};
use crate::progress::Step;
use crate::run::{self, Flow, Limits};
use crate::setup::emulator::Emulator;
use crate::size::Size;
use crate::workspace::Workspace;
use anyhow::Result;
use std::path::Path;
use std::time::{Duration, Instant};

/// Seconds that the suite may take on one machine, unless `--timeout` says otherwise.
const TIMEOUT: u64 = 300;

/// RAM, unless `--memory` says otherwise: enough for two leaves of 1 GiB side by side, between the payload at the start and the
/// hypervisor at the end.
const MEMORY: Size = Size::mib(4096);

/// Runs the command.
///
/// # Errors
/// If something can't be set up.
pub fn payload(workspace: &Workspace, options: &Payload) -> Result<Status> {
    check::payload(options)?;
    let emulator = super::emulator(&options.common)?;
    let mut machine = super::machine(&options.common)?;
    machine.memory = options.common.memory.unwrap_or(MEMORY);
    machine.append += " hypercalls=on";
    if let Some(image) = &options.image {
        machine.load_guest(image, None, &options.append)?;
    }
    machine.kernel = images::build(workspace, Image::Hypervisor)?;
    if let Some(image) = &options.image {
        return foreign(&emulator, &machine, image, options);
    }
    let payload = images::build(workspace, Image::Payload)?;
    suite::add_disk(&mut machine, &workspace.folder("payload")?.join("disk.raw"))?;
    let mut arguments: Vec<String> = options.filter.iter().map(|filter| format!("filter={filter}")).collect();
    arguments.push("mediated".to_owned());
    arguments.extend(options.append.split_whitespace().map(str::to_owned));
    let limits = Limits { total: options.common.timeout_or(TIMEOUT), silence: SILENCE };
    if options.matrix {
        return many(&emulator, &machine, &payload, &arguments, limits, options);
    }
    let everything = options.common.log >= Log::Debug;
    let mut step = Step::begin("Booting the test suite");
    let results = suite::run(&emulator, &machine, &payload, &arguments, limits, |news| match news {
        News::Line(line) if everything || !line.starts_with(PREFIX) => step.print(&coloured(line)),
        News::Line(_) => {}
        News::Runs(test) => step.rename(&format!("Test {test}")),
    })?;
    drop(step);
    if results.restarts > 0 {
        println!("{} in all; the machine was started anew {} times", results.counts(), results.restarts);
    }
    if !results.explanation.is_empty() {
        eprintln!("{}", results.explanation);
    }
    if let Some(path) = &options.junit {
        junit::write(path, [(options.common.cpu.clone(), &results)])?;
    }
    Ok(results.status)
}

/// A line of the suite's, its verdict in colour.
fn coloured(line: &str) -> String {
    let verdicts =
        [("ok", Verdict::Passed), ("FAILED", Verdict::Failed), ("skipped: ", Verdict::Skipped(String::new()))];
    let Some((name, rest)) = line.strip_prefix("test ").and_then(|test| test.split_once(" ... ")) else {
        return line.to_owned();
    };
    match verdicts.iter().find(|(word, _)| rest.starts_with(word)) {
        Some((_, verdict)) => {
            let style = matrix::style(verdict);
            format!("test {name} ... {style}{rest}{style:#}")
        }
        None => line.to_owned(),
    }
}

/// Runs the suite on every machine of the matrix.
fn many(
    emulator: &Emulator,
    machine: &Machine,
    payload: &Path,
    arguments: &[String],
    limits: Limits,
    options: &Payload,
) -> Result<Status> {
    let begun = Instant::now();
    for cpu in matrix::missing(emulator) {
        eprintln!("hv: QEMU {} has no {cpu}, so it is left out", emulator.version);
    }
    let done = std::sync::atomic::AtomicUsize::new(1);
    let step = Step::begin("Running the suite on every machine, two at a time");
    let rows = matrix::run(emulator, machine, payload, arguments, limits, |row, count| {
        let Row { configuration, results } = row;
        let number = done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        step.print(&format!("{number} of {count}: {}: {}", configuration.name(), results.counts()));
        let failures = matrix::failures(&results.tests);
        if !failures.is_empty() {
            step.print(failures.trim_end());
        }
        if !results.explanation.is_empty() {
            eprintln!("{}", results.explanation);
        }
    })?;
    drop(step);
    println!("\n{}", matrix::table(&rows));
    if let Some(path) = &options.junit {
        junit::write(path, rows.iter().map(|row| (row.configuration.name(), &row.results)))?;
    }
    let failed = rows.iter().filter(|row| row.results.status != Status::Success).count();
    let all: Vec<_> = rows.iter().flat_map(|row| row.results.tests.iter().cloned()).collect();
    let minutes = begun.elapsed().as_secs();
    println!("{} machines, {failed} with failures, in {}:{:02} min", rows.len(), minutes / 60, minutes % 60);
    println!("{}", Counts::of(&all));
    Ok(if failed == 0 && !rows.is_empty() { Status::Success } else { Status::Failure })
}

/// Runs a guest that is not the suite: its console is printed as it comes; the end is PSCI SYSTEM_OFF, or the timeout.
/// A result that it prints is passed on: `N passed, N failed`, or what kvm-unit-tests print. One that is bad is not made good by
/// a later one, and nothing is read behind kvm-unit-tests' summary: their way out of a test at EL0 is an exception.
fn foreign(emulator: &Emulator, machine: &Machine, image: &Path, options: &Payload) -> Result<Status> {
    let everything = options.common.log >= Log::Debug;
    let mut lines = Lines::default();
    let (mut result, mut summed_up) = (None, false);
    let timeout = options.common.timeout_or(TIMEOUT);
    let step = Step::begin(format!("Running {}", image.display()));
    let outcome = run::capture(emulator, machine, timeout, |bytes, _| {
        lines.push(bytes, |line| {
            let line = console::text(line);
            if everything || !line.starts_with(PREFIX) {
                step.print(&line);
            }
            if let Some(good) = foreign_result(&line).filter(|_| !summed_up) {
                result = Some(result.unwrap_or(true) && good);
                summed_up = line.starts_with("SUMMARY: ");
            }
        });
        Flow::Continue
    })?;
    drop(step);
    let status = match (ending::judge(&outcome), result) {
        (Status::Success, Some(false)) => Status::Failure,
        (status, _) => status,
    };
    if let Some(path) = &options.junit {
        junit::write(path, [(image.display().to_string(), &as_test(image, status, timeout))])?;
    }
    let text = ending::explain(status, &outcome, timeout.as_secs());
    if !text.is_empty() {
        eprintln!("{text}");
    }
    Ok(status)
}

/// Whether a line of a guest's says that all went well, or did not; nothing if it is no result.
fn foreign_result(line: &str) -> Option<bool> {
    console::passed_and_failed(line).map(|(_, failed)| failed == 0).or_else(|| console::kvm_unit_tests(line))
}

/// A foreign guest as one test.
fn as_test(image: &Path, status: Status, time: Duration) -> Results {
    let verdict = if status == Status::Success { Verdict::Passed } else { Verdict::Failed };
    let name = image.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let test = crate::payload::Test { name: format!("image::{name}"), verdict, lines: Vec::new(), time };
    Results { tests: vec![test], status, explanation: String::new(), restarts: 0, time }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_others_are_read() {
        for (line, result) in [
            ("12 passed, 0 failed", Some(true)),
            ("12 passed, 1 failed, 3 skipped\r", Some(false)),
            ("EXIT: STATUS=1", Some(true)),
            ("EXIT: STATUS=3", Some(false)),
            ("EXIT: STATUS=x", None),
            ("PASS: selftest", None),
            ("", None),
        ] {
            assert_eq!(foreign_result(line), result, "{line}");
        }
    }

    #[test]
    fn verdicts_have_colours() {
        assert_eq!(coloured("test a::b ... ok"), "test a::b ... \u{1b}[32mok\u{1b}[0m");
        assert_eq!(coloured("test a::b ... FAILED"), "test a::b ... \u{1b}[31mFAILED\u{1b}[0m");
        assert_eq!(coloured("    expected 1"), "    expected 1");
    }
}
