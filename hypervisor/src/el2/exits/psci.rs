//! PSCI as the guest sees it (DEN0022). The firmware's own PSCI does the work; who is on is known here.

use crate::el2::base::firmware::{self, End};
use crate::el2::base::{console, cpu, totals};
use crate::el2::guest_memory;
use crate::el2::manager::{self, presence};
use crate::el2::mediation;
use arm_psci::{EntryPoint, ErrorCode, Function, FunctionId, MigrateInfoType, PowerState, PsciFeature, Version};
use hypervisor::power_state::{Power, TurnOnError};

/// PSCI 1.1.
const VERSION: Version = Version { major: 1, minor: 1 };

/// Answers a call; some do not return.
pub fn call(x: &[u64; 19]) -> i64 {
    let [id, first, second, third, ..] = *x;
    match perform([id, first, second, third]) {
        Ok(value) => value.into(),
        Err(error) => i32::from(error).into(),
    }
}

/// Whether a call is answered with more than "not supported". The others are not even decoded: their arguments mean
/// nothing here.
const fn is_supported(function: FunctionId) -> bool {
    use FunctionId::{
        AffinityInfo32, AffinityInfo64, CpuOff, CpuOn32, CpuOn64, CpuSuspend32, CpuSuspend64, MigrateInfoType,
        PsciFeatures, PsciVersion, SystemOff, SystemReset,
    };
    matches!(
        function,
        PsciVersion
            | CpuSuspend32
            | CpuSuspend64
            | CpuOff
            | CpuOn32
            | CpuOn64
            | AffinityInfo32
            | AffinityInfo64
            | MigrateInfoType
            | SystemOff
            | SystemReset
            | PsciFeatures
    )
}

fn perform(registers: [u64; 4]) -> Result<u32, ErrorCode> {
    if !is_supported(FunctionId::try_from(registers[0] as u32)?) {
        return Err(ErrorCode::NotSupported);
    }
    match Function::try_from(&registers)? {
        Function::Version => Ok(VERSION.into()),
        Function::CpuOn { target_cpu, entry } => cpu_on(target_cpu.into(), entry),
        Function::CpuOff => cpu_off(),
        Function::CpuSuspend { state, entry } => suspend(state, entry),
        Function::AffinityInfo { mpidr, lowest_affinity_level } => affinity_info(mpidr.into(), lowest_affinity_level),
        Function::MigrateInfoType => Ok(MigrateInfoType::MigrationNotRequired.into()),
        Function::SystemOff => end_guest(End::PowerOff),
        Function::SystemReset => end_guest(End::Reset),
        Function::Features { psci_func_id } => features(psci_func_id),
        _ => Err(ErrorCode::NotSupported),
    }
}

/// The guest has asked for the end: reports what it cost, and ends.
fn end_guest(end: End) -> ! {
    mediation::end();
    presence::guest_ends();
    totals::print();
    if let Some(violations) = mediation::violations() {
        console::print(format_args!("mediation: rules broken {violations}"));
    }
    console::print(format_args!("end: {}", end.name()));
    firmware::stop(end)
}

fn features(of: PsciFeature) -> Result<u32, ErrorCode> {
    match of {
        PsciFeature::SmcccVersion => Ok(0),
        // For CPU_SUSPEND: the original format of states, no OS-initiated mode.
        PsciFeature::PsciFunction(function) if is_supported(function) => Ok(0),
        PsciFeature::PsciFunction(_) => Err(ErrorCode::NotSupported),
    }
}

/// The CPU with these affinity fields.
fn find(mpidr: u64) -> Result<&'static cpu::CpuArea, ErrorCode> {
    // The management core is not there for the guest.
    let has =
        |area: &&cpu::CpuArea| area.cpu.id.get().is_some_and(|id| id.affinity() == mpidr) && !manager::is_core(area);
    cpu::all().find(has).ok_or(ErrorCode::InvalidParameters)
}

fn cpu_on(mpidr: u64, entry: EntryPoint) -> Result<u32, ErrorCode> {
    let target = find(mpidr)?;
    let address = check_entry(entry)?;
    let power = &target.cpu.power;
    let ticket = power.turn_on(address, entry.context_id()).map_err(already)?;
    firmware::start(target, mpidr, || power.is_pending(ticket)).map(|()| 0).map_err(|error| {
        power.could_not_start(ticket);
        match power.get() {
            Power::Off => {
                log::error!("CPU {mpidr:#x} cannot be started: PSCI says {error}");
                ErrorCode::InternalFailure
            }
            // It was on its way off, and the firmware has not let it go.
            Power::On => ErrorCode::AlreadyOn,
            Power::OnPending => ErrorCode::OnPending,
        }
    })
}

fn already(error: TurnOnError) -> ErrorCode {
    match error {
        TurnOnError::AlreadyOn => ErrorCode::AlreadyOn,
        TurnOnError::OnPending => ErrorCode::OnPending,
    }
}

/// Does not return, unless the firmware refuses.
fn cpu_off() -> Result<u32, ErrorCode> {
    let power = &cpu::this_cpu().power;
    power.turned_off();
    firmware::turn_off();
    // Still here, so still on, at the same place.
    power.stays_on();
    Err(ErrorCode::Denied)
}

/// Every state is a standby: the caller goes on when there is an interrupt for it (5.4.3: a power-down state may be
/// answered like that). WFI ends for an interrupt that is masked, too; it is the guest's to take.
fn suspend(state: PowerState, entry: EntryPoint) -> Result<u32, ErrorCode> {
    /// StateID, StateType and PowerLevel of the original format (5.4.2.1), of which `arm_psci` decodes the other one.
    const STATE: u32 = 0x0301_ffff;
    const POWER_DOWN: u32 = 1 << 16;
    let PowerState::StandbyOrRetention(state) = state else { return Err(ErrorCode::InvalidParameters) };
    if state & !STATE != 0 {
        return Err(ErrorCode::InvalidParameters);
    }
    if state & POWER_DOWN != 0 {
        check_entry(entry)?;
    }
    aarch64_cpu::asm::wfi();
    Ok(0)
}

/// Code can be entered at an aligned address in the guest's RAM only.
fn check_entry(entry: EntryPoint) -> Result<u64, ErrorCode> {
    let address = entry.entry_point_address();
    if address.is_multiple_of(4) && guest_memory::is_ram(address) {
        Ok(address)
    } else {
        Err(ErrorCode::InvalidAddress)
    }
}

fn affinity_info(mpidr: u64, lowest_level: u32) -> Result<u32, ErrorCode> {
    // Levels above that of CPUs are optional since PSCI 1.0.
    if lowest_level != 0 {
        return Err(ErrorCode::InvalidParameters);
    }
    Ok(match find(mpidr)?.cpu.power.get() {
        Power::On => arm_psci::AffinityInfo::On,
        Power::Off => arm_psci::AffinityInfo::Off,
        Power::OnPending => arm_psci::AffinityInfo::OnPending,
    }
    .into())
}
