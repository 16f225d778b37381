//! Which UART is the console, of every kind and name.

use super::*;
use crate::tree::testing::{GIC3, TestNode};
use crate::uart::{Kind, Port};
use alloc::string::ToString;

const UART: &str = "pl011@9000000";

fn read(change: impl FnOnce(&mut TestNode)) -> Machine {
    let mut tree = TestNode::parse(GIC3);
    change(&mut tree);
    Machine::read(&tree.checked()).unwrap()
}

#[test]
fn the_console_is_the_uart_that_stdout_names() {
    let second = |tree: &mut TestNode| {
        let mut uart = tree.at("pl011@9000000").clone();
        uart.name = "pl011@9040000".to_string();
        uart.set_cells("reg", &[0, 0x904_0000, 0, 0x1000]);
        tree.add(uart);
        let mut aliases = TestNode::new("aliases");
        aliases.set("serial0", *b"/pl011@9000000\0").set("serial1", *b"/pl011@9040000\0");
        tree.add(aliases);
    };
    for (stdout, wanted) in [
        (&b"/pl011@9040000\0"[..], 0x904_0000),
        (b"/pl011@9040000:115200n8\0", 0x904_0000),
        (b"serial1\0", 0x904_0000),
        (b"serial1:115200\0", 0x904_0000),
        (b"/pl011@9000000\0", 0x900_0000),
        // Names nothing: the first that there is.
        (b"serial7\0", 0x900_0000),
        (b"\xff\xfe", 0x900_0000),
        (b"", 0x900_0000),
    ] {
        let mut tree = TestNode::parse(GIC3);
        second(&mut tree);
        tree.at("chosen").set("stdout-path", stdout);
        let machine = Machine::read(&tree.checked()).unwrap();
        assert_eq!(machine.uart.unwrap().device.registers.start(), wanted, "{stdout:?}");
        assert_eq!(find_uart(&tree.checked()).unwrap().address, wanted, "{stdout:?}");
        // The other one is nobody's.
        let other = 0x900_0000 + 0x904_0000 - wanted;
        assert!(machine.hidden.iter().any(|hidden| hidden.registers.start() == other));
    }
}

#[test]
fn a_console_is_found_in_an_otherwise_empty_tree() {
    let mut tree = TestNode::new("");
    assert_eq!(find_uart(&tree.checked()), None);
    let mut uart = TestNode::new("serial@1000");
    uart.set("compatible", *b"arm,pl011\0").set_cells("reg", &[0, 0x1000, 0x100]);
    tree.add(uart);
    assert_eq!(find_uart(&tree.checked()), Some(Port::pl011(0x1000)));
}

/// EL2 prints on the console, and would fault on registers that are not aligned or not there.
#[test]
fn a_pl011_that_cannot_be_reached_is_no_console() {
    let console = |start: u32, size: u32| {
        let machine = read(|tree| {
            tree.at("pl011@9000000").set_cells("reg", &[0, start, 0, size]);
        });
        machine.uart.map(|uart| uart.device.registers.start())
    };
    assert_eq!(console(0x900_0004, 0x48), Some(0x900_0004));
    assert_eq!(console(0x900_0002, 0x48), None);
    assert_eq!(console(0x900_0000, 0x47), None);
}

fn strings(names: &[&str]) -> Vec<u8> {
    names.iter().flat_map(|name| [name.as_bytes(), &[0]].concat()).collect()
}

/// QEMU's machine with another UART in the PL011's place.
fn with(names: &[&str], cells: &[(&str, u32)]) -> Machine {
    read(|tree| {
        let uart = tree.at(UART);
        uart.set("compatible", strings(names)).unset("clocks").unset("clock-names");
        for (name, cell) in cells {
            uart.set_cells(name, &[*cell]);
        }
    })
}

#[test]
fn uarts_are_known_by_any_of_their_names() {
    for (names, cells, kind, shift, width) in [
        (&["arm,sbsa-uart"][..], &[("current-speed", 115_200)][..], Kind::Sbsa, 0, 4),
        (&["ns16550a"], &[], Kind::Ns16550, 0, 1),
        (&["fsl,ns16550", "ns16550a"], &[("clock-frequency", 1_843_200)], Kind::Ns16550, 0, 1),
        (&["rockchip,rk3399-uart", "snps,dw-apb-uart"], &[("reg-shift", 2), ("reg-io-width", 4)], Kind::Ns16550, 2, 4),
        (&["snps,dw-apb-uart"], &[("reg-shift", 2), ("reg-io-width", 1)], Kind::Ns16550, 2, 1),
        (&["nvidia,tegra210-uart", "nvidia,tegra20-uart"], &[("reg-shift", 2)], Kind::Ns16550, 2, 4),
        (&["mediatek,mt8183-uart", "mediatek,mt6577-uart"], &[], Kind::Ns16550, 2, 4),
        (&["ti,am64-uart", "ti,am654-uart"], &[("clock-frequency", 48_000_000)], Kind::Ns16550, 2, 1),
        (&["xlnx,zynqmp-uart", "cdns,uart-r1p12"], &[], Kind::Cadence, 0, 4),
        (&["xlnx,xuartps"], &[], Kind::Cadence, 0, 4),
        (&["fsl,imx8mp-uart", "fsl,imx6q-uart"], &[], Kind::Imx, 0, 4),
    ] {
        let uart = with(names, cells).uart.unwrap();
        assert_eq!(uart.port, Port { address: 0x900_0000, kind, shift, width }, "{names:?}");
        assert!(names.ends_with(&uart.compatible[uart.compatible.len() - 1..]), "{:?} of {names:?}", uart.compatible);
        assert_eq!(uart.device.interrupt.unwrap().intid(), 33);
    }
}

#[test]
fn a_board_without_a_uart_that_is_known_says_so() {
    let machine = with(&["qcom,geni-debug-uart"], &[]);
    assert_eq!(machine.uart, None);
    let told = |word: &str| machine.notes.iter().any(|note| note.starts_with("no console: ") && note.contains(word));
    assert!(told("/pl011@9000000") && told("qcom,geni-debug-uart"), "{:?}", machine.notes);
    assert!(machine.hidden.iter().any(|hidden| hidden.name == UART));
    let none = read(|tree| {
        tree.take(UART);
    });
    assert!(none.uart.is_none() && none.notes.iter().any(|note| note.contains("has no UART")), "{:?}", none.notes);
}

/// Another may be off, and an access to one that is off may never end.
#[test]
fn no_other_uart_is_tried_than_the_one_that_firmware_has_used() {
    let machine = read(|tree| {
        let mut other = tree.at(UART).clone();
        other.name = "pl011@9040000".to_string();
        other.set_cells("reg", &[0, 0x904_0000, 0, 0x1000]);
        tree.add(other);
        tree.at(UART).set("compatible", *b"vendor,uart\0");
    });
    assert_eq!(machine.uart, None);
}

/// What EL2 cannot be sure to drive it leaves alone.
#[test]
fn a_16550_whose_registers_lie_elsewhere_is_no_console() {
    let reached = |cells: &[(&str, u32)]| with(&["ns16550a"], cells).uart.map(|uart| uart.port.address);
    assert_eq!(reached(&[]), Some(0x900_0000));
    assert_eq!(reached(&[("reg-offset", 0x100)]), Some(0x900_0100));
    assert_eq!(reached(&[("reg-offset", 0xff9)]), None);
    assert_eq!(reached(&[("reg-offset", 0x1000)]), None, "the guest gets 4 KiB of it");
    assert_eq!(reached(&[("reg-offset", 2), ("reg-shift", 2), ("reg-io-width", 4)]), None);
    assert_eq!(reached(&[("reg-shift", 4)]), None);
    assert_eq!(reached(&[("reg-shift", 0x1_00)]), None);
    assert_eq!(reached(&[("reg-io-width", 8)]), None);
    assert_eq!(reached(&[("reg-io-width", 4)]), None);
    assert_eq!(reached(&[("big-endian", 0)]), None);
}

#[test]
fn how_the_boot_loader_set_it_up_and_numbers_it_is_kept() {
    let machine = |stdout: &[u8]| {
        let stdout = stdout.to_vec();
        let machine = read(|tree| {
            let mut aliases = TestNode::new("aliases");
            aliases.set("serial0", *b"/elsewhere\0").set("serial2", *b"/pl011@9000000\0");
            tree.add(aliases);
            tree.at("chosen").unset("stdout-path").set("stdout-path", stdout);
        });
        let uart = machine.uart.unwrap();
        (uart.line, uart.options)
    };
    assert_eq!(machine(b"serial2:115200n8\0"), (Some(2), Some("115200n8".into())));
    assert_eq!(machine(b"/pl011@9000000\0"), (Some(2), None));
    assert_eq!(machine(b"serial2:a b\0"), (Some(2), None));
    assert_eq!(machine(b"serial2:01234567890123456\0"), (Some(2), None));
    // The name of old.
    let old = read(|tree| {
        let chosen = tree.at("chosen");
        chosen.unset("stdout-path").set("linux,stdout-path", *b"/pl011@9000000:9600\0");
    });
    assert_eq!(old.uart.unwrap().options.as_deref(), Some("9600"));
}

#[test]
fn its_speed_is_what_firmware_has_been_told_by_the_same_tree() {
    let speed = |stdout: &[u8], cells: &[(&str, u32)]| {
        let machine = read(|tree| {
            tree.at("chosen").set("stdout-path", stdout);
            for (name, cell) in cells {
                tree.at(UART).set_cells(name, &[*cell]);
            }
        });
        machine.uart.unwrap().speed()
    };
    assert_eq!(speed(b"/pl011@9000000:1500000n8\0", &[]), 1_500_000);
    assert_eq!(speed(b"/pl011@9000000:9600\0", &[("current-speed", 19_200)]), 9600);
    assert_eq!(speed(b"/pl011@9000000\0", &[("current-speed", 19_200)]), 19_200);
    for options in [&b"/pl011@9000000\0"[..], b"/pl011@9000000:n8\0", b"/pl011@9000000:99999999999\0"] {
        assert_eq!(speed(options, &[]), 115_200, "{options:?}");
    }
}
