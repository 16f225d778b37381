//! Trees as boards and other boot loaders have them: QEMU's with one change each. Bare Linux accepts every one.

use super::*;
use crate::range::PhysRange;
use crate::tree::testing::{GIC3, TestNode};
use crate::tree_check::CheckedTree;
use alloc::string::ToString;

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::with_size(start, size).unwrap()
}

fn read(change: impl FnOnce(&mut TestNode)) -> Result<Machine, MachineError> {
    let mut tree = TestNode::parse(GIC3);
    change(&mut tree);
    Machine::read(&tree.checked())
}

const KERNEL: &str = "chosen/module@0x48000000";
const INITRD: &str = "chosen/module@0x4c000000";

#[test]
fn adjacent_memory_nodes_are_one_range() {
    let machine = read(|tree| {
        tree.take("memory@40000000");
        for n in 0..78 {
            let mut node = TestNode::new(&alloc::format!("memory@{:x}", 0x4000_0000 + n * 0x80_0000));
            node.set("device_type", *b"memory\0").set_cells("reg", &[0, 0x4000_0000 + n * 0x80_0000, 0, 0x80_0000]);
            tree.add(node);
        }
    });
    assert_eq!(machine.unwrap().ram, [range(0x4000_0000, 78 * 0x80_0000)]);
}

#[test]
fn reserved_memory_that_says_little_is_read_like_its_parent() {
    for said in [&["ranges"][..], &["#address-cells"], &["ranges", "#address-cells", "#size-cells"]] {
        let machine = read(|tree| {
            let mut parent = TestNode::new("reserved-memory");
            parent.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]).set("ranges", []);
            for name in said {
                parent.unset(name);
            }
            let mut firmware = TestNode::new("firmware@50000000");
            firmware.set_cells("reg", &[0, 0x5000_0000, 0, 0x10_0000]);
            parent.add(firmware);
            tree.add(parent);
        });
        assert_eq!(machine.unwrap().reserved, [range(0x5000_0000, 0x10_0000)], "without {said:?}");
    }
}

#[test]
fn the_cpu_that_runs_needs_no_way_to_be_started() {
    let machine = read(|tree| {
        tree.at("cpus/cpu@2").unset("enable-method");
    })
    .unwrap();
    assert_eq!(machine.check_startable(2), Ok(()));
    assert_eq!(machine.check_startable(0), Err(MachineError::NotPsci { cpu: "cpu@2".into() }));
    let two = read(|tree| {
        tree.at("cpus/cpu@2").unset("enable-method");
        tree.at("cpus/cpu@3").unset("enable-method");
    });
    assert_eq!(two.unwrap_err(), MachineError::NotPsci { cpu: "cpu@3".into() });
}

#[test]
fn the_guests_command_line_is_bytes_and_the_hypervisors_is_text() {
    let machine = read(|tree| {
        tree.at(KERNEL).set("bootargs", *b"name=caf\xe9 quiet\0");
    });
    assert_eq!(machine.unwrap().kernel.as_ref().unwrap().bootargs.as_deref(), Some(&b"name=caf\xe9 quiet"[..]));
    let error = read(|tree| {
        tree.at("chosen").set("bootargs", *b"bbm=break \xff\0");
    })
    .unwrap_err();
    assert!(matches!(&error, MachineError::BadBootargs { property: "bootargs", .. }), "{error}");
    assert!(alloc::string::ToString::to_string(&error).contains("bbm=break"), "{error}");
}

#[test]
fn a_command_line_that_linux_would_cut_is_told() {
    let with = |length: usize| {
        read(|tree| {
            tree.at(KERNEL).set("bootargs", [alloc::vec![b'x'; length], alloc::vec![0]].concat());
        })
        .unwrap()
        .notes
    };
    assert!(with(2047)[0].starts_with("not given to the guest: flash@0, fw-cfg@"), "{:?}", with(2047));
    assert!(with(2048)[0].contains("2048 bytes"), "{:?}", with(2048));
}

#[test]
fn modules_by_xens_older_names_are_read() {
    let names = |kernel: &'static [u8], initrd: &'static [u8]| {
        read(|tree| {
            tree.at(KERNEL).set("compatible", kernel);
            tree.at(INITRD).set("compatible", initrd);
            // QEMU lists the initramfs first.
            let initrd = tree.at("chosen").take("module@0x4c000000");
            tree.at("chosen").add(initrd);
        })
    };
    for (kernel, initrd) in [
        (&b"xen,linux-zimage\0xen,multiboot-module\0"[..], &b"xen,linux-initrd\0xen,multiboot-module\0"[..]),
        (b"xen,linux-zimage\0multiboot,module\0", b"multiboot,ramdisk\0"),
        (b"multiboot,module\0", b"multiboot,module\0"),
        (b"xen,multiboot-module\0", b"multiboot,ramdisk\0multiboot,module\0"),
    ] {
        let machine = names(kernel, initrd).unwrap();
        assert_eq!(machine.kernel.as_ref().unwrap().range.start(), 0x4800_0000);
        assert_eq!(machine.initrd.unwrap().range.start(), 0x4c00_0000);
    }
    // A policy of Xen's is told and left alone; of a kind that nobody knows, refused.
    let machine = names(b"multiboot,module\0multiboot,kernel\0", b"xen,xsm-policy\0multiboot,module\0").unwrap();
    assert!(machine.initrd.is_none() && machine.notes[0].contains("module@0x4c000000"), "{:?}", machine.notes);
    let unknown = names(b"multiboot,module\0multiboot,kernel\0", b"multiboot,microcode\0multiboot,module\0");
    assert!(matches!(unknown.unwrap_err(), MachineError::UnknownModule { .. }));
}

#[test]
fn modules_below_a_node_of_their_own_are_read() {
    let machine = read(|tree| {
        let chosen = tree.at("chosen");
        let (kernel, initrd) = (chosen.take("module@0x48000000"), chosen.take("module@0x4c000000"));
        let mut modules = TestNode::new("modules");
        modules.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]).add(kernel).add(initrd);
        chosen.add(modules);
    })
    .unwrap();
    assert_eq!(machine.kernel.as_ref().unwrap().name, "/chosen/modules/module@0x48000000");
    assert!(machine.initrd.is_some());
}

/// Whose command line is whose, as Xen's documentation says; a module's own comes first.
#[test]
fn command_lines_are_given_out_as_xen_does() {
    let lines = |module: Option<&str>, chosen: &[(&str, &str)]| {
        let machine = read(|tree| {
            tree.at(KERNEL).unset("bootargs");
            tree.at("chosen").unset("bootargs");
            let zero = |text: &str| [text.as_bytes(), &[0]].concat();
            if let Some(text) = module {
                tree.at(KERNEL).set("bootargs", zero(text));
            }
            for (name, text) in chosen {
                tree.at("chosen").set(name, zero(text));
            }
        })
        .unwrap();
        let guest = machine.kernel.unwrap().bootargs.map(|bytes| String::from_utf8(bytes).unwrap());
        (machine.bootargs, guest.unwrap_or_default())
    };
    let (own, guest, plain) = ("xen,xen-bootargs", "xen,dom0-bootargs", "bootargs");
    let pair = |own: &str, guest: &str| (own.to_string(), guest.to_string());
    assert_eq!(lines(Some("quiet"), &[(plain, "log=debug")]), pair("log=debug", "quiet"));
    assert_eq!(lines(None, &[(guest, "quiet"), (plain, "log=debug")]), pair("log=debug", "quiet"));
    assert_eq!(lines(None, &[(own, "log=debug"), (plain, "quiet")]), pair("log=debug", "quiet"));
    assert_eq!(lines(None, &[(own, "log=debug"), (guest, "quiet"), (plain, "x")]), pair("log=debug", "quiet"));
    assert_eq!(lines(Some("quiet"), &[(own, "log=debug"), (guest, "x"), (plain, "x")]), pair("log=debug", "quiet"));
    // Where nothing says otherwise it is the hypervisor's: QEMU's `-append`.
    assert_eq!(lines(None, &[(plain, "log=debug")]), pair("log=debug", ""));
}

fn gic(tree: &mut TestNode) -> u32 {
    tree.at("intc@8000000").cells("phandle")[0]
}

fn intids(interrupts: &[Interrupt]) -> Vec<u32> {
    interrupts.iter().map(|interrupt| interrupt.intid()).collect()
}

/// As on a ZynqMP: one of them for all CPUs would be wrong for all but one.
#[test]
fn a_pmu_with_a_shared_interrupt_for_each_cpu_is_not_the_guest_s() {
    let machine = read(|tree| {
        tree.at("pmu").set_cells("interrupts", &[0, 143, 4, 0, 144, 4]);
    })
    .unwrap();
    assert_eq!(machine.pmu, None);
    assert!(machine.notes.iter().any(|note| note.starts_with("/pmu: ")), "{:?}", machine.notes);
}

#[test]
fn interrupts_that_name_their_controller_themselves_are_the_same() {
    let machine = read(|tree| {
        let gic = gic(tree);
        for path in ["timer", "pl011@9000000", "pmu", "virtio_mmio@a000000"] {
            let node = tree.at(path);
            let cells = node.cells("interrupts");
            let extended: Vec<u32> = cells.chunks(3).flat_map(|own| [&[gic], own].concat()).collect();
            node.unset("interrupts").set_cells("interrupts-extended", &extended);
        }
        tree.unset("interrupt-parent");
        // Two devices still say nothing: they are at no controller, and told.
    })
    .unwrap();
    assert_eq!(intids(&machine.timer.interrupts), [29, 30, 27, 26]);
    assert_eq!(machine.pmu.unwrap().intid(), 23);
    assert_eq!(machine.uart.unwrap().device.interrupt.unwrap().intid(), 33);
    assert_eq!(machine.virtio[0].interrupt.unwrap().intid(), 48);
    assert_eq!(machine.rtc.unwrap().interrupt, None);
    assert!(machine.notes.iter().any(|note| note.contains("/pl031@9010000")), "{:?}", machine.notes);
}

#[test]
fn an_interrupt_is_followed_through_a_map() {
    let machine = read(|tree| {
        let gic = gic(tree);
        let mut nexus = TestNode::new("nexus");
        nexus.set_cells("#interrupt-cells", &[1]).set_cells("#address-cells", &[0]).set_cells("phandle", &[0x70]);
        nexus.set_cells("interrupt-map", &[7, gic, 0, 0, 0, 41, 4]);
        tree.at("intc@8000000").set_cells("#address-cells", &[2]);
        tree.add(nexus);
        tree.at("pl011@9000000").set_cells("interrupt-parent", &[0x70]).set_cells("interrupts", &[7]);
    });
    assert_eq!(machine.unwrap().uart.unwrap().device.interrupt.unwrap().intid(), 41 + 32);
}

#[test]
fn the_gic_is_the_controller_that_the_timer_is_at() {
    // A pin controller first in the tree, with interrupts of its own.
    let machine = read(|tree| {
        let mut pins = TestNode::new("pinctrl@1000");
        pins.set("compatible", *b"vendor,pinctrl\0").set("interrupt-controller", []);
        pins.set_cells("#interrupt-cells", &[2]).set_cells("phandle", &[0x70]);
        tree.children.insert(0, pins);
        tree.at("pl031@9010000").set_cells("interrupt-parent", &[0x70]).set_cells("interrupts", &[5, 1]);
    })
    .unwrap();
    assert!(matches!(machine.gic, Gic::V3(_)));
    assert_eq!(machine.rtc.unwrap().interrupt, None);
    assert!(machine.notes.iter().any(|note| note.contains("/pinctrl@1000")), "{:?}", machine.notes);
    let other = read(|tree| {
        tree.at("intc@8000000").set("compatible", *b"vendor,aic\0");
    });
    assert_eq!(other.unwrap_err(), MachineError::UnknownGic { compatible: "vendor,aic".into() });
}

#[test]
fn what_linux_acts_on_in_the_timer_is_kept() {
    let machine = read(|tree| {
        let timer = tree.at("timer");
        timer.unset("always-on").set("fsl,erratum-a008585", []).set("vendor,own", []);
        timer.set_cells("clock-frequency", &[25_000_000]);
    })
    .unwrap();
    assert_eq!((&machine.timer.flags[..], machine.timer.clock_hz), (&["fsl,erratum-a008585"][..], Some(25_000_000)));
}

/// What a tree can make EL2 keep and look at is bounded where the tree is checked, so that the refusal is a sentence.
#[test]
fn a_tree_of_too_many_nodes_or_too_large_a_property_is_refused() {
    let with = |nodes: usize, bytes: usize| {
        let mut tree = TestNode::parse(GIC3);
        let missing = nodes - tree.paths().len();
        tree.children.extend((0..missing).map(|_| TestNode::new("n")));
        tree.set("vendor,blob", alloc::vec![0; bytes]);
        CheckedTree::new(&tree.bytes()).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(with(4096, 16 << 10), Ok(()));
    assert!(with(4097, 0).unwrap_err().contains("4096 nodes"));
    assert!(with(4000, (16 << 10) + 1).unwrap_err().contains("16385 bytes"));
}

/// A node of the largest size could otherwise make EL2 look at, and tell of, thousands.
#[test]
fn interrupts_and_what_is_told_of_them_are_limited() {
    let cells = |count: usize| [0, 5, 4].repeat(count);
    let machine = read(|tree| {
        tree.at("timer").set_cells("interrupts", &cells(1000));
        for n in 0..200_u32 {
            let mut node = TestNode::new(&alloc::format!("virtio_mmio@b{n:03x}000"));
            node.set("compatible", *b"virtio,mmio\0").set_cells("reg", &[0, 0xb00_0000 + n * 0x1000, 0, 0x200]);
            node.set_cells("interrupts", &[9, 9, 9]);
            tree.add(node);
        }
    });
    let machine = machine.unwrap();
    assert_eq!(machine.timer.interrupts.len(), 64);
    assert_eq!(machine.notes.iter().filter(|note| note.contains("is left out")).count(), 64);
}

/// i.MX's buses have a `reg`: their window, which everything on them lies in.
#[test]
fn a_device_in_the_window_of_its_bus_is_not_the_buss() {
    let on_bus = |window: [u32; 2]| {
        let machine = read(|tree| {
            let mut bus = TestNode::new("bus@9000000");
            bus.set("compatible", *b"fsl,aips-bus\0simple-bus\0").set("ranges", []);
            bus.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]);
            bus.set_cells("reg", &[0, window[0], 0, window[1]]);
            bus.add(tree.take("pl011@9000000"));
            tree.add(bus);
            tree.at("chosen").unset("stdout-path").set("stdout-path", *b"/bus@9000000/pl011@9000000\0");
        })
        .unwrap();
        let registers = GuestRegisters::new(&machine, &[]).map(|registers| registers.mapped());
        (registers, machine.hidden)
    };
    let (mapped, hidden) = on_bus([0x8f0_0000, 0x10_2000]);
    assert!(mapped.unwrap().iter().any(|given| given.contains_range(range(0x900_0000, 0x1000))));
    // What else the window has is still nobody's.
    let rest = hidden.iter().filter(|hidden| hidden.name == "bus@9000000").map(|hidden| hidden.registers);
    assert_eq!(rest.collect::<Vec<_>>(), [range(0x8f0_0000, 0x10_0000), range(0x900_1000, 0x1000)]);
    // Registers of the bus that its device does not lie in are its own.
    let (mapped, _) = on_bus([0x900_0800, 0x1000]);
    assert!(matches!(mapped, Err(MachineError::SharedPage { .. })), "{mapped:?}");
}
