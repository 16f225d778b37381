//! Counts that need no clock: invalidations, invalid windows, and what another CPU notices.

use super::area::{self, Area, BLOCK, PAGE};
use super::measure::Failure;
use crate::machine::{cpu, smp};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use hypervisor_abi::function;
use stage2::Event;

/// What is counted on, where the machine has as much: 512 blocks.
const BYTES: u64 = 1 << 30;

/// TLB invalidations that reach all CPUs.
const BROADCAST: [Event; 4] =
    [Event::TlbiIpaBroadcast, Event::TlbiRangeBroadcast, Event::TlbiVmallE1Broadcast, Event::TlbiVmallS12E1Broadcast];

fn sum(events: &[Event]) -> u64 {
    events.iter().map(|&event| area::counter(event)).sum()
}

/// Tells the bystander to go on, and to stop.
static READING: AtomicBool = AtomicBool::new(false);
/// How often it has read the whole range.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// Reads one word of each block of 1 GiB from `start` on, again and again.
fn bystander(start: u64) -> u64 {
    while READING.load(Ordering::Relaxed) {
        for block in 0..BYTES / BLOCK {
            // SAFETY: memory of the measurements'; the other CPU does not write it meanwhile.
            unsafe { ((start + block * BLOCK + PAGE) as *const u64).read_volatile() };
        }
        ROUNDS.fetch_add(1, Ordering::Relaxed);
        cpu::relax();
    }
    0
}

/// Counts and prints.
///
/// # Errors
///
/// If the machine is too small or a call fails.
pub fn print() -> Result<(), Failure> {
    let memory = Area::allocate(BYTES)?;
    let buffer = Area::allocate(BLOCK)?;
    let bbm = area::call(function::FEATURES, [0; 3], "the hypervisor runs without hypercalls=on")?.answer[1];
    println!("count: bbm-level {bbm}");
    println!("count: blocks {}", BYTES / BLOCK);

    memory.make_blocks()?;
    let broadcasts = sum(&BROADCAST);
    let log = memory.log(buffer)?;
    println!("count: protection-broadcast-tlbi {}", sum(&BROADCAST) - broadcasts);
    println!("count: start-log-instructions {}", log.start);

    let bystanders = smp::count().min(2) - 1;
    if bystanders > 0 {
        READING.store(true, Ordering::Relaxed);
        smp::post(1, bystander, memory.start).map_err(|_| "the other CPU takes no work")?;
        wait_for_rounds(1);
    }
    let (broadcasts, windows) = (sum(&BROADCAST), area::counter(Event::InvalidWindow));
    let faults = area::counter(Event::FaultTranslation);
    for block in memory.blocks() {
        block.make_pages()?;
        cpu::relax();
    }
    if bystanders > 0 {
        wait_for_rounds(2);
        READING.store(false, Ordering::Relaxed);
        smp::wait(1, 60_000).map_err(|_| "the other CPU did not come back")?;
    }
    println!("count: split-broadcast-tlbi {}", sum(&BROADCAST) - broadcasts);
    println!("count: invalid-windows {}", area::counter(Event::InvalidWindow) - windows);
    println!("count: bystanders {bystanders}");
    println!("count: bystander-faults {}", area::counter(Event::FaultTranslation) - faults);

    let broadcasts = sum(&BROADCAST);
    memory.store(0);
    log.harvest(1)?;
    println!("count: harvest-broadcast-tlbi {}", sum(&BROADCAST) - broadcasts);
    log.stop()?;
    memory.collapse().map(|_| ())
}

/// Waits until the bystander has read everything so often since now.
fn wait_for_rounds(rounds: u64) {
    let start = ROUNDS.load(Ordering::Relaxed);
    while ROUNDS.load(Ordering::Relaxed) < start + rounds {
        cpu::relax();
    }
}
