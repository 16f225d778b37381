//! General-purpose and vector registers of a CPU that computes, or steps, while it is saved.

use super::ask::{required, wait_for_save};
use crate::machine::report::{Outcome, Stop};
use crate::machine::{smp, timer};
use core::sync::atomic::{AtomicU64, Ordering};

unsafe extern "C" {
    fn saved_general(word: *mut u64) -> u64;
    fn saved_simd(word: *mut u64) -> u64;
    fn saved_sve(word: *mut u64) -> u64;
    fn saved_za(word: *mut u64) -> u64;
    fn saved_stepping(word: *mut u64) -> u64;
}

/// What `saved.S` says that it is ready with, and is told to end by.
static WORD: AtomicU64 = AtomicU64::new(0);

/// Has CPU 1 hold registers while the guest is saved. Returns how many have changed.
fn hold(job: fn(u64) -> u64) -> Result<u64, Stop> {
    WORD.store(0, Ordering::Relaxed);
    smp::post(1, job, 0)?;
    check!(timer::wait_until(5000, || WORD.load(Ordering::Relaxed) == 1), "cpu 1 does not begin");
    wait_for_save(|| {})?;
    WORD.store(2, Ordering::Release);
    smp::wait(1, 10_000)
}

/// x1 to x30, but for those that the test itself needs.
pub fn general() -> Outcome {
    required(2)?;
    // SAFETY: it keeps to the procedure call standard, and the word lives for ever.
    let changed = hold(|_| unsafe { saved_general(WORD.as_ptr()) })?;
    check!(changed == 0, "{changed} of 28 registers have changed");
    Ok(())
}

/// V0 to V31.
pub fn simd() -> Outcome {
    required(2)?;
    // SAFETY: as above; nobody else has anything in these registers.
    let changed = hold(|_| unsafe { saved_simd(WORD.as_ptr()) })?;
    check!(changed == 0, "{changed} of 64 halves of vector registers have changed");
    Ok(())
}

/// Z0 to Z31, P0 to P15, FFR, with the longest vectors.
pub fn sve() -> Outcome {
    required(2)?;
    // ID_AA64PFR0_EL1.SVE.
    if read_sysreg!("ID_AA64PFR0_EL1") >> 32 & 0xf == 0 {
        skip!("no SVE");
    }
    // SAFETY: as above, and the CPU has SVE.
    let changed = hold(|_| unsafe { saved_sve(WORD.as_ptr()) })?;
    check!(changed == 0, "{changed} of SVE's registers have changed");
    Ok(())
}

/// ZA, and Z1 to Z31 in streaming mode, with the longest vectors.
pub fn za() -> Outcome {
    required(2)?;
    // ID_AA64PFR1_EL1.SME.
    if read_sysreg!("ID_AA64PFR1_EL1") >> 24 & 0xf == 0 {
        skip!("no SME");
    }
    // SAFETY: as above, and the CPU has SME.
    let changed = hold(|_| unsafe { saved_za(WORD.as_ptr()) })?;
    check!(changed == 0, "{changed} of ZA's rows and of the streaming registers have changed");
    Ok(())
}

/// Software step, one instruction at a time: none goes by unnoticed, and none is told twice.
pub fn stepping() -> Outcome {
    required(2)?;
    // SAFETY: as above; it gives back the vectors and the debug registers.
    let wrong = hold(|_| unsafe { saved_stepping(WORD.as_ptr()) })? as i64;
    check!(wrong == 0, "{wrong} exceptions of software step too many");
    Ok(())
}
