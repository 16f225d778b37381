//! The devices: those that the hypervisor or the guest uses, and all others as hidden.

use super::console::{Console, first_register};
use super::error::MachineError;
use super::parts::{
    Device, Gic, GicV2, GicV3, Hidden, Interrupt, InterruptKind, MAX_REGIONS, PERIPHERAL, Timer, Uart, limit,
};
use crate::range::{PhysRange, without};
use crate::tree::Node;
use crate::tree::index::{Index, Place};
use crate::tree::interrupts::{NoInterrupt, Specifier};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The most devices of one kind that are kept.
const MAX_DEVICES: usize = 2048;
/// The most interrupts that are told of as left out.
const MAX_NOTES: usize = 64;
/// Bytes of GICv2's distributor (Arm IHI 0048, 4.1.2) and CPU interface (4.1.3).
const GICD_V2: u64 = 4 << 10;
const GICC_V2: u64 = 8 << 10;
/// Bytes of GICv3's distributor (Arm IHI 0069, 12.8).
const GICD_V3: u64 = 64 << 10;
/// Names of GICv2 in use (Linux binding `arm,gic`) that have the virtualization extensions.
const GIC_V2: [&str; 5] =
    ["arm,gic-400", "arm,cortex-a15-gic", "arm,cortex-a7-gic", "brcm,brahma-b15-gic", "nvidia,tegra210-agic"];
/// The name of GICv3 and later.
const GIC_V3: &str = "arm,gic-v3";

/// What was found by going through all devices.
pub(super) struct Devices {
    pub gic: Gic,
    pub timer: Timer,
    pub pmu: Option<Interrupt>,
    pub uart: Option<Uart>,
    pub rtc: Option<Device>,
    pub virtio: Vec<Device>,
    pub hidden: Vec<Hidden>,
    pub notes: Vec<String>,
}

impl Devices {
    pub(super) fn read(root: Node<'_, '_>) -> Result<Self, MachineError> {
        let index = Index::new(root);
        let controller = Controller::find(&index)?;
        let mut found = Found::default();
        let console = Console::find(&index).map_err(|why| found.notes.push(format!("no console: {why}"))).ok();
        for place in index.devices() {
            let node = index.node(place);
            // The part of each range in its `reg` that the guest may be given.
            let mut frames = Vec::new();
            if !index.is_enabled(place) {
                // Its registers are where they are all the same.
            } else if place == controller.place {
                let gic = controller.read_gic(&index)?;
                frames = gic.frames();
                found.gic = Some(gic);
            } else if Some(place) == controller.timer {
                found.timer = Some(read_timer(node, controller.all_of(&index, place, &mut found.notes)));
            } else if is_pmu(node) {
                let first = controller.first_of(&index, place, &mut found.notes);
                // Where each CPU's has an SPI of its own, one of them would be wrong for all other CPUs.
                if first.is_some_and(|interrupt| interrupt.kind == InterruptKind::Spi) {
                    found.notes.push(format!(
                        "{}: its interrupts are not the CPUs' own (PPI), and the guest gets no PMU",
                        index.path(place)
                    ));
                }
                let own = first.filter(|interrupt| interrupt.kind == InterruptKind::Ppi);
                found.pmu = found.pmu.take().or(own);
            } else if let Some(console) = console.as_ref().filter(|console| console.place == place) {
                let device = controller.device(&index, place, &mut found.notes)?;
                frames.push(found.uart.insert(console.uart(&index, device)).device.registers);
            } else if node.is_compatible("arm,pl031") && found.rtc.is_none() {
                frames.push(found.rtc.insert(controller.device(&index, place, &mut found.notes)?).registers);
            } else if node.is_compatible("virtio,mmio") {
                let device = controller.device(&index, place, &mut found.notes)?;
                frames.push(device.registers);
                found.virtio.push(device);
            } else if node.is_compatible("arm,gic-v3-its") {
                found.its.extend(index.bus(place).readable_reg(node).filter(|range| !range.is_empty()));
            }
            found.hide_others(&index, place, &frames);
            limit("devices", found.hidden.len().max(found.virtio.len()), MAX_DEVICES)?;
        }
        found.finish()
    }
}

/// Properties of the timer that Linux acts on and that have no value (Linux binding `arm,arch_timer`).
const TIMER_FLAGS: [&str; 6] = [
    "always-on",
    "arm,no-tick-in-suspend",
    "arm,cpu-registers-not-fw-configured",
    "allwinner,erratum-unknown1",
    "fsl,erratum-a008585",
    "hisilicon,erratum-161010101",
];

fn read_timer(node: Node<'_, '_>, interrupts: Vec<Interrupt>) -> Timer {
    Timer {
        interrupts,
        names: node.strings("interrupt-names").take(8).map(ToString::to_string).collect(),
        flags: TIMER_FLAGS.into_iter().filter(|flag| node.property(flag).is_some()).collect(),
        clock_hz: node.cell("clock-frequency"),
    }
}

/// The same while it is not yet known to be complete.
#[derive(Default)]
struct Found {
    gic: Option<Gic>,
    its: Vec<PhysRange>,
    timer: Option<Timer>,
    pmu: Option<Interrupt>,
    uart: Option<Uart>,
    rtc: Option<Device>,
    virtio: Vec<Device>,
    /// Each with its node's place.
    hidden: Vec<(Place, Hidden)>,
    notes: Vec<String>,
}

impl Found {
    /// Notes as hidden what the `reg` of a node has beyond `frames`, which are parts of its first ranges, one of each.
    fn hide_others(&mut self, index: &Index<'_, '_>, place: Place, frames: &[PhysRange]) {
        let node = index.node(place);
        let ranges: Vec<PhysRange> = index.bus(place).readable_reg(node).take(MAX_DEVICES).collect();
        for (number, range) in ranges.into_iter().enumerate() {
            let rest = without(&[range], frames.get(number).map_or(&[], core::slice::from_ref));
            let hide = |registers| (place, Hidden { name: node.name().to_string(), registers });
            self.hidden.extend(rest.into_iter().map(hide));
        }
        self.open_buses(index, place, frames);
    }

    /// Takes frames out of what the buses around their device claim: the `reg` of a bus, where it has one and its device lies
    /// in it (i.MX's `fsl,aips-bus`), is the bus's window, and not registers beside the device's.
    fn open_buses(&mut self, index: &Index<'_, '_>, place: Place, frames: &[PhysRange]) {
        if frames.is_empty() {
            return;
        }
        for bus in core::iter::successors(index.parent(place), |&bus| index.parent(bus)) {
            if index.node(bus).property("reg").is_none() {
                continue;
            }
            let (windows, others): (Vec<_>, Vec<_>) =
                core::mem::take(&mut self.hidden).into_iter().partition(|(owner, hidden)| {
                    *owner == bus && frames.iter().any(|frame| hidden.registers.contains_range(*frame))
                });
            self.hidden = others;
            for (_, Hidden { name, registers }) in windows {
                let rest = without(&[registers], frames);
                self.hidden.extend(rest.into_iter().map(|registers| (bus, Hidden { name: name.clone(), registers })));
            }
        }
    }

    fn finish(mut self) -> Result<Devices, MachineError> {
        let mut gic = self.gic.ok_or(MachineError::NoGic)?;
        if let Gic::V3(gic) = &mut gic {
            gic.its = self.its;
        }
        // Secure physical, physical, virtual: the binding requires these, and the guest needs the third.
        let timer = self.timer.filter(|timer| timer.interrupts.len() >= 3).ok_or(MachineError::NoTimer)?;
        self.virtio.sort_by_key(|device| device.registers);
        let Self { pmu, uart, rtc, virtio, hidden, notes, .. } = self;
        let hidden = hidden.into_iter().map(|(_, hidden)| hidden).collect();
        Ok(Devices { gic, timer, pmu, uart, rtc, virtio, hidden, notes })
    }
}

/// Whether the node stands for the CPUs' PMUv3 (Linux binding `arm/pmu`: `arm,armv8-pmuv3`, `arm,cortex-a72-pmu`…).
fn is_pmu(node: Node<'_, '_>) -> bool {
    let pmu = |name: &str| name == "arm,armv8-pmuv3" || name.starts_with("arm,") && name.ends_with("-pmu");
    node.property("reg").is_none() && node.strings("compatible").any(pmu)
}

/// The GIC's node, which says how interrupts are written.
struct Controller {
    place: Place,
    path: String,
    compatible: String,
    /// The generic timer, whose interrupts lead to it.
    timer: Option<Place>,
}

impl Controller {
    /// Finds it: of all interrupt controllers, the one that the CPUs' timer is at.
    fn find(index: &Index<'_, '_>) -> Result<Self, MachineError> {
        let is_timer = |&place: &Place| index.node(place).is_compatible("arm,armv8-timer");
        let timer = index.enabled_devices().find(is_timer).ok_or(MachineError::NoTimer)?;
        let place = match index.interrupts(timer).into_iter().next() {
            Some(Ok(interrupt)) => interrupt.controller,
            Some(Err(why)) => {
                let controller = |&place: &Place| index.node(place).property("interrupt-controller").is_some();
                return Err(match index.enabled_devices().find(controller) {
                    Some(_) => MachineError::NoTimerInterrupt { why },
                    None => MachineError::NoGic,
                });
            }
            None => return Err(MachineError::NoTimer),
        };
        let (node, path) = (index.node(place), index.path(place));
        let known = |name: &&str| *name == GIC_V3 || GIC_V2.contains(name);
        let Some(compatible) = node.strings("compatible").find(known) else {
            let compatible = node.string("compatible").unwrap_or("without a name").to_string();
            return Err(MachineError::UnknownGic { compatible });
        };
        // Kind, number, flags; a fourth cell names a PPI partition.
        if !matches!(node.cell("#interrupt-cells"), Some(3 | 4)) {
            return Err(MachineError::BadGic { path, lacks: "#interrupt-cells = <3>" });
        }
        Ok(Self { place, path, compatible: compatible.to_string(), timer: Some(timer) })
    }

    /// The interrupts of a node, up to the first that is not this controller's or not understood, of which `notes` tells.
    fn all_of(&self, index: &Index<'_, '_>, place: Place, notes: &mut Vec<String>) -> Vec<Interrupt> {
        let mut found = Vec::new();
        for interrupt in index.interrupts(place) {
            match self.interrupt(index, interrupt) {
                Ok(interrupt) => found.push(interrupt),
                Err(why) => {
                    if notes.len() < MAX_NOTES {
                        notes.push(format!("an interrupt of {} is left out: {why}", index.path(place)));
                    }
                    break;
                }
            }
        }
        found
    }

    /// The first interrupt of a node, if it is this controller's.
    fn first_of(&self, index: &Index<'_, '_>, place: Place, notes: &mut Vec<String>) -> Option<Interrupt> {
        self.all_of(index, place, notes).first().copied()
    }

    /// A device with one block of registers.
    fn device(&self, index: &Index<'_, '_>, place: Place, notes: &mut Vec<String>) -> Result<Device, MachineError> {
        let registers = first_register(index, place).ok_or_else(|| MachineError::BadReg { path: index.path(place) })?;
        Ok(Device {
            registers: registers.at_most(PERIPHERAL),
            interrupt: self.first_of(index, place, notes),
            dma_coherent: index.node(place).property("dma-coherent").is_some(),
        })
    }

    /// The interrupt in the terms of this controller, or a reason.
    fn interrupt(&self, index: &Index<'_, '_>, found: Result<Specifier, NoInterrupt>) -> Result<Interrupt, String> {
        let Specifier { controller, cells } = found.map_err(|why| why.to_string())?;
        if controller != self.place {
            return Err(format!("it is at {}, which is not the CPUs' interrupt controller", index.path(controller)));
        }
        match cells[..] {
            [0, number, flags, ..] => Ok(Interrupt { kind: InterruptKind::Spi, number, flags }),
            [1, number, flags, ..] => Ok(Interrupt { kind: InterruptKind::Ppi, number, flags }),
            _ => Err(format!("it is of a kind that is not passed on ({cells:?})")),
        }
    }

    /// The controller's own registers (Linux bindings `arm,gic` and `arm,gic-v3`), as many as the architecture has.
    fn read_gic(&self, index: &Index<'_, '_>) -> Result<Gic, MachineError> {
        let node = index.node(self.place);
        let lacks = |lacks| MachineError::BadGic { path: self.path.clone(), lacks };
        let reg = index.bus(self.place).reg(node).ok_or_else(|| lacks("readable registers"))?;
        let frame = |index: usize| reg.get(index).copied().filter(|frame| !frame.is_empty());
        let distributor = frame(0).ok_or_else(|| lacks("a distributor"))?;
        // EL2's own, which it does not use: nothing is lost where it is not understood.
        let maintenance = self.first_of(index, self.place, &mut Vec::new());
        if self.compatible != GIC_V3 {
            return Ok(Gic::V2(GicV2 {
                compatible: self.compatible.clone(),
                distributor: distributor.at_most(GICD_V2),
                cpu_interface: frame(1).ok_or_else(|| lacks("a CPU interface"))?.at_most(GICC_V2),
                maintenance,
            }));
        }
        let regions = node.cell("#redistributor-regions").unwrap_or(1) as usize;
        limit("GIC redistributor regions", regions, MAX_REGIONS)?;
        let redistributors: Option<Vec<PhysRange>> = (1..=regions).map(frame).collect();
        let redistributors = redistributors.filter(|regions| !regions.is_empty());
        let stride: Vec<u32> = node.cells("redistributor-stride").collect();
        Ok(Gic::V3(GicV3 {
            distributor: distributor.at_most(GICD_V3),
            redistributors: redistributors.ok_or_else(|| lacks("the redistributors that it counts"))?,
            redistributor_stride: crate::tree::number(&stride).filter(|&stride| stride != 0),
            its: Vec::new(),
            maintenance,
        }))
    }
}
