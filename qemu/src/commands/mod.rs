//! The commands, one file each, and what they share.

pub mod audit;
pub mod bench;
pub mod boards;
mod check;
mod command;
pub mod completion;
pub mod debug;
pub mod doctor;
pub mod linux;
pub mod migrate;
pub mod payload;
pub mod quickstart;
pub mod replay;
pub mod report;
pub mod resume;
mod saving;
pub mod secure_partition;
pub mod test;
pub mod tlb;
pub mod trees;

use crate::cli::{self, Common};
use crate::machine::Machine;
use crate::setup::emulator::Emulator;
use anyhow::Result;

/// A QEMU that has the CPU which the common options name.
///
/// # Errors
/// If there is none.
fn emulator(common: &Common) -> Result<Emulator> {
    let emulator = Emulator::find_or_install(common.qemu.as_deref())?;
    emulator.check_cpu(&common.cpu)?;
    Ok(emulator)
}

/// A machine as the common options want it. It is still without a guest, and without the hypervisor: what is wrong with the
/// options is said before anything is built.
///
/// # Errors
/// If an option makes no sense.
fn machine(common: &Common) -> Result<Machine> {
    let mut machine = Machine::new("");
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
    Ok(machine)
}
