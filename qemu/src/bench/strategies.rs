//! Ways to keep a dirty log, compared on one workload (guest-payload/src/bench/strategy.rs): a table and a picture.

use super::bars::{self, Bar, FONT, INK};
use super::record::Record;
use crate::size;
use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use std::fmt::Write;
use std::path::Path;

/// A strategy: what the payload and the hypervisor are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strategy {
    /// For people.
    pub title: &'static str,
    /// The payload's word.
    pub word: &'static str,
    /// The hypervisor's way to change a leaf's size.
    pub bbm: &'static str,
}

/// All of them, in the order of the report.
pub const STRATEGIES: [Strategy; 4] = [
    Strategy { title: "pages from the start", word: "pages", bbm: "direct" },
    Strategy { title: "blocks, break-before-make", word: "blocks", bbm: "break" },
    Strategy { title: "blocks, split directly", word: "blocks", bbm: "direct" },
    Strategy { title: "hardware dirty state", word: "hardware", bbm: "direct" },
];

/// What is compared: the count's name, and what it is.
const COUNTS: [(&str, &str); 8] = [
    ("table-bytes", "table bytes, most while logging"),
    ("table-bytes-after", "table bytes after the log's end"),
    ("exits", "exits to EL2"),
    ("tlbi-broadcast", "TLBIs to all CPUs"),
    ("tlbi-local", "TLBIs of one CPU"),
    ("invalid-windows", "windows in which mapped memory was invalid"),
    ("bystander-faults", "faults of a CPU that only reads"),
    ("el2-instructions", "instructions at EL2"),
];

/// What all the bars come to, in a line.
const HEADLINE: &str = "Split directly, blocks cost half the tables and no invalid moment; hardware saves the exits";
/// What the instructions of hardware dirty state are: in lines of the picture's width.
const HARDWARE: [&str; 2] = [
    "Hardware dirty state: a store that does not exit leaves no list behind, so that a harvest reads every descriptor of the log, 32 at a time:",
    "2 instructions for each of 32 clean ones, 6 where one is dirty, and about 30 for each dirty one. Here every sixteenth page is.",
];

const SIZE: (u32, u32) = (1280, 930);
/// Apart in lightness too, so that they differ without colours.
const COLOURS: [RGBColor; 4] =
    [RGBColor(150, 150, 150), RGBColor(196, 78, 82), RGBColor(46, 110, 180), RGBColor(236, 180, 62)];

/// A count of a record; its absence is an error.
fn count(record: &Record, name: &str) -> Result<u64> {
    record.counts.get(name).copied().with_context(|| format!("the guest did not print the count `{name}`"))
}

/// What was done, in a sentence; `records` are in the order of [`STRATEGIES`].
fn workload(records: &[Record]) -> Result<String> {
    let first = records.first().context("nothing was measured")?;
    Ok(format!(
        "{} MiB of guest memory, {} first writes of pages in {} rounds, a harvest behind each; QEMU {}, icount.",
        count(first, "mib")?,
        count(first, "pages-written")?,
        count(first, "rounds")?,
        first.qemu
    ))
}

/// A count as people write it.
fn show(name: &str, value: u64) -> String {
    if name.starts_with("table-bytes") {
        return size::short(value);
    }
    let digits = value.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(" ")
}

/// The table; `records` are in the order of [`STRATEGIES`].
///
/// # Errors
/// If a count is missing.
pub fn table(records: &[Record]) -> Result<String> {
    let mut text = workload(records)? + "\n\n";
    let width = COUNTS.iter().map(|count| count.1.len()).max().unwrap_or_default();
    // Writing to a string can't fail.
    let _ = write!(text, "{:width$}", "");
    for strategy in STRATEGIES {
        let _ = write!(text, "  {:>25}", strategy.title);
    }
    text.push('\n');
    for (name, title) in COUNTS {
        let _ = write!(text, "{title:width$}");
        for record in records {
            let _ = write!(text, "  {:>25}", show(name, count(record, name)?));
        }
        text.push('\n');
    }
    Ok(text)
}

/// The table for a document, with the same explanation as the picture.
///
/// # Errors
/// If a count is missing.
pub fn document(records: &[Record]) -> Result<String> {
    let mut text = workload(records)? + "\n\n|";
    for strategy in STRATEGIES {
        // Writing to a string can't fail.
        let _ = write!(text, " | {}", strategy.title);
    }
    text += " |\n| --- | ---: | ---: | ---: | ---: |\n";
    for (name, title) in COUNTS {
        let _ = write!(text, "| {title}");
        for record in records {
            let _ = write!(text, " | {}", show(name, count(record, name)?));
        }
        text += " |\n";
    }
    Ok(text + &format!("\n{}\n", HARDWARE.join(" ")))
}

/// Draws one bar chart a count to a PNG file.
///
/// # Errors
/// If a count is missing, or the file can't be written.
pub fn draw(records: &[Record], path: &Path) -> Result<()> {
    let subtitle = workload(records)?;
    let mut values = Vec::new();
    for (name, _) in COUNTS {
        values.push(records.iter().map(|record| count(record, name)).collect::<Result<Vec<_>>>()?);
    }
    bars::register_font()?;
    paint(&subtitle, &values, path).map_err(|error| anyhow!("can't draw {}: {error}", path.display()))
}

fn paint(subtitle: &str, values: &[Vec<u64>], path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = BitMapBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: u32| (FONT, size).into_font().color(&INK);
    root.draw(&Text::new(HEADLINE, (24, 16), text(30)))?;
    root.draw(&Text::new(
        format!("What it costs to know which memory a guest writes. {subtitle}"),
        (24, 56),
        text(18),
    ))?;
    root.draw(&Text::new("Shorter is better. Each chart has its own scale.", (24, 78), text(18)))?;
    for (line, y) in HARDWARE.iter().zip([106, 128]) {
        root.draw(&Text::new(*line, (24, y), text(18)))?;
    }
    let charts = root.margin(160, 12, 16, 16).split_evenly((4, 2));
    for (((name, title), values), area) in COUNTS.iter().zip(values).zip(&charts) {
        let bars = STRATEGIES.iter().zip(values).zip(COLOURS).map(|((strategy, &value), colour)| Bar {
            name: strategy.title,
            value: value as f64,
            shown: show(name, value),
            colour,
        });
        bars::chart(title, &bars.collect::<Vec<_>>(), area)?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let record = |scale: u64| {
            let mut record = Record { qemu: "7.2".into(), ..Record::default() };
            for (name, _) in COUNTS {
                record.counts.insert(name.into(), 4096 * scale);
            }
            for (name, value) in [("mib", 256), ("rounds", 4), ("pages-written", 16384)] {
                record.counts.insert(name.into(), value);
            }
            record
        };
        vec![record(1), record(0), record(1000), record(20)]
    }

    #[test]
    fn all_counts_are_in_the_table() {
        let text = table(&records()).unwrap();
        assert!(text.starts_with("256 MiB of guest memory, 16384 first writes of pages in 4 rounds"), "{text}");
        let line = text.lines().find(|line| line.starts_with("exits")).unwrap();
        assert_eq!(
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).skip(1).collect::<Vec<_>>(),
            ["4 096", "0", "4 096 000", "81 920"]
        );
        let mut broken = records();
        broken[2].counts.remove("exits");
        assert!(table(&broken).unwrap_err().to_string().contains("`exits`"));
    }

    #[test]
    fn the_picture_is_drawn() {
        let path = std::env::temp_dir().join(format!("hv-strategies-{}.png", std::process::id()));
        draw(&records(), &path).unwrap();
        let png = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{} bytes", png.len());
    }
}
