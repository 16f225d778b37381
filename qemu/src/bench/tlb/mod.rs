//! What large leaves of stage 2 are worth: the walks that a model of TLBs (`tlb-model`) counts for a Linux that works, with
//! stage 2 in pages, in blocks, in runs, and while a dirty log runs.

pub mod picture;
pub mod run;
pub mod table;

use anyhow::{Context, Result, ensure};
use hypervisor_abi::manager::Mechanism;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tlb_model::Record;

/// How stage 2 is while the guest works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Its name in files.
    pub name: &'static str,
    /// What it is, for people.
    pub title: &'static str,
    /// The hypervisor's `leaves`; nothing where Linux runs without it.
    pub leaves: Option<&'static str>,
    /// The dirty log.
    pub log: Option<Mechanism>,
    /// Whether the log ends while Linux boots.
    pub stopped: bool,
    /// Whether Linux maps its own memory in blocks (`rodata=on`), not in pages as by default.
    pub linear_blocks: bool,
}

const fn shape(name: &'static str, title: &'static str, leaves: &'static str) -> Shape {
    Shape { name, title, leaves: Some(leaves), log: None, stopped: false, linear_blocks: false }
}

const fn logged(name: &'static str, title: &'static str, log: Mechanism) -> Shape {
    Shape { log: Some(log), ..shape(name, title, "runs") }
}

/// All of them, in the order of reports.
pub const SHAPES: [Shape; 10] = [
    Shape { leaves: None, ..shape("none", "no hypervisor", "") },
    shape("pages", "pages", "pages"),
    shape("blocks", "blocks", "blocks"),
    shape("runs", "blocks and runs", "runs"),
    logged("lazy", "log, split at first writes", Mechanism::WriteProtect),
    logged("eager", "log, split at its start", Mechanism::WriteProtectEager),
    logged("hardware", "log, by hardware", Mechanism::HardwarePage),
    Shape { stopped: true, ..logged("stopped", "after a log", Mechanism::WriteProtectEager) },
    Shape { linear_blocks: true, ..shape("pages-linear", "pages; Linux's own blocks", "pages") },
    Shape { linear_blocks: true, ..shape("runs-linear", "runs; Linux's own blocks", "runs") },
];

/// The shapes of these names, or all of them.
///
/// # Errors
/// If there is none of a name; the sentence lists them.
pub fn choose(names: &[String]) -> Result<Vec<Shape>> {
    for name in names {
        let known = SHAPES.map(|shape| shape.name).join(", ");
        ensure!(
            SHAPES.iter().any(|shape| shape.name == name),
            "there is no shape `{name}` of stage 2; there are {known}"
        );
    }
    Ok(SHAPES.into_iter().filter(|shape| names.is_empty() || names.iter().any(|name| name == shape.name)).collect())
}

/// What the guest does, by the numbers of its windows (`tlb-workload`), 0 being the boot.
pub const PARTS: [&str; 5] = [
    "Linux boots",
    "hash table of 256 MiB, huge pages",
    "hash table of 256 MiB, small pages",
    "cipher over a RAM disk",
    "sequential read of a cached file",
];

/// A part's name, for people.
pub fn title(part: u64) -> &'static str {
    usize::try_from(part).ok().and_then(|part| PARTS.get(part)).copied().unwrap_or("an unknown part")
}

/// The windows of the hash table.
const HASH_TABLE: [u64; 2] = [1, 2];

impl Shape {
    /// Whether its figures are the same in every run: a log has a management core, and is harvested by the host's clock.
    pub fn is_exact(&self) -> bool {
        self.log.is_none()
    }

    /// Whether the boot is measured too, which takes longer than all other parts: where nothing changes meanwhile.
    pub fn has_boot(&self) -> bool {
        self.log.is_none() && !self.linear_blocks
    }
}

/// What a run of a shape has measured: a record a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// The shape's name.
    pub shape: String,
    /// In the order of [`PARTS`]; the boot may be missing.
    pub records: Vec<Record>,
}

impl Measured {
    /// The record of a part.
    pub fn part(&self, part: u64) -> Option<&Record> {
        self.records.iter().find(|record| record.window == part)
    }
}

/// All shapes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// QEMU's version.
    pub qemu: String,
    /// The guest's kernel.
    pub kernel: String,
    /// The model's sizes.
    pub sizes: String,
    /// In the order of [`SHAPES`].
    pub shapes: Vec<Measured>,
}

impl Figures {
    /// Reads what is stored.
    ///
    /// # Errors
    /// If it can't be read, or has shapes that this tool does not know.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        let figures: Self =
            serde_json::from_slice(&text).with_context(|| format!("{} has no figures of TLBs", path.display()))?;
        choose(&figures.shapes.iter().map(|measured| measured.shape.clone()).collect::<Vec<_>>())
            .with_context(|| path.display().to_string())?;
        Ok(figures)
    }

    /// Puts a shape's figures in the place of those that there are of it.
    pub fn put(&mut self, measured: Measured) {
        self.shapes.retain(|other| other.shape != measured.shape);
        self.shapes.push(measured);
        self.shapes.sort_by_key(|measured| SHAPES.iter().position(|shape| shape.name == measured.shape));
    }

    /// The record of a shape's part.
    pub fn of(&self, shape: &str, part: u64) -> Option<&Record> {
        self.shapes.iter().find(|measured| measured.shape == shape)?.part(part)
    }

    /// What the figures of blocks and pages come to, for the hash table: a sentence each, if both were measured. Says whether
    /// blocks have at least a quarter fewer references.
    pub fn verdict(&self) -> (Vec<String>, bool) {
        let mut good = true;
        let mut sentences = Vec::new();
        for part in HASH_TABLE {
            let references = |shape: &str| self.of(shape, part).map(|record| record.counts.references());
            let (Some(pages), Some(blocks)) = (references("pages"), references("blocks")) else { continue };
            let fewer = 100.0 - blocks as f64 * 100.0 / pages.max(1) as f64;
            good &= fewer >= 25.0;
            let name = title(part);
            sentences.push(format!("{name}: blocks have {fewer:.1} % fewer walk references than pages"));
        }
        (sentences, good)
    }
}
