//! The rows, in the order in which they are printed.

use super::area::{Area, BLOCK, PAGE};
use super::measure::{self, Failure, print_calls, print_pages};
use super::paths;
use crate::machine::disk::{self, Descriptor, Disk, NEXT, WRITE};
use crate::machine::timer;
use crate::options;
use hypervisor_abi::permissions;
use smccc::arch::SMCCC_VERSION;

/// What the rows but the one are measured on: 16 384 pages.
const AREA: u64 = 32 * BLOCK;
/// What a harvest with nothing to report is measured on: 262 144 pages.
const LARGE: u64 = 1 << 30;
/// How often a call is made.
const REPEATS: usize = 8;
/// How often one is made that costs a tenth of these, and more the first time.
const MANY_REPEATS: usize = 64;

/// Room for the samples of the row that has most: one a page.
const SAMPLES: usize = (AREA / PAGE) as usize;

/// Measures all rows and prints them.
///
/// # Errors
///
/// If the machine is too small or a call fails.
pub fn print() -> Result<(), Failure> {
    let buffer = Area::allocate(BLOCK)?;
    // A block more, for a GiB that no block of 1 GiB can map.
    let gib_and_more = Area::allocate_aligned(LARGE + BLOCK, LARGE)?;
    let large = gib_and_more.first(LARGE);
    let area = large.first(AREA);
    let samples = Area::allocate((SAMPLES * size_of::<u64>()) as u64)?;
    // SAFETY: memory that was just taken, aligned and large enough.
    unsafe { core::ptr::write_bytes(samples.start as *mut u64, 0, SAMPLES) };
    // SAFETY: as above, and zeroed; nobody else refers to it.
    let samples = unsafe { core::slice::from_raw_parts_mut(samples.start as *mut u64, SAMPLES) };

    let wanted = |row: &str| row.contains(options::get().filter);
    if wanted("hypercall") {
        hypercall(samples)?;
    }
    if wanted("leaf-write-fault") {
        leaf_write_faults(area, buffer, samples)?;
    }
    if wanted("block-write-fault") || wanted("block-next-page-fault") {
        block_write_faults(area, buffer, samples)?;
    }
    if wanted("eager-split") {
        eager_split(area, buffer)?;
    }
    if wanted("protect-leaves") {
        protect_leaves(area)?;
    }
    if wanted("protect-32-blocks") {
        protect_blocks(area)?;
    }
    if wanted("harvest-all-dirty") {
        harvest_all(area, buffer)?;
    }
    if wanted("harvest-none") {
        harvest_none(large, buffer)?;
    }
    if wanted("harvest-one") {
        harvest_one(area, buffer)?;
    }
    if wanted("clear-64") {
        clear(area, buffer)?;
    }
    if wanted("stop") {
        stop(area, buffer)?;
    }
    if wanted("start-log-blocks") {
        start_log("start-log-blocks", large, buffer, Area::make_blocks)?;
    }
    if wanted("start-log-gib") {
        start_log("start-log-gib", large, buffer, Area::make_gib)?;
    }
    if wanted("stop-and-collapse") {
        stop_and_collapse(area, buffer)?;
    }
    if wanted("unmap-gib") || wanted("map-gib") {
        remap(Area { start: large.start + BLOCK, ..large })?;
    }
    if wanted("unmapped-fetch") {
        paths::aborted_fetches()?;
    }
    if wanted("cpu-on") {
        paths::cpu_on()?;
    }
    if wanted("disk-read") && disk::place().is_some() {
        disk_reads()?;
        disk_mib("disk-read-mib", false)?;
        disk_mib("disk-write-mib", true)?;
    }
    if wanted("collapse-512") {
        collapse(area, samples)?;
    }
    Ok(())
}

/// The shortest call.
fn hypercall(samples: &mut [u64]) -> Result<(), Failure> {
    let samples = &mut samples[..1000];
    for sample in samples.iter_mut() {
        let timed = measure::call(SMCCC_VERSION, [0; 3]);
        if timed.answer[0] < 0x1_0000 {
            return Err("SMCCC_VERSION was not answered");
        }
        *sample = timed.instructions;
    }
    print_calls("hypercall", samples);
    Ok(())
}

/// The first store to each page of blocks that were split before.
fn leaf_write_faults(area: Area, buffer: Area, samples: &mut [u64]) -> Result<(), Failure> {
    area.make_blocks()?;
    let log = area.log(buffer)?;
    area.make_pages()?;
    for (page, sample) in (0..area.pages()).zip(&mut *samples) {
        *sample = area.store(page);
    }
    log.harvest(area.pages())?;
    // What has been harvested faults again: the second time counts, when the bitmap's words have been used before.
    for (page, sample) in (0..area.pages()).zip(&mut *samples) {
        *sample = area.store(page);
    }
    log.harvest(area.pages())?;
    log.stop()?;
    print_calls("leaf-write-fault", samples);
    Ok(())
}

/// The first store to each block, in a page of its middle, and then to its other pages.
fn block_write_faults(area: Area, buffer: Area, samples: &mut [u64]) -> Result<(), Failure> {
    const PAGES: u64 = BLOCK / PAGE;
    const FIRST: u64 = 3;
    area.make_blocks()?;
    let log = area.log(buffer)?;
    let (blocks, rest) = samples.split_at_mut((AREA / BLOCK) as usize);
    let mut rest = rest.iter_mut();
    let mut others = 0;
    for (block, sample) in area.blocks().zip(&mut *blocks) {
        *sample = block.store(FIRST);
        for (page, sample) in (0..PAGES).filter(|&page| page != FIRST).zip(&mut rest) {
            *sample = block.store(page);
            others += 1;
        }
    }
    log.harvest(area.pages())?;
    log.stop()?;
    print_calls("block-write-fault", blocks);
    let (_, rest) = samples.split_at_mut((AREA / BLOCK) as usize);
    print_calls("block-next-page-fault", &mut rest[..others]);
    Ok(())
}

/// Starting a log of blocks, and splitting them all.
fn eager_split(area: Area, buffer: Area) -> Result<(), Failure> {
    let mut samples = [0; REPEATS];
    for sample in &mut samples {
        area.make_blocks()?;
        let log = area.log(buffer)?;
        *sample = log.start + area.make_pages()?;
        log.harvest(0)?;
        log.stop()?;
    }
    print_pages("eager-split", &mut samples, area.pages());
    Ok(())
}

const READ_ONLY: u64 = permissions::READ | permissions::EXECUTE;
const ALL: u64 = READ_ONLY | permissions::WRITE;

/// Taking the write permission from pages.
fn protect_leaves(area: Area) -> Result<(), Failure> {
    let mut samples = [0; REPEATS];
    area.make_blocks()?;
    area.make_pages()?;
    for sample in &mut samples {
        *sample = area.protect(READ_ONLY)?;
        area.protect(ALL)?;
    }
    print_pages("protect-leaves", &mut samples, area.pages());
    Ok(())
}

/// Taking it from blocks.
fn protect_blocks(area: Area) -> Result<(), Failure> {
    let mut samples = [0; REPEATS];
    area.make_blocks()?;
    for sample in &mut samples {
        *sample = area.protect(READ_ONLY)?;
        area.protect(ALL)?;
    }
    print_calls("protect-32-blocks", &mut samples);
    Ok(())
}

/// A harvest of pages that were all written.
fn harvest_all(area: Area, buffer: Area) -> Result<(), Failure> {
    let mut samples = [0; REPEATS];
    area.make_blocks()?;
    let log = area.log(buffer)?;
    area.make_pages()?;
    for sample in &mut samples {
        (0..area.pages()).for_each(|page| _ = area.store(page));
        *sample = log.harvest(area.pages())?;
    }
    log.stop()?;
    print_pages("harvest-all-dirty", &mut samples, area.pages());
    Ok(())
}

/// A harvest of a GiB in which nothing was written.
fn harvest_none(large: Area, buffer: Area) -> Result<(), Failure> {
    let mut samples = [0; MANY_REPEATS];
    large.make_blocks()?;
    let log = large.log(buffer)?;
    for sample in &mut samples {
        *sample = log.harvest(0)?;
    }
    log.stop()?;
    print_calls("harvest-none", &mut samples);
    Ok(())
}

/// A harvest with one page written, each time another.
fn harvest_one(area: Area, buffer: Area) -> Result<(), Failure> {
    let mut samples = [0; MANY_REPEATS];
    area.make_blocks()?;
    let log = area.log(buffer)?;
    area.make_pages()?;
    for (page, sample) in (777..).step_by(1234).zip(&mut samples) {
        area.store(page % area.pages());
        *sample = log.harvest(1)?;
    }
    log.stop()?;
    print_calls("harvest-one", &mut samples);
    Ok(())
}

/// 64 adjacent pages, all written, made clean.
fn clear(area: Area, buffer: Area) -> Result<(), Failure> {
    let mut samples = [0; REPEATS];
    area.make_blocks()?;
    let log = area.log(buffer)?;
    area.make_pages()?;
    for sample in &mut samples {
        (0..64).for_each(|page| _ = area.store(page));
        *sample = log.clear_first_64()?;
        // They are clean, and protected: each faults again.
        if (0..64).any(|page| area.store(page) == 0) {
            return Err("a page that was cleared was not protected");
        }
        log.harvest(64)?;
    }
    log.stop()?;
    print_calls("clear-64", &mut samples);
    Ok(())
}

/// The end of a log of pages, every other of which was written.
fn stop(area: Area, buffer: Area) -> Result<(), Failure> {
    let mut samples = [0; REPEATS];
    for sample in &mut samples {
        area.make_blocks()?;
        let log = area.log(buffer)?;
        area.make_pages()?;
        (0..area.pages()).step_by(2).for_each(|page| _ = area.store(page));
        *sample = log.stop()?;
    }
    print_calls("stop", &mut samples);
    Ok(())
}

/// The start of a log of a GiB, in such leaves as `make` makes.
fn start_log(row: &str, large: Area, buffer: Area, make: impl Fn(Area) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut samples = [0; REPEATS];
    for sample in &mut samples {
        make(large)?;
        let log = large.log(buffer)?;
        *sample = log.start;
        log.stop()?;
    }
    print_calls(row, &mut samples);
    Ok(())
}

/// The end of a log of 32 blocks, all of whose pages were written: they are blocks again.
fn stop_and_collapse(area: Area, buffer: Area) -> Result<(), Failure> {
    let mut samples = [0; REPEATS];
    for sample in &mut samples {
        area.make_blocks()?;
        let log = area.log(buffer)?;
        area.make_pages()?;
        (0..area.pages()).for_each(|page| _ = area.store(page));
        *sample = log.stop_and_collapse()?;
    }
    print_calls("stop-and-collapse", &mut samples);
    Ok(())
}

/// A GiB of 512 blocks, taken away and given back.
fn remap(area: Area) -> Result<(), Failure> {
    let (mut unmap, mut map) = ([0; REPEATS], [0; REPEATS]);
    for (unmap, map) in unmap.iter_mut().zip(&mut map) {
        area.make_blocks()?;
        (*unmap, *map) = area.remap()?;
    }
    print_calls("unmap-gib", &mut unmap);
    print_calls("map-gib", &mut map);
    Ok(())
}

const NO_DISK: Failure = "the disk does not work";

/// A page from a disk, again and again: the notification, and the two accesses that the interrupt's handler makes.
fn disk_reads() -> Result<(), Failure> {
    let buffer = Area::allocate(BLOCK)?.start;
    let mut disk = Disk::open(16).map_err(|_| NO_DISK)?;
    let mut samples = [0; MANY_REPEATS];
    let mut rest = samples.iter_mut();
    // The first ones find caches and tables as they are left by others.
    for warm in (0..MANY_REPEATS + 8).map(|round| round >= 8) {
        disk.prepare(0, false, 0, buffer, PAGE as u32);
        let instructions = exits_of_request(&mut disk)?;
        if warm && let Some(sample) = rest.next() {
            *sample = instructions;
        }
    }
    print_calls("disk-read", &mut samples);
    Ok(())
}

/// A MiB from a disk or to it, in requests of 64 KiB whose 16 pages lie apart, as those of a page cache.
fn disk_mib(row: &str, write: bool) -> Result<(), Failure> {
    const SEGMENTS: u16 = 16;
    const REQUESTS: u64 = (1 << 20) / (SEGMENTS as u64 * PAGE);
    let buffer = Area::allocate(BLOCK)?.start;
    let mut disk = Disk::open(32).map_err(|_| NO_DISK)?;
    let mut samples = [0; REPEATS];
    for sample in &mut samples {
        for _ in 0..REQUESTS {
            let flags = NEXT | if write { 0 } else { WRITE };
            disk.prepare(0, write, 0, buffer, PAGE as u32);
            let status = disk.rings + 3 * PAGE + 16;
            for segment in 0..SEGMENTS {
                let address = buffer + 2 * PAGE * u64::from(segment);
                disk.set(1 + segment, Descriptor { address, bytes: PAGE as u32, flags, next: 2 + segment });
            }
            disk.set(1 + SEGMENTS, Descriptor { address: status, bytes: 1, flags: WRITE, next: 0 });
            *sample += exits_of_request(&mut disk)?;
        }
    }
    print_calls(row, &mut samples);
    println!("count: {row}-exits {}", 3 * REQUESTS);
    Ok(())
}

/// Offers the request at descriptor 0, waits for it, and returns the instructions of its three exits.
fn exits_of_request(disk: &mut Disk) -> Result<u64, Failure> {
    let register = |offset| disk::place().map_or(0, |place| place.registers.base() + offset);
    disk.offer(0);
    // SAFETY: the disk reads and writes what was prepared.
    let notify = unsafe { measure::store_register(register(disk::register::QUEUE_NOTIFY), 0) };
    // The status byte comes before the interrupt: what is measured behind it is repeated if it came too early.
    let (mut pending, mut acknowledge) = (0, 0);
    let done = timer::wait_until(5000, || {
        if disk.status(0) != 0 {
            return false;
        }
        // SAFETY: loads of InterruptStatus have no effect.
        pending = unsafe { measure::load_register(register(disk::register::INTERRUPT_STATUS)) };
        // SAFETY: the handler's acknowledgement.
        acknowledge = unsafe { measure::store_register(register(disk::register::INTERRUPT_ACK), 1) };
        disk.look_used().is_some()
    });
    if done { Ok(notify + pending + acknowledge) } else { Err(NO_DISK) }
}

/// 512 pages that are all alike become a block: one call a block.
fn collapse(area: Area, samples: &mut [u64]) -> Result<(), Failure> {
    area.make_blocks()?;
    area.make_pages()?;
    let samples = &mut samples[..(AREA / BLOCK) as usize];
    for (block, sample) in area.blocks().zip(&mut *samples) {
        *sample = block.collapse()?;
    }
    print_calls("collapse-512", samples);
    Ok(())
}
