//! What the device tree says of the machine, as plain data.
//!
//! Everything that the hypervisor or the guest's own tree needs is read once, checked, and kept; everything else that
//! has registers is listed as hidden. Sources: Devicetree Specification, release 0.4, and the Linux bindings named on
//! each function.

#[cfg(test)]
mod board_tests;
mod console;
#[cfg(test)]
mod console_tests;
mod cpus;
mod devices;
mod error;
mod guest_registers;
mod memory;
mod modules;
mod own_memory;
mod parts;
mod placement;
#[cfg(test)]
mod tests;

pub use console::find_uart;
pub use error::MachineError;
pub use guest_registers::GuestRegisters;
pub use own_memory::{GuestShape, Needs, Stays};
pub use parts::{
    Conduit, Cpu, CpuMapEntry, Device, Gic, GicV2, GicV3, Hidden, Interrupt, InterruptKind, MAX_CPUS, MAX_REGIONS,
    Machine, Module, Timer, Uart,
};
pub use placement::pool_bytes;

use crate::tree::Tree;
use crate::tree_check::CheckedTree;
use alloc::string::String;
use alloc::vec::Vec;
use devices::Devices;
use modules::Modules;

impl Machine {
    /// Reads the whole tree.
    ///
    /// # Errors
    ///
    /// The first thing without which the machine cannot be run, in a sentence for people.
    pub fn read(tree: &CheckedTree) -> Result<Self, MachineError> {
        let tree = Tree::open(tree);
        let root = tree.root().ok_or(MachineError::NoMemory)?;
        let chosen = root.child("chosen");

        let ram = memory::read_ram(root)?;
        let reserved = memory::read_reserved(&tree, root)?;
        let (cpus, cpu_map) = cpus::read_cpus(root)?;
        let psci = cpus::read_psci(root)?;
        let devices = Devices::read(root)?;
        let modules = Modules::read(root, chosen)?;

        let chosen_bytes = |name| chosen.and_then(|chosen| chosen.property(name)).unwrap_or_default();
        let notes = [modules.notes, devices.notes, withheld(&devices.hidden)].concat();
        let machine = Self {
            page: crate::granule::PAGE,
            ram,
            reserved,
            cpus,
            cpu_map,
            psci,
            gic: devices.gic,
            timer: devices.timer,
            pmu: devices.pmu,
            uart: devices.uart,
            rtc: devices.rtc,
            virtio: devices.virtio,
            hidden: devices.hidden,
            kernel: modules.kernel,
            initrd: modules.initrd,
            bootargs: modules.bootargs,
            notes,
            rng_seed: chosen_bytes("rng-seed").to_vec(),
            kaslr_seed: chosen_bytes("kaslr-seed").first_chunk().map(|seed| u64::from_be_bytes(*seed)),
        };
        machine.check_devices()?;
        Ok(machine)
    }

    /// The guest's kernel.
    ///
    /// # Errors
    ///
    /// [`MachineError::NoKernel`].
    pub fn kernel(&self) -> Result<&Module, MachineError> {
        self.kernel.as_ref().ok_or(MachineError::NoKernel)
    }
}

/// Names the devices that the guest does not get, some in a line.
fn withheld(hidden: &[Hidden]) -> Vec<String> {
    const IN_A_LINE: usize = 8;
    let mut names: Vec<&str> = hidden.iter().map(|hidden| &hidden.name[..]).collect();
    names.sort_unstable();
    names.dedup();
    names.chunks(IN_A_LINE).map(|names| alloc::format!("not given to the guest: {}", names.join(", "))).collect()
}
