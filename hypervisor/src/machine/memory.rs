//! RAM, what firmware keeps of it, and what the boot loader put into it.

use super::error::MachineError;
use super::parts::{MAX_REGIONS, Module, limit};
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
        limit("ranges of RAM", ram.len(), MAX_REGIONS)?;
    }
    let ram = merged(ram);
    if ram.is_empty() { Err(MachineError::NoMemory) } else { Ok(ram) }
}

/// Memory that firmware keeps. Children of `/reserved-memory` without `reg` ask the operating system for memory and
/// reserve nothing yet.
pub(super) fn read_reserved(tree: &Tree<'_>, root: Node<'_, '_>) -> Result<Vec<PhysRange>, MachineError> {
    let mut reserved = Vec::new();
    for entry in tree.memory_reservations() {
        reserved.push(entry.ok_or_else(|| MachineError::BadReg { path: "the memory reservation block".to_string() })?);
        limit("memory reservations", reserved.len(), MAX_REGIONS)?;
    }
    if let Some(parent) = root.child("reserved-memory") {
        let bus = Bus::of_root(root).below(parent);
        for node in parent.children().filter(|node| node.is_enabled() && node.property("reg").is_some()) {
            let path = || format!("/{}/{}", parent.name(), node.name());
            reserved.extend(bus.reg(node).ok_or_else(|| MachineError::BadReg { path: path() })?);
            limit("memory reservations", reserved.len(), MAX_REGIONS)?;
        }
    }
    Ok(merged(reserved))
}

/// The kernel and the initramfs: children of `/chosen` that are `multiboot,module`, as QEMU's `guest-loader` and
/// Xen-capable boot loaders write them.
pub(super) fn read_modules(
    root: Node<'_, '_>,
    chosen: Option<Node<'_, '_>>,
) -> Result<(Module, Option<Module>), MachineError> {
    let chosen = chosen.ok_or(MachineError::NoKernel)?;
    let bus = Bus::of_root(root).with_counts_of(chosen);
    let (mut kernel, mut initrd) = (None, None);
    for node in chosen.children().filter(|node| node.is_compatible("multiboot,module")) {
        let path = || format!("/chosen/{}", node.name());
        let (slot, kind) = if node.is_compatible("multiboot,kernel") {
            (&mut kernel, "kernel")
        } else if node.is_compatible("multiboot,ramdisk") {
            (&mut initrd, "ramdisk")
        } else {
            return Err(MachineError::UnknownModule { path: path() });
        };
        let reg = bus.reg(node).unwrap_or_default();
        let range = reg.first().copied().filter(|range| reg.len() == 1 && !range.is_empty());
        let range = range.ok_or_else(|| MachineError::BadReg { path: path() })?;
        let bootargs = node.string("bootargs").map(ToString::to_string);
        if slot.replace(Module { name: path(), range, bootargs }).is_some() {
            return Err(MachineError::ModuleTwice { kind });
        }
    }
    Ok((kernel.ok_or(MachineError::NoKernel)?, initrd))
}
