//! The console: which of the UARTs it is, and what a guest's driver must know of it.
//!
//! Firmware has used the UART that `stdout-path` names (Devicetree Specification 3.6), so its clock runs. Another may be off,
//! and on some boards an access to one that is off never ends: none is tried when that one is of no known kind.

use super::parts::{Device, PERIPHERAL, Uart};
use crate::range::PhysRange;
use crate::tree::index::{Index, Place};
use crate::tree::{Node, Tree};
use crate::tree_check::CheckedTree;
use crate::uart::{Kind, Port};
use alloc::format;
use alloc::string::{String, ToString};

/// UARTs that are known by one name.
struct Model {
    /// The name in `compatible`.
    name: &'static str,
    kind: Kind,
    /// What `reg-shift` is, where the node does not say.
    shift: u8,
    /// What `reg-io-width` is, where the node does not say.
    width: u8,
}

const fn model(name: &'static str, kind: Kind, shift: u8, width: u8) -> Model {
    Model { name, kind, shift, width }
}

/// The names (Linux bindings below `serial/`) that Linux has a driver for which needs no more than registers, an interrupt and
/// clocks; `reg-shift` and `reg-io-width` as those drivers have them.
const MODELS: [Model; 19] = [
    model("arm,pl011", Kind::Pl011, 0, 4),
    model("arm,sbsa-uart", Kind::Sbsa, 0, 4),
    model("ns8250", Kind::Ns16550, 0, 1),
    model("ns16450", Kind::Ns16550, 0, 1),
    model("ns16550", Kind::Ns16550, 0, 1),
    model("ns16550a", Kind::Ns16550, 0, 1),
    model("ns16750", Kind::Ns16550, 0, 1),
    model("ns16850", Kind::Ns16550, 0, 1),
    model("snps,dw-apb-uart", Kind::Ns16550, 0, 1),
    model("nvidia,tegra20-uart", Kind::Ns16550, 2, 4),
    model("mediatek,mt6577-uart", Kind::Ns16550, 2, 4),
    model("ti,am654-uart", Kind::Ns16550, 2, 1),
    model("xlnx,xuartps", Kind::Cadence, 0, 4),
    model("cdns,uart-r1p8", Kind::Cadence, 0, 4),
    model("cdns,uart-r1p12", Kind::Cadence, 0, 4),
    model("xlnx,zynqmp-uart", Kind::Cadence, 0, 4),
    model("fsl,imx21-uart", Kind::Imx, 0, 4),
    model("fsl,imx53-uart", Kind::Imx, 0, 4),
    model("fsl,imx6q-uart", Kind::Imx, 0, 4),
];

/// Properties of one cell, and without a value, that those drivers act on.
const CELLS: [&str; 7] =
    ["reg-shift", "reg-io-width", "reg-offset", "fifo-size", "tx-threshold", "current-speed", "arm,primecell-periphid"];
const FLAGS: [&str; 3] = ["no-loopback-test", "auto-flow-control", "fsl,dte-mode"];

/// The speed of a console that says none.
const DEFAULT_SPEED: u32 = 115_200;

/// The UART that is the console.
pub(super) struct Console {
    /// Its node.
    pub place: Place,
    port: Port,
    /// What stands behind the colon in `stdout-path`.
    options: Option<String>,
}

impl Console {
    /// The UART that `stdout-path` names, by path or alias; where it names nothing, the alias `serial0`, or else the first
    /// that is known.
    ///
    /// # Errors
    ///
    /// A sentence that says which there is instead, if any.
    pub fn find(index: &Index<'_, '_>) -> Result<Self, String> {
        let usable = |name: &str| index.named(name).filter(|&place| index.is_device(place) && index.is_enabled(place));
        let chosen = index.root().child("chosen");
        let stdout =
            chosen.and_then(|chosen| chosen.string("stdout-path").or_else(|| chosen.string("linux,stdout-path")));
        let (name, options) = stdout.map_or(("", ""), |path| path.split_once(':').unwrap_or((path, "")));
        if let Some(place) = usable(name) {
            let port = port(index, place).ok_or_else(|| {
                let names: alloc::vec::Vec<&str> = index.node(place).strings("compatible").take(4).collect();
                let path = index.path(place);
                format!("{path}, which stdout-path names, is not a UART that EL2 can print on ({})", names.join(", "))
            })?;
            // For the guest's own stdout-path: a rate, parity, bits, flow control.
            let plain = options.len() <= 16 && options.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let options = (plain && !options.is_empty()).then(|| options.to_string());
            return Ok(Self { place, port, options });
        }
        let mut candidates = usable("serial0").into_iter().chain(index.enabled_devices());
        let found = candidates.find_map(|place| Some((place, port(index, place)?)));
        let (place, port) = found.ok_or("the device tree has no UART that EL2 can print on")?;
        Ok(Self { place, port, options: None })
    }

    /// What is to be known of it. `device`: its registers and interrupt.
    pub fn uart(&self, index: &Index<'_, '_>, device: Device) -> Uart {
        let node = index.node(self.place);
        let known = |name| MODELS.iter().find(|model| model.kind == self.port.kind && model.name == name);
        let cells = CELLS.into_iter().filter_map(|name| Some((name, node.cell(name)?)));
        Uart {
            device,
            port: self.port,
            compatible: node.strings("compatible").filter_map(known).map(|model| model.name).collect(),
            clock_hz: node.cell("clock-frequency").or_else(|| fixed_clock_hz(index, node)),
            cells: cells.collect(),
            flags: FLAGS.into_iter().filter(|flag| node.property(flag).is_some()).collect(),
            line: line(index, self.place),
            options: self.options.clone(),
        }
    }
}

impl Uart {
    /// Bits a second that firmware has set it to: what `stdout-path` or the node says, or else what nearly all boards have.
    pub fn speed(&self) -> u32 {
        let options = self.options.as_deref().unwrap_or("");
        let digits = options.find(|char: char| !char.is_ascii_digit()).unwrap_or(options.len());
        let said = self.cells.iter().find(|(name, _)| *name == "current-speed").map(|(_, speed)| *speed);
        options[..digits].parse().ok().or(said).unwrap_or(DEFAULT_SPEED)
    }
}

/// The console's port, found on its own so that an unusable tree can still be complained about.
pub fn find_uart(tree: &CheckedTree) -> Option<Port> {
    let tree = Tree::open(tree);
    Console::find(&Index::new(tree.root()?)).ok().map(|console| console.port)
}

/// How bytes are sent on this device: nothing where it is no known UART, or has registers that EL2 could not reach.
fn port(index: &Index<'_, '_>, place: Place) -> Option<Port> {
    let node = index.node(place);
    let model = MODELS.iter().find(|model| node.is_compatible(model.name))?;
    let said = |name, default: u8| node.cell(name).map_or(Some(default), |cell| u8::try_from(cell).ok());
    let registers = first_register(index, place)?;
    let address = registers.start().checked_add(node.cell("reg-offset").unwrap_or(0).into())?;
    // Of the others, PL011 and SBSA's may say 1, 2 or 4; all of these buses take words.
    let (shift, width) = match model.kind {
        Kind::Ns16550 => (said("reg-shift", model.shift)?, said("reg-io-width", model.width)?),
        _ => (model.shift, model.width),
    };
    let port = Port { address, kind: model.kind, shift, width };
    let fits = shift <= 3
        && matches!(width, 1 | 2 | 4)
        && (width == 1 || 1 << shift >= width || model.kind != Kind::Ns16550)
        && node.property("big-endian").is_none()
        && address.is_multiple_of(width.into())
        && PhysRange::with_size(address, port.least_bytes())
            .is_some_and(|used| registers.at_most(PERIPHERAL).contains_range(used));
    fits.then_some(port)
}

/// The number in the alias `serialN` that stands for the node: Linux's name for its line has it.
fn line(index: &Index<'_, '_>, place: Place) -> Option<u32> {
    let (aliases, path) = (index.root().child("aliases")?, index.path(place));
    let numbers = aliases.properties().filter_map(|(name, _)| name.strip_prefix("serial")?.parse().ok());
    { numbers }.find(|number| aliases.string(&format!("serial{number}")) == Some(&path))
}

/// The first range in `reg`, when there is a byte in it.
pub(super) fn first_register(index: &Index<'_, '_>, place: Place) -> Option<PhysRange> {
    index.bus(place).reg(index.node(place))?.first().copied().filter(|range| !range.is_empty())
}

/// The rate of the first clock of `node`, where that is a `fixed-clock`.
fn fixed_clock_hz(index: &Index<'_, '_>, node: Node<'_, '_>) -> Option<u32> {
    let clock = index.node(index.with_phandle(node.cell("clocks")?)?);
    if clock.is_compatible("fixed-clock") { clock.cell("clock-frequency") } else { None }
}
