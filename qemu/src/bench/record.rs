//! A set of measurements: read from a guest's lines, kept as JSON.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// What a row's numbers are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// One call, fault or operation.
    Call,
    /// One 4 KiB page, of an operation on many.
    Page,
}

/// One operation's instructions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// How many were measured.
    pub n: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: u64,
    /// The most.
    pub max: u64,
    /// What it is of.
    pub unit: Unit,
}

/// Everything that one run measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was measured, with its version.
    pub subject: String,
    /// QEMU's version.
    pub qemu: String,
    /// The compiler that built what was measured, if it can change the figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compiler: Option<String>,
    /// Rows by operation.
    pub rows: BTreeMap<String, Row>,
    /// Counted events by name.
    pub counts: BTreeMap<String, u64>,
}

/// Begins a row's line: `bench: hypercall n=1000 mean=45.00 median=45 max=45 unit=call`.
const ROW: &str = "bench: ";
/// Begins a count's line: `count: invalid-windows 0`.
const COUNT: &str = "count: ";
/// Behind [`ROW`], says that nothing is missing.
const END: &str = "end";
/// Behind [`ROW`], says why there is no more.
const FAILED: &str = "failed: ";

impl Record {
    /// With another record's rows and counts, which this one has not.
    #[must_use]
    pub fn with_rows_of(mut self, other: Self) -> Self {
        self.rows.extend(other.rows);
        self.counts.extend(other.counts);
        self
    }

    /// Reads what a guest printed. Lines that are neither rows nor counts are somebody else's.
    ///
    /// # Errors
    /// If a line can't be read, comes twice, or the last one is missing; the sentence quotes the line.
    pub fn of_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut record = Self::default();
        let mut ended = false;
        for line in lines.into_iter().map(str::trim_end) {
            let quote = || format!("the guest printed a line that can't be read: `{line}`");
            if let Some(text) = line.strip_prefix(ROW) {
                if text == END {
                    ended = true;
                    continue;
                }
                if let Some(why) = text.strip_prefix(FAILED) {
                    bail!("the guest could not measure: {why}");
                }
                let (name, row) = row(text).with_context(quote)?;
                ensure!(record.rows.insert(name, row).is_none(), "the guest printed two rows of the name in `{line}`");
            } else if let Some(text) = line.strip_prefix(COUNT) {
                let (name, value) = text.split_once(' ').with_context(quote)?;
                let value = value.parse().with_context(quote)?;
                let old = record.counts.insert(name.to_owned(), value);
                ensure!(old.is_none(), "the guest printed two counts of the name in `{line}`");
            }
        }
        ensure!(ended, "the guest did not measure to its end: the line `{ROW}{END}` is missing");
        Ok(record)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it can't be read, or is no record.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| {
            format!("{} is not a record of a benchmark; make it anew with `cargo hv bench --renew`", path.display())
        })
    }

    /// As JSON.
    ///
    /// # Errors
    /// If a number has no JSON form.
    pub fn json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).context("can't write the record as JSON")?;
        text.push(b'\n');
        Ok(text)
    }
}

/// Reads a row behind [`ROW`].
fn row(text: &str) -> Result<(String, Row)> {
    let mut words = text.split(' ');
    let name = words.next().filter(|name| !name.is_empty()).context("it has no name")?;
    let mut field = |key: &str| {
        let word = words.next().with_context(|| format!("{key} is missing"))?;
        word.strip_prefix(key).and_then(|word| word.strip_prefix('=')).with_context(|| format!("{key} is missing"))
    };
    let n: u64 = field("n")?.parse().context("n is not a number")?;
    let mean: f64 = field("mean")?.parse().context("the mean is not a number")?;
    let median = field("median")?.parse().context("the median is not a number")?;
    let max = field("max")?.parse().context("the maximum is not a number")?;
    let unit = match field("unit")? {
        "call" => Unit::Call,
        "page" => Unit::Page,
        other => bail!("`{other}` is not a unit"),
    };
    ensure!(words.next().is_none(), "something follows the unit");
    ensure!(n > 0 && mean.is_finite() && mean >= 0.0, "a row has at least one measurement, and none below zero");
    Ok((name.to_owned(), Row { n, mean, median, max, unit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [&str; 6] = [
        "payload: 1 CPUs (MIDR 0xf0510), 512 MiB, GICv3, under Unbroken",
        "bench: hypercall n=1000 mean=45.00 median=45 max=45 unit=call\r",
        "bench: eager-split n=16384 mean=1.89 median=1 max=2 unit=page",
        "count: invalid-windows 0",
        "bench: end",
        "[unbroken] end: power-off",
    ];

    #[test]
    fn a_console_is_read() {
        let record = Record::of_lines(LINES).unwrap();
        assert_eq!(record.rows["hypercall"], Row { n: 1000, mean: 45.0, median: 45, max: 45, unit: Unit::Call });
        assert_eq!(record.rows["eager-split"].unit, Unit::Page);
        assert_eq!((record.rows.len(), record.counts["invalid-windows"]), (2, 0));
        let again: Record = serde_json::from_slice(&record.json().unwrap()).unwrap();
        assert_eq!(again, record);
    }

    #[test]
    fn what_is_wrong_is_quoted() {
        for (line, why) in [
            ("bench: hypercall n=1000 mean=45.00 median=45 max=45", "hypercall n=1000"),
            ("bench: x n=0 mean=1 median=1 max=1 unit=call", "x n=0"),
            ("bench: x n=1 mean=NaN median=1 max=1 unit=call", "x n=1"),
            ("bench: x n=1 mean=1 median=1 max=1 unit=second", "unit=second"),
            ("bench: x n=1 mean=1 median=1 max=1 unit=call more", "more"),
            ("bench: x mean=1 n=1 median=1 max=1 unit=call", "x mean=1"),
            ("bench: failed: no log started", "no log started"),
            ("count: invalid-windows", "invalid-windows"),
            ("count: invalid-windows 0", "two counts"),
            ("bench: hypercall n=1 mean=1 median=1 max=1 unit=call", "two rows"),
        ] {
            let lines: Vec<&str> = LINES.into_iter().chain([line]).collect();
            let error = format!("{:#}", Record::of_lines(lines).unwrap_err());
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn a_run_that_breaks_off_is_no_record() {
        let error = Record::of_lines(LINES[..4].iter().copied()).unwrap_err().to_string();
        assert!(error.contains("bench: end"), "{error}");
    }
}
