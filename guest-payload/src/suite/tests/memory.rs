//! The guest's memory: all of what the tree says is there, can be used, and is one thing to all CPUs.

use crate::machine::memory::{self, PAGE};
use crate::machine::probe::{self, EXECUTE};
use crate::machine::report::Outcome;
use crate::machine::{self, smp};
use core::sync::atomic::{AtomicU64, Ordering};

group!("memory", [pages_writable: 60, pages_distinct: 60, executable, shared_by_cpus, atomics_between_cpus]);

/// At most so many pages are touched, evenly spread.
const PAGES: u64 = 16_384;

/// Addresses of pages all over memory: the first and the last of each range, and every so many between.
fn pages() -> impl Iterator<Item = u64> {
    let total: u64 = machine::get().ram().iter().map(|range| (range.end - range.start) / PAGE).sum();
    // An odd stride meets every offset within a larger leaf sooner or later.
    let stride = ((total / PAGES) | 1) * PAGE;
    machine::get().ram().iter().flat_map(move |range| {
        (range.start..range.end).step_by(stride as usize).chain(core::iter::once(range.end - PAGE))
    })
}

fn pages_writable() -> Outcome {
    for page in pages() {
        let in_use = memory::in_use(page);
        let access = if in_use { probe::READ64 } else { probe::WRITE64 };
        // SAFETY: the page is RAM by the tree; it is written only if nobody uses it.
        let result = unsafe { access.attempt(page, page ^ 0x5555) };
        if let Err(why) = result {
            fail!("{} at {page:#x}, which is memory by the tree: {why}", access.name);
        }
    }
    Ok(())
}

fn pages_distinct() -> Outcome {
    // All are written before the first is read: two addresses of one page would show.
    for page in pages().filter(|&page| !memory::in_use(page)) {
        // SAFETY: RAM that nobody uses.
        if let Err(why) = unsafe { probe::WRITE64.attempt(page + 8, page) } {
            fail!("store at {page:#x}: {why}");
        }
    }
    for page in pages().filter(|&page| !memory::in_use(page)) {
        // SAFETY: as above.
        let seen = unsafe { probe::READ64.attempt(page + 8, 0) };
        if seen != Ok(page) {
            fail!("{page:#x}: expected its own address, seen {seen:x?}");
        }
    }
    Ok(())
}

/// `ret`.
const RET: u32 = 0xd65f_03c0;

fn executable() -> Outcome {
    let free = memory::free();
    for page in [free.start.next_multiple_of(PAGE), (free.start + free.end) / 2 / PAGE * PAGE, free.end - PAGE] {
        // SAFETY: the page is nobody's; the maintenance makes the instruction visible to fetches before the branch: the
        // store reaches the point of unification (DC CVAU, DSB), stale lines go (IC IVAU, DSB), and this CPU refetches.
        unsafe {
            core::arch::asm!(
                "str {ret:w}, [{page}]", "dc cvau, {page}", "dsb ish", "ic ivau, {page}", "dsb ish", "isb",
                ret = in(reg) RET, page = in(reg) page, options(nostack)
            );
        }
        // SAFETY: it returns at once.
        let result = unsafe { EXECUTE.attempt(page, 0) };
        check!(result.is_ok(), "executing at {page:#x}: expected a return, seen {result:x?}");
    }
    Ok(())
}

fn fill(page: u64) -> u64 {
    for offset in (0..PAGE).step_by(8) {
        // SAFETY: a page of the test's own, which only this CPU uses now.
        unsafe { ((page + offset) as *mut u64).write(page + offset) };
    }
    0
}

fn shared_by_cpus() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let page = memory::allocate_zeroed_page().expect("a page");
    for index in 1..smp::count() {
        // SAFETY: the test's own page.
        unsafe { core::ptr::write_bytes(page as *mut u8, 0, PAGE as usize) };
        smp::run(index, fill, page)?;
        for offset in (0..PAGE).step_by(8) {
            // SAFETY: as above.
            let seen = unsafe { ((page + offset) as *const u64).read() };
            if seen != page + offset {
                fail!("what cpu {index} wrote at {:#x}: expected that address, seen {seen:#x}", page + offset);
            }
        }
    }
    Ok(())
}

const INCREMENTS: u64 = 20_000;

fn increment(counter: u64) -> u64 {
    // SAFETY: the address of an `AtomicU64` that outlives the job.
    let counter = unsafe { &*(counter as *const AtomicU64) };
    for _ in 0..INCREMENTS {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    0
}

fn atomics_between_cpus() -> Outcome {
    let page = memory::allocate_zeroed_page().expect("a page");
    for index in 1..smp::count() {
        smp::post(index, increment, page)?;
    }
    increment(page);
    for index in 1..smp::count() {
        smp::wait(index, 10_000)?;
    }
    // SAFETY: the test's own page.
    let seen = unsafe { &*(page as *const AtomicU64) }.load(Ordering::Relaxed);
    check_eq!(seen, INCREMENTS * smp::count() as u64, "increments by all CPUs");
    Ok(())
}
