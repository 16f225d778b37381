//! What the run has cost, told at its end.

use crate::el2::base::{console, cpu, registers::read_register};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use hypervisor::exit_counts::Totals;
use stage2::Event;

/// Whether instructions at EL2 are counted: `icount=on`.
static COUNTS_INSTRUCTIONS: AtomicBool = AtomicBool::new(false);

/// Says whether instructions at EL2 are to be counted.
pub fn count_instructions(yes: bool) {
    COUNTS_INSTRUCTIONS.store(yes, Relaxed);
}

/// Whether instructions at EL2 are counted.
pub fn counts_instructions() -> bool {
    COUNTS_INSTRUCTIONS.load(Relaxed)
}

/// Prints exits by kind, the engine's events, and instructions at EL2 where they are counted.
pub fn print() {
    let mut total = Totals::default();
    for area in cpu::all() {
        total += area.cpu.exits();
    }
    console::print(format_args!("exits: {total}"));
    for (index, area) in cpu::all().enumerate() {
        log::debug!("exits of cpu {index}: {}", area.cpu.exits());
    }
    for &event in Event::ALL {
        let count: u64 = cpu::all().map(|area| area.cpu.stage2.get(event)).sum();
        if count != 0 {
            log::debug!("stage 2: {} {count}", event.name());
        }
    }
    if counts_instructions() {
        print_instructions();
    }
}

/// Under QEMU's `-icount shift=0` with a counter of 1 GHz, a tick is an instruction.
fn print_instructions() {
    let all = read_register!("cntpct_el0");
    let this = cpu::this_cpu();
    // The exit that ends here has not been added yet.
    this.leave_el2();
    let at_el2: u64 = cpu::all().map(|area| area.cpu.el2_ticks.load(Relaxed)).sum();
    let hundredths = at_el2.saturating_mul(10_000).checked_div(all).unwrap_or(0);
    console::print(format_args!(
        "instructions at EL2: {at_el2} of {all} ({}.{:02} %)",
        hundredths / 100,
        hundredths % 100
    ));
}
