//! The console's node: what Linux's driver for each kind of UART wants there to be.

use super::{Given, text};
use crate::tree::testing::{GIC3, TestNode};

#[test]
fn the_uarts_registers_and_id_are_the_trees() {
    let mut tree = TestNode::parse(GIC3);
    tree.at("pl011@9000000").set_cells("reg", &[0, 0x900_0000, 0, 0x200]);
    tree.at("pl011@9000000").set_cells("arm,primecell-periphid", &[0x34_1011]);
    let given = Given::all(&tree.bytes());
    let uart = given.written(&given.guest()).take("pl011@9000000");
    assert_eq!(uart.cells("reg"), [0, 0x900_0000, 0, 0x200]);
    assert_eq!(uart.cells("arm,primecell-periphid"), [0x34_1011]);
}

/// The node for QEMU's machine with another UART in the PL011's place, which has a clock of 48 MHz.
fn node(names: &str, cells: &[(&str, u32)]) -> TestNode {
    let mut tree = TestNode::parse(GIC3);
    let uart = tree.at("pl011@9000000");
    uart.set("compatible", names.replace(' ', "\0") + "\0").set("vendor,own", []);
    for (name, cell) in cells {
        uart.set_cells(name, &[*cell]);
    }
    tree.at("apb-pclk").set_cells("clock-frequency", &[48_000_000]);
    let given = Given::all(&tree.bytes());
    let mut written = given.written(&given.guest());
    let path = String::from_utf8(text(written.at("chosen"), "stdout-path").to_vec()).unwrap();
    let path = path.trim_end_matches('\0');
    let node = written.at(path).clone();
    assert_eq!(text(written.at("aliases"), "serial0"), (path.to_string() + "\0").as_bytes());
    // Whatever it is, these are the machine's, and nothing is there that is not on the list.
    assert_eq!(node.cells("reg"), [0, 0x900_0000, 0, 0x1000]);
    assert_eq!((node.cells("interrupts"), node.property("vendor,own")), (vec![0, 1, 4], None));
    let clock = written.at("apb-pclk");
    assert_eq!(clock.cells("clock-frequency"), [48_000_000]);
    assert!(node.cells("clocks").iter().all(|phandle| clock.cells("phandle") == [*phandle]));
    node
}

#[test]
fn drivers_that_want_clocks_have_them_by_name() {
    for (names, written, clocks) in [
        ("arm,pl011 arm,primecell", "arm,pl011\0arm,primecell\0", "uartclk\0apb_pclk\0"),
        ("xlnx,zynqmp-uart cdns,uart-r1p12", "xlnx,zynqmp-uart\0cdns,uart-r1p12\0", "uart_clk\0pclk\0"),
        ("xlnx,xuartps", "xlnx,xuartps\0", "uart_clk\0pclk\0"),
        ("fsl,imx8mp-uart fsl,imx6q-uart", "fsl,imx6q-uart\0", "ipg\0per\0"),
        ("mediatek,mt8183-uart mediatek,mt6577-uart", "mediatek,mt6577-uart\0", "baud\0bus\0"),
    ] {
        let node = node(names, &[]);
        assert_eq!(text(&node, "compatible"), written.as_bytes());
        assert_eq!((text(&node, "clock-names"), node.cells("clocks").len()), (clocks.as_bytes(), 2));
        assert_eq!(node.property("clock-frequency"), None);
    }
}

#[test]
fn a_16550_has_its_registers_and_its_rate() {
    let plain = node("fsl,ns16550 ns16550a", &[]);
    assert_eq!((text(&plain, "compatible"), plain.cells("clock-frequency")), (&b"ns16550a\0"[..], vec![48_000_000]));
    assert_eq!((plain.property("clocks"), plain.property("reg-shift")), (None, None));
    let shifted = node("snps,dw-apb-uart", &[("reg-shift", 2), ("reg-io-width", 4), ("clock-frequency", 48_000_000)]);
    assert_eq!((shifted.cells("reg-shift"), shifted.cells("reg-io-width")), (vec![2], vec![4]));
    assert_eq!(shifted.cells("clock-frequency"), [48_000_000]);
}

/// Linux's driver does not take it without.
#[test]
fn what_is_left_of_a_pl011_has_a_speed() {
    assert_eq!(node("arm,sbsa-uart", &[]).cells("current-speed"), [115_200]);
    let told = node("arm,sbsa-uart", &[("current-speed", 9600)]);
    assert_eq!((told.cells("current-speed"), told.property("clocks")), (vec![9600], None));
}

#[test]
fn the_line_has_the_machines_number_and_speed() {
    let mut tree = TestNode::parse(GIC3);
    let mut aliases = TestNode::new("aliases");
    aliases.set("serial3", *b"/pl011@9000000\0");
    tree.add(aliases).at("chosen").unset("stdout-path").set("stdout-path", *b"serial3:9600n8\0");
    let given = Given::all(&tree.bytes());
    let mut written = given.written(&given.guest());
    assert_eq!(text(written.at("chosen"), "stdout-path"), b"/pl011@9000000:9600n8\0");
    assert_eq!(text(written.at("aliases"), "serial3"), b"/pl011@9000000\0");
}
