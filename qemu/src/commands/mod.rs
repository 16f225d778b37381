//! The commands, one file each, and what they share.

pub mod audit;
pub mod bench;
pub mod doctor;
pub mod linux;
pub mod payload;
pub mod quickstart;
pub mod replay;
pub mod report;
pub mod secure_partition;
pub mod test;
pub mod trees;

use crate::cli::{self, Common};
use crate::images::{self, Image};
use crate::machine::Machine;
use crate::setup::emulator::Emulator;
use crate::workspace::Workspace;
use anyhow::Result;

/// A QEMU, and a machine with the hypervisor `image` on it that is still without a guest, as the common options want it.
///
/// # Errors
/// If an option makes no sense, or something can't be set up or built.
fn prepare(workspace: &Workspace, common: &Common, image: Image) -> Result<(Emulator, Machine)> {
    let emulator = Emulator::find_or_install(common.qemu.as_deref())?;
    emulator.check_cpu(&common.cpu)?;
    let mut machine = Machine::new(images::build(workspace, image)?);
    machine.cpu = common.cpu.clone();
    machine.gic = common.gic;
    machine.smp = common.smp;
    machine.memory = common.memory.unwrap_or(machine.memory);
    machine.icount = common.icount;
    let mut options = vec![format!("log={}", cli::name(common.log)), format!("bbm={}", cli::name(common.bbm))];
    if common.icount {
        options.push("icount=on".into());
    }
    for address in machine.add_virtio(&common.grant_dma)? {
        eprintln!(
            "hv: warning: the device at {address:#x} is the guest's now. It writes to memory without stage 2 in between: \
             the guest can use it to read or overwrite the hypervisor."
        );
        options.push(format!("grant-dma={address:#x}"));
    }
    machine.append = options.join(" ");
    machine.extra.extend(common.extra.iter().cloned());
    Ok((emulator, machine))
}
