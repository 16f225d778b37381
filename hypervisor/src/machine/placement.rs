//! What lies where: that nothing was loaded over anything else, and that no device lies in memory.

use super::error::MachineError;
use super::parts::{Machine, PAGE_SIZE, Placed};
use crate::range::PhysRange;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Bytes that the hypervisor's pool may need on a machine with `ram` bytes: for the tables if all RAM is mapped by pages,
/// with some to spare, and for the CPUs' areas; with a management core, for what it keeps, too.
pub const fn pool_bytes(ram: u64, manager: bool) -> u64 {
    /// Areas of CPUs, and whatever does not grow with RAM.
    const FIXED: u64 = 2 << 20;
    // A page of table for 2 MiB, a quarter more for what else services need.
    let tables = ram / 512 / 4 * 5 + FIXED;
    // The management core keeps a hash of 8 bytes for each page, and device memory.
    if manager { tables + ram / 512 + (1 << 20) } else { tables }
}

impl Machine {
    /// Checks that nothing was loaded over anything else: the hypervisor and each module lie in RAM that the firmware
    /// does not keep, and they and the device tree lie apart.
    ///
    /// `hypervisor` is all memory that the hypervisor keeps, `device_tree` the tree as it was handed over.
    ///
    /// # Errors
    ///
    /// [`MachineError::OutsideRam`], [`MachineError::Overlap`].
    pub fn check_placement(&self, hypervisor: PhysRange, device_tree: PhysRange) -> Result<(), MachineError> {
        let modules = self.kernel.iter().chain(&self.initrd);
        let modules: Vec<(String, PhysRange)> =
            modules.map(|module| (alloc::format!("the module {}", module.name), module.range)).collect();
        let hypervisor = ("the hypervisor", hypervisor);
        let loaded = core::iter::once(hypervisor).chain(modules.iter().map(|(name, range)| (&name[..], *range)));

        let mut placed: Vec<Placed<'_>> = Vec::from([("the device tree", device_tree)]);
        placed.extend(self.reserved.iter().map(|&range| ("memory that the firmware keeps", range)));
        for (what, range) in loaded {
            if !self.ram.iter().any(|ram| ram.contains_range(range)) {
                return Err(MachineError::OutsideRam { what: what.to_string(), range });
            }
            if let Some(&(other, with)) = placed.iter().find(|(_, other)| other.overlaps(range)) {
                return Err(MachineError::Overlap { what: what.to_string(), range, other: other.to_string(), with });
            }
            placed.push((what, range));
        }
        Ok(())
    }

    /// Memory of any kind.
    pub(super) fn memory(&self) -> Vec<Placed<'_>> {
        let ram = self.ram.iter().map(|&range| ("RAM", range));
        ram.chain(self.reserved.iter().map(|&range| ("memory that the firmware keeps", range))).collect()
    }

    /// Checks that no device that the hypervisor or the guest uses lies in the same pages as memory.
    pub(super) fn check_devices(&self) -> Result<(), MachineError> {
        let memory = self.memory();
        let virtio = self.virtio.iter().map(|device| ("a virtio device", device.registers));
        self.given().into_iter().chain(virtio).try_for_each(|(device, registers)| {
            let pages = registers.grown_to(PAGE_SIZE).unwrap_or(registers);
            match memory.iter().find(|(_, other)| other.overlaps(pages)) {
                None => Ok(()),
                Some(&(other, range)) => {
                    let (device, other) = (device.to_string(), other.to_string());
                    Err(MachineError::SharedPage { device, registers, other, range })
                }
            }
        })
    }
}
