//! What lies where: that nothing was loaded over anything else, and that what the guest is given can be given on its own.

use super::{Device, Gic, Machine, MachineError};
use crate::range::PhysRange;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What is given to a guest is given by whole pages.
const PAGE_SIZE: u64 = 4096;

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

/// Something with a name, and where it lies.
type Placed<'a> = (&'a str, PhysRange);

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
        let modules = core::iter::once(&self.kernel).chain(&self.initrd);
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

    /// Hidden devices, and virtio transports other than the one at `registers`, that lie in the same 4 KiB pages as
    /// `registers`: who is given those pages is given these too.
    pub fn neighbours(&self, registers: PhysRange) -> impl Iterator<Item = PhysRange> {
        let pages = registers.grown_to(PAGE_SIZE).unwrap_or(registers);
        let virtio = self.virtio.iter().map(|device| device.registers);
        let hidden = self.hidden.iter().map(|hidden| hidden.registers);
        virtio.chain(hidden).filter(move |range| *range != registers && range.overlaps(pages))
    }

    /// Checks that the pages of the devices that every guest is given hold nothing else, and that no device that a
    /// guest may be given lies in memory.
    pub(super) fn check_devices(&self) -> Result<(), MachineError> {
        let ram = self.ram.iter().map(|&range| ("RAM", range));
        let memory: Vec<Placed<'_>> =
            ram.chain(self.reserved.iter().map(|&range| ("memory that the firmware keeps", range))).collect();

        let mut given: Vec<Placed<'_>> = Vec::new();
        let mut withheld: Vec<Placed<'_>> = Vec::new();
        match &self.gic {
            Gic::V2(gic) => {
                given.extend([
                    ("the GIC's distributor", gic.distributor),
                    ("the GIC's CPU interface", gic.cpu_interface),
                ]);
                let el2 = gic.hypervisor_interface.iter().chain(&gic.virtual_cpu_interface);
                withheld.extend(el2.map(|&frame| ("the GIC's virtual interface", frame)));
            }
            Gic::V3(gic) => {
                given.push(("the GIC's distributor", gic.distributor));
                given.extend(gic.redistributors.iter().map(|&region| ("the GIC's redistributors", region)));
            }
        }
        let registers = |device: &Device| device.registers;
        given.extend(self.uart.as_ref().map(|uart| ("the UART", registers(uart))));
        given.extend(self.rtc.as_ref().map(|rtc| ("the clock", registers(rtc))));
        let virtio: Vec<Placed<'_>> = self.virtio.iter().map(|device| ("a virtio device", registers(device))).collect();
        withheld.extend(self.hidden.iter().map(|hidden| (&hidden.name[..], hidden.registers)));

        let apart = |devices: &[Placed<'_>], others: &[&[Placed<'_>]]| {
            devices.iter().try_for_each(|&(device, registers)| {
                let pages = registers.grown_to(PAGE_SIZE).unwrap_or(registers);
                match others.iter().copied().flatten().find(|(_, other)| other.overlaps(pages)) {
                    None => Ok(()),
                    Some(&(other, range)) => {
                        let (device, other) = (device.to_string(), other.to_string());
                        Err(MachineError::SharedPage { device, registers, other, range })
                    }
                }
            })
        };
        apart(&given, &[&memory, &withheld, &virtio])?;
        apart(&virtio, &[&memory])
    }
}
