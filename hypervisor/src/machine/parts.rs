//! The machine and its parts, as plain data.

use super::error::MachineError;
use crate::range::PhysRange;
use crate::uart::Port;
use alloc::string::String;
use alloc::vec::Vec;

/// The most CPUs that are started.
pub const MAX_CPUS: usize = 64;
/// The most ranges of RAM, and of reserved memory, and of redistributors, that a tree may have.
pub const MAX_REGIONS: usize = 64;

/// Bytes of the pages that EL2 maps for itself.
pub(super) const PAGE_SIZE: u64 = 4096;

/// Something with a name, and where it lies.
pub(super) type Placed<'a> = (&'a str, PhysRange);

/// Everything known about the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Bytes of the pages that the guest is given: memory and registers are the guest's by whole pages, or not mapped.
    /// [`granule::PAGE`](crate::granule::PAGE).
    pub page: u64,
    /// RAM: sorted, joined, not empty.
    pub ram: Vec<PhysRange>,
    /// Parts of RAM that firmware keeps: `/reserved-memory` and the memory reservation block; sorted, joined.
    pub reserved: Vec<PhysRange>,
    /// The CPUs, in the tree's order; not empty.
    pub cpus: Vec<Cpu>,
    /// The CPUs' place in sockets, clusters and cores, if the tree says so.
    pub cpu_map: Vec<CpuMapEntry>,
    /// How PSCI in the firmware is called.
    pub psci: Conduit,
    /// The interrupt controller.
    pub gic: Gic,
    /// The generic timer.
    pub timer: Timer,
    /// The performance monitors' interrupt, if they have one.
    pub pmu: Option<Interrupt>,
    /// The console: the UART that `stdout-path` names.
    pub uart: Option<Uart>,
    /// The PL031 real-time clock.
    pub rtc: Option<Device>,
    /// The virtio-mmio transports, in order of address.
    pub virtio: Vec<Device>,
    /// Everything else that has registers, disabled or not, and what the nodes above have beyond theirs: not for the guest.
    pub hidden: Vec<Hidden>,
    /// The guest's kernel; there is none where a guest that was saved is to go on.
    pub kernel: Option<Module>,
    /// The guest's initramfs.
    pub initrd: Option<Module>,
    /// The hypervisor's own command line.
    pub bootargs: String,
    /// What the tree has that is understood, or not, and that the guest does not get: sentences for people.
    pub notes: Vec<String>,
    /// `rng-seed` of `/chosen`, empty if there is none.
    pub rng_seed: Vec<u8>,
    /// `kaslr-seed` of `/chosen`.
    pub kaslr_seed: Option<u64>,
}

/// One CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its affinity fields, as `MPIDR_EL1` has them: bits 39:32 and 23:0.
    pub mpidr: u64,
    /// Whether PSCI starts it: the CPU that the hypervisor is started on need not say so.
    pub by_psci: bool,
    /// Its `compatible`, most specific first.
    pub compatible: Vec<String>,
}

/// One node of `/cpus/cpu-map`, in the tree's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuMapEntry {
    /// 1 for a child of `cpu-map`.
    pub depth: usize,
    /// `socket0`, `cluster1`, `core2`, `thread3`.
    pub name: String,
    /// The affinity of the CPU that this node stands for.
    pub mpidr: Option<u64>,
}

/// The instruction that calls PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// SMC, to EL3.
    Smc,
    /// HVC, to EL2: the hypervisor runs under another one.
    Hvc,
}

/// A GIC interrupt (Linux binding `arm,gic-v3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Shared or private.
    pub kind: InterruptKind,
    /// The number within its kind: SPI 0 is INTID 32, PPI 0 is INTID 16.
    pub number: u32,
    /// Trigger type; on GICv2 a PPI's CPU mask in bits 15:8.
    pub flags: u32,
}

/// Bytes of a PL011 (Arm DDI 0183, 3.1) and of a PL031 (DDI 0224, 3.1); other UARTs and a virtio-mmio transport have no more.
pub(super) const PERIPHERAL: u64 = 4 << 10;

/// Shared or private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptKind {
    /// Shared peripheral interrupt.
    Spi,
    /// Private peripheral interrupt.
    Ppi,
}

impl Interrupt {
    /// The number that the GIC's registers use.
    pub const fn intid(self) -> u32 {
        match self.kind {
            InterruptKind::Spi => self.number.saturating_add(32),
            InterruptKind::Ppi => self.number.saturating_add(16),
        }
    }
}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv2.
    V2(GicV2),
    /// GICv3 and GICv4.
    V3(GicV3),
}

impl Gic {
    /// The distributor's registers.
    #[must_use]
    pub const fn distributor(&self) -> PhysRange {
        match self {
            Self::V2(gic) => gic.distributor,
            Self::V3(gic) => gic.distributor,
        }
    }

    /// What the guest may have of each of the first ranges in the node's `reg`.
    pub(super) fn frames(&self) -> Vec<PhysRange> {
        match self {
            Self::V2(gic) => Vec::from([gic.distributor, gic.cpu_interface]),
            Self::V3(gic) => core::iter::once(gic.distributor).chain(gic.redistributors.iter().copied()).collect(),
        }
    }
}

/// GICv2's register frames that the guest may have; GICH and GICV are hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV2 {
    /// The tree's name for it, `arm,gic-400`.
    pub compatible: String,
    /// GICD: 4 KiB at most.
    pub distributor: PhysRange,
    /// GICC: 8 KiB at most.
    pub cpu_interface: PhysRange,
    /// The maintenance interrupt.
    pub maintenance: Option<Interrupt>,
}

/// GICv3's register frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV3 {
    /// GICD: 64 KiB at most.
    pub distributor: PhysRange,
    /// The regions that redistributors lie in, with gaps; not empty.
    pub redistributors: Vec<PhysRange>,
    /// Bytes from one redistributor to the next, where it is not what `GICR_TYPER.VLPIS` implies.
    pub redistributor_stride: Option<u64>,
    /// The frames of the ITSs that are enabled.
    pub its: Vec<PhysRange>,
    /// The maintenance interrupt.
    pub maintenance: Option<Interrupt>,
}

/// The generic timer (Linux binding `arm,armv8-timer`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// Its interrupts: secure physical, physical, virtual, EL2 physical, EL2 virtual; or as `names` say.
    pub interrupts: Vec<Interrupt>,
    /// `interrupt-names`, empty where the tree has none.
    pub names: Vec<String>,
    /// Properties without a value that Linux acts on, such as `always-on`.
    pub flags: Vec<&'static str>,
    /// Its rate in Hz, where the tree says it for firmware that does not.
    pub clock_hz: Option<u32>,
}

/// A device with one block of registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its registers: 4 KiB at most.
    pub registers: PhysRange,
    /// Its interrupt, if it has one at the GIC.
    pub interrupt: Option<Interrupt>,
    /// Whether its DMA is coherent with the CPUs' caches.
    pub dma_coherent: bool,
}

/// The console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    /// Its registers and interrupt.
    pub device: Device,
    /// Where its transmitter is.
    pub port: Port,
    /// Those of its names that Linux has a driver for, the most specific first.
    pub compatible: Vec<&'static str>,
    /// The rate in Hz of its first clock, where that is a fixed one, or is known otherwise.
    pub clock_hz: Option<u32>,
    /// Properties of one cell that Linux's drivers act on.
    pub cells: Vec<(&'static str, u32)>,
    /// Properties without a value that Linux's drivers act on.
    pub flags: Vec<&'static str>,
    /// N in the alias `serialN`.
    pub line: Option<u32>,
    /// What `stdout-path` says of it behind the colon, as `115200n8`.
    pub options: Option<String>,
}

/// Registers that the guest gets no part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The node's name.
    pub name: String,
    /// One of its ranges.
    pub registers: PhysRange,
}

/// Something that the boot loader put into memory for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The node's name.
    pub name: String,
    /// Where it lies.
    pub range: PhysRange,
    /// Its command line: bytes, of any encoding.
    pub bootargs: Option<Vec<u8>>,
}

/// Fails when a tree has more of something than there is room for.
pub(super) fn limit(what: &'static str, count: usize, most: usize) -> Result<(), MachineError> {
    if count > most { Err(MachineError::TooMany { what, most }) } else { Ok(()) }
}
