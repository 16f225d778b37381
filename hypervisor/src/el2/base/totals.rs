//! What the run has cost, told at its end.

use crate::el2::base::{console, cpu, registers::read_register};
use alloc::vec::Vec;
use core::fmt;
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

/// What each part of the boot has taken, where instructions are counted.
pub struct Phases {
    parts: Vec<(&'static str, u64)>,
    at: u64,
}

impl Phases {
    /// The first part begins.
    pub fn begin() -> Self {
        Self { parts: Vec::new(), at: read_register!("cntpct_el0") }
    }

    /// A part of `ticks` that is over before the first began.
    pub fn before(&mut self, what: &'static str, began: u64) {
        let ticks = self.parts.iter().fold(self.at, |at, part| at.wrapping_sub(part.1)).wrapping_sub(began);
        self.parts.insert(0, (what, ticks));
    }

    /// A part ends, and the next begins.
    pub fn end(&mut self, what: &'static str) {
        let now = read_register!("cntpct_el0");
        self.parts.push((what, now.wrapping_sub(self.at)));
        self.at = now;
    }

    /// Says what all of them have taken, if instructions are counted.
    pub fn tell(&self) {
        if counts_instructions() {
            log::info!("instructions before the guest: {self}");
        }
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: u64 = self.parts.iter().map(|part| part.1).sum();
        write!(f, "{all}")?;
        self.parts
            .iter()
            .enumerate()
            .try_for_each(|(n, (what, ticks))| write!(f, "{} {what} {ticks}", if n == 0 { ":" } else { "," }))
    }
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
