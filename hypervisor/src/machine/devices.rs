//! The devices: those that the hypervisor or the guest uses, and all others as hidden.

use super::error::MachineError;
use super::parts::{Device, Gic, GicV2, GicV3, Hidden, Interrupt, InterruptKind, MAX_REGIONS, Timer, limit};
use crate::range::{PhysRange, without};
use crate::tree::{Bus, Node, Tree};
use crate::tree_check::CheckedTree;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The most devices of one kind that are kept.
const MAX_DEVICES: usize = 2048;
/// Bytes of GICv2's distributor (Arm IHI 0048, 4.1.2) and CPU interface (4.1.3).
const GICD_V2: u64 = 4 << 10;
const GICC_V2: u64 = 8 << 10;
/// Bytes of GICv3's distributor (Arm IHI 0069, 12.8).
const GICD_V3: u64 = 64 << 10;
/// Bytes of a PL011 (Arm DDI 0183, 3.1) and of a PL031 (DDI 0224, 3.1); a virtio-mmio transport has no more.
const PERIPHERAL: u64 = 4 << 10;
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
    pub uart: Option<Device>,
    pub uart_clock_hz: Option<u32>,
    pub uart_id: Option<u32>,
    pub rtc: Option<Device>,
    pub virtio: Vec<Device>,
    pub hidden: Vec<Hidden>,
}

impl Devices {
    pub(super) fn read(root: Node<'_, '_>) -> Result<Self, MachineError> {
        let controller = Controller::find(root)?;
        let console = console_path(root);
        let mut found = Found::default();
        visit_all(root, &mut |path, node, bus, enabled| {
            let interrupts = || controller.interrupts_of(node);
            let device = || read_device(path, node, bus, interrupts().first().copied());
            // The part of each range in its `reg` that the guest may be given.
            let mut frames = Vec::new();
            if !enabled {
                // Its registers are where they are all the same.
            } else if path == controller.path {
                let gic = controller.read_gic(node, bus)?;
                frames = gic.frames();
                found.gic = Some(gic);
            } else if node.is_compatible("arm,armv8-timer") {
                found.timer = Some(Timer {
                    interrupts: interrupts(),
                    names: node.strings("interrupt-names").map(ToString::to_string).collect(),
                    always_on: node.property("always-on").is_some(),
                });
            } else if is_pmu(node) {
                found.pmu = interrupts().first().copied();
            } else if console.as_deref() == Some(path) {
                frames.push(found.uart.insert(device()?).registers);
                found.uart_clock_hz = fixed_clock_hz(root, node);
                found.uart_id = node.cell("arm,primecell-periphid");
            } else if node.is_compatible("arm,pl031") && found.rtc.is_none() {
                frames.push(found.rtc.insert(device()?).registers);
            } else if node.is_compatible("virtio,mmio") {
                let device = device()?;
                frames.push(device.registers);
                found.virtio.push(device);
            } else if node.is_compatible("arm,gic-v3-its") {
                found.its.extend(bus.readable_reg(node).filter(|range| !range.is_empty()));
            }
            found.hide_others(node, bus, &frames);
            limit("devices", found.hidden.len().max(found.virtio.len()), MAX_DEVICES)
        })?;
        found.finish()
    }
}

/// The same while it is not yet known to be complete.
#[derive(Default)]
struct Found {
    gic: Option<Gic>,
    its: Vec<PhysRange>,
    timer: Option<Timer>,
    pmu: Option<Interrupt>,
    uart: Option<Device>,
    uart_clock_hz: Option<u32>,
    uart_id: Option<u32>,
    rtc: Option<Device>,
    virtio: Vec<Device>,
    hidden: Vec<Hidden>,
}

impl Found {
    /// Notes as hidden what the `reg` of `node` has beyond `frames`, which are parts of its first ranges, one of each.
    fn hide_others(&mut self, node: Node<'_, '_>, bus: &Bus, frames: &[PhysRange]) {
        for (index, range) in bus.readable_reg(node).enumerate() {
            let rest = without(&[range], frames.get(index).map_or(&[], core::slice::from_ref));
            self.hidden.extend(rest.into_iter().map(|registers| Hidden { name: node.name().to_string(), registers }));
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
        let Self { pmu, uart, uart_clock_hz, uart_id, rtc, virtio, hidden, .. } = self;
        Ok(Devices { gic, timer, pmu, uart, uart_clock_hz, uart_id, rtc, virtio, hidden })
    }
}

/// The console's registers, found on their own so that an unusable tree can still be complained about.
pub fn find_uart(tree: &CheckedTree) -> Option<PhysRange> {
    let tree = Tree::open(tree);
    let root = tree.root()?;
    let console = console_path(root)?;
    let mut registers = None;
    // Looking never fails.
    let _ = visit(root, &mut |path, node, bus| {
        if path == console {
            registers = first_register(node, bus);
        }
        Ok(())
    });
    registers
}

/// The path of the PL011 that is the console: the one that `stdout-path` names (by path or alias, options behind a
/// colon), or else the first.
fn console_path(root: Node<'_, '_>) -> Option<String> {
    let stdout = root.child("chosen").and_then(|chosen| chosen.string("stdout-path"));
    let stdout = stdout.and_then(|path| path.split(':').next());
    let aliased = stdout.filter(|path| !path.starts_with('/')).and_then(|alias| root.child("aliases")?.string(alias));
    let wanted = aliased.or(stdout);
    let (mut first, mut named) = (None, false);
    // Looking never fails.
    let _ = visit(root, &mut |path, node, bus| {
        if node.is_compatible("arm,pl011") && first_register(node, bus).is_some() && !named {
            named = wanted == Some(path);
            if named || first.is_none() {
                first = Some(path.to_string());
            }
        }
        Ok(())
    });
    first
}

/// [`visit_all`] for the nodes that are enabled.
fn visit<'b, 'a: 'b>(
    root: Node<'b, 'a>,
    found: &mut impl FnMut(&str, Node<'b, 'a>, &Bus) -> Result<(), MachineError>,
) -> Result<(), MachineError> {
    visit_all(root, &mut |path, node, bus, enabled| if enabled { found(path, node, bus) } else { Ok(()) })
}

/// Calls `found` for every node that can be a device, with its path, the bus that it is on, and whether it and all above it
/// are enabled. Leaves out what has other meaning: `/cpus`, `/chosen`, `/reserved-memory`, memory that is there.
fn visit_all<'b, 'a: 'b>(
    root: Node<'b, 'a>,
    found: &mut impl FnMut(&str, Node<'b, 'a>, &Bus, bool) -> Result<(), MachineError>,
) -> Result<(), MachineError> {
    let bus = Bus::of_root(root);
    let other = |node: &Node<'_, '_>| {
        matches!(node.base_name(), "cpus" | "chosen" | "aliases" | "reserved-memory")
            || node.string("device_type") == Some("memory") && node.is_enabled()
    };
    for node in root.children().filter(|node| !other(node)) {
        visit_below(&mut String::new(), node, &bus, true, found)?;
    }
    Ok(())
}

/// [`visit_all`] for `node`, whose parent's path is `path`, and for what is below it.
fn visit_below<'b, 'a: 'b>(
    path: &mut String,
    node: Node<'b, 'a>,
    bus: &Bus,
    enabled: bool,
    found: &mut impl FnMut(&str, Node<'b, 'a>, &Bus, bool) -> Result<(), MachineError>,
) -> Result<(), MachineError> {
    let enabled = enabled && node.is_enabled();
    let parent = path.len();
    path.push('/');
    path.push_str(node.name());
    found(path, node, bus, enabled)?;
    let below = bus.below(node);
    for child in node.children() {
        visit_below(path, child, &below, enabled, found)?;
    }
    path.truncate(parent);
    Ok(())
}

/// The first range in `reg`, when there is a byte in it.
fn first_register(node: Node<'_, '_>, bus: &Bus) -> Option<PhysRange> {
    bus.reg(node)?.first().copied().filter(|range| !range.is_empty())
}

fn read_device(
    path: &str,
    node: Node<'_, '_>,
    bus: &Bus,
    interrupt: Option<Interrupt>,
) -> Result<Device, MachineError> {
    let registers = first_register(node, bus).ok_or_else(|| MachineError::BadReg { path: path.to_string() })?;
    Ok(Device {
        registers: registers.at_most(PERIPHERAL),
        interrupt,
        dma_coherent: node.property("dma-coherent").is_some(),
    })
}

/// The rate of the first clock of `node`, where that is a `fixed-clock`.
fn fixed_clock_hz(root: Node<'_, '_>, node: Node<'_, '_>) -> Option<u32> {
    let clock = with_phandle(root, node.cell("clocks")?)?;
    if clock.is_compatible("fixed-clock") { clock.cell("clock-frequency") } else { None }
}

/// The node at or below `node` with this phandle.
fn with_phandle<'b, 'a>(node: Node<'b, 'a>, phandle: u32) -> Option<Node<'b, 'a>> {
    if node.cell("phandle") == Some(phandle) {
        return Some(node);
    }
    node.children().find_map(|child| with_phandle(child, phandle))
}

/// Whether the node stands for the CPUs' PMUv3 (Linux binding `arm/pmu`: `arm,armv8-pmuv3`, `arm,cortex-a72-pmu`…).
fn is_pmu(node: Node<'_, '_>) -> bool {
    let pmu = |name: &str| name == "arm,armv8-pmuv3" || name.starts_with("arm,") && name.ends_with("-pmu");
    node.property("reg").is_none() && node.strings("compatible").any(pmu)
}

/// The GIC's node, which says how interrupts are written.
struct Controller {
    path: String,
    phandle: Option<u32>,
    interrupt_cells: usize,
    /// Whether nodes are taken to use this controller when they don't say: the root's `interrupt-parent` is this one.
    is_default: bool,
    compatible: String,
}

impl Controller {
    /// Finds it. A tree whose interrupt controllers are all unknown gets an error that names the first.
    fn find(root: Node<'_, '_>) -> Result<Self, MachineError> {
        let (mut controller, mut unknown) = (None, None);
        visit(root, &mut |path, node, _| {
            if node.property("interrupt-controller").is_none() || controller.is_some() {
                return Ok(());
            }
            let known = |name: &&str| *name == GIC_V3 || GIC_V2.contains(name);
            match node.strings("compatible").find(known) {
                Some(name) => {
                    let phandle = node.cell("phandle");
                    let parent = root.cell("interrupt-parent");
                    controller = Some(Self {
                        path: path.to_string(),
                        phandle,
                        interrupt_cells: node.cell("#interrupt-cells").unwrap_or(0) as usize,
                        is_default: parent.is_none() || parent == phandle,
                        compatible: name.to_string(),
                    });
                }
                None => unknown = unknown.take().or_else(|| node.string("compatible").map(ToString::to_string)),
            }
            Ok(())
        })?;
        let controller = controller.ok_or(match unknown {
            Some(compatible) => MachineError::UnknownGic { compatible },
            None => MachineError::NoGic,
        })?;
        // Kind, number, flags; a fourth cell names a PPI partition.
        if (3..=4).contains(&controller.interrupt_cells) {
            Ok(controller)
        } else {
            Err(MachineError::BadGic { path: controller.path, lacks: "#interrupt-cells = <3>" })
        }
    }

    /// The interrupts of a node that sit at this controller.
    fn interrupts_of(&self, node: Node<'_, '_>) -> Vec<Interrupt> {
        let here = match node.cell("interrupt-parent") {
            Some(parent) => Some(parent) == self.phandle,
            None => self.is_default,
        };
        let cells: Vec<u32> = if here { node.cells("interrupts").collect() } else { Vec::new() };
        let interrupt = |cells: &[u32]| match *cells {
            [0, number, flags, ..] => Some(Interrupt { kind: InterruptKind::Spi, number, flags }),
            [1, number, flags, ..] => Some(Interrupt { kind: InterruptKind::Ppi, number, flags }),
            _ => None,
        };
        cells.chunks_exact(self.interrupt_cells).map_while(interrupt).collect()
    }

    /// The controller's own registers (Linux bindings `arm,gic` and `arm,gic-v3`), as many as the architecture has.
    fn read_gic(&self, node: Node<'_, '_>, bus: &Bus) -> Result<Gic, MachineError> {
        let lacks = |lacks| MachineError::BadGic { path: self.path.clone(), lacks };
        let reg = bus.reg(node).ok_or_else(|| lacks("readable registers"))?;
        let frame = |index: usize| reg.get(index).copied().filter(|frame| !frame.is_empty());
        let distributor = frame(0).ok_or_else(|| lacks("a distributor"))?;
        let maintenance = self.interrupts_of(node).first().copied();
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
