//! The suite on many machines: CPU models, ways to change sizes, ways to keep dirty logs, numbers of CPUs.

use super::suite::{self, Results};
use super::{Test, Verdict};
use crate::cli::{self, Bbm};
use crate::ending::Status;
use crate::machine::{Gic, Machine};
use crate::run::Limits;
use crate::setup::emulator::Emulator;
use anstyle::{AnsiColor, Style};
use anyhow::Result;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Machines that run at a time: an emulated CPU takes a whole one of the host's.
const MACHINES: usize = 2;

/// One machine of the matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// CPU model.
    pub cpu: &'static str,
    /// Interrupt controller.
    pub gic: Gic,
    /// CPUs.
    pub smp: u32,
    /// How sizes change.
    pub bbm: Bbm,
    /// How dirty logs are kept: one of the payload's `dirty=` words, or in all ways that the CPU has.
    pub dirty: Option<&'static str>,
}

impl Configuration {
    const fn new(cpu: &'static str, smp: u32) -> Self {
        Self { cpu, gic: Gic::V3, smp, bbm: Bbm::Auto, dirty: None }
    }

    const fn bbm(self, bbm: Bbm) -> Self {
        Self { bbm, ..self }
    }

    const fn dirty(self, dirty: &'static str) -> Self {
        Self { dirty: Some(dirty), ..self }
    }

    const fn gic_v2(self) -> Self {
        Self { gic: Gic::V2, ..self }
    }

    /// The hypervisor with this configuration's options, in `machine` otherwise.
    fn machine(&self, machine: &Machine) -> Machine {
        let mut machine = machine.clone();
        (machine.cpu, machine.gic, machine.smp) = (self.cpu.to_owned(), self.gic, self.smp);
        // The last word of a key counts.
        machine.append += &format!(" bbm={}", cli::name(self.bbm));
        machine
    }

    /// Its columns in the table.
    fn columns(&self) -> [String; 5] {
        let gic = if self.gic == Gic::V2 { "2" } else { "3" };
        let dirty = self.dirty.unwrap_or("all");
        [self.cpu.to_owned(), gic.to_owned(), self.smp.to_string(), cli::name(self.bbm), dirty.to_owned()]
    }

    /// Its name in reports.
    pub fn name(&self) -> String {
        let [cpu, gic, smp, bbm, dirty] = self.columns();
        format!("{cpu}, GICv{gic}, {smp} CPUs, bbm={bbm}, dirty={dirty}")
    }
}

const WRITE_PROTECT: &str = "write-protect";
const HARDWARE_PAGE: &str = "hardware-page";
const HARDWARE_BLOCK: &str = "hardware-block";

/// The machines: every CPU model with 1, 2 or 4 CPUs; with the model that has FEAT_BBM and FEAT_HAFDBS, each way to
/// change sizes with each way to keep logs. Other models have neither, and `auto` is break-before-make there.
const CONFIGURATIONS: [Configuration; 24] = [
    Configuration::new("max", 4),
    Configuration::new("max", 2),
    Configuration::new("max", 1),
    Configuration::new("max", 2).gic_v2(),
    Configuration::new("max", 4).bbm(Bbm::Break).dirty(WRITE_PROTECT),
    Configuration::new("max", 2).bbm(Bbm::Break).dirty(HARDWARE_PAGE),
    Configuration::new("max", 4).bbm(Bbm::Break).dirty(HARDWARE_BLOCK),
    Configuration::new("max", 2).bbm(Bbm::Nt).dirty(WRITE_PROTECT),
    Configuration::new("max", 4).bbm(Bbm::Nt).dirty(HARDWARE_PAGE),
    Configuration::new("max", 1).bbm(Bbm::Nt).dirty(HARDWARE_BLOCK),
    Configuration::new("max", 1).bbm(Bbm::Break),
    Configuration::new("cortex-a53", 4),
    Configuration::new("cortex-a53", 1).gic_v2(),
    Configuration::new("cortex-a72", 4).gic_v2(),
    Configuration::new("cortex-a72", 2),
    Configuration::new("cortex-a72", 1),
    Configuration::new("cortex-a76", 4),
    Configuration::new("cortex-a76", 2),
    Configuration::new("neoverse-n1", 4),
    Configuration::new("neoverse-n1", 1),
    Configuration::new("neoverse-n2", 4),
    Configuration::new("neoverse-v1", 4),
    Configuration::new("cortex-a710", 4),
    Configuration::new("cortex-a710", 2).bbm(Bbm::Break),
];

/// A configuration, and what the suite came to on it.
#[derive(Debug)]
pub struct Row {
    /// The machine.
    pub configuration: Configuration,
    /// The results.
    pub results: Results,
}

/// Runs the suite at `payload` on every machine that this QEMU has, two at a time. `machine` has the hypervisor, and what
/// is common to all. `report` is told of each as it is done, with how many there are in all.
///
/// # Errors
/// If a machine can't be run at all.
pub fn run(
    emulator: &Emulator,
    machine: &Machine,
    payload: &Path,
    arguments: &[String],
    limits: Limits,
    report: impl Fn(&Row, usize) + Sync,
) -> Result<Vec<Row>> {
    let wanted: Vec<Configuration> =
        CONFIGURATIONS.into_iter().filter(|machine| emulator.check_cpu(machine.cpu).is_ok()).collect();
    let next = AtomicUsize::new(0);
    let rows: Mutex<Vec<(usize, Result<Row>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..MACHINES {
            scope.spawn(|| {
                while let index = next.fetch_add(1, Ordering::Relaxed)
                    && let Some(configuration) = wanted.get(index)
                {
                    let mut words = arguments.to_vec();
                    words.extend(configuration.dirty.map(|dirty| format!("dirty={dirty}")));
                    let machine = configuration.machine(machine);
                    let results = suite::run(emulator, &machine, payload, &words, limits, |_| ());
                    let row = results.map(|results| Row { configuration: configuration.clone(), results });
                    row.iter().for_each(|row| report(row, wanted.len()));
                    rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    rows.sort_unstable_by_key(|(index, _)| *index);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// CPU models of the matrix that this QEMU does not have.
pub fn missing(emulator: &Emulator) -> Vec<&'static str> {
    let mut missing: Vec<_> = CONFIGURATIONS.iter().map(|machine| machine.cpu).collect();
    missing.dedup();
    missing.retain(|cpu| emulator.check_cpu(cpu).is_err());
    missing
}

/// A style for a verdict: what failed stands out.
pub fn style(verdict: &Verdict) -> Style {
    let color = match verdict {
        Verdict::Passed => AnsiColor::Green,
        Verdict::Failed => AnsiColor::Red,
        Verdict::Skipped(_) => AnsiColor::Yellow,
    };
    color.on_default()
}

/// The table of all machines, with escape sequences for colours.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<12} {:>4} {:>5} {:<7} {:<15} {:>7} {:>7} {:>8} {:>8}\n",
        "cpu", "gic", "cpus", "bbm", "dirty log", "passed", "failed", "skipped", "time"
    );
    for Row { configuration, results } in rows {
        let [cpu, gic, smp, bbm, dirty] = configuration.columns();
        let counts = results.counts();
        let verdict = if results.status == Status::Success { Verdict::Passed } else { Verdict::Failed };
        let style = style(&verdict);
        let restarts = if results.restarts > 0 { format!("  {} restarts", results.restarts) } else { String::new() };
        let (passed, failed, skipped) = (counts.passed, counts.failed, counts.skipped);
        let _ = writeln!(
            text,
            "{style}{cpu:<12} {gic:>4} {smp:>5} {bbm:<7} {dirty:<15} {passed:>7} {failed:>7} {skipped:>8} {:>6} s{restarts}{style:#}",
            results.time.as_secs(),
        );
    }
    text
}

/// The lines that say why tests have failed.
pub fn failures(tests: &[Test]) -> String {
    let mut text = String::new();
    for test in tests.iter().filter(|test| test.verdict == Verdict::Failed) {
        let _ = writeln!(text, "    {}", test.name);
        for line in &test.lines {
            let _ = writeln!(text, "        {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn no_machine_stands_twice() {
        for (index, one) in CONFIGURATIONS.iter().enumerate() {
            assert!(!CONFIGURATIONS[index + 1..].contains(one), "{}", one.name());
            assert!(one.gic == Gic::V3 || one.smp <= 8);
        }
    }

    #[test]
    fn the_table_says_what_failed() {
        let test = |verdict| Test { name: "a::b".into(), verdict, lines: vec!["why".into()], time: Duration::ZERO };
        let results = |status, verdict| Results {
            tests: vec![test(verdict)],
            status,
            explanation: String::new(),
            restarts: 1,
            time: Duration::from_secs(61),
        };
        let rows = [
            Row { configuration: CONFIGURATIONS[4].clone(), results: results(Status::Success, Verdict::Passed) },
            Row { configuration: CONFIGURATIONS[12].clone(), results: results(Status::Failure, Verdict::Failed) },
        ];
        let table = table(&rows);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("\u{1b}[32mmax ") && lines[1].contains("break") && lines[1].contains("61 s"));
        assert!(lines[2].starts_with("\u{1b}[31mcortex-a53 "), "{}", lines[2]);
        assert_eq!(failures(&rows[1].results.tests), "    a::b\n        why\n");
        assert_eq!(failures(&rows[0].results.tests), "");
    }
}
