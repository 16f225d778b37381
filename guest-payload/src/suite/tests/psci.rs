//! PSCI (DEN0022): starting, stopping and asking about CPUs, with right and wrong arguments.

use crate::calls::hypercall;
use crate::machine::conduit::psci;
use crate::machine::report::Outcome;
use crate::machine::{self, boot, cpu, memory, smp, timer};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use smccc::psci::{
    PSCI_AFFINITY_INFO_32, PSCI_AFFINITY_INFO_64, PSCI_CPU_OFF, PSCI_CPU_ON_32, PSCI_CPU_ON_64, PSCI_CPU_SUSPEND_64,
    PSCI_FEATURES, PSCI_MEM_PROTECT, PSCI_MIGRATE_INFO_TYPE, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET, PSCI_VERSION,
};

group!("psci", [
    version, features, cpu_on_all, cpu_on_twice, cpu_on_bad_target, cpu_on_bad_entry, affinity_info, cpu_off,
    off_and_on_100_times: 60, cpu_on_by_two: 60, suspend_until_timer, migrate_info, unknown_functions,
]);

const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INVALID_ADDRESS: i64 = -9;

/// SMCCC_VERSION, which PSCI_FEATURES answers for.
const SMCCC_VERSION: u32 = 0x8000_0000;

/// An affinity that no CPU of the machine has.
fn nobody() -> u64 {
    let highest = machine::get().mpidrs().iter().copied().max().unwrap_or(0);
    highest + 0x0001_0000
}

fn version() -> Outcome {
    let version = psci(PSCI_VERSION, [0; 3]);
    check!((0x1_0000..0x2_0000).contains(&version), "PSCI_VERSION: expected 1.x, seen {version:#x}");
    Ok(())
}

fn features() -> Outcome {
    let needed = [
        PSCI_VERSION,
        PSCI_CPU_SUSPEND_64,
        PSCI_CPU_OFF,
        PSCI_CPU_ON_64,
        PSCI_AFFINITY_INFO_64,
        PSCI_SYSTEM_OFF,
        PSCI_SYSTEM_RESET,
        PSCI_FEATURES,
    ];
    // QEMU's own PSCI does not know SMCCC_VERSION.
    let convention = hypercall::present().then_some(SMCCC_VERSION);
    for function in needed.into_iter().chain(convention) {
        let answer = psci(PSCI_FEATURES, [u64::from(function), 0, 0]);
        check!(answer >= 0, "PSCI_FEATURES of {function:#x}: expected it to be there, seen {answer}");
    }
    // MEM_PROTECT is one that the hypervisor can decode, and does not have (`unknown_functions`).
    for function in [PSCI_MEM_PROTECT, 0x8400_00ff_u32, 0xc400_00ff, 0x0000_0000, 0xffff_ffff] {
        check_eq!(psci(PSCI_FEATURES, [u64::from(function), 0, 0]), NOT_SUPPORTED, "PSCI_FEATURES of {function:#x}");
    }
    Ok(())
}

fn cpu_on_all() -> Outcome {
    for index in 1..smp::count() {
        let mpidr = smp::run(index, |_| read_sysreg!("MPIDR_EL1") & cpu::MPIDR_AFFINITY, 0)?;
        check_eq!(
            mpidr,
            machine::get().mpidrs()[index],
            "the affinity that cpu {index} has, against its node in the tree"
        );
    }
    Ok(())
}

fn cpu_on_twice() -> Outcome {
    for (index, &mpidr) in machine::get().mpidrs().iter().enumerate() {
        let entry = boot::secondary_entry_address();
        for function in [PSCI_CPU_ON_64, PSCI_CPU_ON_32] {
            check_eq!(
                psci(function, [mpidr, entry, 0]),
                ALREADY_ON,
                "CPU_ON ({function:#x}) of cpu {index}, which is on"
            );
        }
    }
    Ok(())
}

fn cpu_on_bad_target() -> Outcome {
    let entry = boot::secondary_entry_address();
    // An affinity nobody has, bits that are reserved, the U and RES1 bits of MPIDR_EL1 itself, all ones.
    for target in [nobody(), 1 << 24, machine::get().mpidrs()[0] | 1 << 31, u64::MAX] {
        check_eq!(psci(PSCI_CPU_ON_64, [target, entry, 0]), INVALID_PARAMETERS, "CPU_ON of the target {target:#x}");
    }
    Ok(())
}

fn cpu_on_bad_entry() -> Outcome {
    hypercall::required()?;
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    smp::stop(1)?;
    let target = cpu::cpu(1).mpidr();
    if !timer::wait_until(5000, || psci(PSCI_AFFINITY_INFO_64, [target, 0, 0]) == smp::AFFINITY_OFF) {
        fail!("cpu 1 did not go off");
    }
    // A device, the hypervisor's memory where it tells, beyond all memory. (PSCI 1.0, 5.6.)
    let own = hypercall::own_memory().next().map_or(0, |range| range.start);
    for entry in [machine::get().uart, own, 0xf_ffff_f000] {
        let answer = psci(PSCI_CPU_ON_64, [target, entry, 0]);
        check_eq!(answer, INVALID_ADDRESS, "CPU_ON with the entry {entry:#x}, which is not the guest's memory");
    }
    check_eq!(smp::start(1), Ok(()), "CPU_ON with a right entry after that");
    Ok(())
}

fn affinity_info() -> Outcome {
    for (index, &mpidr) in machine::get().mpidrs().iter().enumerate() {
        for function in [PSCI_AFFINITY_INFO_64, PSCI_AFFINITY_INFO_32] {
            check_eq!(
                psci(function, [mpidr, 0, 0]),
                smp::AFFINITY_ON,
                "AFFINITY_INFO ({function:#x}) of cpu {index}, which is on"
            );
        }
    }
    check_eq!(psci(PSCI_AFFINITY_INFO_64, [nobody(), 0, 0]), INVALID_PARAMETERS, "AFFINITY_INFO of {:#x}", nobody());
    // QEMU's own PSCI answers for any level.
    if hypercall::present() {
        let mpidr = machine::get().mpidrs()[0];
        check_eq!(psci(PSCI_AFFINITY_INFO_64, [mpidr, 4, 0]), INVALID_PARAMETERS, "AFFINITY_INFO of level 4");
    }
    Ok(())
}

fn cpu_off() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for index in 1..smp::count() {
        smp::stop(index)?;
        let target = cpu::cpu(index).mpidr();
        if !timer::wait_until(5000, || psci(PSCI_AFFINITY_INFO_64, [target, 0, 0]) == smp::AFFINITY_OFF) {
            fail!("AFFINITY_INFO of cpu {index} after its CPU_OFF: expected off (1) within 5 s");
        }
    }
    for index in 1..smp::count() {
        check_eq!(smp::start(index), Ok(()), "CPU_ON of cpu {index} after its CPU_OFF");
        check_eq!(smp::run(index, |argument| argument * 2, 21)?, 42, "what cpu {index} computed after that");
    }
    Ok(())
}

fn off_and_on_100_times() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let last = smp::count() - 1;
    let target = cpu::cpu(last).mpidr();
    for round in 1..=100 {
        smp::stop(last)?;
        if !timer::wait_until(5000, || psci(PSCI_AFFINITY_INFO_64, [target, 0, 0]) == smp::AFFINITY_OFF) {
            fail!("round {round}: cpu {last} did not go off within 5 s");
        }
        if let Err(status) = smp::start(last) {
            fail!("round {round}: CPU_ON of cpu {last}: status {status}");
        }
        if smp::entry_state(last).current_el != 1 << 2 {
            fail!("round {round}: cpu {last} arrived with CurrentEL {:#x}", smp::entry_state(last).current_el);
        }
    }
    check_eq!(smp::run(last, |argument| argument + 1, 1)?, 2, "what cpu {last} computed at last");
    Ok(())
}

/// Which CPU is to be started, and when.
static TARGET: AtomicU64 = AtomicU64::new(0);
static GO: AtomicBool = AtomicBool::new(false);

fn start_target(context: u64) -> u64 {
    while !GO.load(Acquire) {
        cpu::relax();
    }
    psci(PSCI_CPU_ON_64, [TARGET.load(Relaxed), boot::secondary_entry_address(), context]) as u64
}

fn cpu_on_by_two() -> Outcome {
    if smp::count() < 3 {
        skip!("fewer than three CPUs");
    }
    let target = cpu::cpu(2).mpidr();
    for round in 1..=50 {
        smp::stop(2)?;
        if !timer::wait_until(5000, || psci(PSCI_AFFINITY_INFO_64, [target, 0, 0]) == smp::AFFINITY_OFF) {
            fail!("round {round}: cpu 2 did not go off within 5 s");
        }
        TARGET.store(target, Relaxed);
        GO.store(false, Release);
        let context = smp::context(2);
        smp::post(1, start_target, context)?;
        GO.store(true, Release);
        let answers = [start_target(context) as i64, smp::wait(1, 5000)? as i64];
        let started = answers.iter().filter(|&&answer| answer == 0).count();
        let refused = answers.iter().filter(|&&answer| matches!(answer, ALREADY_ON | ON_PENDING)).count();
        check!((started, refused) == (1, 1), "round {round}: CPU_ON by two CPUs at a time: {answers:?}");
        if !timer::wait_until(5000, || smp::is_idle(2)) {
            fail!("round {round}: cpu 2 did not arrive within 5 s");
        }
    }
    Ok(())
}

fn suspend_until_timer() -> Outcome {
    // A standby state: returns when an interrupt is pending, SUCCESS (DEN0022, 5.4).
    timer::watch_with(timer::Timer::Physical);
    let before = cpu::current().interrupt_count(timer::Timer::Virtual.interrupt());
    let arrived = || cpu::current().interrupt_count(timer::Timer::Virtual.interrupt()) == before + 1;
    timer::Timer::Virtual.start(timer::now() + timer::milliseconds(20));
    let mut answers = 0;
    while !arrived() {
        // Masked, so that the interrupt can't come between the look and the call: pending, it ends the standby too.
        let answer = cpu::without_interrupts(|| if arrived() { 0 } else { psci(PSCI_CPU_SUSPEND_64, [0, 0, 0]) });
        check_eq!(answer, 0, "CPU_SUSPEND to standby");
        answers += 1;
        if answer != 0 {
            break;
        }
    }
    check!(answers < 1000, "CPU_SUSPEND returned {answers} times in 20 ms: it does not wait");
    // A power-down state either works or is refused; with an entry outside memory it must be refused. The timer ends the
    // standby that it may be taken for.
    if hypercall::present() {
        timer::Timer::Virtual.start(timer::now() + timer::milliseconds(100));
        let answer = psci(PSCI_CPU_SUSPEND_64, [1 << 16, machine::get().uart, 0]);
        check!(
            answer < 0,
            "CPU_SUSPEND to power-down with an entry that is no memory: expected an error, seen {answer}"
        );
    }
    Ok(())
}

fn migrate_info() -> Outcome {
    let answer = psci(PSCI_MIGRATE_INFO_TYPE, [0; 3]);
    check!(answer == 2 || answer == NOT_SUPPORTED, "MIGRATE_INFO_TYPE: expected 2 (not needed) or -1, seen {answer}");
    Ok(())
}

fn unknown_functions() -> Outcome {
    let page = memory::allocate_zeroed_page().expect("a page");
    for function in [PSCI_MEM_PROTECT, 0x8400_00ff, 0xc400_00ff] {
        check_eq!(psci(function, [page, 0, 0]), NOT_SUPPORTED, "the unknown PSCI function {function:#x}");
    }
    Ok(())
}
