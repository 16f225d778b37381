//! The figures as tables.

use super::{Figures, PARTS, SHAPES};
use crate::size;
use std::fmt::Write;
use tlb_model::{ENTRY_SIZES, Record};

/// What is shown of a record: the columns' heads.
const HEADS: [&str; 7] = [
    "misses per 1000 instructions",
    "the kernel's own",
    "references per miss",
    "references in all",
    "table bytes touched",
    "entries mostly of",
    "stage-2 tables",
];

fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(" ")
}

/// The size that most entries have.
fn most(record: &Record) -> String {
    let largest = record.counts.entries.iter().zip(ENTRY_SIZES).max_by_key(|(count, _)| **count);
    largest.filter(|(count, _)| **count > 0).map_or("-".into(), |(_, shift)| size::short(1 << shift))
}

fn cells(record: &Record) -> [String; 7] {
    [
        format!("{:.3}", record.misses_per_thousand()),
        format!("{:.3}", record.kernel_misses_per_thousand()),
        format!("{:.2}", record.references_per_miss()),
        grouped(record.counts.references()),
        size::short(record.counts.table_bytes()),
        most(record),
        size::short(record.after.table_bytes),
    ]
}

/// What was measured, in a sentence.
pub fn origin(figures: &Figures) -> String {
    format!("Debian's {} in QEMU {}; TLBs of {}.", figures.kernel, figures.qemu, figures.sizes)
}

/// A table a part, for a terminal.
pub fn text(figures: &Figures) -> String {
    let mut text = origin(figures) + "\n";
    let first = SHAPES.iter().map(|shape| shape.title.len()).max().unwrap_or(0);
    for (part, title) in (0..).zip(PARTS) {
        let instructions = figures.shapes.iter().find_map(|measured| measured.part(part));
        let Some(instructions) = instructions.map(Record::guest_instructions) else { continue };
        // Writing to a string can't fail.
        let _ = writeln!(text, "\n{title} ({} instructions)", grouped(instructions));
        let _ = write!(text, "{:first$}", "");
        HEADS.iter().for_each(|head| _ = write!(text, "  {head}"));
        text.push('\n');
        for shape in SHAPES {
            let Some(record) = figures.of(shape.name, part) else { continue };
            let _ = write!(text, "{:first$}", shape.title);
            for (cell, head) in cells(record).iter().zip(HEADS) {
                let _ = write!(text, "  {cell:>width$}", width = head.len());
            }
            text.push('\n');
        }
    }
    text
}

/// The same for a document.
pub fn document(figures: &Figures) -> String {
    let mut text = origin(figures) + "\n";
    for (part, title) in (0..).zip(PARTS) {
        if !figures.shapes.iter().any(|measured| measured.part(part).is_some()) {
            continue;
        }
        let _ = write!(text, "\n| {title}");
        HEADS.iter().for_each(|head| _ = write!(text, " | {head}"));
        text += " |\n| ---";
        HEADS.iter().for_each(|_| text += " | ---:");
        text += " |\n";
        for shape in SHAPES {
            let Some(record) = figures.of(shape.name, part) else { continue };
            let _ = writeln!(text, "| {} | {} |", shape.title, cells(record).join(" | "));
        }
    }
    text
}
