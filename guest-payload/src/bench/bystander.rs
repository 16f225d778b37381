//! A CPU that reads memory while another one changes how it is mapped.

use super::area::{Area, PAGE};
use super::measure::Failure;
use crate::machine::{cpu, smp};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Tells the bystander to go on, and to stop.
static READING: AtomicBool = AtomicBool::new(false);
/// The memory's first address, and its bytes.
static MEMORY: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// How often it has read all blocks.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// A bystander at work, on CPU 1.
pub struct Bystander(());

/// Starts one that reads a word of each block of `memory`, again and again.
///
/// # Errors
///
/// If there is no CPU for it.
pub fn start(memory: Area) -> Result<Bystander, Failure> {
    MEMORY[0].store(memory.start, Ordering::Relaxed);
    MEMORY[1].store(memory.bytes, Ordering::Relaxed);
    READING.store(true, Ordering::Relaxed);
    smp::post(1, read, 0).map_err(|_| "the other CPU takes no work")?;
    wait_for_round();
    Ok(Bystander(()))
}

impl Bystander {
    /// Ends it, after it has read everything once more.
    ///
    /// # Errors
    ///
    /// If the CPU does not come back.
    pub fn stop(self) -> Result<(), Failure> {
        // The round that is under way may have begun long ago.
        wait_for_round();
        wait_for_round();
        READING.store(false, Ordering::Relaxed);
        smp::wait(1, 60_000).map(|_| ()).map_err(|_| "the other CPU did not come back")
    }
}

fn read(_: u64) -> u64 {
    let [start, bytes] = [0, 1].map(|index| MEMORY[index].load(Ordering::Relaxed));
    let memory = Area { start, bytes };
    while READING.load(Ordering::Relaxed) {
        for block in memory.blocks() {
            // SAFETY: memory of the measurements'; that the other CPU writes to other pages of it does not matter here.
            unsafe { ((block.start + PAGE) as *const u64).read_volatile() };
        }
        ROUNDS.fetch_add(1, Ordering::Relaxed);
        cpu::relax();
    }
    0
}

fn wait_for_round() {
    let start = ROUNDS.load(Ordering::Relaxed);
    while ROUNDS.load(Ordering::Relaxed) == start {
        cpu::relax();
    }
}
