//! What the device tree says about the machine.

use crate::machine::cpu::{self, MAX_CPUS};
use core::ops::Range;
use fdt::Fdt;
use fdt::node::FdtNode;
use spin::Once;

/// Most ranges of memory that are kept.
pub const MAX_RANGES: usize = 16;

/// The interrupt controller's registers, by version.
#[derive(Clone, Copy, Debug)]
pub enum GicRegisters {
    /// GICv2: distributor and CPU interface.
    V2 {
        /// First address of the distributor.
        distributor: u64,
        /// First address of the CPU interface.
        cpu_interface: u64,
    },
    /// GICv3: distributor and redistributors.
    V3 {
        /// First address of the distributor.
        distributor: u64,
        /// First address of the (first) redistributor region.
        redistributors: u64,
        /// Length of that region in bytes.
        redistributors_size: u64,
    },
}

/// How PSCI and other SMCCC calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// The HVC instruction.
    Hvc,
    /// The SMC instruction.
    Smc,
}

/// The machine.
pub struct Machine {
    /// The tree itself.
    pub tree: Fdt<'static>,
    /// Where the tree lies.
    pub tree_range: Range<u64>,
    /// Memory, sorted, as the `memory` nodes have it.
    ram: [Range<u64>; MAX_RANGES],
    ram_count: usize,
    /// Affinities of the CPU nodes, the boot CPU first.
    mpidrs: [u64; MAX_CPUS],
    cpu_count: usize,
    /// The interrupt controller.
    pub gic: GicRegisters,
    /// First address of the PL011.
    pub uart: u64,
    /// Interrupt of the EL1 physical timer.
    pub physical_timer: u32,
    /// Interrupt of the virtual timer.
    pub virtual_timer: u32,
    /// How to call PSCI.
    pub conduit: Conduit,
    /// The command line.
    pub bootargs: &'static str,
}

impl Machine {
    /// Memory, sorted by address.
    pub fn ram(&self) -> &[Range<u64>] {
        &self.ram[..self.ram_count]
    }

    /// Affinities of the CPUs, the boot CPU first.
    pub fn mpidrs(&self) -> &[u64] {
        &self.mpidrs[..self.cpu_count]
    }

    /// The gaps below, between the ranges of memory: where a hypervisor on this machine keeps its own memory.
    pub fn holes(&self) -> impl Iterator<Item = Range<u64>> {
        let starts = core::iter::once(RAM_BASE).chain(self.ram().iter().map(|range| range.end));
        let ends = self.ram().iter().map(|range| range.start);
        starts.zip(ends).map(|(start, end)| start..end).filter(|hole| hole.start < hole.end)
    }
}

/// Where memory starts on QEMU's `virt` machine.
pub const RAM_BASE: u64 = 0x4000_0000;

static MACHINE: Once<Machine> = Once::new();

/// The machine, once the tree has been read.
pub fn get() -> &'static Machine {
    MACHINE.get().expect("the device tree is read first")
}

/// How PSCI is called; HVC, which the hypervisor always serves, as long as the tree has not been read.
pub fn conduit() -> Conduit {
    MACHINE.get().map_or(Conduit::Hvc, |machine| machine.conduit)
}

/// Reads the tree at `address`. A tree that lacks what the payload stands on ends in a panic: there is no console yet.
pub fn read_device_tree(address: u64) -> &'static Machine {
    assert!(address != 0 && address.is_multiple_of(8), "x0 is no device tree");
    // SAFETY: the boot protocol says that x0 is the address of a tree, which lies in memory that nobody else uses.
    let header = unsafe { core::slice::from_raw_parts(address as *const u8, 40) };
    let size = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    // SAFETY: as above; the header has the length.
    let bytes: &'static [u8] = unsafe { core::slice::from_raw_parts(address as *const u8, size) };
    let tree = Fdt::new(bytes).expect("a well-formed device tree");
    MACHINE.call_once(|| parse(tree, address..address + size as u64))
}

fn parse(tree: Fdt<'static>, tree_range: Range<u64>) -> Machine {
    // The tree is in static memory, and so is every name in it; the crate ties them to the borrow of `Fdt` instead.
    let bootargs = tree
        .find_node("/chosen")
        .and_then(|node| node.property("bootargs"))
        .map_or("", |property| core::str::from_utf8(property.value).unwrap_or("").trim_end_matches('\0'));
    let (ram, ram_count) = memory(&tree);
    let (mpidrs, cpu_count) = cpus(&tree);
    let gic = interrupt_controller(&tree);
    let uart = tree.find_compatible(&["arm,pl011"]).and_then(|node| registers(node, 0)).expect("a PL011").start;
    let timer = tree.find_compatible(&["arm,armv8-timer", "arm,armv7-timer"]).expect("a timer node");
    // Four interrupts of three cells: secure physical, physical, virtual, hypervisor; a PPI's number counts from 16.
    let cells = timer.property("interrupts").expect("the timer's interrupts").value;
    let ppi = |index: usize| 16 + cell(cells, index * 3 + 1);
    let (physical_timer, virtual_timer) = (ppi(1), ppi(2));
    let method = tree.find_node("/psci").and_then(|node| node.property("method")).and_then(|method| method.as_str());
    let conduit = if method == Some("smc") { Conduit::Smc } else { Conduit::Hvc };
    Machine {
        ram,
        ram_count,
        mpidrs,
        cpu_count,
        gic,
        uart,
        physical_timer,
        virtual_timer,
        conduit,
        bootargs,
        tree,
        tree_range,
    }
}

/// Cell `index` of a property.
pub fn cell(value: &[u8], index: usize) -> u32 {
    value.get(index * 4..index * 4 + 4).map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes")))
}

/// Range `index` of a node's `reg`.
pub fn registers(node: FdtNode<'_, '_>, index: usize) -> Option<Range<u64>> {
    let region = node.reg()?.nth(index)?;
    let start = region.starting_address as u64;
    Some(start..start + region.size.unwrap_or(0) as u64)
}

fn memory(tree: &Fdt<'static>) -> ([Range<u64>; MAX_RANGES], usize) {
    let mut ranges = [const { 0..0 }; MAX_RANGES];
    let mut count = 0;
    let is_memory = |node: &FdtNode<'_, '_>| node.property("device_type").and_then(|p| p.as_str()) == Some("memory");
    for node in tree.all_nodes().filter(is_memory) {
        for index in 0.. {
            let Some(range) = registers(node, index) else { break };
            assert!(count < MAX_RANGES, "more ranges of memory than the payload keeps");
            ranges[count] = range;
            count += 1;
        }
    }
    ranges[..count].sort_unstable_by_key(|range| range.start);
    (ranges, count)
}

fn cpus(tree: &Fdt<'static>) -> ([u64; MAX_CPUS], usize) {
    let mut mpidrs = [0; MAX_CPUS];
    let mut count = 0;
    for node in tree.find_node("/cpus").expect("CPU nodes").children() {
        if node.property("device_type").and_then(|p| p.as_str()) != Some("cpu") || count == MAX_CPUS {
            continue;
        }
        // #address-cells of /cpus is 1 or 2; the property's length tells which.
        let value = node.property("reg").expect("a CPU's reg").value;
        mpidrs[count] = value.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        count += 1;
    }
    let boot = cpu::current().mpidr();
    let position = mpidrs[..count].iter().position(|&mpidr| mpidr == boot).expect("the boot CPU is in the tree");
    mpidrs.swap(0, position);
    (mpidrs, count)
}

fn interrupt_controller(tree: &Fdt<'static>) -> GicRegisters {
    if let Some(node) = tree.find_compatible(&["arm,gic-v3"]) {
        let redistributors = registers(node, 1).expect("the redistributors");
        return GicRegisters::V3 {
            distributor: registers(node, 0).expect("the distributor").start,
            redistributors: redistributors.start,
            redistributors_size: redistributors.end - redistributors.start,
        };
    }
    let node = tree.find_compatible(&["arm,cortex-a15-gic", "arm,gic-400"]).expect("a GIC");
    GicRegisters::V2 {
        distributor: registers(node, 0).expect("the distributor").start,
        cpu_interface: registers(node, 1).expect("the CPU interface").start,
    }
}
