//! The suite's results as JUnit XML, which CI systems read.

use super::suite::Results;
use super::{Test, Verdict};
use anyhow::{Context, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use std::path::Path;

/// Writes the results of one or more machines, each a suite under its name, to `path`.
///
/// # Errors
/// If the file can't be written.
pub fn write<'a>(path: &Path, machines: impl IntoIterator<Item = (String, &'a Results)>) -> Result<()> {
    let mut report = Report::new("payload");
    for (name, results) in machines {
        let mut suite = TestSuite::new(name);
        suite.set_time(results.time);
        suite.add_test_cases(results.tests.iter().map(case));
        report.add_test_suite(suite);
    }
    let text = report.to_string().context("can't write the results as XML")?;
    std::fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

fn case(test: &Test) -> TestCase {
    let (group, name) = test.name.split_once("::").unwrap_or(("", &test.name));
    let status = match &test.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Failed => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(test.lines.first().map_or("", String::as_str)).set_description(test.lines.join("\n"));
            status
        }
        Verdict::Skipped(reason) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason);
            status
        }
    };
    let mut case = TestCase::new(name, status);
    case.set_classname(group).set_time(test.time);
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ending::Status;
    use std::time::Duration;

    #[test]
    fn every_verdict_is_in_the_file() {
        let test = |name: &str, verdict, lines: &[&str]| Test {
            name: name.into(),
            verdict,
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            time: Duration::from_millis(1500),
        };
        let tests = vec![
            test("a::one", Verdict::Passed, &[]),
            test("a::two", Verdict::Failed, &["expected <1>", "seen & 2"]),
            test("b::three", Verdict::Skipped("one CPU only".into()), &[]),
        ];
        let results = Results {
            tests,
            status: Status::Failure,
            explanation: String::new(),
            restarts: 0,
            time: Duration::from_secs(2),
        };
        let path = std::env::temp_dir().join(format!("hv-junit-{}.xml", std::process::id()));
        write(&path, [("max, 4 CPUs".to_owned(), &results)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for part in [
            "<testsuite name=\"max, 4 CPUs\" tests=\"3\" disabled=\"1\" errors=\"0\" failures=\"1\"",
            "<testcase name=\"one\" classname=\"a\" time=\"1.500\"",
            "<failure message=\"expected &lt;1&gt;\">expected &lt;1&gt;\nseen &amp; 2</failure>",
            "<skipped message=\"one CPU only\"/>",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
