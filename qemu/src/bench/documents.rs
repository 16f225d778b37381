//! Figures in documents: tables between two markers, written from what is stored in `qemu/bench`, and from nothing else.

use super::record::Record;
use super::sizes::Sizes;
use super::{OPERATIONS, scale, strategies, table, tlb, vcpus};
use crate::workspace::write_whole;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::Path;

/// Where the workspace keeps KVM's column.
pub const KVM: &str = "qemu/bench/kvm.json";
/// Where the workspace keeps what the rows cost last.
pub const BASELINE: &str = "qemu/bench/baseline.json";
/// Where the workspace keeps what the ways to keep a log cost last.
pub const STRATEGIES: &str = "qemu/bench/strategies.json";
/// Where the workspace keeps how large the engine was last, in the example.
pub const SIZES: &str = "qemu/bench/sizes.json";

/// Where the workspace keeps what calls took by the size of memory last.
pub const SCALE: &str = "qemu/bench/scale.json";
/// Where the workspace keeps what first writes took by the number of CPUs last.
pub const VCPUS: &str = "qemu/bench/vcpus.json";
/// Where the workspace keeps what a model of TLBs counted last.
pub const TLB: &str = "qemu/bench/tlb.json";

/// What a marker's line begins with, and the marker behind the figures.
const MARKER: &str = "<!-- figures: ";
const END: &str = "<!-- end of figures -->";

/// All that is stored.
#[derive(Debug)]
pub struct Stored {
    /// What the rows cost.
    pub baseline: Record,
    /// What they cost in KVM.
    pub kvm: Record,
    /// What ways to keep a log cost, in the order of [`strategies::STRATEGIES`].
    pub strategies: Vec<Record>,
    /// How large the engine is in the example.
    pub sizes: Sizes,
    /// What calls took by the size of memory.
    pub scale: Vec<scale::Row>,
    /// What first writes took by the number of CPUs.
    pub vcpus: vcpus::Figures,
    /// What a model of TLBs counted.
    pub tlb: tlb::Figures,
}

impl Stored {
    /// Reads it.
    ///
    /// # Errors
    /// If a file is missing, or is not what it should be; the sentence names it.
    pub fn read(root: &Path) -> Result<Self> {
        let read = |path: &str| std::fs::read(root.join(path)).with_context(|| format!("can't read {path}"));
        Ok(Self {
            baseline: Record::read(&root.join(BASELINE))?,
            kvm: Record::read(&root.join(KVM))?,
            strategies: serde_json::from_slice(&read(STRATEGIES)?)
                .with_context(|| format!("{STRATEGIES} has no records of strategies"))?,
            sizes: Sizes::read(&root.join(SIZES))?,
            scale: serde_json::from_slice(&read(SCALE)?).with_context(|| format!("{SCALE} has no rows of sizes"))?,
            vcpus: serde_json::from_slice(&read(VCPUS)?).with_context(|| format!("{VCPUS} has no figures of CPUs"))?,
            tlb: tlb::Figures::read(&root.join(TLB))?,
        })
    }
}

/// A table: what its marker calls it, and what is in it.
type Table = (&'static str, fn(&Stored) -> Result<String>);

/// All of them.
const TABLES: [Table; 7] = [
    ("costs", costs),
    ("costs, with aims", costs_with_aims),
    ("strategies", ways),
    ("sizes", sizes),
    ("scale", by_memory),
    ("vcpus", |stored| vcpus::document(&stored.vcpus)),
    ("tlb", |stored| Ok(tlb::table::document(&stored.tlb))),
];

/// Documents that have figures.
const DOCUMENTS: [&str; 4] = ["README.md", "docs/performance.md", "docs/tlb.md", "stage2/docs/embedding.md"];

/// A document as it is, and with the figures that are stored.
#[derive(Debug)]
pub struct Document {
    /// Its path from the workspace's root.
    pub path: &'static str,
    /// What it has.
    pub now: String,
    /// What it should have.
    pub wanted: String,
}

/// Reads all documents that have figures.
///
/// # Errors
/// If one can't be read, or a marker can't be understood.
pub fn documents(root: &Path) -> Result<Vec<Document>> {
    let stored = Stored::read(root)?;
    let read = |path: &'static str| -> Result<Document> {
        let now = std::fs::read_to_string(root.join(path)).with_context(|| format!("can't read {path}"))?;
        let wanted = filled(&now, &stored).with_context(|| format!("{path} can't be filled in"))?;
        Ok(Document { path, now, wanted })
    };
    DOCUMENTS.into_iter().map(read).collect()
}

/// A picture: its path, and what draws it.
type Picture = (&'static str, fn(&Stored, &Path) -> Result<()>);

/// All of them.
const PICTURES: [Picture; 3] = [
    ("docs/strategies.png", |stored, path| strategies::draw(&stored.strategies, path)),
    ("docs/scale.png", |stored, path| scale::draw(&stored.scale, path)),
    ("docs/tlb.png", |stored, path| tlb::picture::draw(&stored.tlb, path)),
];

/// Writes the figures that are stored into all documents, draws the pictures, and returns the paths of those that have changed.
///
/// # Errors
/// As [`documents`], or if one can't be written.
pub fn write(root: &Path) -> Result<Vec<&'static str>> {
    let mut changed = Vec::new();
    let stored = Stored::read(root)?;
    for (path, draw) in PICTURES {
        let before = std::fs::read(root.join(path)).ok();
        draw(&stored, &root.join(path))?;
        if std::fs::read(root.join(path)).ok() != before {
            changed.push(path);
        }
    }
    for document in documents(root)? {
        if document.now != document.wanted {
            write_whole(&root.join(document.path), document.wanted.as_bytes())?;
            changed.push(document.path);
        }
    }
    Ok(changed)
}

/// A document with the tables that its markers name.
fn filled(text: &str, stored: &Stored) -> Result<String> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(MARKER) {
        let (name, after) = after.split_once(" -->\n").context("a marker has no end")?;
        let (_, after) = after.split_once(END).with_context(|| format!("`{END}` is missing behind `{name}`"))?;
        let table = TABLES.iter().find(|table| table.0 == name);
        let table = table.with_context(|| format!("there is no table `{name}`"))?.1;
        result += &format!("{before}{MARKER}{name} -->\n{}{END}", table(stored)?);
        rest = after;
    }
    Ok(result + rest)
}

/// A cost as a cell: no decimals where there is nothing behind the point.
fn cell(cost: f64) -> String {
    if cost.fract() == 0.0 { format!("{cost:.0}") } else { table::number(cost) }
}

/// What an operation costs in KVM, as a cell.
fn in_kvm(kvm: &Record, name: &str) -> String {
    let missing = || match name {
        // KVM collapses when a later fault asks for it.
        "collapse-512" => "at a later fault",
        _ => "–",
    };
    kvm.rows.get(name).map_or_else(|| missing().to_owned(), |row| cell(table::kvm_cost(row)))
}

fn mean(record: &Record, name: &str) -> Result<f64> {
    Ok(record.rows.get(name).with_context(|| format!("{BASELINE} has no row {name}"))?.mean)
}

/// Who measured, and what.
fn origin(stored: &Stored) -> String {
    let Stored { baseline, kvm, .. } = stored;
    let compiler = baseline.compiler.as_deref().unwrap_or("an unknown compiler");
    format!("\n{}, built by {compiler}; KVM: {}. Both in QEMU {}.\n", baseline.subject, kvm.subject, baseline.qemu)
}

fn costs(stored: &Stored) -> Result<String> {
    let mut text = String::from("| instructions | Unbroken | KVM | limit |\n| --- | ---: | ---: | ---: |\n");
    for operation in &OPERATIONS {
        let (mean, kvm) = (cell(mean(&stored.baseline, operation.name)?), in_kvm(&stored.kvm, operation.name));
        // Writing to a string can't fail.
        let _ = writeln!(text, "| {} | {mean} | {kvm} | {} |", operation.title, operation.must);
    }
    Ok(text + &origin(stored))
}

fn costs_with_aims(stored: &Stored) -> Result<String> {
    let mut text = String::from(
        "| row | what | mean | KVM | must | aim | reached |\n| --- | --- | ---: | ---: | ---: | ---: | --- |\n",
    );
    for operation in &OPERATIONS {
        let (name, mean) = (operation.name, mean(&stored.baseline, operation.name)?);
        let reached = if mean <= operation.aim { "aim" } else { "must" };
        let (title, kvm, must, aim) = (operation.title, in_kvm(&stored.kvm, name), operation.must, operation.aim);
        let _ = writeln!(text, "| `{name}` | {title} | {} | {kvm} | {must} | {aim} | {reached} |", cell(mean));
    }
    Ok(text + &origin(stored))
}

fn ways(stored: &Stored) -> Result<String> {
    strategies::document(&stored.strategies)
}

fn by_memory(stored: &Stored) -> Result<String> {
    Ok(scale::document(&stored.scale))
}

fn sizes(stored: &Stored) -> Result<String> {
    Ok(stored.sizes.table())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    /// One set of figures: what documents say is what is stored.
    #[test]
    fn documents_have_the_figures_that_are_stored() {
        let documents = documents(&root()).unwrap();
        let named: Vec<bool> = TABLES
            .iter()
            .map(|table| documents.iter().any(|one| one.now.contains(&format!("{MARKER}{} -->", table.0))))
            .collect();
        assert_eq!(named, [true; TABLES.len()], "a table is in no document");
        for Document { path, now, wanted } in documents {
            assert!(now == wanted, "{path} has other figures than qemu/bench: `cargo hv bench --documents` mends it");
        }
    }

    /// Drawn twice from the same figures, a picture is the same.
    #[test]
    fn pictures_show_the_figures_that_are_stored() {
        let stored = Stored::read(&root()).unwrap();
        let drawn = std::env::temp_dir().join(format!("hv-picture-{}.png", std::process::id()));
        for (path, draw) in PICTURES {
            draw(&stored, &drawn).unwrap();
            let same = std::fs::read(&drawn).unwrap() == std::fs::read(root().join(path)).unwrap();
            std::fs::remove_file(&drawn).unwrap();
            assert!(same, "{path} shows other figures than qemu/bench: `cargo hv bench --documents` mends it");
        }
    }

    #[test]
    fn what_stands_around_a_table_stays() {
        let stored = Stored::read(&root()).unwrap();
        let text = format!("before\n{MARKER}costs -->\nold\n{END}\nbetween {MARKER}sizes -->\n{END} after");
        let filled = filled(&text, &stored).unwrap();
        assert!(filled.starts_with("before\n<!-- figures: costs -->\n| instructions |") && filled.ends_with(" after"));
        assert!(!filled.contains("old") && filled.contains("\nbetween <!-- figures: sizes -->\n"), "{filled}");
    }

    #[test]
    fn markers_that_are_wrong_are_refused() {
        let stored = Stored::read(&root()).unwrap();
        for (text, why) in [
            (format!("{MARKER}costs -->\n"), "is missing behind `costs`"),
            (format!("{MARKER}nothing -->\n{END}"), "no table `nothing`"),
            (format!("{MARKER}costs"), "no end"),
        ] {
            let error = format!("{:#}", filled(&text, &stored).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
