//! Reading a recorded run back: `run.json`, `dirty.csv`, `dirty.bitmaps`, `stores.csv`.

use super::cells::Cells;
use crate::manager::about::About;
use crate::size::PAGE;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

/// A recorded run.
#[derive(Debug)]
pub struct Run {
    /// What it was.
    pub about: About,
    /// Its harvests.
    pub rounds: Vec<Round>,
    /// What was written, by memory and time; nothing where no log was kept.
    pub cells: Option<Cells>,
    /// Stores that met a policy, by instruction.
    pub stores: Vec<Stores>,
}

/// A harvest.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// Seconds since the log's start.
    pub seconds: f64,
    /// Dirty pages.
    pub pages: u64,
    /// Dirty pages a second since the harvest before.
    pub rate: f64,
    /// Bytes of stage-2 tables.
    pub table_bytes: u64,
    /// Permission faults since the harvest before.
    pub faults: u64,
    /// Leaves split since the harvest before.
    pub splits: u64,
    /// Leaves that collapses made since the harvest before.
    pub collapses: u64,
}

/// The stores of one instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stores {
    /// The instruction: a function's name and an offset where the run's tool knew it, else an address.
    pub by: String,
    /// Whether they were denied.
    pub denied: bool,
    /// How many there were.
    pub count: u64,
    /// The lowest and the highest address stored to, guest physical.
    pub span: (u64, u64),
}

/// Reads a run from its folder.
///
/// # Errors
/// If a file is missing or is not what its name says; the sentence names it.
pub fn run(folder: &Path) -> Result<Run> {
    ensure!(
        folder.is_dir(),
        "there is no folder {}; name one that `cargo hv linux --out DIR` has made",
        folder.display()
    );
    let about = About::read(folder)
        .with_context(|| format!("{} holds no recorded run; `--out` makes one", folder.display()))?;
    let csv = Table::read(&folder.join("dirty.csv"))?;
    let stores = Table::read(&folder.join("stores.csv"))?.map_or(Ok(Vec::new()), |table| by_instruction(&table))?;
    let Some(csv) = csv else {
        ensure!(about.stores.is_some(), "{} has neither a dirty log nor a list of stores", folder.display());
        return Ok(Run { about, rounds: Vec::new(), cells: None, stores });
    };
    let mut rounds = csv.lines.iter().map(|line| round(&csv, line)).collect::<Result<Vec<_>>>()?;
    ensure!(rounds.is_sorted_by(|a, b| a.seconds <= b.seconds), "{}: time goes back in it", csv.name);
    let seconds: Vec<f64> = rounds.iter().map(|round| round.seconds).collect();
    let cells = bitmaps(&folder.join("dirty.bitmaps"), &seconds, about.ram().1)?;
    // A run that was cut off may have a line more than it has bitmaps.
    rounds.truncate(cells.rounds);
    ensure!(!rounds.is_empty(), "{} has no harvest: the run ended before the first one", folder.display());
    Ok(Run { about, rounds, cells: Some(cells), stores })
}

/// A file of comma-separated values, its first line with the columns' names.
struct Table {
    name: String,
    columns: Vec<String>,
    lines: Vec<Vec<String>>,
}

impl Table {
    /// Reads a file; nothing if there is none.
    fn read(path: &Path) -> Result<Option<Self>> {
        let name = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("can't read {name}"))?,
        };
        let mut lines = text.lines().map(cells);
        let columns = lines.next().with_context(|| format!("{name} is empty"))?;
        Ok(Some(Self { name, columns, lines: lines.collect() }))
    }

    /// A line's cell in the column of this name.
    fn cell<'a>(&self, line: &'a [String], column: &str) -> Option<&'a str> {
        let at = self.columns.iter().position(|name| name == column)?;
        line.get(at).map(String::as_str)
    }

    fn number<T: std::str::FromStr>(&self, line: &[String], column: &str) -> Result<T> {
        let cell = self.cell(line, column).with_context(|| format!("{}: no column `{column}`", self.name))?;
        cell.parse().ok().with_context(|| format!("{}: `{cell}` is not a number, in column `{column}`", self.name))
    }

    fn address(&self, line: &[String], column: &str) -> Result<u64> {
        let cell = self.cell(line, column).with_context(|| format!("{}: no column `{column}`", self.name))?;
        let digits = cell.strip_prefix("0x").unwrap_or(cell);
        u64::from_str_radix(digits, 16).ok().with_context(|| format!("{}: `{cell}` is not an address", self.name))
    }
}

/// A line's cells. One in double quotes may have commas in it, and two double quotes for one.
fn cells(line: &str) -> Vec<String> {
    let (mut cells, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => {
                rest.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    cells.push(cell);
    cells
}

fn round(csv: &Table, line: &[String]) -> Result<Round> {
    let finite = |column| -> Result<f64> {
        let number: f64 = csv.number(line, column)?;
        ensure!(number.is_finite() && number >= 0.0, "{}: `{number}` in column `{column}`", csv.name);
        Ok(number)
    };
    Ok(Round {
        seconds: finite("seconds")?,
        pages: csv.number(line, "dirty_pages")?,
        rate: finite("pages_per_second")?,
        table_bytes: csv.number(line, "table_bytes")?,
        faults: csv.number(line, "permission_faults")?,
        splits: csv.number(line, "splits")?,
        collapses: csv.number(line, "collapses")?,
    })
}

fn by_instruction(table: &Table) -> Result<Vec<Stores>> {
    let mut sums: BTreeMap<(String, bool), Stores> = BTreeMap::new();
    for line in &table.lines {
        let ipa = table.address(line, "ipa")?;
        let denied = table.number::<u8>(line, "denied")? != 0;
        let symbol = table.cell(line, "symbol").filter(|symbol| !symbol.is_empty());
        let by = symbol.or(table.cell(line, "pc")).unwrap_or("?").to_owned();
        let first = || Stores { by: by.clone(), denied, count: 0, span: (ipa, ipa) };
        let sum = sums.entry((by.clone(), denied)).or_insert_with(first);
        sum.count += 1;
        sum.span = (sum.span.0.min(ipa), sum.span.1.max(ipa));
    }
    let mut stores: Vec<Stores> = sums.into_values().collect();
    stores.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.by.cmp(&b.by)));
    Ok(stores)
}

/// Reads the bitmaps, shown up to the end of RAM, of as many rounds as there are times, or as the file has whole.
fn bitmaps(path: &Path, seconds: &[f64], ram_end: u64) -> Result<Cells> {
    let name = path.display();
    let mut file = BufReader::new(File::open(path).with_context(|| format!("can't read {name}"))?);
    let mut header = [0; 32];
    file.read_exact(&mut header).ok().with_context(|| format!("{name} is too short for its header"))?;
    ensure!(header.starts_with(b"UNBDIRTY"), "{name} does not begin with UNBDIRTY");
    let word = |at: usize| header.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let (start, pages, row) = (word(8), word(16), word(24));
    // 64 TiB of memory: more than any machine has, and far from overflowing.
    ensure!(
        pages > 0 && pages <= 1 << 34 && start <= 1 << 52,
        "{name}: its memory can't be: {pages} pages at {start:#x}"
    );
    ensure!(row == pages.div_ceil(64) * 8, "{name}: {row} bytes in a bitmap of {pages} pages");
    let length = file.get_ref().metadata().map_or(0, |data| data.len());
    ensure!(row <= length, "{name} has no whole bitmap");
    // What lies behind the guest's memory is shown too: the hypervisor's, as long as it is not out of all proportion.
    let end = start + pages * PAGE;
    let mut cells = Cells::new(start, if (end..end * 2).contains(&ram_end) { ram_end } else { end }, seconds);
    let mut bytes = vec![0; usize::try_from(row).context("a bitmap is too large for this host")?];
    for round in 0..seconds.len() {
        match file.read_exact(&mut bytes) {
            Ok(()) => cells.add(round, &bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => bail!("can't read {name}: {error}"),
        }
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_cells_are_read() {
        assert_eq!(cells("a,\"b,\"\"c\"\"\",,d"), ["a", "b,\"c\"", "", "d"]);
        assert_eq!(cells(""), [""]);
    }

    #[test]
    fn stores_are_counted_by_instruction() {
        let text = "ipa,va,pc,cpu,denied,symbol\n0x3000,0x1,0x10,0x0,0,f+0x4\n0x1000,0x1,0x10,0x1,0,f+0x4\n0x2000,0x1,0x20,0x0,1,\n";
        let folder = std::env::temp_dir().join(format!("hv-stores-{}", std::process::id()));
        std::fs::write(&folder, text).unwrap();
        let table = Table::read(&folder).unwrap().unwrap();
        std::fs::remove_file(&folder).unwrap();
        let stores = by_instruction(&table).unwrap();
        assert_eq!(stores[0], Stores { by: "f+0x4".into(), denied: false, count: 2, span: (0x1000, 0x3000) });
        assert_eq!(stores[1], Stores { by: "0x20".into(), denied: true, count: 1, span: (0x2000, 0x2000) });
    }
}
