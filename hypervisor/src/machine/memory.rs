//! RAM, and what firmware keeps of it.

use super::error::MachineError;
use super::parts::{MAX_REGIONS, limit};
use crate::range::{PhysRange, merged};
use crate::tree::{Bus, Node, Tree};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

/// RAM: the enabled children of the root whose `device_type` is `memory`.
pub(super) fn read_ram(root: Node<'_, '_>) -> Result<Vec<PhysRange>, MachineError> {
    let bus = Bus::of_root(root);
    let mut ram = Vec::new();
    for node in root.children().filter(|node| node.string("device_type") == Some("memory") && node.is_enabled()) {
        ram.extend(bus.reg(node).ok_or_else(|| MachineError::BadReg { path: format!("/{}", node.name()) })?);
    }
    // Joined first: firmware may list one bank in many pieces.
    let ram = merged(ram);
    limit("ranges of RAM", ram.len(), MAX_REGIONS)?;
    if ram.is_empty() { Err(MachineError::NoMemory) } else { Ok(ram) }
}

/// Memory that firmware keeps. Children of `/reserved-memory` without `reg` ask the operating system for memory and
/// reserve nothing yet.
pub(super) fn read_reserved(tree: &Tree<'_>, root: Node<'_, '_>) -> Result<Vec<PhysRange>, MachineError> {
    let mut reserved = Vec::new();
    for entry in tree.memory_reservations() {
        reserved.push(entry.ok_or_else(|| MachineError::BadReg { path: "the memory reservation block".to_string() })?);
    }
    if let Some(parent) = root.child("reserved-memory") {
        // A parent that lacks `ranges` or the cell counts is read like one that has the root's, which the binding asks for.
        let above = Bus::of_root(root);
        let bus = match parent.property("ranges") {
            Some([]) | None => above.with_counts_of(parent),
            Some(_) => above.below(parent),
        };
        for node in parent.children().filter(|node| node.is_enabled() && node.property("reg").is_some()) {
            let path = || format!("/{}/{}", parent.name(), node.name());
            reserved.extend(bus.reg(node).ok_or_else(|| MachineError::BadReg { path: path() })?);
        }
    }
    let reserved = merged(reserved);
    limit("memory reservations", reserved.len(), MAX_REGIONS)?;
    Ok(reserved)
}
