//! The management core: a CPU that the guest does not get, and that does what the host tool asks for while the guest
//! runs on the others.

mod audit;
mod churn;
mod dirty;
mod moving;
mod port;
pub mod presence;
mod service;
mod why;

use crate::el2::base::cpu::{self, CpuArea};
use crate::el2::base::{firmware, refusal::Refusal};
use crate::el2::mediation;
use hypervisor::machine::Machine;
use hypervisor::options::Options;
use hypervisor::range::PhysRange;
use port::Received;
use service::Service;
use spin::{Mutex, Once};

/// What is known of the management core, if there is one.
struct Core {
    mpidr: u64,
    area: &'static CpuArea,
    /// Until the core takes it.
    service: Mutex<Option<Service>>,
}

static CORE: Once<Core> = Once::new();

/// The registers of the device that the management core talks through; nothing when there is to be no such core. The
/// guest gets no part of their page.
///
/// # Errors
///
/// A sentence: no device, one CPU only, a grant of what shares the device's page.
pub fn find_device(machine: &Machine, options: &Options) -> Result<Option<PhysRange>, Refusal> {
    if !options.wants_manager() {
        if options.resume {
            return Err(Refusal("resume=on needs manager=on, and the device that the guest is read from".into()));
        }
        return Ok(None);
    }
    if machine.cpus.len() < 2 {
        return Err(Refusal(
            "manager=on keeps one CPU back from the guest, and the machine has only one: give it two or more, or \
             leave manager=on out"
                .into(),
        ));
    }
    let device = port::find(machine)?;
    let page = device.grown_to(stage2::PAGE_SIZE).unwrap_or(device);
    match options.grant_dma.iter().find(|&&address| page.contains(address)) {
        Some(address) => Err(Refusal(alloc::format!(
            "grant-dma={address:#x} would give the guest the page of the management device at {device}: attach one of \
             them elsewhere"
        ))),
        None => Ok(Some(device)),
    }
}

/// Keeps the last CPU back that is not the executing one, and opens the device, and the store if there is one. `memory` is the
/// guest's.
///
/// # Errors
///
/// A sentence: the device does not work, or there is no memory.
pub fn prepare(
    machine: &Machine,
    options: &Options,
    memory: &[PhysRange],
    device: Option<PhysRange>,
    store: Option<PhysRange>,
) -> Result<(), Refusal> {
    let Some(device) = device else { return Ok(()) };
    let (mpidr, area) = kept_back(machine).ok_or_else(|| Refusal("there is no CPU to keep back".into()))?;
    let moving = store.map(|store| moving::Moving::new(machine, options, memory, mpidr, store)).transpose()?;
    let service = Service::new(port::Port::open(device)?, memory, options.drop_dirty, moving)?;
    log::info!("manager: CPU {mpidr:#x} is kept back, its device is the virtio console at {device}");
    CORE.call_once(|| Core { mpidr, area, service: Mutex::new(Some(service)) });
    Ok(())
}

/// The CPU that a management core takes.
fn kept_back(machine: &Machine) -> Option<(u64, &'static CpuArea)> {
    let listed = cpu::all().zip(&machine.cpus);
    let others = listed.filter(|(area, _)| !core::ptr::eq(&area.cpu, cpu::this_cpu()));
    others.last().map(|(area, cpu)| (cpu.mpidr, area))
}

/// The affinity of the CPU that the guest does not get when `options` ask for a management core.
pub fn withheld(machine: &Machine, options: &Options) -> Option<u64> {
    options.wants_manager().then(|| kept_back(machine)).flatten().map(|(mpidr, _)| mpidr)
}

/// Whether this is the management core's area.
pub fn is_core(area: &CpuArea) -> bool {
    CORE.get().is_some_and(|core| core::ptr::eq(core.area, area))
}

/// Starts the management core, if there is one: right before the guest.
pub fn start() {
    if let Some(core) = CORE.get()
        && let Err(error) = firmware::start(core.area, core.mpidr, || true)
    {
        firmware::refuse(format_args!(
            "the management core, CPU {:#x}, cannot be started: PSCI says {error}",
            core.mpidr
        ));
    }
}

/// What the management core does, for ever. Its control registers are set: TLB maintenance depends on some.
pub fn run() -> ! {
    let service = CORE.get().and_then(|core| core.service.lock().take());
    let Some(mut service) = service else { firmware::park() };
    loop {
        firmware::park_if_stopped();
        match service.receive() {
            Received::Nothing => {
                mediation::poll();
                cpu::pause();
            }
            Received::Rubbish => service.refuse_rubbish(),
            Received::Request(message) => {
                presence::heard();
                service.answer(message);
                presence::heard();
            }
        }
    }
}
