//! The other CPUs: each is started once before the guest to see what it is, and again when the guest turns it on.
//!
//! In between it is off in the firmware's eyes, too: no CPU waits at EL2 for the guest to want it.

use crate::el2::base::cpu::{self, CpuArea};
use crate::el2::base::{firmware, refusal::Refusal, totals};
use crate::el2::boot::el2_setup;
use crate::el2::guest_memory::events;
use crate::el2::guest_memory::shape::Shape;
use crate::el2::{exits, guest_memory, manager, saving};
use alloc::vec::Vec;
use core::fmt;
use hypervisor::granule::{Granule, PAGE};
use hypervisor::late_cpu::{self, Answer};
use hypervisor::machine::Machine;
use hypervisor::options::Options;
use hypervisor_abi::events::Call;
use smccc::psci::{AffinityState, LowestAffinityLevel};
use smccc::{Smc, psci};
use spin::Once;
use stage2::features::{ConflictAborts, HardwareUpdate};
use stage2::{BbmLevel, Features};

/// Gives each CPU of the machine its area, the executing one its own.
///
/// # Errors
///
/// A sentence, where the executing CPU is not in the device tree, or memory is too small.
pub fn allocate_areas(machine: &Machine) -> Result<(), Refusal> {
    let own = cpu::read_id().affinity();
    if !machine.cpus.iter().any(|cpu| cpu.mpidr == own) {
        return Err(Refusal(alloc::format!(
            "the CPU that runs this has MPIDR {own:#x}, which the device tree has not"
        )));
    }
    machine.check_startable(own)?;
    let areas =
        machine.cpus.iter().map(|cpu| if cpu.mpidr == own { Some(&cpu::BOOT_AREA) } else { CpuArea::allocate() });
    let areas: Option<Vec<_>> = areas.collect();
    cpu::set_all(areas.ok_or_else(|| Refusal("there is no memory left for the CPUs' stacks: give more".into()))?);
    Ok(())
}

/// Brings every CPU to EL2, reads its ID registers, turns it off again, and returns what the weakest can do.
///
/// # Errors
///
/// A sentence that names the CPU that did not come.
pub fn start_all(machine: &Machine) -> Result<Features, Refusal> {
    let this = cpu::this_cpu();
    this.id.call_once(cpu::read_id);

    let mut weakest: Option<Features> = None;
    for (index, (area, listed)) in cpu::all().zip(&machine.cpus).enumerate() {
        if !core::ptr::eq(&area.cpu, this) {
            visit(area, listed.mpidr).map_err(|why| Refusal(alloc::format!("CPU {:#x} {why}", listed.mpidr)))?;
        }
        let Some(id) = area.cpu.id.get() else { continue };
        let features = Features::from_id_registers(&id.stage2(), ConflictAborts::Handled);
        log::info!(
            "cpu {index}: MPIDR {:#x}, MIDR {:#x}, {} bits of physical address, BBM level {}, hardware updates: {}",
            id.affinity(),
            id.midr,
            features.pa_bits,
            features.bbm as u8,
            match features.hardware_update {
                HardwareUpdate::None => "none",
                HardwareUpdate::AccessFlag => "access flag",
                HardwareUpdate::DirtyState => "access flag, dirty state",
            },
        );
        if !features.has_granule::<Granule>() {
            return Err(Refusal(alloc::format!(
                "this hypervisor was built for a guest's table with pages of {} KiB, and CPU {:#x} has none at stage 2 \
                 (ID_AA64MMFR0_EL1): take the one with pages of 4 KiB, which every CPU has",
                PAGE >> 10,
                listed.mpidr
            )));
        }
        weakest = Some(weakest.map_or(features, |weakest| weakest.weakest(features)));
    }
    weakest.ok_or_else(|| Refusal("there is no CPU".into()))
}

/// Starts one CPU and waits until it has told what it is and is off again.
fn visit(area: &'static CpuArea, mpidr: u64) -> Result<(), &'static str> {
    firmware::start(area, mpidr, || true)
        .map_err(|_| "cannot be started: PSCI refuses; take it out of the device tree")?;
    firmware::wait_until(|| area.cpu.id.get().is_some()).ok_or("was started but does not arrive at EL2")?;
    // It is gone when the firmware says so; until then it cannot be started again.
    let off = || psci::affinity_info::<Smc>(mpidr, LowestAffinityLevel::All) == Ok(AffinityState::Off);
    firmware::wait_until(off).ok_or("was started but does not turn off again")
}

/// The first Rust code on a CPU that was started by [`start`].
pub extern "C" fn main(area: &'static CpuArea) -> ! {
    let cpu = &area.cpu;
    cpu.enter_el2();
    if cpu.id.get().is_none() {
        cpu.id.call_once(cpu::read_id);
        firmware::turn_off();
        // The firmware refuses to turn it off: the CPU that waits for that will say so.
        loop {
            aarch64_cpu::asm::wfi();
        }
    }
    if manager::is_core(area) {
        el2_setup::apply();
        manager::run();
    }
    if let Err(why) = join() {
        log::error!("CPU {:#x} is not let in: {why}", cpu::read_id().affinity());
        cpu.power.turned_off();
        firmware::turn_off();
        loop {
            aarch64_cpu::asm::wfi();
        }
    }
    el2_setup::apply();
    let (entry, context) = cpu.power.turned_on();
    saving::enter_if_saved();
    enter(entry, context)
}

/// What is done about CPUs that have less than they had, or than the others.
static LATE: Once<(late_cpu::Choice, Option<u64>)> = Once::new();

/// Settles what is done about CPUs that come late.
pub fn settle(options: &Options) {
    LATE.call_once(|| (options.late_cpu, options.weaken));
}

/// Why the guest must do without a CPU.
enum Kept {
    /// It has less than the others.
    Weaker(&'static str),
    /// The table cannot be made fit for it.
    Table(stage2::Error),
}

impl From<stage2::Error> for Kept {
    fn from(error: stage2::Error) -> Self {
        Self::Table(error)
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weaker(why) => f.write_str(why),
            Self::Table(error) => error.fmt(f),
        }
    }
}

/// Compares the executing CPU, which the guest has turned on, with what the table relies on; repaints the table for it
/// if that is wanted.
///
/// # Errors
///
/// Why the guest must do without this CPU.
fn join() -> Result<(), Kept> {
    let id = cpu::read_id();
    let (choice, weaken) = LATE.get().copied().unwrap_or((late_cpu::Choice::Refuse, None));
    let mut features = Features::from_id_registers(&id.stage2(), ConflictAborts::Handled);
    if weaken == Some(id.affinity()) {
        features.bbm = BbmLevel::Level0;
    }
    let Some(table) = guest_memory::table() else { return Ok(()) };
    let in_use = table.read().config().features;
    match late_cpu::answer(choice, in_use, features) {
        Answer::Join => Ok(()),
        Answer::Refuse(why) => Err(Kept::Weaker(why)),
        Answer::Admit => Ok(table.write().admit(features)?),
        Answer::Repaint => {
            // TLBIs act on the VMID that this CPU's VTTBR_EL2 holds, which so far has had none.
            guest_memory::activate();
            log::warn!(
                "CPU {:#x} has less than the others: the guest's memory is split to pages, and stays so",
                id.affinity()
            );
            // Nothing is printed while the lock is held: faults of all CPUs wait for it.
            let mut table = table.write();
            events::fallible(Call::Split, None, || table.split_all_for_good())?;
            table.admit(features)?;
            let shape = Shape::of(&table);
            drop(table);
            log::info!("{shape}");
            Ok(())
        }
    }
}

/// Enters the guest for the first time since the CPU was turned on: at `entry`, with `context` in x0.
pub fn enter(entry: u64, context: u64) -> ! {
    if totals::counts_instructions() {
        cpu::this_cpu().leave_el2();
    }
    exits::enter_guest(entry, context)
}
