//! A stage 1 of 52-bit addresses, whose walks start at level −1, beside a stage 2 that changes.

use crate::calls::services::{MIB, Since, area, bbm_level, collapse, required, split};
use crate::machine::mmu::wide;
use crate::machine::mmu::wide::{TCR_DS, WideTables};
use crate::machine::report::Outcome;
use crate::machine::{exceptions, smp, timer};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use hypervisor_abi::{leaf as size, status};
use stage2::Event;

group!("wide", [walks_survive_invalid_windows: 60]);

static RUNNING: AtomicBool = AtomicBool::new(false);
static WALKS: AtomicU64 = AtomicU64::new(0);

/// Walks again and again: what each turn fetches, loads and stores has no translation yet. Returns TCR_EL1.
unsafe extern "C" fn walk(_: u64, _: u64) -> u64 {
    while RUNNING.load(Acquire) {
        // SAFETY: an invalidation takes no rights away from what the tables say.
        unsafe { core::arch::asm!("dsb nshst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
        WALKS.fetch_add(1, Relaxed);
    }
    read_sysreg!("TCR_EL1")
}

fn worker(tables: u64) -> u64 {
    // SAFETY: the test has posted the address of its tables, and waits for this job's end.
    let tables = unsafe { &*(tables as *const WideTables) };
    // SAFETY: `walk` keeps the rules of `catch`. An exception ends it, not the use of the old tables after it.
    tables.with(|| unsafe { exceptions::catch(walk, 0, 0) }).unwrap_or(0)
}

/// The tables, that of level −1 among them, lie in a block that is split and collapsed meanwhile. With break-before-make
/// every walk may meet a moment in which its first descriptor has no translation.
fn walks_survive_invalid_windows() -> Outcome {
    required()?;
    if !wide::is_possible() {
        skip!("the CPU has no 52-bit addresses with 4 KiB pages");
    }
    if smp::count() < 2 {
        skip!("it takes a second CPU");
    }
    let block = area(2 * MIB, 2 * MIB)?;
    let Some(tables) = WideTables::build(block.clone()) else { fail!("the tables take more than {} MiB", 2) };
    let breaks = bbm_level() == 0;
    let since = Since::now([Event::InvalidWindow, Event::FaultTranslation]);
    WALKS.store(0, Relaxed);
    RUNNING.store(true, Release);
    smp::post(1, worker, core::ptr::from_ref(&tables) as u64)?;
    let enough = || WALKS.load(Relaxed) >= 4096 && (!breaks || since.counts()[1] >= 16);
    let end = timer::now() + timer::milliseconds(20_000);
    let mut changes = [0; 2];
    while !enough() && timer::now() < end {
        changes = [split(&block, size::PAGE), collapse(&block)];
        if changes != [status::SUCCESS; 2] {
            break;
        }
    }
    RUNNING.store(false, Release);
    let tcr = smp::wait(1, 20_000)?;
    check_eq!(changes, [status::SUCCESS; 2], "split and collapse");
    check!(tcr & TCR_DS != 0, "the walks ended by an exception, or TCR_EL1 {tcr:#x} has no DS");
    let [windows, faults] = since.counts();
    let walks = WALKS.load(Relaxed);
    check!(enough(), "{walks} walks, {windows} invalid windows, {faults} translation faults");
    if bbm_level() >= 2 {
        check_eq!([windows, faults], [0, 0], "invalid windows, and translation faults");
    }
    Ok(())
}
