//! The guest's trees, read back: exactly what is on the list is there, for each of QEMU's machines.

mod console;

use super::*;
use crate::range::without;
use crate::tree::testing::{GIC2, GIC3, MACHINES, SECURE_NUMA, TestNode};
use crate::tree_check::CheckedTree;
use alloc::string::ToString;
use alloc::vec;

/// What the tests give to the hypervisor.
fn hypervisor() -> PhysRange {
    PhysRange::with_size(0x4020_0000, 16 << 20).unwrap()
}

fn read(tree: &[u8]) -> Machine {
    Machine::read(&CheckedTree::new(tree).unwrap()).unwrap()
}

/// A guest of all CPUs and all memory but the hypervisor's.
struct Given {
    machine: Machine,
    memory: Vec<PhysRange>,
    cpus: Vec<u64>,
}

impl Given {
    fn all(tree: &[u8]) -> Self {
        let machine = read(tree);
        let memory = without(&machine.ram, &[hypervisor()]);
        let cpus = machine.cpus.iter().map(|cpu| cpu.mpidr).collect();
        Self { machine, memory, cpus }
    }

    fn guest(&self) -> Guest<'_> {
        Guest {
            memory: &self.memory,
            cpus: &self.cpus,
            bootargs: Some(b"console=ttyAMA0"),
            initrd: PhysRange::with_size(0x5000_0000, 0x1234),
            pmu: true,
            granted: &[],
        }
    }

    /// Writes the tree and reads it back.
    fn written(&self, guest: &Guest<'_>) -> TestNode {
        TestNode::parse(&write(&self.machine, guest).unwrap())
    }
}

fn child_names(node: &TestNode) -> Vec<&str> {
    node.children.iter().map(|child| &child.name[..]).collect()
}

fn text<'a>(node: &'a TestNode, name: &str) -> &'a [u8] {
    node.property(name).unwrap_or_else(|| panic!("{} has no {name}", node.name))
}

/// All the nodes, for every GIC, number of CPUs and size of memory.
#[test]
fn nothing_but_the_list_is_there() {
    for (gic, cpus, memory, tree) in MACHINES {
        let given = Given::all(tree);
        let written = given.written(&given.guest());
        // 512 MiB or 4 GiB less 16 MiB, around the hypervisor.
        assert_eq!(
            child_names(&written),
            [
                "chosen",
                "aliases",
                "memory@40000000",
                "memory@41200000",
                "cpus",
                "psci",
                "timer",
                "interrupt-controller@8000000",
                "pmu",
                "apb-pclk",
                "pl011@9000000",
                "pl031@9010000",
            ],
            "GICv{gic}, {cpus} CPUs, {memory:#x} bytes"
        );
        let everything = written.paths();
        for banned in ["fw-cfg", "fw_cfg", "virtio", "pci", "its", "v2m", "flash", "gpio", "pl061", "bus", "module"] {
            assert!(!everything.iter().any(|path| path.contains(banned)), "{banned} in {everything:?}");
        }
    }
}

#[test]
fn the_secure_worlds_nodes_are_absent() {
    let given = Given::all(SECURE_NUMA);
    let paths = given.written(&given.guest()).paths();
    for banned in ["sec", "9040000", "90b0000", "e000000"] {
        assert!(!paths.iter().any(|path| path.contains(banned)), "{banned} in {paths:?}");
    }
}

#[test]
fn memory_is_all_of_it_but_the_hypervisors() {
    for (.., size, tree) in MACHINES {
        let given = Given::all(tree);
        let written = given.written(&given.guest());
        let nodes = written.children.iter().filter(|node| node.name.starts_with("memory@"));
        let ranges = nodes.flat_map(|node| {
            assert_eq!(text(node, "device_type"), b"memory\0");
            let cells = node.cells("reg");
            cells
                .chunks(4)
                .map(|reg| (u64::from(reg[0]) << 32 | u64::from(reg[1]), u64::from(reg[2]) << 32 | u64::from(reg[3])))
                .collect::<Vec<_>>()
        });
        let ranges: Vec<PhysRange> = ranges.map(|(start, size)| PhysRange::with_size(start, size).unwrap()).collect();
        assert_eq!(ranges, given.memory);
        assert!(!ranges.iter().any(|range| range.overlaps(hypervisor())));
        assert_eq!(ranges.iter().map(|range| range.size()).sum::<u64>(), size - hypervisor().size());
        // The guest's own reader agrees.
        assert_eq!(read_back_ram(&written), given.memory);
    }
}

/// RAM as [`Machine`] reads it from the guest's tree, to which a kernel module is added for that.
fn read_back_ram(written: &TestNode) -> Vec<PhysRange> {
    let mut tree = written.clone();
    let mut module = TestNode::new("module@1000");
    module.set("compatible", *b"multiboot,module\0multiboot,kernel\0").set_cells("reg", &[0, 0x1000, 0, 0x1000]);
    tree.at("chosen").add(module);
    let machine = Machine::read(&tree.checked()).unwrap();
    // All that the guest gets is whole: it could itself be a machine for a hypervisor.
    assert!(machine.uart.is_some_and(|uart| uart.device.interrupt.is_some() && uart.clock_hz == Some(24_000_000)));
    assert!(machine.rtc.is_some() && machine.pmu.is_some() && machine.hidden.is_empty() && machine.virtio.is_empty());
    machine.ram
}

#[test]
fn the_gic_is_what_a_guest_may_drive() {
    let given = Given::all(GIC2);
    let gic = given.written(&given.guest()).take("interrupt-controller@8000000");
    assert_eq!(gic.cells("reg"), [0, 0x800_0000, 0, 0x1000, 0, 0x801_0000, 0, 0x2000]);
    assert_eq!(text(&gic, "compatible"), b"arm,cortex-a15-gic\0");
    assert_eq!((gic.property("interrupts"), gic.children.len()), (None, 0));

    let given = Given::all(GIC3);
    let gic = given.written(&given.guest()).take("interrupt-controller@8000000");
    assert_eq!(gic.cells("reg"), [0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000]);
    assert_eq!(text(&gic, "compatible"), b"arm,gic-v3\0");
    assert_eq!((gic.property("interrupts"), gic.children.len()), (None, 0));
    assert_eq!(gic.cells("#redistributor-regions"), [1]);
}

/// The Raspberry Pi 5's UART has a `reg` without the registers that its ID is in.
#[test]
fn redistributor_regions_and_stride_are_passed_on() {
    let mut given = Given::all(GIC3);
    let Gic::V3(gic) = &mut given.machine.gic else { panic!() };
    gic.redistributors.push(PhysRange::with_size(0x40_0000_0000, 0x400_0000).unwrap());
    gic.redistributor_stride = Some(0x4_0000);
    let gic = given.written(&given.guest()).take("interrupt-controller@8000000");
    assert_eq!(gic.cells("reg")[8..], [0x40, 0, 0, 0x400_0000]);
    assert_eq!(gic.cells("#redistributor-regions"), [2]);
    assert_eq!(gic.cells("redistributor-stride"), [0, 0x4_0000]);
}

#[test]
fn interrupts_are_the_machines() {
    for tree in [GIC2, GIC3] {
        let given = Given::all(tree);
        let mut written = given.written(&given.guest());
        let mut original = TestNode::parse(tree);
        for (node, same) in [("timer", "timer"), ("pmu", "pmu"), ("pl011@9000000", "pl011@9000000")] {
            assert_eq!(written.at(node).cells("interrupts"), original.at(same).cells("interrupts"));
        }
        assert!(written.at("timer").property("always-on").is_some());
    }
}

#[test]
fn psci_is_the_hypervisors() {
    let given = Given::all(GIC3);
    let psci = given.written(&given.guest()).take("psci");
    assert_eq!(text(&psci, "method"), b"hvc\0");
    assert_eq!(text(&psci, "compatible"), b"arm,psci-1.0\0arm,psci-0.2\0");
    assert_eq!(psci.properties.len(), 2);
}

/// Every phandle that something points at belongs to the right node, and no two are the same.
#[test]
fn phandles_are_consistent() {
    let given = Given::all(GIC3);
    let mut written = given.written(&given.guest());
    fn phandles(node: &TestNode, found: &mut Vec<u32>) {
        found.extend(node.cells("phandle"));
        node.children.iter().for_each(|child| phandles(child, found));
    }
    let mut all = Vec::new();
    phandles(&written, &mut all);
    let mut distinct = all.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!((all.len(), distinct.len()), (6, 6));

    assert_eq!(written.cells("interrupt-parent"), written.at("interrupt-controller@8000000").cells("phandle"));
    let clock = written.at("apb-pclk").cells("phandle")[0];
    assert_eq!(written.at("pl011@9000000").cells("clocks"), [clock, clock]);
    assert_eq!(text(written.at("pl011@9000000"), "clock-names"), b"uartclk\0apb_pclk\0");
    assert_eq!(written.at("pl031@9010000").cells("clocks"), [clock]);
    for index in 0..4 {
        let core = written.at(&format!("cpus/cpu-map/socket0/cluster0/core{index}")).cells("cpu");
        assert_eq!(core, written.at(&format!("cpus/cpu@{index}")).cells("phandle"));
    }
}

#[test]
fn the_guest_sees_its_own_cpus_only() {
    let mut given = Given::all(GIC3);
    given.cpus = vec![1, 3];
    let mut written = given.written(&given.guest());
    assert_eq!(child_names(written.at("cpus")), ["cpu-map", "cpu@1", "cpu@3"]);
    let cpu = written.at("cpus/cpu@3");
    assert_eq!((cpu.cells("reg"), text(cpu, "enable-method")), (vec![0, 3], &b"psci\0"[..]));
    assert_eq!(text(cpu, "compatible"), b"arm,cortex-a57\0");
    let third = cpu.cells("phandle");
    // Linux stops at the first missing number, so the cores are numbered anew.
    let cluster = written.at("cpus/cpu-map/socket0/cluster0");
    assert_eq!(child_names(cluster), ["core0", "core1"]);
    assert_eq!(cluster.at("core1").cells("cpu"), third);
}

#[test]
fn every_number_of_cpus_is_written() {
    for (_, cpus, _, tree) in MACHINES {
        let given = Given::all(tree);
        let written = given.written(&given.guest()).take("cpus");
        let nodes: Vec<&str> = child_names(&written).into_iter().filter(|name| name.starts_with("cpu@")).collect();
        assert_eq!(nodes, (0..cpus).map(|cpu| format!("cpu@{cpu}")).collect::<Vec<_>>());
    }
    let given = Given::all(SECURE_NUMA);
    let written = given.written(&given.guest()).take("cpus");
    assert!(child_names(&written).contains(&"cpu@103"));
}

/// Two sockets, of which the second is given.
#[test]
fn sockets_without_a_cpu_of_the_guests_are_left_out() {
    let mut given = Given::all(SECURE_NUMA);
    let entry = |depth, name: &str, mpidr| CpuMapEntry { depth, name: name.to_string(), mpidr };
    given.machine.cpu_map = vec![
        entry(1, "socket0", None),
        entry(2, "cluster0", None),
        entry(3, "core0", Some(0)),
        entry(1, "socket1", None),
        entry(2, "cluster0", None),
        entry(3, "core0", None),
        entry(4, "thread0", Some(1)),
        entry(4, "thread1", Some(0x101)),
        entry(2, "cluster1", None),
        entry(3, "core0", Some(0x102)),
    ];
    given.cpus = vec![0x101, 0x102];
    let mut written = given.written(&given.guest());
    let map = written.at("cpus/cpu-map");
    assert_eq!(
        map.paths(),
        [
            "cpu-map",
            "cpu-map/socket0",
            "cpu-map/socket0/cluster0",
            "cpu-map/socket0/cluster0/core0",
            "cpu-map/socket0/cluster0/core0/thread0",
            "cpu-map/socket0/cluster1",
            "cpu-map/socket0/cluster1/core0",
        ]
    );
    // A map without one of the guest's CPUs is no use to Linux.
    given.cpus = vec![0x101, 0x103];
    assert_eq!(child_names(given.written(&given.guest()).at("cpus")), ["cpu@101", "cpu@103"]);
}

#[test]
fn chosen_has_what_the_kernel_needs() {
    let given = Given::all(GIC3);
    let chosen = given.written(&given.guest()).take("chosen");
    assert_eq!(text(&chosen, "bootargs"), b"console=ttyAMA0\0");
    assert_eq!(chosen.cells("linux,initrd-start"), [0, 0x5000_0000]);
    assert_eq!(chosen.cells("linux,initrd-end"), [0, 0x5000_1234]);
    assert_eq!(text(&chosen, "stdout-path"), b"/pl011@9000000\0");
    let mut original = TestNode::parse(GIC3);
    for seed in ["rng-seed", "kaslr-seed"] {
        assert_eq!(chosen.property(seed), original.at("chosen").property(seed));
    }

    // And nothing that was not there.
    let mut bare = Given::all(GIC3);
    (bare.machine.rng_seed, bare.machine.kaslr_seed, bare.machine.uart) = (Vec::new(), None, None);
    let guest = Guest { bootargs: None, initrd: None, ..bare.guest() };
    assert_eq!(bare.written(&guest).take("chosen").properties, []);
}

#[test]
fn no_pmu_unless_given() {
    let given = Given::all(GIC3);
    let written = given.written(&Guest { pmu: false, ..given.guest() });
    assert!(!child_names(&written).contains(&"pmu"));
}

#[test]
fn a_granted_transport_is_there_and_no_other() {
    let given = Given::all(GIC3);
    let written = given.written(&Guest { granted: &[0xa00_3e00], ..given.guest() });
    let virtio: Vec<&TestNode> = written.children.iter().filter(|node| node.name.contains("virtio")).collect();
    assert_eq!(virtio.len(), 1);
    assert_eq!(virtio[0].name, "virtio_mmio@a003e00");
    assert_eq!(virtio[0].cells("reg"), [0, 0xa00_3e00, 0, 0x200]);
    assert_eq!(virtio[0].cells("interrupts"), [0, 0x2f, 1]);
    assert!(virtio[0].property("dma-coherent").is_some());
}

#[test]
fn what_can_not_be_granted_is_refused() {
    let given = Given::all(GIC3);
    for address in [0xa00_3e01, 0x902_0000, 0x1000_0000] {
        let error = write(&given.machine, &Guest { granted: &[address], ..given.guest() }).unwrap_err();
        let sentence = error.to_string();
        assert!(sentence.contains(&format!("grant-dma={address:#x}")), "{sentence}");
        assert!(sentence.contains("0xa000000-0xa004000"), "{sentence}");
    }
    let mut none = Given::all(GIC3);
    none.machine.virtio.clear();
    let error = write(&none.machine, &Guest { granted: &[1], ..none.guest() }).unwrap_err();
    assert_eq!(error, GuestTreeError::NotGrantable { address: 1, transports: None });
}

#[test]
fn a_cpu_that_is_not_there_is_refused() {
    let given = Given::all(GIC3);
    let error = write(&given.machine, &Guest { cpus: &[0, 9], ..given.guest() }).unwrap_err();
    assert_eq!(error, GuestTreeError::NoSuchCpu { mpidr: 9 });
}

#[test]
fn a_tree_beyond_the_boot_protocols_limit_is_refused() {
    let given = Given::all(GIC3);
    let long = "x".repeat(MAX_SIZE);
    let error = write(&given.machine, &Guest { bootargs: Some(long.as_bytes()), ..given.guest() }).unwrap_err();
    assert!(matches!(error, GuestTreeError::TooLarge { size } if size > MAX_SIZE), "{error}");
    let error = write(&given.machine, &Guest { bootargs: Some(b"a\0b"), ..given.guest() }).unwrap_err();
    assert_eq!(error, GuestTreeError::Writer(vm_fdt::Error::InvalidString));
}
