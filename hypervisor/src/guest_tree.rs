//! The guest's device tree, written from an allow-list.
//!
//! It is made from what [`Machine`] holds, never by copying the machine's tree and taking things out: what nothing
//! here writes, the guest does not see. Every device is a child of the root, whatever bus it was found on, at the
//! address that a CPU uses.
//!
//! Sources: Devicetree Specification, release 0.4, chapter 3, and the Linux bindings named on each function.

mod console;
mod error;
mod writer;

pub use error::GuestTreeError;

use crate::machine::{CpuMapEntry, Device, Gic, Interrupt, Machine, Timer};
use crate::range::PhysRange;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
pub use console::DEFAULT_CLOCK_HZ;
use error::MAX_SIZE;
use vm_fdt::FdtWriter;
use writer::{CLOCK, Writer, Written, unit};

/// The GIC's phandle.
const GIC: u32 = 1;
/// The first CPU's phandle; the others follow.
const FIRST_CPU: u32 = 16;

/// What the guest is given beside what every guest gets.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Its memory.
    pub memory: &'a [PhysRange],
    /// Its CPUs' MPIDRs, the one that it starts on first.
    pub cpus: &'a [u64],
    /// Its command line.
    pub bootargs: Option<&'a [u8]>,
    /// Its initramfs.
    pub initrd: Option<PhysRange>,
    /// Whether it has the performance monitors.
    pub pmu: bool,
    /// Addresses of the virtio-mmio transports that it is granted, or that EL2 mediates.
    pub granted: &'a [u64],
}

/// Writes the guest's tree.
///
/// # Errors
///
/// [`GuestTreeError`].
pub fn write(machine: &Machine, guest: &Guest<'_>) -> Result<Vec<u8>, GuestTreeError> {
    let mut tree = Writer { fdt: FdtWriter::new()? };
    tree.node("", |tree| {
        tree.cell("#address-cells", 2)?;
        tree.cell("#size-cells", 2)?;
        tree.cell("interrupt-parent", GIC)?;
        tree.text("compatible", "unbroken,guest")?;
        tree.text("model", "Guest of the Unbroken hypervisor")?;
        tree.chosen(machine, guest)?;
        machine.uart.iter().try_for_each(|uart| tree.aliases(uart))?;
        tree.memory(guest.memory)?;
        tree.cpus(machine, guest.cpus)?;
        tree.psci()?;
        tree.timer(&machine.timer)?;
        tree.gic(&machine.gic)?;
        if let Some(interrupt) = machine.pmu.filter(|_| guest.pmu) {
            tree.pmu(interrupt)?;
        }
        tree.peripherals(machine)?;
        for &address in guest.granted {
            let device = machine.virtio.iter().find(|device| device.registers.start() == address);
            tree.virtio(device.ok_or_else(|| not_grantable(machine, address))?)?;
        }
        Ok(())
    })?;
    let blob = tree.fdt.finish()?;
    if blob.len() > MAX_SIZE { Err(GuestTreeError::TooLarge { size: blob.len() }) } else { Ok(blob) }
}

fn not_grantable(machine: &Machine, address: u64) -> GuestTreeError {
    let ends = machine.virtio.first().zip(machine.virtio.last());
    let transports = ends.and_then(|(first, last)| PhysRange::new(first.registers.start(), last.registers.end()));
    GuestTreeError::NotGrantable { address, transports }
}

impl Writer {
    /// `/chosen`, with the seeds that the boot loader gave, if any.
    fn chosen(&mut self, machine: &Machine, guest: &Guest<'_>) -> Written {
        self.node("chosen", |tree| {
            if let Some(bootargs) = guest.bootargs {
                if bootargs.contains(&0) {
                    return Err(GuestTreeError::Writer(vm_fdt::Error::InvalidString));
                }
                let text: Vec<u8> = bootargs.iter().copied().chain([0]).collect();
                tree.fdt.property("bootargs", &text)?;
            }
            if let Some(initrd) = guest.initrd {
                tree.fdt.property_u64("linux,initrd-start", initrd.start())?;
                tree.fdt.property_u64("linux,initrd-end", initrd.end())?;
            }
            if let Some(uart) = &machine.uart {
                tree.text("stdout-path", &console::stdout_path(uart))?;
            }
            if !machine.rng_seed.is_empty() {
                tree.fdt.property("rng-seed", &machine.rng_seed)?;
            }
            if let Some(seed) = machine.kaslr_seed {
                tree.fdt.property_u64("kaslr-seed", seed)?;
            }
            Ok(())
        })
    }

    /// A node for each range of memory; the hypervisor's part is in none of them.
    fn memory(&mut self, memory: &[PhysRange]) -> Written {
        for &range in memory {
            self.node(&unit("memory", range), |tree| {
                tree.text("device_type", "memory")?;
                tree.reg(&[range])
            })?;
        }
        Ok(())
    }

    /// `/cpus` (Linux binding `arm/cpus`).
    fn cpus(&mut self, machine: &Machine, cpus: &[u64]) -> Written {
        self.node("cpus", |tree| {
            tree.cell("#address-cells", 2)?;
            tree.cell("#size-cells", 0)?;
            let map = given_part(&machine.cpu_map, cpus);
            if !map.is_empty() {
                tree.node("cpu-map", |tree| tree.cpu_map(&map, cpus))?;
            }
            for (phandle, &mpidr) in (FIRST_CPU..).zip(cpus) {
                let cpu = machine.cpus.iter().find(|cpu| cpu.mpidr == mpidr);
                let cpu = cpu.ok_or(GuestTreeError::NoSuchCpu { mpidr })?;
                tree.node(&format!("cpu@{mpidr:x}"), |tree| {
                    tree.text("device_type", "cpu")?;
                    let compatible: Vec<&str> = cpu.compatible.iter().map(String::as_str).collect();
                    tree.texts("compatible", if compatible.is_empty() { &["arm,armv8"] } else { &compatible })?;
                    tree.fdt.property_u64("reg", mpidr)?;
                    tree.text("enable-method", "psci")?;
                    Ok(tree.fdt.property_phandle(phandle)?)
                })?;
            }
            Ok(())
        })
    }

    /// The topology of `/cpus` (Linux binding `cpu/cpu-topology`). The children of each node are numbered anew: Linux
    /// stops looking at the first number that is missing.
    fn cpu_map(&mut self, map: &[&CpuMapEntry], cpus: &[u64]) -> Written {
        let mut rest = map;
        let mut earlier: Vec<&str> = Vec::new();
        while let Some((&entry, behind)) = rest.split_first() {
            let (below, next) = behind.split_at(children_len(entry, behind));
            let kind = entry.name.trim_end_matches(|last: char| last.is_ascii_digit());
            let number = earlier.iter().filter(|&&name| name == kind).count();
            self.node(&format!("{kind}{number}"), |tree| {
                let cpu = (FIRST_CPU..).zip(cpus).find(|&(_, &cpu)| Some(cpu) == entry.mpidr);
                if let Some((phandle, _)) = cpu {
                    tree.cell("cpu", phandle)?;
                }
                tree.cpu_map(below, cpus)
            })?;
            earlier.push(kind);
            rest = next;
        }
        Ok(())
    }

    /// PSCI (Linux binding `arm/psci`): the hypervisor answers it, whatever the machine's own conduit is.
    fn psci(&mut self) -> Written {
        self.node("psci", |tree| {
            tree.texts("compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
            tree.text("method", "hvc")
        })
    }

    /// The generic timer (Linux binding `arm,armv8-timer`).
    fn timer(&mut self, timer: &Timer) -> Written {
        self.node("timer", |tree| {
            tree.text("compatible", "arm,armv8-timer")?;
            tree.interrupts(&timer.interrupts)?;
            if !timer.names.is_empty() {
                let names: Vec<&str> = timer.names.iter().map(String::as_str).collect();
                tree.texts("interrupt-names", &names)?;
            }
            if let Some(rate) = timer.clock_hz {
                tree.cell("clock-frequency", rate)?;
            }
            timer.flags.iter().try_for_each(|flag| tree.flag(flag))
        })
    }

    /// The GIC (Linux bindings `arm,gic` and `arm,gic-v3`): what the guest drives. No GICH, GICV or maintenance
    /// interrupt, which are EL2's; no ITS or MSI frame.
    fn gic(&mut self, gic: &Gic) -> Written {
        let distributor = match gic {
            Gic::V2(gic) => gic.distributor,
            Gic::V3(gic) => gic.distributor,
        };
        self.node(&unit("interrupt-controller", distributor), |tree| {
            match gic {
                Gic::V2(gic) => {
                    tree.text("compatible", &gic.compatible)?;
                    tree.reg(&[gic.distributor, gic.cpu_interface])?;
                }
                Gic::V3(gic) => {
                    tree.text("compatible", "arm,gic-v3")?;
                    let mut frames = Vec::from([gic.distributor]);
                    frames.extend(&gic.redistributors);
                    tree.reg(&frames)?;
                    tree.cell("#redistributor-regions", gic.redistributors.len() as u32)?;
                    if let Some(stride) = gic.redistributor_stride {
                        tree.fdt.property_u64("redistributor-stride", stride)?;
                    }
                }
            }
            tree.flag("interrupt-controller")?;
            tree.cell("#interrupt-cells", 3)?;
            Ok(tree.fdt.property_phandle(GIC)?)
        })
    }

    /// The performance monitors (Linux binding `arm/pmu`).
    fn pmu(&mut self, interrupt: Interrupt) -> Written {
        self.node("pmu", |tree| {
            tree.text("compatible", "arm,armv8-pmuv3")?;
            tree.interrupts(&[interrupt])
        })
    }

    /// The console and the clock that tells the time, with the clock signal that both need (Linux bindings
    /// `fixed-clock` and `rtc/arm,pl031`).
    fn peripherals(&mut self, machine: &Machine) -> Written {
        self.node("apb-pclk", |tree| {
            let rate = machine.uart.as_ref().and_then(|uart| uart.clock_hz);
            tree.text("compatible", "fixed-clock")?;
            tree.cell("#clock-cells", 0)?;
            tree.cell("clock-frequency", rate.unwrap_or(DEFAULT_CLOCK_HZ))?;
            Ok(tree.fdt.property_phandle(CLOCK)?)
        })?;
        machine.uart.iter().try_for_each(|uart| self.uart(uart))?;
        machine.rtc.iter().try_for_each(|rtc| self.rtc(rtc))
    }

    fn rtc(&mut self, rtc: &Device) -> Written {
        self.node(&unit("pl031", rtc.registers), |tree| {
            tree.texts("compatible", &["arm,pl031", "arm,primecell"])?;
            tree.reg(&[rtc.registers])?;
            if let Some(interrupt) = rtc.interrupt {
                tree.interrupts(&[interrupt])?;
            }
            tree.clocks(&["apb_pclk"])
        })
    }

    /// A virtio-mmio transport that the user grants (Linux binding `virtio/mmio`).
    fn virtio(&mut self, device: &Device) -> Written {
        self.node(&unit("virtio_mmio", device.registers), |tree| {
            tree.text("compatible", "virtio,mmio")?;
            tree.reg(&[device.registers])?;
            if let Some(interrupt) = device.interrupt {
                tree.interrupts(&[interrupt])?;
            }
            if device.dma_coherent { tree.flag("dma-coherent") } else { Ok(()) }
        })
    }
}

/// How many of the entries behind `entry` lie below it.
fn children_len(entry: &CpuMapEntry, behind: &[&CpuMapEntry]) -> usize {
    behind.iter().take_while(|other| other.depth > entry.depth).count()
}

/// The part of the topology that is about these CPUs; nothing when it does not name all of them, for Linux drops a
/// map that is not whole.
fn given_part<'a>(map: &'a [CpuMapEntry], cpus: &[u64]) -> Vec<&'a CpuMapEntry> {
    let given = |entry: &CpuMapEntry| entry.mpidr.is_some_and(|mpidr| cpus.contains(&mpidr));
    if !cpus.iter().all(|&cpu| map.iter().any(|entry| entry.mpidr == Some(cpu))) {
        return Vec::new();
    }
    let map: Vec<&CpuMapEntry> = map.iter().collect();
    let kept = map.iter().enumerate().filter(|&(index, entry)| {
        let behind = map.get(index + 1..).unwrap_or_default();
        let below = behind.get(..children_len(entry, behind)).unwrap_or_default();
        given(entry) || below.iter().any(|below| given(below))
    });
    kept.map(|(_, &entry)| entry).collect()
}

#[cfg(test)]
mod tests;
