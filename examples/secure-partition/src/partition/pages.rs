//! Memory by the page: filled, checked, probed.

use secure_partition::work::{Answer, Failure, pattern};
use stage2::{IpaRange, PAGE_SIZE};

unsafe extern "C" {
    fn probe_read(address: u64) -> u64;
    fn probe_write(address: u64) -> u64;
    fn probe_execute(address: u64) -> u64;
}

/// The words of pages that this context may access now.
fn words(ranges: &[IpaRange]) -> impl Iterator<Item = *mut u64> {
    ranges.iter().flat_map(|range| {
        (0..range.bytes() / 8).map(move |n| core::ptr::with_exposed_provenance_mut((range.start().0 + 8 * n) as usize))
    })
}

/// Fills pages with what `seed` says.
pub fn fill(ranges: &[IpaRange], seed: u64) {
    for word in words(ranges) {
        // SAFETY: the pages are the caller's, and hold no Rust object. Volatile: others look at them too.
        unsafe { word.write_volatile(pattern(seed, word as u64)) };
    }
}

/// Checks that pages hold what `seed` says, or zeroes.
pub fn check(ranges: &[IpaRange], seed: Option<u64>) -> Result<(), Answer> {
    for word in words(ranges) {
        let expected = seed.map_or(0, |seed| pattern(seed, word as u64));
        // SAFETY: the pages are the caller's to read. Volatile: others write them.
        if unsafe { word.read_volatile() } != expected {
            return Err(Answer::Failed(Failure::Contents, word as u64));
        }
    }
    Ok(())
}

/// What an access must not be able to do.
#[derive(Clone, Copy)]
pub enum Access {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Fetch.
    Execute,
}

/// Makes sure that the first and the last page refuse an access.
pub fn must_fault(ranges: &[IpaRange], access: Access) -> Result<(), Answer> {
    for range in ranges {
        for address in [range.start().0, range.end().0 - PAGE_SIZE] {
            let probe = match access {
                Access::Read => probe_read,
                Access::Write => probe_write,
                Access::Execute => probe_execute,
            };
            // SAFETY: a store that goes through against all expectation changes memory that no Rust object is in; a fetch
            // that does, ends the partition or the test. Faults are answered in entry.S.
            let faulted = unsafe { probe(address) };
            if faulted == 0 {
                return Err(Answer::Failed(Failure::Permitted, address));
            }
        }
    }
    Ok(())
}
