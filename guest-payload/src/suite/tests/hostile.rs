//! A guest that means harm: whatever it calls, reads, writes or executes, on all CPUs at once, EL2 goes on, nothing of the
//! hypervisor's has changed, and the machine still answers.

mod attacks;
mod targets;
mod torn;

use crate::calls::services::{MIB, area, collapse, hvc, required, reset};
use crate::machine::conduit::psci;
use crate::machine::cpu::MAX_CPUS;
use crate::machine::memory::{self, PAGE};
use crate::machine::probe::WRITE32;
use crate::machine::report::{Outcome, Stop};
use crate::machine::timer::{self, Timer};
use crate::machine::{self, GicRegisters, mmu, smp};
use crate::options;
use crate::suite::random::Random;
use core::sync::atomic::{AtomicU64, Ordering::*};
use hypervisor_abi::{function, status};
use smccc::psci::PSCI_VERSION;

use attacks::*;
use targets::{AREA, AREA_BYTES, CODE, WINDOWS};

group!("hostile", [
    hypercalls: 60, psci_calls: 60, system_registers: 60, system_instructions: 60, devices_and_holes: 60,
    interrupt_controller: 60, waits: 60, stage_1_tables: 60, everything: 60,
]);

/// Attacks that each CPU makes at least.
const LEAST: u64 = 200;

/// Until when, of the virtual counter.
static END: AtomicU64 = AtomicU64::new(0);

/// Which kinds of attack, a bit for each.
static KINDS: AtomicU64 = AtomicU64::new(0);

/// What an attacker does.
#[derive(Clone, Copy)]
enum Attack {
    Hypercalls,
    Psci,
    Registers,
    Instructions,
    Memory,
    InterruptController,
    Waits,
    Tables,
}

/// One attack.
type Act = fn(&mut Random);

const ATTACKS: [(Attack, Act); 8] = [
    (Attack::Hypercalls, hypercall),
    (Attack::Psci, psci_call),
    (Attack::Registers, register),
    (Attack::Instructions, instruction),
    (Attack::Memory, access),
    (Attack::InterruptController, controller),
    (Attack::Waits, wait),
    (Attack::Tables, torn::attack),
];

/// Attacks until the time is over. Returns how often.
fn attack(stream: u64) -> u64 {
    let mut random = Random::new(options::get().seed, 0x4057_0000 + stream);
    let kinds = KINDS.load(Relaxed);
    let mut count = 0;
    // On a busy host the time may be over before anything has happened.
    while timer::now() < END.load(Relaxed) || count < LEAST {
        let (kind, act) = pick(&mut random, &ATTACKS);
        if kinds >> kind as u64 & 1 != 0 {
            act(&mut random);
            count += 1;
        }
    }
    Timer::Physical.stop();
    count
}

/// Hashes of EL2's control registers on each CPU.
static BEFORE: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn control_registers(_: u64) -> u64 {
    hvc(function::INTEGRITY, [0; 3])[2]
}

/// Hash of code, constants and tables of EL2, and of the guest's leaves, all of which are made as large as they can be.
fn constants() -> Result<[u64; 2], Stop> {
    // Not the RAM alone: leaves of devices may have been split too.
    let [_, _, _, bits] = hvc(function::FEATURES, [0; 3]);
    check_eq!(collapse(&(0..1 << bits)), status::SUCCESS, "collapse of everything");
    let [x0, constants, _, leaves] = hvc(function::INTEGRITY, [0; 3]);
    check_eq!(x0 as i64, status::SUCCESS, "hashes");
    Ok([constants, leaves])
}

/// Runs `job` on CPU `index`, which may be the one that runs this.
fn on_cpu(index: usize, job: smp::Job) -> Result<u64, Stop> {
    if index == 0 { Ok(job(0)) } else { smp::run(index, job, 0) }
}

/// Attacks in these ways on all CPUs at once.
fn attack_with(kinds: &[Attack]) -> Outcome {
    required()?;
    let area = area(AREA_BYTES, 2 * MIB)?;
    AREA.store(area.start, Relaxed);
    for index in 0..smp::count() {
        let Some(page) = memory::allocate_zeroed_page() else { fail!("no page is free") };
        CODE[index].store(page, Relaxed);
        WINDOWS[index].store(core::ptr::from_ref(mmu::entry(window(index), 3)) as u64, Relaxed);
    }
    if matches!(machine::get().gic, GicRegisters::V3 { .. }) {
        // In group 1, as all that the payload takes: one of group 0, which is off at the CPU interface, would keep others
        // from a CPU while it is pending, and that CPU would wait in vain.
        for line in 1..=LINES {
            // SAFETY: as in `controller`.
            let _ = unsafe { WRITE32.attempt(distributor() + 0x080 + line * 4, u64::from(u32::MAX)) };
        }
    }
    for (index, before) in BEFORE.iter().enumerate().take(smp::count()) {
        before.store(on_cpu(index, control_registers)?, Relaxed);
    }
    let before = constants()?;
    torn::prepare(area.start + AREA_BYTES / 2)?;
    KINDS.store(kinds.iter().map(|&kind| 1 << kind as u64).sum(), Relaxed);
    // The one that does all of it goes on for the whole time, the others for a part of it.
    let share = if kinds.len() > 1 { 1 } else { 4 };
    END.store(timer::now() + timer::milliseconds(options::get().storm * 1000 / share), Relaxed);
    for index in 1..smp::count() {
        smp::post(index, attack, index as u64)?;
    }
    let count = attack(0);
    check!(count >= LEAST, "{count} attacks by cpu 0");
    for index in 1..smp::count() {
        let count = smp::wait(index, 30_000)?;
        check!(count >= LEAST, "{count} attacks by cpu {index}");
    }
    // Device interrupts are off again, and nothing is pending.
    for line in 1..=LINES {
        for register in [0x180, 0x280, 0x380] {
            // SAFETY: as in `controller`.
            let _ = unsafe { WRITE32.attempt(distributor() + register + line * 4, u64::from(u32::MAX)) };
        }
    }
    torn::mend();
    reset();
    required()?;
    check_eq!(constants()?, before, "hashes of the hypervisor's constants and tables, and of the guest's leaves");
    for (index, before) in BEFORE.iter().enumerate().take(smp::count()) {
        let now = on_cpu(index, control_registers)?;
        check_eq!(now, before.load(Relaxed), "hash of EL2's control registers on cpu {index}");
        let answer = on_cpu(index, |_| psci(PSCI_VERSION, [0; 3]) as u64)?;
        check!(answer >> 16 == 1, "PSCI_VERSION on cpu {index}: {answer:#x}");
    }
    for at in area.step_by(PAGE as usize) {
        crate::calls::services::write(at, at);
        check_eq!(crate::calls::services::read(at), at, "memory that the calls were about");
    }
    Ok(())
}

fn hypercalls() -> Outcome {
    attack_with(&[Attack::Hypercalls])
}

fn psci_calls() -> Outcome {
    attack_with(&[Attack::Psci])
}

fn system_registers() -> Outcome {
    attack_with(&[Attack::Registers])
}

fn system_instructions() -> Outcome {
    attack_with(&[Attack::Instructions])
}

fn devices_and_holes() -> Outcome {
    attack_with(&[Attack::Memory])
}

fn interrupt_controller() -> Outcome {
    attack_with(&[Attack::InterruptController])
}

fn waits() -> Outcome {
    attack_with(&[Attack::Waits])
}

fn stage_1_tables() -> Outcome {
    attack_with(&[Attack::Tables])
}

fn everything() -> Outcome {
    attack_with(&ATTACKS.map(|(kind, _)| kind))
}
