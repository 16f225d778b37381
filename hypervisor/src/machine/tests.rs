//! QEMU's machines, and changed ones, read right.

mod own_memory;
mod placement;
mod refused;

use super::*;
use crate::range::PhysRange;
use crate::tree::interrupts::NoInterrupt;
use crate::tree::testing::{GIC2, GIC3, MACHINES, SECURE_NUMA, TestNode};
use crate::uart::Port;

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
        let found = machine.uart.unwrap();
        assert_eq!((found.device, found.clock_hz, found.line), (uart, Some(24_000_000), None));
        assert_eq!((found.port, &found.compatible[..]), (Port::pl011(0x900_0000), &["arm,pl011"][..]));
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
        assert_eq!(machine.kernel.as_ref().unwrap().name, "/chosen/module@0x48000000");
        assert_eq!(machine.kernel.as_ref().unwrap().range, range(0x4800_0000, 1 << 20));
        assert_eq!(machine.kernel.as_ref().unwrap().bootargs.as_deref(), Some(&b"console=ttyAMA0 quiet"[..]));
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
    assert_eq!(machine.uart.unwrap().device.registers.start(), 0x900_0000);
    assert!(machine.hidden.iter().any(|hidden| hidden.name.contains("9040000")));
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
    assert_eq!(on_bus(&[0, 0x1, 0x900_0000, 0x10_0000]).unwrap().device.registers, range(0x1_0900_1000, 0x1000));
    assert_eq!(on_bus(&[]).unwrap().device.registers, range(0x1000, 0x1000));
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
    assert_eq!(machine.kernel.as_ref().unwrap().range, range(0x4900_0000, 0x1000));
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
        assert_eq!(
            (found.kernel.as_ref().unwrap().range.start(), found.initrd.unwrap().range.start()),
            (0x4c00_0000, 0x4800_0000)
        );
    }
    assert_eq!(machine(GIC3, kinds(ramdisk, plain)).kernel.unwrap().range.start(), 0x4800_0000);
    assert_eq!(error(GIC3, kinds(plain, kernel)), MachineError::ModuleTwice { kind: "kernel" });
    // GRUB writes a byte more than the string has.
    let found = machine(GIC3, |tree| {
        kinds(plain, plain)(tree);
        tree.at("chosen").at(FIRST).set("bootargs", *b"console=ttyAMA0 quiet\0\xfd");
    });
    assert_eq!(found.kernel.as_ref().unwrap().bootargs.as_deref(), Some(&b"console=ttyAMA0 quiet"[..]));
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
    assert_eq!(machine.uart.unwrap().device.interrupt, None);
}

/// Where the hypervisor and the tree lie in the tests of placement.
const HYPERVISOR: (u64, u64) = (0x4020_0000, 0x100_0000);
const TREE: (u64, u64) = (0x4400_0000, 0x10_0000);
