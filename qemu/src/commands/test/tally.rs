//! What came of test programs: their counts, and the names of what failed.

use crate::progress::Step;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Tests that passed and failed. A check that is no test (a lint, a build) counts as one.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// How many passed.
    pub passed: u64,
    /// How many failed.
    pub failed: u64,
    /// How many were left out: they are long, and `--all` runs them.
    pub ignored: u64,
    /// The names of tests that failed.
    pub names: Vec<String>,
}

impl Tally {
    /// A check that passed.
    pub fn one() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    /// A check that failed.
    pub fn failure() -> Self {
        Self { failed: 1, ..Self::default() }
    }

    /// Counts another's tests, too.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.names.extend(other.names);
    }

    /// Whether any test ran.
    fn is_empty(&self) -> bool {
        (self.passed, self.failed) == (0, 0)
    }

    /// Reads a line of a Rust test program: the one with which it ends (`test result: ok. 12 passed; 0 failed; ...`), or
    /// one that says which test failed (`test a::b ... FAILED`).
    fn of_line(line: &str) -> Option<Self> {
        if let Some(name) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED")) {
            // Behind the name of a documentation test is its line, in parentheses.
            let name = name.split(" - ").next().unwrap_or(name);
            return Some(Self { names: vec![name.to_owned()], ..Self::default() });
        }
        let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let number = |word: &str| {
            let text = counts.split("; ").find_map(|count| count.strip_suffix(word))?;
            text.trim().parse().ok()
        };
        let ignored = number("ignored").unwrap_or(0);
        Some(Self { passed: number("passed")?, failed: number("failed")?, ignored, names: Vec::new() })
    }
}

/// Runs a check whose output only matters if it fails.
///
/// # Errors
/// If it fails: the error has its output.
pub fn quiet(mut command: Command, step: &Step) -> Result<Tally> {
    step.detail("cargo");
    let output = command.stdin(Stdio::null()).output().context("can't run cargo")?;
    if !output.status.success() {
        bail!("\n{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(Tally::one())
}

/// Runs test programs, shows what they print, and adds up their results.
///
/// # Errors
/// If they can't be run, or no test was among them.
pub fn tests(mut command: Command, step: &Step) -> Result<Tally> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("can't run cargo")?;
    let mut tally = Tally::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("can't read what the tests print")?;
            let line = String::from_utf8_lossy(&line);
            step.print(&line);
            tally.add(Tally::of_line(&line).unwrap_or_default());
        }
    }
    let status = child.wait().context("can't wait for cargo")?;
    if !status.success() && tally.failed == 0 {
        // Something does not compile, or a test program died.
        eprintln!("hv: the tests did not run to their end ({status})");
        tally.failed = 1;
    }
    if status.success() && tally.is_empty() {
        bail!("no test ran");
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64, ignored: u64) -> Tally {
        Tally { passed, failed, ignored, names: Vec::new() }
    }

    #[test]
    fn results_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.02s";
        assert_eq!(Tally::of_line(line), Some(counts(12, 3, 1)));
        for line in ["test result: ok", "test a ... ok", "test result: ok. x passed; 0 failed", ""] {
            assert_eq!(Tally::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn names_of_failures_are_read() {
        let names = |line| Tally::of_line(line).map(|tally| tally.names);
        assert_eq!(names("test a::b ... FAILED"), Some(vec!["a::b".to_owned()]));
        assert_eq!(
            names("test stage2/src/lib.rs - Stage2 (line 12) ... FAILED"),
            Some(vec!["stage2/src/lib.rs".into()])
        );
        assert_eq!(names("test a::b ... ignored, long"), None);
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            super::tests(command, &Step::begin("test"))
        };
        assert_eq!(sh("echo 'test result: ok. 2 passed; 0 failed; x'; exit 101").unwrap(), counts(2, 1, 0));
        assert!(sh("true").is_err());
    }
}
