//! One workload under different ways to keep track of what it writes: what each costs.
//!
//! How blocks are split is the hypervisor's choice (`bbm=`); what the log does is ours. The same stores are made in each
//! strategy, round after round, with a harvest behind every round. All of it is done twice: alone, for the
//! instructions, and beside another CPU that reads the memory, for what that one notices.

use super::area::{self, Area, BLOCK, PAGE, Running};
use super::bystander;
use super::measure::Failure;
use crate::calls::hypercall;
use crate::machine::{memory, smp};
use crate::options::Strategy;
use hypervisor_abi::log;
use stage2::Event;

/// The guest's memory that is logged.
const BYTES: u64 = 256 << 20;
/// How often it is written to and harvested.
const ROUNDS: u64 = 4;
/// Every other block is written to,
const BLOCK_STEP: usize = 2;
/// and in it every eighth page.
const PAGE_STEP: u64 = 8;
/// Pages written in a round.
const WRITTEN: u64 = BYTES / BLOCK / BLOCK_STEP as u64 * (BLOCK / PAGE / PAGE_STEP);

/// Runs the workload, and prints counts.
pub fn run(strategy: Strategy) {
    smp::init();
    let result = if !hypercall::present() {
        Err("there is no hypervisor")
    } else if smp::restore().is_err() || smp::count() < 2 {
        Err("there must be two CPUs")
    } else {
        let mark = memory::mark();
        let result = measure(strategy);
        memory::release_to(&mark);
        result
    };
    match result {
        Ok(()) => println!("bench: end"),
        Err(why) => println!("bench: failed: {why}"),
    }
}

const FAULTS: [Event; 5] = [
    Event::FaultTranslation,
    Event::FaultPermission,
    Event::FaultAccessFlag,
    Event::FaultConflict,
    Event::FaultSpurious,
];
const BROADCAST: [Event; 4] =
    [Event::TlbiIpaBroadcast, Event::TlbiRangeBroadcast, Event::TlbiVmallE1Broadcast, Event::TlbiVmallS12E1Broadcast];
const LOCAL: [Event; 4] =
    [Event::TlbiIpaLocal, Event::TlbiVmallE1Local, Event::TlbiVmallS12E1Local, Event::TlbiVaLocal];

fn sum(events: &[Event]) -> u64 {
    events.iter().map(|&event| area::counter(event)).sum()
}

fn frames() -> u64 {
    area::counter(Event::FrameAllocated) - area::counter(Event::FrameFreed)
}

fn measure(strategy: Strategy) -> Result<(), Failure> {
    let memory = Area::allocate(BYTES)?;
    let buffer = Area::allocate(BLOCK)?;
    memory.make_blocks()?;
    let blocks = frames();
    if strategy == Strategy::Pages {
        memory.make_pages()?;
    }

    let before = [sum(&FAULTS), sum(&BROADCAST), sum(&LOCAL), area::counter(Event::InvalidWindow)];
    let alone = crate::machine::cpu::without_interrupts(|| workload(strategy, memory, buffer))?;
    let after = [sum(&FAULTS), sum(&BROADCAST), sum(&LOCAL), area::counter(Event::InvalidWindow)];
    let [faults, broadcast, local, windows] = core::array::from_fn(|count| after[count] - before[count]);

    println!("count: mib {}", BYTES >> 20);
    println!("count: rounds {ROUNDS}");
    println!("count: pages-written {}", ROUNDS * WRITTEN);
    println!("count: table-bytes {}", (alone.frames - blocks) * PAGE);
    // The end may put more together than the log has split: blocks of 1 GiB, where all of one is the guest's.
    println!("count: table-bytes-after {}", frames().saturating_sub(blocks) * PAGE);
    println!("count: exits {}", alone.calls + faults);
    println!("count: tlbi-broadcast {broadcast}");
    println!("count: tlbi-local {local}");
    println!("count: invalid-windows {windows}");
    println!("count: el2-instructions {}", alone.instructions);

    // A writer takes no translation faults: they are the bystander's.
    let before = area::counter(Event::FaultTranslation);
    let bystander = bystander::start(memory)?;
    workload(strategy, memory, buffer)?;
    bystander.stop()?;
    println!("count: bystander-faults {}", area::counter(Event::FaultTranslation) - before);
    if strategy == Strategy::Pages {
        memory.collapse()?;
    }
    Ok(())
}

/// What the workload took.
struct Cost {
    /// Instructions from each exit to the next instruction of the guest.
    instructions: u64,
    /// Calls that a manager would make.
    calls: u64,
    /// Table frames when the log was at its largest.
    frames: u64,
}

fn workload(strategy: Strategy, memory: Area, buffer: Area) -> Result<Cost, Failure> {
    let mechanism = if strategy == Strategy::Hardware { log::HARDWARE_PAGE } else { log::WRITE_PROTECT };
    let log: Running = memory.log_by(mechanism, buffer)?;
    let mut cost = Cost { instructions: log.start, calls: 1, frames: 0 };
    for round in 0..ROUNDS {
        for block in memory.blocks().step_by(BLOCK_STEP) {
            for page in (round % PAGE_STEP..BLOCK / PAGE).step_by(PAGE_STEP as usize) {
                cost.instructions += block.store(page);
            }
        }
        cost.instructions += log.harvest(WRITTEN)?;
        cost.calls += 1;
    }
    cost.frames = frames();
    // A table of pages only has nothing to put together.
    cost.instructions += if strategy == Strategy::Pages { log.stop()? } else { log.stop_and_collapse()? };
    cost.calls += 1;
    Ok(cost)
}
