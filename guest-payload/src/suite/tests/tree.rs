//! The device tree: what the guest is told, and what it must not be told.

use crate::calls::hypercall;
use crate::machine::report::Outcome;
use crate::machine::{self, GicRegisters, conduit, registers};
use crate::options;
use fdt::node::FdtNode;
use smccc::psci::PSCI_AFFINITY_INFO_64;

group!("tree", [no_dma_master, no_foreign_interrupt_parts, memory, all_memory_given, cpus, psci, timer, console]);

/// PSCI: there is no such CPU.
const INVALID_PARAMETERS: i64 = -2;

/// Whether one of the node's `compatible` strings starts with `prefix`.
fn compatible(node: FdtNode<'_, '_>, prefix: &str) -> bool {
    node.compatible().is_some_and(|list| list.all().any(|name| name.starts_with(prefix)))
}

fn no_dma_master() -> Outcome {
    hypercall::required()?;
    // Each of these can write memory behind stage 2, or makes another device do so.
    let masters = ["qemu,fw-cfg-mmio", "virtio,", "pci", "arm,gic-v3-its", "arm,smmu", "cfi-flash", "qemu,platform"];
    let disk = |node: FdtNode<'_, '_>| options::get().mediated && compatible(node, "virtio,mmio");
    let disks = machine::get().tree.all_nodes().filter(|&node| disk(node)).count();
    check_eq!(disks, usize::from(options::get().mediated), "disks that the hypervisor mediates");
    for node in machine::get().tree.all_nodes().filter(|&node| !disk(node)) {
        for prefix in masters {
            check!(!compatible(node, prefix), "the tree has {}, compatible with {prefix}", node.name);
        }
    }
    Ok(())
}

fn no_foreign_interrupt_parts() -> Outcome {
    hypercall::required()?;
    for node in machine::get().tree.all_nodes() {
        check!(
            !compatible(node, "arm,gic-v2m-frame"),
            "the tree has {}, an MSI frame for devices that it hides",
            node.name
        );
        // GICv2: distributor and CPU interface; GICH and GICV (2 and 3) belong to the hypervisor.
        let parts = node.reg().map_or(0, Iterator::count);
        if compatible(node, "arm,cortex-a15-gic") || compatible(node, "arm,gic-400") {
            check_eq!(parts, 2, "register ranges of {}", node.name);
        }
        if compatible(node, "arm,gic-v") || compatible(node, "arm,cortex-a15-gic") {
            check!(
                node.property("interrupts").is_none(),
                "{} has the maintenance interrupt, which is the hypervisor's",
                node.name
            );
        }
    }
    Ok(())
}

fn memory() -> Outcome {
    let ram = machine::get().ram();
    check!(!ram.is_empty(), "no memory in the tree");
    for range in ram {
        check!(range.start < range.end, "an empty range of memory: {range:#x?}");
        check!(
            range.start % 4096 == 0 && range.end % 4096 == 0,
            "a range of memory that is not whole pages: {range:#x?}"
        );
    }
    for pair in ram.windows(2) {
        check!(pair[0].end <= pair[1].start, "ranges of memory overlap: {:#x?} and {:#x?}", pair[0], pair[1]);
    }
    Ok(())
}

fn all_memory_given() -> Outcome {
    hypercall::required()?;
    // From the machine's first byte of memory to the last, what the guest has not got is the hypervisor's, to the byte.
    let own = |address| hypercall::own_memory().find(|range| range.contains(&address));
    for hole in machine::get().holes() {
        let mut address = hole.start;
        while address < hole.end {
            let Some(range) = own(address) else { fail!("{address:#x} is neither the guest's nor the hypervisor's") };
            address = range.end;
        }
        check_eq!(address, hole.end, "the end of the hypervisor's memory in the hole {hole:#x?}");
    }
    Ok(())
}

fn cpus() -> Outcome {
    let method = |node: &FdtNode<'_, '_>| node.property("enable-method").and_then(|p| p.as_str()).map(str::len);
    for node in machine::get().tree.find_node("/cpus").map(|cpus| cpus.children()).into_iter().flatten() {
        if node.name.starts_with("cpu@") && machine::get().mpidrs().len() > 1 {
            check_eq!(method(&node), Some("psci".len()), "length of the enable-method of {}", node.name);
        }
    }
    let mpidrs = machine::get().mpidrs();
    // Without a management core, every CPU that PSCI would start is in the tree.
    for mpidr in (0..8).filter(|mpidr| hypercall::present() && !mpidrs.contains(mpidr)) {
        let answer = conduit::psci(PSCI_AFFINITY_INFO_64, [mpidr, 0, 0]);
        check_eq!(answer, INVALID_PARAMETERS, "AFFINITY_INFO of {mpidr:#x}, which is not in the tree");
    }
    for (index, mpidr) in mpidrs.iter().enumerate() {
        check!(!mpidrs[..index].contains(mpidr), "two CPU nodes have the affinity {mpidr:#x}");
    }
    Ok(())
}

fn psci() -> Outcome {
    let Some(node) = machine::get().tree.find_node("/psci") else { fail!("no /psci node") };
    let method = node.property("method").and_then(|method| method.as_str());
    check!(matches!(method, Some("hvc" | "smc")), "/psci's method: expected hvc or smc, seen {method:?}");
    check!(compatible(node, "arm,psci-"), "/psci is not compatible with arm,psci-0.2 or later");
    Ok(())
}

fn timer() -> Outcome {
    let machine = machine::get();
    for (name, interrupt) in [("physical", machine.physical_timer), ("virtual", machine.virtual_timer)] {
        check!((16..32).contains(&interrupt), "the {name} timer's interrupt: expected a PPI, seen {interrupt}");
    }
    Ok(())
}

fn console() -> Outcome {
    let machine = machine::get();
    let Some(node) = machine.tree.chosen().stdout() else { fail!("/chosen has no stdout-path") };
    check_eq!(registers(node, 0).map(|range| range.start), Some(machine.uart), "the console's first register");
    if let GicRegisters::V3 { redistributors_size, .. } = machine.gic {
        let needed = machine.mpidrs().len() as u64 * crate::machine::gic::gicr::STRIDE;
        check!(redistributors_size >= needed, "{redistributors_size:#x} bytes of redistributors, too few for the CPUs");
    }
    Ok(())
}
