//! The hypervisor's memory: a guest can't read, write or execute it, by any kind of access, and goes on after each try.

use crate::calls::hypercall;
use crate::machine::escape::{Escape, class};
use crate::machine::memory::{self, PAGE};
use crate::machine::mmu::{self, NORMAL_RW, NORMAL_RWX};
use crate::machine::probe::{self, DATA_ACCESSES, EXECUTE, READ8, READ64, WRITE64};
use crate::machine::report::Outcome;
use crate::machine::{self, smp};
use crate::options;
use core::ops::Range;
use core::sync::atomic::Ordering;

group!("isolation", [
    is_known, holes_cover_it, every_page_read: 60, every_page_written: 60, every_page_executed: 60, every_kind_of_access,
    device_attributes, page_crossing, next_to_guest_memory, stage_1_tables, stage_1_root, cache_maintenance,
    beyond_memory, from_every_cpu, goes_on,
]);

/// Most pages of a range that are probed one by one; of a longer range, its edges and every so many between.
const PAGES: u64 = 2048;

/// What must not be reachable: the hypervisor's memory as it tells, or the holes in the tree's memory, or what the command
/// line names.
fn targets() -> impl Iterator<Item = Range<u64>> {
    let aim = options::get().aim.clone();
    let told = hypercall::present() && hypercall::own_memory().next().is_some();
    let own = told.then(hypercall::own_memory).into_iter().flatten();
    let holes = (hypercall::present() && !told).then(|| machine::get().holes()).into_iter().flatten();
    aim.into_iter().chain(own).chain(holes)
}

/// What the tests of this group return early with if there is nothing to aim at.
fn required() -> Outcome {
    if options::get().aim.is_none() {
        hypercall::required()?;
    }
    if targets().next().is_none() {
        fail!("the hypervisor's memory is unknown: no range told, no hole in the tree's memory");
    }
    Ok(())
}

/// Pages of a range: the first and last sixteen, and evenly spread between.
fn pages(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    let Range { start, end } = *range;
    let stride = ((end - start) / PAGE / PAGES).max(1) * PAGE;
    let edge = (16 * PAGE).min(end - start);
    (start..start + edge)
        .step_by(PAGE as usize)
        .chain((start + edge..end).step_by(stride as usize))
        .chain((end - edge..end).step_by(PAGE as usize))
}

/// Addresses that stand for a range where every page would take too long.
fn samples(range: &Range<u64>) -> [u64; 3] {
    [range.start, (range.start + range.end) / 2 / PAGE * PAGE, range.end - PAGE]
}

/// Where the test sees a physical address of the target.
fn seen_at(physical: u64) -> u64 {
    mmu::ALIAS + physical
}

/// Tries one kind of access on all pages. A hypervisor with a hole in it has many; the first few say enough.
fn every_page(access: probe::Probe, attributes: mmu::Attributes) -> Outcome {
    required()?;
    for range in targets() {
        mmu::alias(range.clone(), attributes);
        let mut through = 0;
        for page in pages(&range) {
            // SAFETY: none of the payload's memory is in there; what is there must not be reachable.
            through += u32::from(!unsafe { access.must_abort(seen_at(page), page, "the hypervisor's memory") });
            if through >= 3 {
                fail!("and so on in {range:#x?}");
            }
        }
    }
    Ok(())
}

fn is_known() -> Outcome {
    required()?;
    for range in targets() {
        check!(range.start < range.end, "an empty range: {range:#x?}");
        check!(range.start % PAGE == 0 && range.end % PAGE == 0, "not whole pages: {range:#x?}");
        for ram in machine::get().ram() {
            let apart = ram.end <= range.start || range.end <= ram.start;
            check!(apart || options::get().aim.is_some(), "{range:#x?} is in the tree's memory {ram:#x?}");
        }
    }
    Ok(())
}

fn holes_cover_it() -> Outcome {
    required()?;
    // Whatever lies between the tree's ranges of memory must be out of reach as well, told or not.
    let mut through = 0;
    for hole in machine::get().holes() {
        mmu::alias(hole.clone(), NORMAL_RW);
        for page in pages(&hole) {
            // SAFETY: as in `every_page`.
            through += u32::from(!unsafe { READ64.must_abort(seen_at(page), 0, "a hole in the memory") });
            if through >= 3 {
                fail!("and so on in {hole:#x?}");
            }
        }
    }
    Ok(())
}

fn every_page_read() -> Outcome {
    every_page(READ64, NORMAL_RW)
}

fn every_page_written() -> Outcome {
    every_page(WRITE64, NORMAL_RW)
}

fn every_page_executed() -> Outcome {
    every_page(EXECUTE, NORMAL_RWX)
}

/// FEAT_LSE, by ID_AA64ISAR0_EL1.Atomic.
fn has_atomics() -> bool {
    read_sysreg!("ID_AA64ISAR0_EL1") >> 20 & 0xf >= 2
}

fn kinds(attributes: mmu::Attributes, zero_blocks: bool) -> Outcome {
    required()?;
    for range in targets() {
        mmu::alias(range.clone(), attributes);
        for address in samples(&range) {
            for access in DATA_ACCESSES.iter().filter(|access| has_atomics() || !access.needs_atomics) {
                // DC ZVA on device memory is an alignment fault, whatever is there.
                if zero_blocks || access.name != "DC ZVA" {
                    // SAFETY: as in `every_page`.
                    unsafe { access.must_abort(seen_at(address), 1, "the hypervisor's memory") };
                }
            }
        }
    }
    Ok(())
}

fn every_kind_of_access() -> Outcome {
    kinds(NORMAL_RW, true)
}

fn device_attributes() -> Outcome {
    kinds(mmu::DEVICE, false)
}

fn page_crossing() -> Outcome {
    required()?;
    // Two neighbours in the address space: a page of ours, then one of the hypervisor's, and the other way round.
    let own = memory::allocate_zeroed_page().expect("a page");
    let window = mmu::ALIAS + (1 << 46);
    for range in targets() {
        mmu::map(window..window + PAGE, own, NORMAL_RW);
        mmu::map(window + PAGE..window + 2 * PAGE, range.start, NORMAL_RW);
        mmu::map(window + 2 * PAGE..window + 3 * PAGE, own, NORMAL_RW);
        for (address, what) in [(window + PAGE - 4, "into"), (window + 2 * PAGE - 4, "out of")] {
            for access in [READ64, WRITE64] {
                // SAFETY: as in `every_page`; the other half is a page of the test's own.
                unsafe { access.must_abort(address, 1, what) };
            }
        }
    }
    Ok(())
}

fn next_to_guest_memory() -> Outcome {
    required()?;
    // The last byte before a target and the first behind it are the guest's, if the tree says so.
    let ram = machine::get().ram();
    for range in targets() {
        for address in [range.start.wrapping_sub(1), range.end] {
            if ram.iter().any(|ram| ram.contains(&address)) {
                // SAFETY: a load from RAM.
                let result = unsafe { READ8.attempt(address, 0) };
                check!(
                    result.is_ok(),
                    "{address:#x}, the guest's memory beside {range:#x?}: expected a value, seen {result:x?}"
                );
            }
        }
    }
    Ok(())
}

fn stage_1_tables() -> Outcome {
    required()?;
    for range in targets() {
        for level in 0..3 {
            // A Table descriptor of this level that points into the hypervisor's memory: the walk's next read is there.
            let address = mmu::ALIAS + (1 << 46) + (u64::from(level) << 40);
            mmu::entry(address, level).store(mmu::table_descriptor(range.start), Ordering::Relaxed);
            mmu::invalidate_all();
            for access in [READ64, WRITE64] {
                // SAFETY: whatever the walk finds, the address is nobody's.
                let result = unsafe { access.attempt(address, 1) };
                let seen = probe::exception(result);
                let right = seen.is_some_and(|seen| {
                    seen.is_external_abort() && seen.class() == class::DATA_ABORT && seen.far == address
                });
                check!(
                    right,
                    "{} through a level {} table in the hypervisor's memory: expected an external abort at {address:#x}, seen {seen:x?}",
                    access.name,
                    level + 1
                );
            }
        }
    }
    Ok(())
}

/// TCR_EL1 fields of the upper half: EPD1, and T1SZ 16 with 4 KiB granule, inner shareable write-back.
const EPD1: u64 = 1 << 23;
const UPPER_HALF: u64 = 0b10 << 30 | 0b11 << 28 | 0b01 << 26 | 0b01 << 24 | 16 << 16;

fn stage_1_root() -> Outcome {
    required()?;
    let tcr = read_sysreg!("TCR_EL1");
    for range in targets() {
        // SAFETY: nothing of the payload is in the upper half, whose root this is; it is switched off again below.
        unsafe {
            core::arch::asm!(
                "msr TTBR1_EL1, {root}", "isb", "msr TCR_EL1, {tcr}", "isb",
                root = in(reg) range.start, tcr = in(reg) tcr & !EPD1 | UPPER_HALF, options(nostack, preserves_flags)
            );
        }
        let address = 0xffff_0000_1234_5000;
        // SAFETY: the address is nobody's.
        let result = unsafe { READ64.attempt(address, 0) };
        // SAFETY: the payload's own value; the invalidation drops whatever the walk left.
        unsafe {
            core::arch::asm!("msr TCR_EL1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb", in(reg) tcr, options(nostack, preserves_flags))
        };
        let seen = probe::exception(result);
        check!(
            seen.is_some_and(|seen| seen.is_external_abort() && seen.far == address),
            "load through a root table in the hypervisor's memory: expected an external abort at {address:#x}, seen {seen:x?}"
        );
    }
    Ok(())
}

unsafe extern "C" fn maintain(address: u64, _: u64) -> u64 {
    // SAFETY: on memory that can't be reached, maintenance by address does nothing or aborts (AT puts the fault into PAR).
    unsafe {
        core::arch::asm!("dc civac, {0}", "dc cvau, {0}", "ic ivau, {0}", "dsb ish", "prfm pldl1keep, [{0}]", "at s1e1r, {0}", "isb", in(reg) address, options(nostack))
    };
    0
}

fn cache_maintenance() -> Outcome {
    required()?;
    for range in targets() {
        mmu::alias(range.clone(), NORMAL_RW);
        for address in samples(&range) {
            // SAFETY: as `maintain` says.
            match unsafe { crate::machine::exceptions::catch(maintain, seen_at(address), 0) } {
                Ok(_) => {}
                Err(Escape::Exception(seen)) if seen.is_external_abort() => {}
                Err(why) => crate::machine::report::failure(format_args!(
                    "maintenance at {address:#x}: expected nothing or an external abort, seen {why}"
                )),
            }
        }
    }
    Ok(())
}

fn beyond_memory() -> Outcome {
    if options::get().aim.is_none() {
        hypercall::required()?;
    }
    let end = machine::get().ram().last().map_or(0, |range| range.end);
    mmu::alias(end..end + 0x20_0000, NORMAL_RW);
    for address in [end, end + PAGE, end + 0x1f_f000] {
        for access in [READ64, WRITE64] {
            // SAFETY: nothing is there.
            unsafe { access.must_abort(seen_at(address), 0, "behind the last memory") };
        }
    }
    Ok(())
}

fn probe_all(_: u64) -> u64 {
    for range in targets() {
        for address in samples(&range) {
            for access in [READ64, WRITE64, EXECUTE] {
                // SAFETY: as in `every_page`.
                unsafe { access.must_abort(seen_at(address), 1, "the hypervisor's memory") };
            }
        }
    }
    0
}

fn from_every_cpu() -> Outcome {
    required()?;
    for range in targets() {
        mmu::alias(range, NORMAL_RWX);
    }
    for index in 1..smp::count() {
        smp::run(index, probe_all, 0)?;
    }
    // All at once: their faults must not get in each other's way.
    for index in 1..smp::count() {
        smp::post(index, probe_all, 0)?;
    }
    probe_all(0);
    for index in 1..smp::count() {
        smp::wait(index, 10_000)?;
    }
    Ok(())
}

fn goes_on() -> Outcome {
    required()?;
    // A thousand faults in a row, with memory and registers intact after each.
    let page = memory::allocate_zeroed_page().expect("a page");
    let Some(range) = targets().next() else { return Ok(()) };
    mmu::alias(range.clone(), NORMAL_RW);
    for round in 0..1000 {
        // SAFETY: as in `every_page`.
        if !unsafe { WRITE64.must_abort(seen_at(range.start), round, "the hypervisor's memory") } {
            fail!("in round {round}");
        }
        // SAFETY: a page of the test's own.
        let stored = unsafe { WRITE64.attempt(page + round % 512 * 8, round) };
        check!(stored.is_ok(), "a store to an own page in round {round}: {stored:x?}");
    }
    for round in 488..1000 {
        // SAFETY: a page of the test's own.
        let seen = unsafe { READ64.attempt(page + round % 512 * 8, 0) };
        check_eq!(seen, Ok(round), "what round {round} stored");
    }
    Ok(())
}
