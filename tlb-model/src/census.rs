//! What a stage-2 table consists of.

use crate::memory::{Memory, Problem};
use crate::registers::Registers;
use crate::walker::{Descriptor, descriptor, level_shift};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Leaves and tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Bytes that leaves of each size map, by log2 of the size.
    pub mapped: BTreeMap<u8, u64>,
    /// Bytes of tables.
    pub table_bytes: u64,
}

/// Counts all of stage 2; nothing without one.
///
/// # Errors
/// If a table is in no memory, or the registers ask for something that the model does not know.
pub fn census(registers: &Registers, memory: &impl Memory) -> Result<Census, Problem> {
    let mut census = Census::default();
    if !registers.has_stage2() {
        return Ok(census);
    }
    let root = registers.stage2_root()?;
    let entries = 1 << root.bits.saturating_sub(level_shift(root.level));
    let mut tables = vec![(root.table, root.level, entries)];
    while let Some((table, level, entries)) = tables.pop() {
        census.table_bytes += entries * 8;
        for entry in 0..entries {
            let address = table + entry * 8;
            let raw = memory.read(address).ok_or(Problem::Unreadable { address })?;
            match descriptor(raw, level) {
                Descriptor::Invalid => {}
                Descriptor::Table(next) => tables.push((next, level + 1, 512)),
                Descriptor::Leaf(leaf) => *census.mapped.entry(leaf.shift).or_default() += 1 << level_shift(level),
            }
        }
    }
    Ok(census)
}
