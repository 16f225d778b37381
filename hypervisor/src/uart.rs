//! The UARTs that boards have for a console: which one a node is, and what its registers want of a byte.
//!
//! EL2 only ever prints, and the firmware or QEMU has set the line up: a byte goes into the data register when the status
//! register says that there is room. The guest's driver does the rest.

use crate::tree::Node;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// The kinds of UART that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Arm PL011 (DDI 0183), and its subset of the Server Base System Architecture.
    Pl011,
    /// 16550 and its ancestor 8250: each register `1 << shift` bytes behind the one before, accessed by `width` bytes.
    Ns16550 {
        /// `reg-shift`.
        shift: u8,
        /// `reg-io-width`: 1, 2 or 4.
        width: u8,
    },
    /// Cadence's, of Zynq and ZynqMP (UG1087, module UART).
    Cadence,
    /// Of i.MX (IMX8MPRM, UART).
    Imx,
}

/// A UART as the tree has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    /// Its kind.
    pub model: Model,
    /// The names of its `compatible` that made it known, for the guest's tree.
    pub compatible: Vec<String>,
}

/// Where a byte that is printed goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Offset of the status register in bytes.
    pub status: u64,
    /// There is room for a byte when the status register's bits in `mask` are `room`.
    pub mask: u32,
    /// See `mask`.
    pub room: u32,
    /// Offset of the data register in bytes.
    pub data: u64,
    /// Bytes of an access to either: 1, 2 or 4.
    pub width: u8,
}

/// From the names in `compatible` to the kind; 16550's get their shape from the node (Linux bindings `serial/8250`,
/// `snps-dw-apb-uart`, `cdns,uart`, `fsl-imx-uart`, `pl011`, `arm,sbsa-uart`).
const KNOWN: [(&str, Model); 11] = [
    ("arm,pl011", Model::Pl011),
    ("arm,sbsa-uart", Model::Pl011),
    ("ns16550a", NS16550),
    ("ns16550", NS16550),
    ("ns8250", NS16550),
    ("snps,dw-apb-uart", NS16550),
    ("cdns,uart-r1p12", Model::Cadence),
    ("cdns,uart-r1p8", Model::Cadence),
    ("xlnx,xuartps", Model::Cadence),
    ("fsl,imx6q-uart", Model::Imx),
    ("fsl,imx21-uart", Model::Imx),
];

const NS16550: Model = Model::Ns16550 { shift: 0, width: 1 };

impl Uart {
    /// What the node is, if it is a UART that is known.
    pub fn of(node: Node<'_, '_>) -> Option<Self> {
        let known = |name: &str| KNOWN.iter().find(|(known, _)| *known == name).map(|&(_, model)| model);
        let model = match node.strings("compatible").find_map(known)? {
            Model::Ns16550 { .. } => {
                let shift = node.cell("reg-shift").unwrap_or(0);
                let width = node.cell("reg-io-width").unwrap_or(1);
                if shift > 4 || !matches!(width, 1 | 2 | 4) {
                    return None;
                }
                Model::Ns16550 { shift: shift as u8, width: width as u8 }
            }
            model => model,
        };
        let names = node.strings("compatible").filter(|&name| known(name).is_some());
        Some(Self { model, compatible: names.map(ToString::to_string).collect() })
    }
}

impl Model {
    /// How it is printed on.
    pub const fn output(self) -> Output {
        match self {
            // UARTFR.TXFF, UARTDR.
            Self::Pl011 => Output { status: 0x18, mask: 1 << 5, room: 0, data: 0, width: 4 },
            // LSR.THRE, THR.
            Self::Ns16550 { shift, width } => Output { status: 5 << shift, mask: 1 << 5, room: 1 << 5, data: 0, width },
            // Channel_sts.TFUL, TX_RX_FIFO.
            Self::Cadence => Output { status: 0x2c, mask: 1 << 4, room: 0, data: 0x30, width: 4 },
            // UTS.TXFULL, UTXD.
            Self::Imx => Output { status: 0xb4, mask: 1 << 4, room: 0, data: 0x40, width: 4 },
        }
    }

    /// The bytes of registers that the guest's driver needs, at most a page.
    pub const fn registers(self) -> u64 {
        match self {
            Self::Ns16550 { shift, .. } => 8 << shift,
            Self::Pl011 | Self::Cadence | Self::Imx => 4096,
        }
    }

    /// The names of the clocks that the guest's driver asks for, all of one rate.
    pub const fn clocks(self) -> &'static [&'static str] {
        match self {
            Self::Pl011 => &["uartclk", "apb_pclk"],
            Self::Ns16550 { .. } => &[],
            Self::Cadence => &["uart_clk", "pclk"],
            Self::Imx => &["ipg", "per"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;
    use crate::tree::edit::Branch;

    fn uart(compatible: &[u8], cells: &[(&str, u32)]) -> Option<Uart> {
        let mut tree = Branch::new("");
        let mut node = Branch::new("serial@1000");
        node.set("compatible", compatible);
        for (name, cell) in cells {
            node.set_cells(name, &[*cell]);
        }
        tree.add(node);
        let checked = tree.checked();
        let tree = Tree::open(&checked);
        Uart::of(tree.root().unwrap().child("serial").unwrap())
    }

    #[test]
    fn each_kind_is_known_by_its_names() {
        for (compatible, model) in [
            (&b"arm,pl011\0arm,primecell\0"[..], Model::Pl011),
            (b"arm,sbsa-uart\0", Model::Pl011),
            (b"ns16550a\0", Model::Ns16550 { shift: 0, width: 1 }),
            (b"xlnx,zynqmp-uart\0cdns,uart-r1p12\0xlnx,xuartps\0", Model::Cadence),
            (b"fsl,imx8mp-uart\0fsl,imx6q-uart\0", Model::Imx),
        ] {
            assert_eq!(uart(compatible, &[]).unwrap().model, model);
        }
        assert_eq!(uart(b"amlogic,meson-uart\0", &[]), None);
        let dw = uart(b"rockchip,rk3399-uart\0snps,dw-apb-uart\0", &[("reg-shift", 2), ("reg-io-width", 4)]).unwrap();
        assert_eq!(dw.model, Model::Ns16550 { shift: 2, width: 4 });
        assert_eq!(dw.compatible, ["snps,dw-apb-uart"]);
        assert_eq!(dw.model.output().status, 20);
        // A shape that no access has.
        assert_eq!(uart(b"ns16550a\0", &[("reg-io-width", 3)]), None);
        assert_eq!(uart(b"ns16550a\0", &[("reg-shift", 40)]), None);
    }
}
