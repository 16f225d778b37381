//! Reading the suite's console: which test runs, and what became of those before it.

use super::{Test, Verdict};
use crate::console::{self, Lines, PREFIX};
use std::time::Instant;

/// A test that has begun and not ended.
#[derive(Debug)]
struct Running {
    name: String,
    begun: Instant,
}

/// Takes the console apart as it comes.
///
/// A test's line is `test group::name ... `, which stays without its end while the test runs, and then `ok`, `FAILED`
/// with indented lines behind it, or `skipped: ` and the reason. Lines of the hypervisor's may come in between.
#[derive(Debug, Default)]
pub struct Reader {
    lines: Lines,
    running: Option<Running>,
    tests: Vec<Test>,
    result: Option<(u64, u64)>,
    /// Whether the last line was one of a test that has failed.
    explaining: bool,
}

impl Reader {
    /// Takes more of the console, and calls `line` for every line that is complete.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.push(bytes, |bytes| {
            let text = console::text(bytes);
            line(&text);
            self.line(&text);
        });
        self.lines = lines;
        // The line of a test that runs is not complete.
        let rest = console::text(self.lines.rest());
        if let Some((name, _)) = test_line(&rest) {
            self.begin(name);
        }
    }

    fn begin(&mut self, name: &str) {
        if self.running.as_ref().is_none_or(|running| running.name != name) {
            self.running = Some(Running { name: name.to_owned(), begun: Instant::now() });
        }
    }

    fn line(&mut self, text: &str) {
        if let Some((name, verdict)) = test_line(text) {
            self.begin(name);
            self.verdict(verdict);
        } else if text.starts_with(PREFIX) || text.trim().is_empty() {
        } else if self.running.is_some() && verdict(text).is_some() {
            self.verdict(text);
        } else if self.explaining && text.starts_with(' ') {
            self.tests.last_mut().into_iter().for_each(|test| test.lines.push(text.trim_start().to_owned()));
        } else {
            self.explaining = false;
            // Only the guest's last line is its result.
            self.result = console::passed_and_failed(text);
        }
    }

    /// Ends the test that runs if `text` says what became of it.
    fn verdict(&mut self, text: &str) {
        let Some(verdict) = verdict(text) else { return };
        self.explaining = verdict == Verdict::Failed;
        self.end(verdict);
    }

    /// Ends the test that runs. Returns whether there was one.
    fn end(&mut self, verdict: Verdict) -> bool {
        let Some(Running { name, begun }) = self.running.take() else { return false };
        self.tests.push(Test { name, verdict, lines: Vec::new(), time: begun.elapsed() });
        true
    }

    /// The machine is gone. Whatever ran has failed because of it, for the reason in `lines`; if nothing ran, it was the
    /// last test that ended. Returns whether there was any.
    pub fn blame(&mut self, lines: Vec<String>) -> bool {
        let ended = self.end(Verdict::Failed);
        let Some(test) = self.tests.last_mut() else { return false };
        if !ended {
            test.verdict = Verdict::Failed;
        }
        test.lines.extend(lines);
        true
    }

    /// The test that runs.
    pub fn running(&self) -> Option<&str> {
        self.running.as_ref().map(|running| running.name.as_str())
    }

    /// The tests that have ended.
    pub fn tests(&self) -> &[Test] {
        &self.tests
    }

    /// The suite's last line, passed and failed, if it has come.
    pub fn result(&self) -> Option<(u64, u64)> {
        self.result
    }

    /// Everything that was read.
    pub fn into_tests(self) -> Vec<Test> {
        self.tests
    }
}

/// A test's line: its name, and what comes behind.
fn test_line(text: &str) -> Option<(&str, &str)> {
    let (name, verdict) = text.strip_prefix("test ")?.split_once(" ... ")?;
    (name.contains("::") && !name.contains(' ')).then_some((name, verdict))
}

fn verdict(text: &str) -> Option<Verdict> {
    match text.trim_end() {
        "ok" => Some(Verdict::Passed),
        "FAILED" => Some(Verdict::Failed),
        other => other.strip_prefix("skipped: ").map(|reason| Verdict::Skipped(reason.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[unbroken] guest starts\r\npayload: 4 CPUs\r\n\
        test a::one ... ok\r\n\
        test a::two ... [unbroken] error: odd\r\nFAILED\r\n    expected 1\r\n      seen 2\r\n\
        test b::three ... skipped: one CPU only\r\n\
        test b::four ... [unbroken] one\r\n[unbroken] two\r\nok\r\n\
        2 passed, 1 failed, 1 skipped\r\n\r\n[unbroken] end: power-off\r\n";

    fn read(text: &str, step: usize) -> Reader {
        let mut reader = Reader::default();
        text.as_bytes().chunks(step).for_each(|bytes| reader.push(bytes, |_| ()));
        reader
    }

    #[test]
    fn every_test_is_found_however_the_console_comes() {
        for step in [1, 7, 10_000] {
            let reader = read(CONSOLE, step);
            let tests: Vec<_> = reader.tests().iter().map(|test| (test.name.as_str(), test.verdict.clone())).collect();
            let skipped = Verdict::Skipped("one CPU only".to_owned());
            let expected = [("a::one", Verdict::Passed), ("a::two", Verdict::Failed), ("b::three", skipped)];
            assert_eq!(tests[..3], expected);
            assert_eq!(tests[3..], [("b::four", Verdict::Passed)]);
            assert_eq!(reader.tests()[1].lines, ["expected 1", "seen 2"]);
            assert_eq!(reader.result(), Some((2, 1)));
        }
    }

    #[test]
    fn a_machine_that_is_gone_fails_the_test_that_ran() {
        let mut reader = read("test a::one ... ok\r\ntest a::two ... ", 3);
        assert!(reader.blame(vec!["gone".to_owned()]));
        let last = reader.tests().last().unwrap();
        assert_eq!(
            (last.name.as_str(), &last.verdict, last.lines.as_slice()),
            ("a::two", &Verdict::Failed, &["gone".to_owned()][..])
        );
        assert_eq!(reader.result(), None);
        // Between two tests it was the one before.
        let mut reader = read("test a::one ... ok\r\n[unbroken] panic\r\n", 5);
        assert!(reader.blame(vec![]));
        assert_eq!(reader.tests()[0].verdict, Verdict::Failed);
        assert!(!read("payload: 1 CPUs\r\n", 5).blame(vec![]));
    }

    #[test]
    fn only_the_last_line_is_the_result() {
        assert_eq!(read("1 passed, 0 failed\r\nfatal: not so\r\n", 99).result(), None);
        assert_eq!(read("1 passed, 0 failed\r\n[unbroken] end: power-off\r\n", 99).result(), Some((1, 0)));
    }
}
