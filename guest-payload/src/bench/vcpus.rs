//! First writes of all CPUs at once, each to pages of its own: of one block, of blocks side by side, of blocks far apart. The
//! blocks are split by the first write to each.

use super::area::{Area, BLOCK, PAGE};
use super::measure::{self, Failure, print_calls};
use crate::machine::smp;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Stores of each CPU: of 8 CPUs they fill a block.
const STORES: u64 = 64;
/// From one block to the next, if they are far apart.
const FAR: u64 = 256 << 20;
/// Samples of the CPUs that there may be.
const SAMPLES: u64 = 64 * STORES;

/// Where the first CPU's first store goes, the first stores of the others, and each one's next; and where the samples go.
static PLAN: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Measures with all CPUs that the machine has.
///
/// # Errors
///
/// If it is too small, or a call fails.
pub fn print() -> Result<(), Failure> {
    let cpus = smp::count() as u64;
    let area = Area::allocate(cpus * FAR)?;
    let (buffer, samples) = (Area::allocate(BLOCK)?, Area::allocate(SAMPLES * 8)?);
    // SAFETY: memory that was just taken, aligned and large enough.
    unsafe { core::ptr::write_bytes(samples.start as *mut u64, 0, SAMPLES as usize) };
    for (row, apart, step) in
        [("one-block", PAGE, cpus * PAGE), ("side-by-side", BLOCK, PAGE), ("far-apart", FAR, PAGE)]
    {
        area.make_blocks()?;
        let log = area.log(buffer)?;
        for (word, value) in PLAN.iter().zip([area.start, apart, step, samples.start]) {
            word.store(value, Relaxed);
        }
        for cpu in 1..cpus {
            smp::post(cpu as usize, write, cpu).map_err(|_| "another CPU takes no work")?;
        }
        write(0);
        for cpu in 1..cpus {
            smp::wait(cpu as usize, 60_000).map_err(|_| "another CPU did not come back")?;
        }
        log.harvest(cpus * STORES)?;
        log.stop()?;
        // SAFETY: initialised above; the CPUs that wrote there have ended.
        let samples = unsafe { core::slice::from_raw_parts_mut(samples.start as *mut u64, (cpus * STORES) as usize) };
        print_calls(row, samples);
    }
    Ok(())
}

/// What each CPU does.
fn write(cpu: u64) -> u64 {
    let [start, apart, step, samples] = [0, 1, 2, 3].map(|word| PLAN[word].load(Relaxed));
    for store in 0..STORES {
        let address = start + cpu * apart + store * step;
        // SAFETY: the page is this CPU's, of memory that nothing is in.
        let instructions = unsafe { measure::store(address, store) };
        let sample = (samples as *mut u64).wrapping_add((cpu * STORES + store) as usize);
        // SAFETY: this CPU's samples, for which there is room.
        unsafe { sample.write_volatile(instructions) };
    }
    0
}
