//! First writes of 1 to 8 CPUs at once (guest-payload/src/bench/vcpus.rs), and how often the oracle's scheduler makes such writes
//! get into each other's way (tests/oracle/benches/contention.rs): a table.

use super::record::Record;
use crate::workspace::{Workspace, cargo};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::process::{Command, Stdio};

/// The numbers of CPUs that are measured.
pub const CPUS: [u32; 4] = [1, 2, 4, 8];
/// Where the CPUs write: the row's name, and what a table calls it.
const PLACES: [(&str, &str); 3] = [
    ("one-block", "pages of one block"),
    ("side-by-side", "blocks side by side"),
    ("far-apart", "blocks 256 MiB apart"),
];
/// Begins the lines of the oracle's benchmark.
const PREFIX: &str = "contention: ";

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Rows for each of [`CPUS`].
    pub measured: Vec<Record>,
    /// The oracle's counts.
    pub contention: Vec<Contention>,
}

/// What the oracle's scheduler made of first writes of some PEs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contention {
    /// Where they wrote.
    pub place: String,
    /// How many they were.
    pub pes: u32,
    /// Permission faults of theirs.
    pub faults: u64,
    /// Compare-exchanges that found another value than was expected.
    pub lost: u64,
    /// Faults that found that their work was done.
    pub spurious: u64,
}

impl Contention {
    /// From a line behind [`PREFIX`].
    fn read(line: &str) -> Result<Self> {
        let bad = || format!("the benchmark printed a line that can't be read: `{line}`");
        let (place, numbers) = line.split_once(' ').with_context(bad)?;
        let numbers: Vec<u64> = numbers.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(bad)?;
        let &[pes, faults, lost, spurious] = &*numbers else { anyhow::bail!(bad()) };
        let pes = u32::try_from(pes).with_context(bad)?;
        Ok(Self { place: place.to_owned(), pes, faults, lost, spurious })
    }

    fn cell(&self) -> String {
        let share = |count: u64| 1000.0 * count as f64 / self.faults.max(1) as f64;
        format!("{:.1}; {:.1}", share(self.lost), share(self.spurious))
    }
}

/// Has the oracle count.
///
/// # Errors
/// If its benchmark does not build, or not run to its end.
pub fn contention(workspace: &Workspace) -> Result<Vec<Contention>> {
    let mut command = Command::new(cargo());
    command.args(["bench", "--quiet", "--package", "stage2-oracle", "--bench", "contention"]);
    command.current_dir(workspace.root()).env("CARGO_TARGET_DIR", workspace.target());
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("can't run cargo")?;
    ensure!(output.status.success(), "the oracle's benchmark did not run to its end ({})", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<Contention> =
        text.lines().filter_map(|line| line.strip_prefix(PREFIX)).map(Contention::read).collect::<Result<_>>()?;
    ensure!(!rows.is_empty(), "the oracle's benchmark printed nothing");
    Ok(rows)
}

/// The table for a document.
///
/// # Errors
/// If something was not measured.
pub fn document(figures: &Figures) -> Result<String> {
    let mut text = String::from("| each CPU writes to |");
    // Writing to a string can't fail.
    CPUS.iter().for_each(|cpus| _ = write!(text, " {cpus} CPU{} |", if *cpus == 1 { "" } else { "s" }));
    text += "\n| --- |";
    text += &" ---: |".repeat(CPUS.len());
    text += "\n";
    for (row, name) in PLACES {
        let _ = write!(text, "| {name}: instructions of a first write |");
        for record in &figures.measured {
            let row = record.rows.get(row).with_context(|| format!("{row} was not measured"))?;
            let _ = write!(text, " {} |", row.median);
        }
        text += "\n";
    }
    for (place, name) in PLACES {
        let _ = write!(text, "| {name}: exchanges lost; faults with nothing to do, of 1000 in the oracle |");
        for cpus in CPUS {
            let found = figures.contention.iter().find(|one| one.place == place && one.pes == cpus);
            let _ = write!(text, " {} |", found.map_or_else(|| "–".to_owned(), Contention::cell));
        }
        text += "\n";
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::record::{Row, Unit};
    use super::*;

    #[test]
    fn lines_become_a_table() {
        let line = Contention::read("one-block 2 6400 32 64").unwrap();
        assert_eq!((line.pes, line.cell()), (2, "5.0; 10.0".to_owned()));
        for line in ["one-block", "one-block 2 1 1", "one-block 2 1 1 1 1", "one-block two 1 1 1"] {
            assert!(Contention::read(line).is_err(), "{line}");
        }
        let rows = PLACES
            .map(|(row, _)| (row.to_owned(), Row { n: 64, mean: 154.0, median: 139, max: 1123, unit: Unit::Call }));
        let record = Record { rows: rows.into(), ..Record::default() };
        let figures = Figures { measured: vec![record; CPUS.len()], contention: vec![line] };
        let text = document(&figures).unwrap();
        assert!(
            text.contains("| pages of one block: instructions of a first write | 139 | 139 | 139 | 139 |"),
            "{text}"
        );
        assert!(text.contains("of 1000 in the oracle | – | 5.0; 10.0 | – | – |"), "{text}");
        assert!(document(&Figures { measured: vec![Record::default()], ..figures }).is_err());
    }
}
