//! The rows, in the order in which they are printed.

use super::area::{Area, BLOCK, PAGE};
use super::measure::{self, Failure, print_calls, print_pages};
use crate::machine::disk::{self, Disk};
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
    let large = Area::allocate(LARGE)?;
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
    if wanted("disk-read") && disk::place().is_some() {
        disk_reads()?;
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

/// A page from a disk, again and again: the notification, and the two accesses that the interrupt's handler makes.
fn disk_reads() -> Result<(), Failure> {
    const WHY: Failure = "the disk does not work";
    let buffer = Area::allocate(BLOCK)?.start;
    let mut disk = Disk::open(16).map_err(|_| WHY)?;
    let register = |offset| disk::place().map_or(0, |place| place.registers.base() + offset);
    let mut samples = [0; MANY_REPEATS];
    let mut rest = samples.iter_mut();
    // The first ones find caches and tables as they are left by others.
    for warm in (0..MANY_REPEATS + 8).map(|round| round >= 8) {
        disk.prepare(0, false, 0, buffer, PAGE as u32);
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
        if !done {
            return Err(WHY);
        }
        if warm && let Some(sample) = rest.next() {
            *sample = notify + pending + acknowledge;
        }
    }
    print_calls("disk-read", &mut samples);
    Ok(())
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
