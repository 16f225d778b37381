//! QEMU's machines read right, and every error from a tree that has just that wrong.

use super::*;
use crate::range::PhysRange;
use crate::tree::interrupts::NoInterrupt;
use crate::tree::testing::{GIC2, GIC3, MACHINES, SECURE_NUMA, TestNode};

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::with_size(start, size).unwrap()
}

fn read(tree: &TestNode) -> Result<Machine, MachineError> {
    Machine::read(&tree.checked())
}

/// Changes one of QEMU's trees and says what reading it fails with.
fn error(original: &[u8], change: impl FnOnce(&mut TestNode)) -> MachineError {
    let mut tree = TestNode::parse(original);
    assert!(read(&tree).is_ok());
    change(&mut tree);
    read(&tree).unwrap_err()
}

/// The same for a change that must not hurt.
fn machine(original: &[u8], change: impl FnOnce(&mut TestNode)) -> Machine {
    let mut tree = TestNode::parse(original);
    change(&mut tree);
    read(&tree).unwrap()
}

fn ppi(number: u32, flags: u32) -> Interrupt {
    Interrupt { kind: InterruptKind::Ppi, number, flags }
}

fn spi(number: u32, flags: u32) -> Interrupt {
    Interrupt { kind: InterruptKind::Spi, number, flags }
}

#[test]
fn qemus_machines_are_read() {
    for (gic, cpus, memory, tree) in MACHINES {
        let machine = machine(tree, |_| ());
        assert_eq!(machine.ram, [range(0x4000_0000, memory)]);
        assert_eq!(machine.reserved, []);
        let mpidrs: Vec<u64> = machine.cpus.iter().map(|cpu| cpu.mpidr).collect();
        assert_eq!(mpidrs, (0..cpus as u64).collect::<Vec<_>>());
        assert_eq!(machine.cpu_map.iter().filter_map(|entry| entry.mpidr).collect::<Vec<_>>(), mpidrs);
        assert_eq!(machine.psci, Conduit::Smc);
        assert_eq!(machine.timer.interrupts.iter().map(|irq| irq.intid()).collect::<Vec<_>>(), [29, 30, 27, 26]);
        assert!(machine.timer.flags == ["always-on"] && machine.timer.names.is_empty());
        assert_eq!(machine.pmu.unwrap().intid(), 23);
        let uart = Device { registers: range(0x900_0000, 0x1000), interrupt: Some(spi(1, 4)), dma_coherent: false };
        assert_eq!((machine.uart, machine.uart_clock_hz), (Some(uart), Some(24_000_000)));
        let rtc = Device { registers: range(0x901_0000, 0x1000), interrupt: Some(spi(2, 4)), dma_coherent: false };
        assert_eq!(machine.rtc, Some(rtc));
        assert_eq!(machine.virtio.len(), 32);
        for (index, device) in (0..).zip(&machine.virtio) {
            let interrupt = Some(spi(16 + index as u32, 1));
            assert_eq!(
                *device,
                Device { registers: range(0xa00_0000 + index * 0x200, 0x200), interrupt, dma_coherent: true }
            );
        }
        assert_eq!(machine.kernel.name, "/chosen/module@0x48000000");
        assert_eq!(machine.kernel.range, range(0x4800_0000, 1 << 20));
        assert_eq!(machine.kernel.bootargs.as_deref(), Some(&b"console=ttyAMA0 quiet"[..]));
        let initrd = machine.initrd.unwrap();
        assert_eq!((initrd.range, initrd.bootargs), (range(0x4c00_0000, 3 << 20), None));
        assert_eq!(machine.bootargs, "log=debug bbm=auto");
        assert_eq!((machine.rng_seed.len(), machine.kaslr_seed.is_some()), (32, true));
        let hidden = |name: &str| machine.hidden.iter().any(|hidden| hidden.name == name);
        assert!(hidden("fw-cfg@9020000") && hidden("pcie@10000000") && hidden("pl061@9030000") && hidden("flash@0"));
        match machine.gic {
            Gic::V2(found) => {
                assert_eq!(gic, 2);
                assert_eq!(found.compatible, "arm,cortex-a15-gic");
                assert_eq!(found.distributor, range(0x800_0000, 0x1000));
                assert_eq!(found.cpu_interface, range(0x801_0000, 0x2000));
                let rest = machine.hidden.iter().filter(|hidden| hidden.name == "intc@8000000");
                assert_eq!(
                    rest.map(|hidden| hidden.registers).collect::<Vec<_>>(),
                    [
                        range(0x800_1000, 0xf000),
                        range(0x801_2000, 0xe000),
                        range(0x803_0000, 0x1_0000),
                        range(0x804_0000, 0x1_0000)
                    ]
                );
                assert_eq!(found.maintenance, Some(ppi(9, 4)));
                assert!(hidden("v2m@8020000"));
            }
            Gic::V3(found) => {
                assert_eq!(gic, 3);
                assert_eq!(found.distributor, range(0x800_0000, 0x1_0000));
                assert_eq!(found.redistributors, [range(0x80a_0000, 0xf6_0000)]);
                assert_eq!(found.redistributor_stride, None);
                assert_eq!(found.its, [range(0x808_0000, 0x2_0000)]);
                assert_eq!(found.maintenance, Some(ppi(9, 4)));
                assert!(hidden("its@8080000"));
            }
        }
    }
}

#[test]
fn the_secure_worlds_nodes_are_not_ours() {
    let machine = machine(SECURE_NUMA, |_| ());
    // Two memory nodes, joined; not the secure RAM below them.
    assert_eq!(machine.ram, [range(0x4000_0000, 1 << 30)]);
    assert_eq!(machine.cpus.len(), 20);
    // The second cluster's CPUs have Aff1 = 1.
    assert_eq!(machine.cpus[19].mpidr, 0x103);
    // QEMU's pl011@9040000 is the secure world's.
    assert_eq!(machine.uart.unwrap().registers.start(), 0x900_0000);
    assert!(machine.hidden.iter().any(|hidden| hidden.name.contains("9040000")));
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
        let machine = read(&tree).unwrap();
        assert_eq!(machine.uart.unwrap().registers.start(), wanted, "{stdout:?}");
        assert_eq!(find_uart(&tree.checked()).unwrap().start(), wanted, "{stdout:?}");
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
    assert_eq!(find_uart(&tree.checked()), Some(range(0x1000, 0x100)));
}

#[test]
fn devices_on_a_bus_are_found_where_the_cpu_sees_them() {
    let on_bus = |ranges: &[u32]| {
        machine(GIC3, |tree| {
            tree.take("flash@0");
            let mut uart = tree.take("pl011@9000000");
            uart.set_cells("reg", &[0x1000, 0x1000]);
            let mut bus = TestNode::new("soc");
            bus.set("compatible", *b"simple-bus\0").set_cells("#address-cells", &[1]).set_cells("#size-cells", &[1]);
            bus.set_cells("ranges", ranges).add(uart);
            tree.add(bus);
            tree.at("chosen").set("stdout-path", *b"/soc/pl011@9000000\0");
        })
        .uart
    };
    assert_eq!(on_bus(&[0, 0x1, 0x900_0000, 0x10_0000]).unwrap().registers, range(0x1_0900_1000, 0x1000));
    assert_eq!(on_bus(&[]).unwrap().registers, range(0x1000, 0x1000));
    // No window covers it, or it sticks out of one.
    assert_eq!(on_bus(&[0x2000, 0, 0x900_0000, 0x1000]), None);
    assert_eq!(on_bus(&[0, 0, 0x900_0000, 0x1800]), None);
}

#[test]
fn what_is_below_a_disabled_bus_is_not_used() {
    let machine = machine(GIC3, |tree| {
        let [uart, rtc] = ["pl011@9000000", "pl031@9010000"].map(|name| tree.take(name));
        let mut bus = TestNode::new("soc");
        bus.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]).set("ranges", []);
        tree.add(bus.set("status", *b"disabled\0").add(uart).add(rtc).clone());
    });
    assert_eq!((machine.uart, machine.rtc), (None, None));
    assert!(machine.hidden.iter().any(|hidden| hidden.registers == range(0x900_0000, 0x1000)));
}

#[test]
fn reserved_memory_is_found() {
    let machine = machine(GIC3, |tree| {
        let mut parent = TestNode::new("reserved-memory");
        parent.set_cells("#address-cells", &[2]).set_cells("#size-cells", &[2]).set("ranges", []);
        let mut firmware = TestNode::new("firmware@50000000");
        firmware.set_cells("reg", &[0, 0x5000_0000, 0, 0x10_0000]);
        let mut pool = TestNode::new("pool");
        pool.set_cells("size", &[0, 0x100_0000]);
        let mut disabled = TestNode::new("old@51000000");
        disabled.set_cells("reg", &[0, 0x5100_0000, 0, 0x1000]).set("status", *b"disabled\0");
        parent.add(firmware).add(pool).add(disabled);
        tree.add(parent);
    });
    assert_eq!(machine.reserved, [range(0x5000_0000, 0x10_0000)]);
}

#[test]
fn the_reservation_block_is_read() {
    let reservation = vm_fdt::FdtReserveEntry::new(0x4400_0000, 0x2000).unwrap();
    let mut fdt = vm_fdt::FdtWriter::new_with_mem_reserv(&[reservation]).unwrap();
    let root = fdt.begin_node("").unwrap();
    fdt.end_node(root).unwrap();
    let tree = CheckedTree::new(&fdt.finish().unwrap()).unwrap();
    let tree = Tree::open(&tree);
    assert_eq!(memory::read_reserved(&tree, tree.root().unwrap()), Ok(Vec::from([range(0x4400_0000, 0x2000)])));
}

#[test]
fn modules_use_the_cell_counts_of_chosen() {
    let machine = machine(GIC3, |tree| {
        let chosen = tree.at("chosen");
        chosen.set_cells("#address-cells", &[1]).set_cells("#size-cells", &[1]);
        chosen.at("module@0x48000000").set_cells("reg", &[0x4900_0000, 0x1000]);
        chosen.at("module@0x4c000000").set_cells("reg", &[0x4a00_0000, 0x1000]);
    });
    assert_eq!(machine.kernel.range, range(0x4900_0000, 0x1000));
}

#[test]
fn modules_without_a_kind_are_kernel_and_ramdisk_in_this_order() {
    // In the tree's order.
    const FIRST: &str = "module@0x4c000000";
    const SECOND: &str = "module@0x48000000";
    let kinds = |first: &'static [u8], second: &'static [u8]| {
        move |tree: &mut TestNode| {
            tree.at("chosen").at(FIRST).set("compatible", first);
            tree.at("chosen").at(SECOND).set("compatible", second);
        }
    };
    let plain = &b"multiboot,module\0"[..];
    let [kernel, ramdisk] = [&b"multiboot,kernel\0multiboot,module\0"[..], b"multiboot,ramdisk\0multiboot,module\0"];
    for (first, second) in [(plain, plain), (plain, ramdisk), (kernel, ramdisk)] {
        let found = machine(GIC3, kinds(first, second));
        assert_eq!((found.kernel.range.start(), found.initrd.unwrap().range.start()), (0x4c00_0000, 0x4800_0000));
    }
    assert_eq!(machine(GIC3, kinds(ramdisk, plain)).kernel.range.start(), 0x4800_0000);
    assert_eq!(error(GIC3, kinds(plain, kernel)), MachineError::ModuleTwice { kind: "kernel" });
    // GRUB writes a byte more than the string has.
    let found = machine(GIC3, |tree| {
        kinds(plain, plain)(tree);
        tree.at("chosen").at(FIRST).set("bootargs", *b"console=ttyAMA0 quiet\0\xfd");
    });
    assert_eq!(found.kernel.bootargs.as_deref(), Some(&b"console=ttyAMA0 quiet"[..]));
    let third = |tree: &mut TestNode| {
        kinds(plain, plain)(tree);
        let chosen = tree.at("chosen");
        let more = TestNode { name: "module@0x4e000000".to_string(), ..chosen.at(SECOND).clone() };
        chosen.add(more);
    };
    assert!(machine(GIC3, third).notes[0].contains("/chosen/module@0x4e000000"));
}

#[test]
fn an_initrd_is_optional() {
    let machine = machine(GIC3, |tree| {
        tree.at("chosen").take("module@0x4c000000");
    });
    assert_eq!(machine.initrd, None);
}

#[test]
fn memory_must_be_there_and_readable() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("memory@40000000");
        }),
        MachineError::NoMemory
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("memory@40000000").set("status", *b"disabled\0");
        }),
        MachineError::NoMemory
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("memory@40000000").set_cells("reg", &[0, 0, 0, 0]);
        }),
        MachineError::NoMemory
    );
    let bad = MachineError::BadReg { path: "/memory@40000000".to_string() };
    for reg in [&[][..], &[0, 0x4000_0000, 0], &[u32::MAX, 0, 1, 0], &[0, 0x4000_0000, 0, 1, 0]] {
        assert_eq!(
            error(GIC3, |tree| {
                tree.at("memory@40000000").set_cells("reg", reg);
            }),
            bad
        );
    }
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("memory@40000000").unset("reg");
        }),
        bad
    );
    let cells: Vec<u32> = (0..=MAX_REGIONS as u32).flat_map(|index| [0, index << 20, 0, 4096]).collect();
    assert!(matches!(
        error(GIC3, |tree| {
            tree.at("memory@40000000").set_cells("reg", &cells);
        }),
        MachineError::TooMany { what: "ranges of RAM", .. }
    ));
}

#[test]
fn cpus_must_be_there_and_startable() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("cpus");
        }),
        MachineError::NoCpus
    );
    assert_eq!(error(GIC3, |tree| tree.at("cpus").children.clear()), MachineError::NoCpus);
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("cpus/cpu@2").set_cells("reg", &[1]);
        }),
        MachineError::SameCpuTwice { mpidr: 1 }
    );
    let bad = MachineError::BadReg { path: "/cpus/cpu@1".to_string() };
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("cpus/cpu@1").unset("reg");
        }),
        bad
    );
    // Bits of MPIDR_EL1 that are no affinity.
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("cpus/cpu@1").set_cells("reg", &[0x8000_0001]);
        }),
        bad
    );
    for method in [&b"spin-table\0"[..], b""] {
        let machine = machine(GIC3, |tree| {
            tree.at("cpus/cpu@3").set("enable-method", method);
        });
        assert_eq!(machine.check_startable(0), Err(MachineError::NotPsci { cpu: "cpu@3".to_string() }));
    }
    assert!(matches!(
        error(GIC3, |tree| {
            let cpus = tree.at("cpus");
            let cpu = cpus.at("cpu@0").clone();
            (4..=MAX_CPUS as u32).for_each(|number| {
                let mut cpu = cpu.clone();
                cpu.name = alloc::format!("cpu@{number:x}");
                cpus.add(cpu.set_cells("reg", &[number]).clone());
            });
        }),
        MachineError::TooMany { what: "CPUs", .. }
    ));
    // A disabled CPU is none.
    assert_eq!(
        machine(GIC3, |tree| {
            tree.at("cpus/cpu@3").set("status", *b"disabled\0");
        })
        .cpus
        .len(),
        3
    );
}

#[test]
fn psci_must_be_there_and_callable() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("psci");
        }),
        MachineError::NoPsci
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("psci").set("compatible", *b"arm,psci\0");
        }),
        MachineError::NoPsci
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("psci").set("method", *b"fax\0");
        }),
        MachineError::BadPsciMethod { found: "fax".to_string() }
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("psci").unset("method");
        }),
        MachineError::BadPsciMethod { found: "nothing".to_string() }
    );
    assert_eq!(
        machine(GIC3, |tree| {
            tree.at("psci").set("method", *b"hvc\0");
        })
        .psci,
        Conduit::Hvc
    );
    let below_firmware = machine(GIC3, |tree| {
        let psci = tree.take("psci");
        let mut firmware = TestNode::new("firmware");
        firmware.add(psci);
        tree.add(firmware);
    });
    assert_eq!(below_firmware.psci, Conduit::Smc);
}

#[test]
fn the_gic_must_be_a_known_and_whole_one() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("intc@8000000");
        }),
        MachineError::NoGic
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("intc@8000000").set("compatible", *b"arm,gic-v5\0");
        }),
        MachineError::UnknownGic { compatible: "arm,gic-v5".to_string() }
    );
    let lacks = |tree, change: &dyn Fn(&mut TestNode)| match error(tree, |tree| change(tree.at("intc@8000000"))) {
        MachineError::BadGic { path, lacks } if path == "/intc@8000000" => lacks,
        other => panic!("{other}"),
    };
    assert_eq!(
        lacks(GIC3, &|gic| {
            gic.unset("reg");
        }),
        "readable registers"
    );
    assert_eq!(
        lacks(GIC3, &|gic| {
            gic.set_cells("reg", &[0, 0x800_0000, 0, 0]);
        }),
        "a distributor"
    );
    assert_eq!(
        lacks(GIC2, &|gic| {
            gic.set_cells("reg", &[0, 0x800_0000, 0, 0x1000]);
        }),
        "a CPU interface"
    );
    for regions in [0, 2, 64] {
        assert_eq!(
            lacks(GIC3, &|gic| {
                gic.set_cells("#redistributor-regions", &[regions]);
            }),
            "the redistributors that it counts"
        );
    }
    assert_eq!(
        lacks(GIC3, &|gic| {
            gic.set_cells("#interrupt-cells", &[1]);
        }),
        "#interrupt-cells = <3>"
    );
    // A node without this is no interrupt parent, to Linux either.
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("intc@8000000").unset("#interrupt-cells");
        }),
        MachineError::NoTimerInterrupt { why: NoInterrupt::Endless }
    );
    assert!(matches!(
        error(GIC3, |tree| {
            tree.at("intc@8000000").set_cells("#redistributor-regions", &[1 << 31]);
        }),
        MachineError::TooMany { what: "GIC redistributor regions", .. }
    ));
}

#[test]
fn two_redistributor_regions_and_a_stride_are_read() {
    let machine = machine(GIC3, |tree| {
        let gic = tree.at("intc@8000000");
        gic.set_cells("#redistributor-regions", &[2]).set_cells("redistributor-stride", &[0, 0x4_0000]);
        gic.set_cells("reg", &[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000, 0x40, 0, 0, 0x400_0000]);
    });
    let Gic::V3(gic) = machine.gic else { panic!() };
    assert_eq!(gic.redistributors, [range(0x80a_0000, 0xf6_0000), range(0x40_0000_0000, 0x400_0000)]);
    assert_eq!(gic.redistributor_stride, Some(0x4_0000));
}

#[test]
fn interrupts_at_another_controller_are_not_the_gics() {
    let machine = machine(GIC3, |tree| {
        tree.at("pl011@9000000").set_cells("interrupt-parent", &[0x7777]);
    });
    assert_eq!(machine.uart.unwrap().interrupt, None);
}

#[test]
fn the_timer_must_be_there() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("timer");
        }),
        MachineError::NoTimer
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("timer").set_cells("interrupts", &[1, 13, 4, 1, 14, 4]);
        }),
        MachineError::NoTimer
    );
}

#[test]
fn a_device_that_is_used_must_have_registers() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("pl031@9010000").unset("reg");
        }),
        MachineError::BadReg { path: "/pl031@9010000".to_string() }
    );
}

#[test]
fn modules_must_be_one_kernel_and_at_most_one_ramdisk() {
    const KERNEL: &str = "module@0x48000000";
    const INITRD: &str = "module@0x4c000000";
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("chosen");
        }),
        MachineError::NoKernel
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("chosen").take(KERNEL);
        }),
        MachineError::NoKernel
    );
    let compatible = |node: &'static str, names: &'static [u8]| {
        error(GIC3, |tree| {
            tree.at("chosen").at(node).set("compatible", names);
        })
    };
    assert_eq!(
        compatible(INITRD, b"multiboot,module\0multiboot,kernel\0"),
        MachineError::ModuleTwice { kind: "kernel" }
    );
    assert_eq!(
        compatible(KERNEL, b"multiboot,module\0multiboot,ramdisk\0"),
        MachineError::ModuleTwice { kind: "ramdisk" }
    );
    assert_eq!(
        compatible(INITRD, b"multiboot,module\0multiboot,microcode\0"),
        MachineError::UnknownModule { path: "/chosen/module@0x4c000000".to_string() }
    );
    for reg in [&[][..], &[0, 0x4800_0000], &[0, 0x4800_0000, 0, 0], &[0, 1, 0, 1, 0, 3, 0, 1], &[u32::MAX, 0, 2, 0]] {
        assert_eq!(
            error(GIC3, |tree| {
                tree.at("chosen").at(KERNEL).set_cells("reg", reg);
            }),
            MachineError::BadReg { path: "/chosen/module@0x48000000".to_string() }
        );
    }
}

#[test]
fn too_many_devices_are_refused() {
    let many = error(GIC3, |tree| {
        let device = tree.at("fw-cfg@9020000").clone();
        tree.children.extend(core::iter::repeat_n(device, 2048));
    });
    assert!(matches!(many, MachineError::TooMany { what: "devices", .. }));
}

/// Where the hypervisor and the tree lie in the tests of placement.
const HYPERVISOR: (u64, u64) = (0x4020_0000, 0x100_0000);
const TREE: (u64, u64) = (0x4400_0000, 0x10_0000);

fn placed(kernel: (u64, u64), initrd: (u64, u64)) -> Result<(), MachineError> {
    let mut machine = machine(GIC3, |_| ());
    machine.kernel.range = range(kernel.0, kernel.1);
    machine.initrd.as_mut().unwrap().range = range(initrd.0, initrd.1);
    machine.check_placement(range(HYPERVISOR.0, HYPERVISOR.1), range(TREE.0, TREE.1))
}

#[test]
fn what_is_placed_apart_in_ram_is_fine() {
    assert_eq!(placed((0x4800_0000, 0x100), (0x4800_0100, 0x100)), Ok(()));
    // Up to the last byte of RAM, and right behind the hypervisor and the tree.
    assert_eq!(placed((0x5fff_0000, 0x1_0000), (HYPERVISOR.0 + HYPERVISOR.1, 1)), Ok(()));
    assert_eq!(placed((TREE.0 + TREE.1, 1), (TREE.0 - 1, 1)), Ok(()));
}

#[test]
fn a_module_outside_ram_is_refused() {
    for outside in [(0x1000, 0x1000), (0x5fff_f001, 0x1000), (0x3fff_ffff, 2), (0x7000_0000, 1)] {
        let fine = (0x4800_0000, 0x1000);
        let range = range(outside.0, outside.1);
        let what = "the module /chosen/module@0x48000000".to_string();
        assert_eq!(placed(outside, fine), Err(MachineError::OutsideRam { what, range }));
        let what = "the module /chosen/module@0x4c000000".to_string();
        assert_eq!(placed(fine, outside), Err(MachineError::OutsideRam { what, range }));
    }
}

/// What overlaps what, without the addresses.
fn overlap(result: Result<(), MachineError>) -> (String, String) {
    match result.unwrap_err() {
        MachineError::Overlap { what, other, .. } => (what, other),
        other => panic!("{other}"),
    }
}

fn pair(what: &str, other: &str) -> (String, String) {
    (what.to_string(), other.to_string())
}

#[test]
fn overlapping_modules_are_refused() {
    let fine = (0x4800_0000, 0x1000);
    let (kernel, initrd) = ("the module /chosen/module@0x48000000", "the module /chosen/module@0x4c000000");
    assert_eq!(overlap(placed((HYPERVISOR.0 - 1, 2), fine)), pair(kernel, "the hypervisor"));
    assert_eq!(overlap(placed(fine, (HYPERVISOR.0 + HYPERVISOR.1 - 1, 2))), pair(initrd, "the hypervisor"));
    assert_eq!(overlap(placed((TREE.0 - 1, 2), fine)), pair(kernel, "the device tree"));
    assert_eq!(overlap(placed(fine, (TREE.0 + 1, 2))), pair(initrd, "the device tree"));
    assert_eq!(overlap(placed(fine, (fine.0 + 0xfff, 2))), pair(initrd, kernel));
}

#[test]
fn what_the_firmware_keeps_is_not_loaded_over() {
    let mut machine = machine(GIC3, |_| ());
    let (hypervisor, tree) = (range(HYPERVISOR.0, HYPERVISOR.1), range(TREE.0, TREE.1));
    let firmware = "memory that the firmware keeps";
    machine.reserved = Vec::from([range(0x4800_0fff, 1)]);
    let (kernel, other) = overlap(machine.check_placement(hypervisor, tree));
    assert_eq!((kernel.contains("0x48000000"), &other[..]), (true, firmware));
    machine.reserved = Vec::from([range(HYPERVISOR.0, 1)]);
    assert_eq!(overlap(machine.check_placement(hypervisor, tree)), pair("the hypervisor", firmware));
    // The tree may be reserved: it is not kept.
    machine.reserved = Vec::from([tree]);
    assert_eq!(machine.check_placement(hypervisor, tree), Ok(()));
}

#[test]
fn a_hypervisor_outside_ram_or_over_the_tree_is_refused() {
    let machine = machine(GIC3, |_| ());
    let tree = range(TREE.0, TREE.1);
    let outside = range(0x3fff_0000, 0x2_0000);
    let error = machine.check_placement(outside, tree).unwrap_err();
    assert_eq!(error, MachineError::OutsideRam { what: "the hypervisor".to_string(), range: outside });
    assert_eq!(overlap(machine.check_placement(tree, tree)), pair("the hypervisor", "the device tree"));
}

/// Each sentence names what it is about and what to do; none is empty or a debug print.
#[test]
fn errors_are_sentences() {
    let name = || "/chosen/module@1".to_string();
    for (error, words) in [
        (MachineError::NoMemory, ["memory", "add"]),
        (MachineError::NoKernel, ["kernel", "guest-loader"]),
        (MachineError::NoPsci, ["PSCI", "arm,psci-0.2"]),
        (MachineError::NoGic, ["interrupt controller", "GICv3"]),
        (MachineError::UnknownGic { compatible: "x,y".to_string() }, ["x,y", "GICv2"]),
        (MachineError::ModuleTwice { kind: "kernel" }, ["two multiboot,kernel", "one guest"]),
        (MachineError::OutsideRam { what: name(), range: range(0x10, 0x10) }, ["0x10-0x20", "more memory"]),
        (
            MachineError::Overlap {
                what: name(),
                range: range(1, 1),
                other: "the hypervisor".into(),
                with: range(1, 2),
            },
            ["overlaps the hypervisor at 0x1-0x3", "load it elsewhere"],
        ),
        (
            MachineError::SharedPage {
                device: "the UART".into(),
                registers: range(1, 1),
                other: "dma@0".into(),
                range: range(1, 2),
            },
            ["the UART at 0x1-0x2 in the same pages as dma@0", "correct the tree"],
        ),
        (
            MachineError::PartOfPage { device: "the GIC's distributor".into(), registers: range(0, 0x800) },
            ["the GIC's distributor at 0x0-0x800", "correct the tree"],
        ),
        (MachineError::NoRedistributor { address: 0x80a_0000 }, ["0x80a0000", "correct the reg"]),
        (MachineError::TooMany { what: "CPUs", most: 64 }, ["more CPUs than the 64", "leave some out"]),
    ] {
        let sentence = error.to_string();
        assert!(words.iter().all(|word| sentence.contains(word)), "{sentence}");
    }
}
