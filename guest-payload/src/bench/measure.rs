//! Instructions between two readings of the counter, and what many such measurements amount to.

use core::arch::asm;

/// What ends the measurements early: a sentence.
pub type Failure = &'static str;

/// x0 to x2 after a call, and the instructions that it took.
pub struct Timed {
    /// The status and the first two results.
    pub answer: [u64; 3],
    /// Instructions, the HVC counted in.
    pub instructions: u64,
    /// The reading of the counter before the HVC.
    pub began: u64,
}

/// Calls the hypervisor, and nothing else in between the readings.
#[inline(never)]
pub fn call(function: u32, arguments: [u64; 3]) -> Timed {
    let (before, after): (u64, u64);
    let mut answer = [u64::from(function), arguments[0], arguments[1]];
    // SAFETY: the caller's call, which keeps to the SMC Calling Convention: x0 to x17 may change. Counters are only read.
    unsafe {
        asm!(
            "mrs {before}, cntvct_el0",
            "hvc #0",
            "mrs {after}, cntvct_el0",
            before = out(reg) before,
            after = lateout(reg) after,
            inlateout("x0") answer[0],
            inlateout("x1") answer[1],
            inlateout("x2") answer[2],
            inlateout("x3") arguments[2] => _,
            lateout("x4") _, lateout("x5") _, lateout("x6") _, lateout("x7") _, lateout("x8") _, lateout("x9") _,
            lateout("x10") _, lateout("x11") _, lateout("x12") _, lateout("x13") _, lateout("x14") _,
            lateout("x15") _, lateout("x16") _, lateout("x17") _,
            options(nostack)
        );
    }
    // The second reading is an instruction too.
    Timed { answer, instructions: after - before - 1, began: before }
}

/// Stores to `address`, and returns the instructions of the exit that this caused: 0 if it caused none.
///
/// # Safety
///
/// `address` is memory that nothing is in.
#[inline(never)]
pub unsafe fn store(address: u64, value: u64) -> u64 {
    let (before, after): (u64, u64);
    // SAFETY: the caller's store; counters are only read.
    unsafe {
        asm!(
            "mrs {before}, cntvct_el0",
            "str {value}, [{address}]",
            "mrs {after}, cntvct_el0",
            before = out(reg) before,
            after = lateout(reg) after,
            value = in(reg) value,
            address = in(reg) address,
            options(nostack, preserves_flags)
        );
    }
    // The second reading and the store that went through are two.
    after - before - 2
}

/// Stores to a register of a device's, and returns the instructions of the exit that this caused.
///
/// # Safety
///
/// Such a store harms nothing of the payload's.
#[inline(never)]
pub unsafe fn store_register(address: u64, value: u32) -> u64 {
    let (before, after): (u64, u64);
    // SAFETY: the caller's store; counters are only read.
    unsafe {
        asm!(
            "mrs {before}, cntvct_el0",
            "str {value:w}, [{address}]",
            "mrs {after}, cntvct_el0",
            before = out(reg) before,
            after = lateout(reg) after,
            value = in(reg) value,
            address = in(reg) address,
            options(nostack, preserves_flags)
        );
    }
    after - before - 2
}

/// Loads a register of a device's, and returns the instructions of the exit that this caused.
///
/// # Safety
///
/// Such a load harms nothing of the payload's.
#[inline(never)]
pub unsafe fn load_register(address: u64) -> u64 {
    let (before, after): (u64, u64);
    // SAFETY: the caller's load; counters are only read.
    unsafe {
        asm!(
            "mrs {before}, cntvct_el0",
            "ldr {value:w}, [{address}]",
            "mrs {after}, cntvct_el0",
            before = out(reg) before,
            after = lateout(reg) after,
            value = out(reg) _,
            address = in(reg) address,
            options(nostack, preserves_flags)
        );
    }
    after - before - 2
}

/// Prints a row of `samples`, each of one call.
pub fn print_calls(row: &str, samples: &mut [u64]) {
    samples.sort_unstable();
    let total: u64 = samples.iter().sum();
    let median = samples.get(samples.len() / 2).copied().unwrap_or(0);
    let max = samples.last().copied().unwrap_or(0);
    print_row(row, samples.len() as u64, Hundredths::of(total, samples.len() as u64), median, max, "call");
}

/// Prints a row of `samples`, each of as many instructions for `pages` pages. Median and maximum are rounded up.
pub fn print_pages(row: &str, samples: &mut [u64], pages: u64) {
    samples.sort_unstable();
    let total: u64 = samples.iter().sum();
    let n = samples.len() as u64 * pages;
    let by_page = |sample: Option<&u64>| sample.map_or(0, |sample| sample.div_ceil(pages));
    let (median, max) = (by_page(samples.get(samples.len() / 2)), by_page(samples.last()));
    print_row(row, n, Hundredths::of(total, n), median, max, "page");
}

fn print_row(row: &str, n: u64, mean: Hundredths, median: u64, max: u64, unit: &str) {
    println!("bench: {row} n={n} mean={mean} median={median} max={max} unit={unit}");
}

/// A quotient with two decimals, rounded to nearest.
struct Hundredths(u64);

impl Hundredths {
    fn of(total: u64, n: u64) -> Self {
        let n = n.max(1);
        Self((total * 100 + n / 2) / n)
    }
}

impl core::fmt::Display for Hundredths {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}
