//! Leaves of every size: split wherever a page in them may lie, put together again, with nothing else noticing.

use crate::calls::services::{
    ALL, Leaf, MIB, RET, Since, apart, area, bbm_level, collapse, leaf, move_to_x0, protect, read, required, split,
    write, write_code,
};
use crate::machine::cpu::{self, MAX_CPUS};
use crate::machine::memory::{self, PAGE};
use crate::machine::probe::WRITE64;
use crate::machine::report::{Outcome, Stop};
use crate::machine::{exceptions, smp};
use crate::options;
use crate::suite::random::Random;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use hypervisor_abi::{leaf as size, permissions, status};
use stage2::Event;

group!("sizes", [
    pages_in_1_gib: 60, pages_in_32_mib, pages_in_2_mib, pages_in_64_kib, split_to_each_size, collapse_gives_back,
    devices_stay_whole, bystanders: 60,
]);

const READ_EXECUTE: u64 = permissions::READ | permissions::EXECUTE;

const fn bytes(size: u64) -> u64 {
    match size {
        size::PAGE => PAGE,
        size::CONTIGUOUS_64K => 16 * PAGE,
        size::BLOCK_2M => 2 * MIB,
        size::CONTIGUOUS_32M => 32 * MIB,
        _ => 1024 * MIB,
    }
}

/// Two neighbouring leaves of this size.
fn two_leaves(size: u64) -> Result<Range<u64>, Stop> {
    let range = area(2 * bytes(size), bytes(size))?;
    check_eq!(collapse(&range), status::SUCCESS, "collapse of {range:#x?}");
    check_eq!(split(&range, size), status::SUCCESS, "split of {range:#x?} to size {size}");
    for start in [range.start, range.start + bytes(size)] {
        let expected = Some(Leaf { start, size, allowed: ALL });
        if leaf(start) != expected {
            fail!("the leaf at {start:#x}: expected {expected:x?}, seen {:x?}", leaf(start));
        }
    }
    Ok(range)
}

/// What a page holds.
fn pattern(at: u64) -> u64 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Pages of two leaves that are looked at: edges, middles, and some anywhere.
fn looked_at(range: &Range<u64>) -> [u64; 40] {
    let half = (range.end - range.start) / PAGE / 2;
    let mut random = Random::new(options::get().seed, half);
    let mut pages = [0; 40];
    pages.fill_with(|| range.start + random.below(2 * half) * PAGE);
    let fixed = [0, 1, half / 2 - 1, half / 2, half / 2 + 1, half - 2, half - 1, half, half + 1, 2 * half - 1];
    for (page, fixed) in pages.iter_mut().zip(fixed) {
        *page = range.start + fixed * PAGE;
    }
    pages
}

/// Takes the right to write from the page at each place of a leaf where it matters, and gives it back.
fn pages_in(size: u64, splits: Event) -> Outcome {
    required()?;
    let range = two_leaves(size)?;
    let first = range.start..range.start + bytes(size);
    let looked_at = looked_at(&range);
    looked_at.iter().for_each(|&at| write(at, pattern(at)));
    let half = bytes(size) / 2;
    let places = [
        ("first", first.start..first.start + PAGE),
        ("middle", first.start + half..first.start + half + PAGE),
        ("last", first.end - PAGE..first.end),
        ("edge", first.end - PAGE..first.end + PAGE),
    ];
    for (name, target) in places {
        let since = Since::now([splits, Event::InvalidWindow, Event::FaultTranslation, Event::FaultSpurious]);
        let frames = Since::now([Event::FrameAllocated, Event::FrameFreed]);
        check_eq!(protect(&target, READ_EXECUTE), status::SUCCESS, "{name}: deny writes to {target:#x?}");
        let [split_count, windows, ..] = since.counts();
        let leaves = if name == "edge" { 2 } else { 1 };
        check_eq!(split_count, leaves, "{name}: splits of leaves of this size");
        check!(windows == 0 || bbm_level() == 0, "{name}: {windows} invalid windows at BBM level {}", bbm_level());
        check!(windows > 0 || bbm_level() > 0, "{name}: no invalid window was counted at BBM level 0");
        for &at in &looked_at {
            check_eq!(read(at), pattern(at), "{name}: contents of {at:#x}");
            let inside = target.contains(&at);
            let expected = if inside { READ_EXECUTE } else { ALL };
            check_eq!(leaf(at).map(|leaf| leaf.allowed), Some(expected), "{name}: what {at:#x} allows");
            if inside {
                // SAFETY: memory of the test's; it is to abort.
                unsafe { WRITE64.must_abort(at, 0, "a page that is read-only") };
            } else {
                write(at, pattern(at));
            }
        }
        check_eq!(leaf(target.start).map(|leaf| leaf.size), Some(size::PAGE), "{name}: the page's own leaf");
        if name != "edge" {
            let other = Leaf { start: first.end, size, allowed: ALL };
            check_eq!(leaf(first.end), Some(other), "{name}: the leaf beside it");
        }
        if name == "first" && size == size::BLOCK_1G {
            // Split at the edges only: what lies apart from the page is still large.
            let apart = leaf(first.start + 512 * MIB).map_or(0, |leaf| leaf.size);
            check!(apart >= size::BLOCK_2M, "{name}: the leaf 512 MiB behind the page has size {apart}");
        }
        let faults = [since.counts()[2], since.counts()[3]];
        check_eq!(faults, [0, 0], "{name}: translation and spurious faults of the CPU that did it");
        check_eq!(protect(&target, ALL), status::SUCCESS, "{name}: allow writes again");
        check_eq!(collapse(&range), status::SUCCESS, "{name}: collapse");
        let [taken, freed] = frames.counts();
        check_eq!(taken, freed, "{name}: frames taken, against those given back by the collapse");
        for &at in &looked_at {
            check_eq!(read(at), pattern(at), "{name}: contents of {at:#x} after the collapse");
        }
        check_eq!(split(&range, size), status::SUCCESS, "{name}: back to the size");
        check_eq!(leaf(first.start).map(|leaf| leaf.size), Some(size), "{name}: the leaf in the end");
    }
    Ok(())
}

fn pages_in_1_gib() -> Outcome {
    pages_in(size::BLOCK_1G, Event::Split1G)
}

fn pages_in_32_mib() -> Outcome {
    pages_in(size::CONTIGUOUS_32M, Event::SplitRun)
}

fn pages_in_2_mib() -> Outcome {
    pages_in(size::BLOCK_2M, Event::Split2M)
}

fn pages_in_64_kib() -> Outcome {
    pages_in(size::CONTIGUOUS_64K, Event::SplitRun)
}

fn split_to_each_size() -> Outcome {
    required()?;
    let range = area(64 * MIB, 32 * MIB)?;
    let looked_at = looked_at(&range);
    looked_at.iter().for_each(|&at| write(at, pattern(at)));
    let sizes = [size::CONTIGUOUS_32M, size::BLOCK_2M, size::CONTIGUOUS_64K, size::PAGE];
    for (index, &from) in sizes.iter().enumerate() {
        for &to in &sizes[index..] {
            check_eq!(collapse(&range), status::SUCCESS, "collapse");
            check_eq!(split(&range, from), status::SUCCESS, "split to size {from}");
            check_eq!(split(&range, to), status::SUCCESS, "split from size {from} to size {to}");
            for &at in &looked_at {
                let expected = Leaf { start: at / bytes(to) * bytes(to), size: to, allowed: ALL };
                check_eq!(leaf(at), Some(expected), "the leaf at {at:#x} split from size {from} to {to}");
                check_eq!(read(at), pattern(at), "contents of {at:#x} split from size {from} to {to}");
            }
        }
    }
    Ok(())
}

fn collapse_gives_back() -> Outcome {
    required()?;
    let range = area(64 * MIB, 32 * MIB)?;
    apart(&range)?;
    let before = [range.start, range.end - PAGE].map(leaf);
    let frames = Since::now([Event::FrameAllocated, Event::FrameFreed]);
    let events = Since::now([Event::Split2M, Event::Collapse2M]);
    check_eq!(split(&range, size::PAGE), status::SUCCESS, "split");
    check_eq!(leaf(range.start + 5 * PAGE).map(|leaf| leaf.size), Some(size::PAGE), "the leaf after the split");
    // One page that differs keeps its block from collapsing, and that block only.
    let odd = range.start + 10 * MIB + 3 * PAGE;
    check_eq!(protect(&(odd..odd + PAGE), READ_EXECUTE), status::SUCCESS, "deny writes to one page");
    check_eq!(collapse(&range), status::SUCCESS, "collapse");
    check_eq!(events.counts(), [32, 31], "2 MiB blocks split, and collapsed, with one page read-only");
    check_eq!(leaf(odd).map(|leaf| leaf.size), Some(size::PAGE), "the leaf of the page that differs");
    check_eq!(protect(&(odd..odd + PAGE), ALL), status::SUCCESS, "allow writes");
    check_eq!(collapse(&range), status::SUCCESS, "collapse");
    check_eq!([range.start, range.end - PAGE].map(leaf), before, "the leaves in the end, against those at first");
    let [taken, freed] = frames.counts();
    check_eq!(taken, freed, "frames taken, against those given back");
    Ok(())
}

fn devices_stay_whole() -> Outcome {
    required()?;
    // A device's leaf is no memory: it may be split, and keeps what it allows.
    let uart = crate::machine::get().uart;
    let before = leaf(uart).map(|leaf| leaf.allowed);
    check_eq!(
        before,
        Some(permissions::READ | permissions::WRITE | permissions::DEVICE),
        "what the UART's page allows"
    );
    let page = uart..uart + PAGE;
    check_eq!(split(&page, size::PAGE), status::SUCCESS, "split of the UART's page");
    check_eq!(leaf(uart).map(|leaf| leaf.allowed), before, "what the UART's page allows after it");
    check_eq!(protect(&page, ALL), status::INVALID_PARAMETERS, "rights to a device");
    check_eq!(leaf(memory::free().start).map(|leaf| leaf.allowed), Some(ALL), "what free memory allows");
    Ok(())
}

/// Where the bystanders are, until when, and how often each CPU has looked at everything.
static START: AtomicU64 = AtomicU64::new(0);
static RUNNING: AtomicBool = AtomicBool::new(false);
static LOOKS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Bytes of the bystanders' blocks.
const BYSTANDERS: u64 = 4 * MIB;

unsafe extern "C" fn execute(address: u64, _: u64) -> u64 {
    // SAFETY: `bystanders` has put code there that returns a number.
    let code = unsafe { core::mem::transmute::<u64, extern "C" fn() -> u64>(address) };
    code()
}

/// Reads the pages of the block, or executes them, again and again. Returns the first address that was wrong, or 0.
fn bystander(executes: u64) -> u64 {
    let start = START.load(Relaxed);
    let mut wrong = 0;
    while RUNNING.load(Acquire) && wrong == 0 {
        for at in (start..start + BYSTANDERS).step_by(3 * PAGE as usize) {
            let right = if executes == 0 {
                read(at + 64) == pattern(at)
            } else {
                // SAFETY: `bystanders` has put code there that returns the page's number.
                let result = unsafe { exceptions::catch(execute, at, 0) };
                result == Ok((at / PAGE) & 0xffff)
            };
            if !right {
                wrong = at;
                // The other CPUs need not go on.
                RUNNING.store(false, Release);
            }
        }
        LOOKS[cpu::current().index()].fetch_add(1, Relaxed);
    }
    wrong
}

fn bystanders() -> Outcome {
    required()?;
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let range = area(BYSTANDERS, 2 * MIB)?;
    for at in range.clone().step_by(PAGE as usize) {
        write_code(at, &[move_to_x0((at / PAGE) as u16), RET]);
        write(at + 64, pattern(at));
    }
    START.store(range.start, Relaxed);
    LOOKS.iter().for_each(|looks| looks.store(0, Relaxed));
    RUNNING.store(true, Release);
    let since = Since::now([
        Event::FaultTranslation,
        Event::FaultPermission,
        Event::FaultSpurious,
        Event::FaultConflict,
        Event::InvalidWindow,
        Event::Split2M,
        Event::Collapse2M,
    ]);
    for index in 1..smp::count() {
        smp::post(index, bystander, index as u64 % 2)?;
    }
    let end = crate::machine::timer::now() + crate::machine::timer::milliseconds(2000);
    let mut rounds = 0;
    // On a busy host the time may be over before anything has happened.
    let all_have_looked = || (1..smp::count()).all(|index| LOOKS[index].load(Relaxed) > 20);
    while RUNNING.load(Relaxed) && (crate::machine::timer::now() < end || rounds < 10 || !all_have_looked()) {
        for size in [size::CONTIGUOUS_64K, size::PAGE] {
            check_eq!(split(&range, size), status::SUCCESS, "split to size {size}");
            check_eq!(collapse(&range), status::SUCCESS, "collapse");
        }
        rounds += 1;
    }
    RUNNING.store(false, Release);
    for index in 1..smp::count() {
        let wrong = smp::wait(index, 20_000)?;
        check!(wrong == 0, "cpu {index} found a wrong value at {wrong:#x} while the block was split and collapsed");
    }
    let [translation, permission, spurious, conflict, windows, splits, collapses] = since.counts();
    check!(splits >= 2 * rounds && collapses >= 2 * rounds, "{rounds} rounds, {splits} splits, {collapses} collapses");
    check_eq!([permission, conflict], [0, 0], "permission faults and conflicts of the bystanders");
    if bbm_level() >= 2 {
        check_eq!([translation, spurious, windows], [0; 3], "faults of the bystanders, and invalid windows");
    } else if bbm_level() == 0 {
        check!(windows > 0, "BBM level 0, and no invalid window was counted");
    }
    Ok(())
}
