//! CPUs, their topology, and the firmware that starts them.

use super::error::MachineError;
use super::parts::{Conduit, Cpu, CpuMapEntry, MAX_CPUS, Machine, limit};
use crate::tree::{Node, cell_counts, number};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

/// The CPUs and their topology (Linux bindings `arm/cpus` and `cpu/cpu-topology`).
pub(super) fn read_cpus(root: Node<'_, '_>) -> Result<(Vec<Cpu>, Vec<CpuMapEntry>), MachineError> {
    let parent = root.child("cpus").ok_or(MachineError::NoCpus)?;
    let (address_cells, _) = cell_counts(parent, (1, 0));
    let mut cpus: Vec<Cpu> = Vec::new();
    let mut phandles = Vec::new();
    let (mut not_psci, mut last) = (0, None);
    for node in parent.children().filter(|node| node.base_name() == "cpu" && node.is_enabled()) {
        let reg: Vec<u32> = node.cells("reg").take(address_cells).collect();
        // Affinity fields of MPIDR_EL1; everything else in the number must be zero.
        let mpidr = number(&reg).filter(|mpidr| mpidr & !0xff_00ff_ffff == 0 && reg.len() == address_cells.max(1));
        let mpidr = mpidr.ok_or_else(|| MachineError::BadReg { path: format!("/cpus/{}", node.name()) })?;
        if cpus.iter().any(|cpu| cpu.mpidr == mpidr) {
            return Err(MachineError::SameCpuTwice { mpidr });
        }
        let by_psci = node.string("enable-method") == Some("psci");
        if !by_psci {
            not_psci += 1;
            last = Some(node.name());
        }
        cpus.push(Cpu {
            mpidr,
            by_psci,
            compatible: node.strings("compatible").take(8).map(ToString::to_string).collect(),
        });
        limit("CPUs", cpus.len(), MAX_CPUS)?;
        phandles.push((node.phandle(), mpidr));
    }
    // The CPU that runs this needs no way to be started, and QEMU names none where it is the only one. That it is the one
    // without is checked where it is known which one it is.
    match (cpus.len(), not_psci, last) {
        (0, ..) => return Err(MachineError::NoCpus),
        (_, 2.., Some(name)) => return Err(MachineError::NotPsci { cpu: name.to_string() }),
        _ => {}
    }
    let mut cpu_map = Vec::new();
    if let Some(map) = parent.child("cpu-map") {
        read_cpu_map(map, 1, &phandles, &mut cpu_map)?;
    }
    Ok((cpus, cpu_map))
}

impl Machine {
    /// Checks that every CPU but the one with the affinity `own`, which runs already, is one that PSCI starts.
    ///
    /// # Errors
    ///
    /// [`MachineError::NotPsci`].
    pub fn check_startable(&self, own: u64) -> Result<(), MachineError> {
        match self.cpus.iter().find(|cpu| cpu.mpidr != own && !cpu.by_psci) {
            Some(cpu) => Err(MachineError::NotPsci { cpu: format!("cpu@{:x}", cpu.mpidr) }),
            None => Ok(()),
        }
    }
}

/// Appends what lies below `node`, in the tree's order.
fn read_cpu_map(
    node: Node<'_, '_>,
    depth: usize,
    phandles: &[(Option<u32>, u64)],
    entries: &mut Vec<CpuMapEntry>,
) -> Result<(), MachineError> {
    let known = |name: &str| ["socket", "cluster", "core", "thread"].iter().any(|kind| name.starts_with(kind));
    for child in node.children().filter(|child| known(child.name())) {
        let cpu = child.cell("cpu");
        let mpidr = phandles.iter().find(|(phandle, _)| cpu.is_some() && *phandle == cpu).map(|&(_, mpidr)| mpidr);
        entries.push(CpuMapEntry { depth, name: child.name().to_string(), mpidr });
        limit("nodes in cpu-map", entries.len(), 4 * MAX_CPUS)?;
        read_cpu_map(child, depth + 1, phandles, entries)?;
    }
    Ok(())
}

/// PSCI 0.2 or later (Linux binding `arm/psci`); 0.1 numbers its functions in the tree and lacks too many.
pub(super) fn read_psci(root: Node<'_, '_>) -> Result<Conduit, MachineError> {
    let psci = |node: &Node<'_, '_>| {
        node.is_enabled() && (node.is_compatible("arm,psci-1.0") || node.is_compatible("arm,psci-0.2"))
    };
    let firmware = || root.child("firmware").and_then(|firmware| firmware.children().find(psci));
    let node = root.children().find(psci).or_else(firmware).ok_or(MachineError::NoPsci)?;
    match node.string("method") {
        Some("smc") => Ok(Conduit::Smc),
        Some("hvc") => Ok(Conduit::Hvc),
        other => Err(MachineError::BadPsciMethod { found: other.unwrap_or("nothing").to_string() }),
    }
}
