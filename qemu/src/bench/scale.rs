//! What the engine's calls take by the size of the guest's memory (tests/native/benches/scale.rs): a table and a picture.

use crate::size;
use crate::workspace::{Workspace, cargo};
use anyhow::{Context, Result, anyhow, ensure};
use plotters::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// The calls, in the order of the benchmark's line, and how each should grow.
const CALLS: [(&str, &str); 6] = [
    ("map", "with the leaves of 1 GiB"),
    ("start of a log", "with its bitmap, a bit a page"),
    ("harvest, nothing written", "not at all"),
    ("harvest, 1 % written", "with the pages written"),
    ("stop, leaves kept", "not at all"),
    ("collapse from pages", "with the pages"),
];
/// Begins the benchmark's lines.
const PREFIX: &str = "scale: ";

/// What the calls took for one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// GiB of guest memory.
    pub gib: u64,
    /// Nanoseconds, as in `CALLS`.
    pub nanoseconds: [u64; CALLS.len()],
    /// Bytes of tables while all is pages.
    pub table_bytes: u64,
}

impl Row {
    /// From a line behind [`PREFIX`].
    fn read(line: &str) -> Result<Self> {
        let bad = || format!("the benchmark printed a line that can't be read: `{line}`");
        let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().with_context(bad)?;
        match numbers.as_slice() {
            &[gib, map, start, none, some, stop, collapse, table_bytes] if gib > 0 => {
                Ok(Self { gib, nanoseconds: [map, start, none, some, stop, collapse], table_bytes })
            }
            _ => Err(anyhow!(bad())),
        }
    }
}

/// Measures all sizes on this host.
///
/// # Errors
/// If the benchmark does not build, or not run to its end.
pub fn measure(workspace: &Workspace) -> Result<Vec<Row>> {
    let mut command = Command::new(cargo());
    command.args(["bench", "--quiet", "--package", "native-bench", "--bench", "scale"]).current_dir(workspace.root());
    command.env("CARGO_TARGET_DIR", workspace.target()).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().context("can't run cargo")?;
    ensure!(output.status.success(), "the benchmark did not run to its end ({})", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<Row> =
        text.lines().filter_map(|line| line.strip_prefix(PREFIX)).map(Row::read).collect::<Result<_>>()?;
    ensure!(!rows.is_empty(), "the benchmark printed nothing");
    Ok(rows)
}

/// A time with a unit that fits.
fn time(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match value {
        value if value < 1e3 => format!("{value:.0} ns"),
        value if value < 1e6 => format!("{:.1} µs", value / 1e3),
        value => format!("{:.1} ms", value / 1e6),
    }
}

/// The table for a document.
pub fn document(rows: &[Row]) -> String {
    let mut text = String::from("| |");
    // Writing to a string can't fail.
    rows.iter().for_each(|row| _ = write!(text, " {} GiB |", row.gib));
    text += " grows |\n| --- |";
    text += &" ---: |".repeat(rows.len());
    text += " --- |\n";
    for (call, (name, growth)) in CALLS.iter().enumerate() {
        let _ = write!(text, "| {name} |");
        rows.iter().for_each(|row| _ = write!(text, " {} |", time(row.nanoseconds[call])));
        let _ = writeln!(text, " {growth} |");
    }
    text += "| tables while all is pages |";
    rows.iter().for_each(|row| _ = write!(text, " {} |", size::short(row.table_bytes)));
    text + " with the pages |\n"
}

/// Draws times by sizes to a PNG file, both axes logarithmic: what is linear rises by a decade in a decade.
///
/// # Errors
/// If the file can't be written.
pub fn draw(rows: &[Row], path: &Path) -> Result<()> {
    const FONT: &str = "hv";
    plotters::style::register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| anyhow!("the built-in font can't be read"))?;
    paint(rows, path, FONT).map_err(|error| anyhow!("can't draw {}: {error}", path.display()))
}

fn paint(rows: &[Row], path: &Path, font: &str) -> Result<(), Box<dyn std::error::Error>> {
    const COLOURS: [RGBColor; CALLS.len()] = [
        RGBColor(46, 110, 180),
        RGBColor(236, 150, 40),
        RGBColor(40, 140, 70),
        RGBColor(196, 78, 82),
        RGBColor(120, 80, 160),
        RGBColor(90, 90, 90),
    ];
    let root = BitMapBackend::new(path, (1000, 620)).into_drawing_area();
    root.fill(&WHITE)?;
    let all = rows.iter().flat_map(|row| row.nanoseconds).map(|time| time.max(1) as f64);
    let (low, high) = all.fold((f64::MAX, 1.0f64), |(low, high), time| (low.min(time), high.max(time)));
    let last = rows.last().map_or(1, |row| row.gib) as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption("What calls take by the guest's memory, on the host", (font, 24))
        .margin(16)
        .margin_right(230)
        .x_label_area_size(44)
        .y_label_area_size(80)
        .build_cartesian_2d((1.0..last).log_scale(), (low / 2.0..high * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .label_style((font, 17))
        .x_desc("GiB of guest memory")
        .x_label_formatter(&|gib| format!("{gib:.0}"))
        .y_label_formatter(&|nanoseconds| time(*nanoseconds as u64))
        .draw()?;
    for (call, ((name, _), colour)) in CALLS.iter().zip(COLOURS).enumerate() {
        let points: Vec<(f64, f64)> =
            rows.iter().map(|row| (row.gib as f64, row.nanoseconds[call].max(1) as f64)).collect();
        chart.draw_series([PathElement::new(points.clone(), colour.stroke_width(3))])?;
        if let Some(&end) = points.last() {
            let (x, y) = chart.backend_coord(&end);
            root.draw(&Text::new(*name, (x + 10, y - 9), (font, 18).into_font().color(&colour)))?;
        }
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_a_table_and_a_picture() {
        let rows: Vec<Row> = ["1 900 2500 8 70000 5 1500000 2101248", "64 9000 160000 9 4480000 5 96000000 134479872"]
            .map(|line| Row::read(line).unwrap())
            .into();
        let text = document(&rows);
        assert!(text.starts_with("| | 1 GiB | 64 GiB | grows |\n"), "{text}");
        assert!(text.contains("| map | 900 ns | 9.0 µs |") && text.contains("| 70.0 µs | 4.5 ms |"), "{text}");
        assert!(Row::read("1 2 3").is_err() && Row::read("0 1 1 1 1 1 1 1").is_err() && Row::read("a").is_err());
        let path = std::env::temp_dir().join(format!("hv-scale-{}.png", std::process::id()));
        draw(&rows, &path).unwrap();
        let png = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 10_000, "{} bytes", png.len());
    }
}
