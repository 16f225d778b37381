//! The interrupt controller, GICv2 or GICv3: as much as the suite needs.
//!
//! Every CPU drives its own banked registers at any time, without a lock, and interrupts are acknowledged in the handler:
//! the crates that drive a GIC want one exclusive owner for all of it instead, and their GICv2 side leaves the source
//! CPU in an SGI's number.

use crate::machine::cpu::{self, MAX_CPUS, PerCpu};
use crate::machine::mmio::Registers;
use crate::machine::mmu;
use crate::machine::tree::{GicRegisters, Machine};
use core::sync::atomic::{AtomicU32, Ordering};
use spin::Once;

/// The interrupt that makes a CPU look into its mailbox.
pub const WAKE_SGI: u32 = 0;
/// The interrupt that ends what a CPU is running.
pub const ABANDON_SGI: u32 = 1;

/// The interrupt that nobody here uses.
const SPARE_SGI: u32 = 15;

/// The controller's registers.
enum Gic {
    V2 { distributor: Registers, cpu_interface: Registers },
    V3 { redistributors: Registers },
}

static GIC: Once<Gic> = Once::new();

/// With GICv2: the bit of each CPU in the distributor's target fields.
static TARGET_BITS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

fn get() -> &'static Gic {
    GIC.get().expect("interrupts are unmasked after the controller is set up")
}

/// Distributor registers (IHI 0069, 12.9; IHI 0048, 4.3).
mod gicd {
    pub const CTLR: u64 = 0x000;
    pub const IGROUPR: u64 = 0x080;
    pub const ISENABLER: u64 = 0x100;
    pub const ICENABLER: u64 = 0x180;
    pub const IPRIORITYR: u64 = 0x400;
    pub const ITARGETSR: u64 = 0x800;
    pub const SGIR: u64 = 0xf00;
}

/// CPU interface registers (IHI 0048, 4.4).
mod gicc {
    pub const CTLR: u64 = 0x00;
    pub const PMR: u64 = 0x04;
    pub const IAR: u64 = 0x0c;
    pub const EOIR: u64 = 0x10;
}

/// Redistributor registers (IHI 0069, 12.11).
pub mod gicr {
    /// Control.
    pub const CTLR: u64 = 0x0000;
    /// Type, 64 bits; the affinity is in the upper half.
    pub const TYPER: u64 = 0x0008;
    /// Power state.
    pub const WAKER: u64 = 0x0014;
    /// LPI configuration table, 64 bits.
    pub const PROPBASER: u64 = 0x0070;
    /// LPI pending table, 64 bits.
    pub const PENDBASER: u64 = 0x0078;
    /// The frame with the SGIs' and PPIs' registers, laid out as the distributor's.
    pub const SGI_FRAME: u64 = 0x1_0000;
    /// Bytes of a redistributor: two frames, four with virtual LPIs.
    pub const STRIDE: u64 = 0x2_0000;
}

/// An interrupt that was taken and has not ended.
#[derive(Clone, Copy)]
pub struct Acknowledged(u32);

impl Acknowledged {
    /// The interrupt's number; for an SGI of GICv2 the register also holds the source CPU.
    pub fn id(self) -> u32 {
        self.0 & 0xff_ffff & if self.0 & 0x3ff < 16 { 0x3ff } else { u32::MAX }
    }
}

/// Maps the controller and sets it up for the boot CPU.
pub fn init(machine: &Machine) {
    let map = |start: u64, size: u64| {
        mmu::map_device(start..start + size);
        // SAFETY: mapped just now, for good. The suite does not read an acknowledge register outside the handler, and no
        // register that it writes through this makes the controller write memory.
        unsafe { Registers::new(start..start + size) }
    };
    GIC.call_once(|| match machine.gic {
        GicRegisters::V2 { distributor, cpu_interface } => {
            let distributor = map(distributor, 0x1000);
            // Without security extensions there is group 0 only.
            distributor.write(gicd::CTLR, 1);
            Gic::V2 { distributor, cpu_interface: map(cpu_interface, 0x2000) }
        }
        GicRegisters::V3 { distributor, redistributors, redistributors_size } => {
            let distributor = map(distributor, 0x1_0000);
            // Affinity routing and both groups (with one security state: bits 4, 1, 0); RWP says when it has taken effect.
            distributor.write(gicd::CTLR, 0x13);
            while distributor.read(gicd::CTLR) & 1 << 31 != 0 {}
            Gic::V3 { redistributors: map(redistributors, redistributors_size) }
        }
    });
    init_cpu();
}

/// Sets the controller up for the CPU that runs this: all priorities pass, SGIs are enabled, PPIs are not.
pub fn init_cpu() {
    let cpu = cpu::current();
    match get() {
        Gic::V2 { distributor, cpu_interface } => {
            init_private(distributor, 0, 0);
            // A controller for one CPU has no target fields.
            let bit = distributor.read(gicd::ITARGETSR) & 0xff;
            TARGET_BITS[cpu.index()].store(bit.max(1), Ordering::Relaxed);
            cpu_interface.write(gicc::PMR, 0xff);
            cpu_interface.write(gicc::CTLR, 1);
        }
        Gic::V3 { redistributors } => {
            let frame = redistributor_offset(redistributors, cpu).expect("a redistributor for this CPU");
            // Clear ProcessorSleep, wait for ChildrenAsleep to clear.
            redistributors.write(frame + gicr::WAKER, redistributors.read(frame + gicr::WAKER) & !2);
            while redistributors.read(frame + gicr::WAKER) & 4 != 0 {}
            init_private(redistributors, frame + gicr::SGI_FRAME, u32::MAX);
            // SAFETY: the CPU interface: system registers on, all priorities pass, group 1 enabled. Each ISB makes the
            // write before it hold for the registers that depend on it.
            unsafe {
                core::arch::asm!(
                    "msr ICC_SRE_EL1, {one}",
                    "isb",
                    "msr ICC_PMR_EL1, {all}",
                    "msr ICC_CTLR_EL1, xzr",
                    "msr ICC_IGRPEN1_EL1, {one}",
                    "isb",
                    one = in(reg) 1_u64,
                    all = in(reg) 0xff_u64,
                    options(nostack, preserves_flags)
                );
            }
        }
    }
}

/// Sets up the 32 private interrupts behind the registers from `offset` on.
fn init_private(registers: &Registers, offset: u64, group: u32) {
    registers.write(offset + gicd::ICENABLER, 0xffff_0000);
    registers.write(offset + gicd::IGROUPR, group);
    for register in 0..8 {
        registers.write(offset + gicd::IPRIORITYR + register * 4, 0x8080_8080);
    }
    // All but one, which a hypervisor may use to wake a CPU that sleeps.
    registers.write(offset + gicd::ICENABLER, 1 << SPARE_SGI);
    registers.write(offset + gicd::ISENABLER, 0xffff & !(1 << SPARE_SGI));
}

/// Where a CPU's redistributor is in the region.
fn redistributor_offset(redistributors: &Registers, cpu: &PerCpu) -> Option<u64> {
    let mpidr = cpu.mpidr();
    let affinity = (mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff) as u32;
    let mut frame = 0;
    while frame < redistributors.size() {
        if redistributors.read(frame + gicr::TYPER + 4) == affinity {
            return Some(frame);
        }
        let virtual_lpis = redistributors.read(frame + gicr::TYPER) & 2 != 0;
        frame += if virtual_lpis { 2 * gicr::STRIDE } else { gicr::STRIDE };
    }
    None
}

/// First address of a CPU's redistributor, with GICv3.
pub fn redistributor(cpu: &PerCpu) -> Option<u64> {
    match get() {
        Gic::V2 { .. } => None,
        Gic::V3 { redistributors } => Some(redistributors.base() + redistributor_offset(redistributors, cpu)?),
    }
}

/// Enables or disables a private interrupt (0 to 31) of the CPU that runs this.
pub fn enable(id: u32, enabled: bool) {
    let register = if enabled { gicd::ISENABLER } else { gicd::ICENABLER };
    match get() {
        Gic::V2 { distributor, .. } => distributor.write(register, 1 << id),
        Gic::V3 { redistributors } => {
            let frame = redistributor_offset(redistributors, cpu::current()).expect("found when this CPU was set up");
            redistributors.write(frame + gicr::SGI_FRAME + register, 1 << id);
        }
    }
}

/// Takes the highest pending interrupt, if there is one.
pub fn acknowledge() -> Option<Acknowledged> {
    let acknowledged = Acknowledged(match get() {
        Gic::V2 { cpu_interface, .. } => cpu_interface.read(gicc::IAR),
        Gic::V3 { .. } => read_sysreg!("ICC_IAR1_EL1") as u32,
    });
    // 1020 to 1023 are the special numbers.
    (!(1020..1024).contains(&acknowledged.id())).then_some(acknowledged)
}

/// Ends an interrupt.
pub fn end(interrupt: Acknowledged) {
    match get() {
        Gic::V2 { cpu_interface, .. } => cpu_interface.write(gicc::EOIR, interrupt.0),
        // SAFETY: the value is what was acknowledged. The ISB makes the priority drop before the exception returns.
        Gic::V3 { .. } => unsafe {
            core::arch::asm!("msr ICC_EOIR1_EL1, {}", "isb", in(reg) u64::from(interrupt.0), options(nostack, preserves_flags));
        },
    }
}

/// Sends the software-generated interrupt `id` (0 to 15) to a CPU.
pub fn send(id: u32, target: &PerCpu) {
    // SAFETY: a barrier: what was stored before is visible to the CPU that the interrupt reaches.
    unsafe { core::arch::asm!("dsb ishst", options(nostack, preserves_flags)) };
    match get() {
        Gic::V2 { distributor, .. } => {
            let bit = TARGET_BITS[target.index()].load(Ordering::Relaxed);
            distributor.write(gicd::SGIR, bit << 16 | id);
        }
        Gic::V3 { .. } => {
            let mpidr = target.mpidr();
            let [aff0, aff1, aff2, aff3] = [mpidr, mpidr >> 8, mpidr >> 16, mpidr >> 32].map(|field| field & 0xff);
            // The list has 16 CPUs; the range selector (bits 47:44) says which sixteen.
            let list = 1 << (aff0 & 15) | aff0 >> 4 << 44;
            let value = aff3 << 48 | aff2 << 32 | u64::from(id) << 24 | aff1 << 16 | list;
            // SAFETY: an interrupt that its target expects; the ISB keeps it before what follows.
            unsafe {
                core::arch::asm!("msr ICC_SGI1R_EL1, {}", "isb", in(reg) value, options(nostack, preserves_flags))
            };
        }
    }
}
