//! Rings that lie.

use super::fixture::{SPARE, check_filled, integrity, page, required, works};
use crate::calls::{hypercall, services};
use crate::machine::disk::{Descriptor, Disk, NEEDS_RESET, NEXT, SECTOR, WRITE, register, store};
use crate::machine::memory::PAGE;
use crate::machine::probe::{READ32, WRITE32};
use crate::machine::report::{Outcome, Stop};
use crate::machine::{self, GicRegisters, cpu, disk, smp, timer};
use crate::options;
use crate::suite::random::Random;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use hypervisor_abi::{permissions, status};

/// Offers what `rings` has put at descriptor 0, and checks that the disk is stopped, says so, and works again after a reset.
fn attack(what: &str, rings: impl FnOnce(&mut Disk) -> Result<u16, Stop>) -> Outcome {
    let before = integrity();
    let mut disk = Disk::open(16)?;
    pending(true);
    let head = rings(&mut disk)?;
    disk.offer(head);
    disk.notify();
    stopped(&mut disk, what);
    check_eq!(integrity(), before, "what is EL2's, after {what}");
    Ok(())
}

/// Whether the disk's interrupt is pending; or makes it so no more, and sends it to the first CPU.
fn pending(clear: bool) -> bool {
    /// GICD_ISPENDR<n>, GICD_ICPENDR<n>.
    const ISPENDR: u64 = 0x200;
    const ICPENDR: u64 = 0x280;
    /// GICD_ITARGETSR<n>, a byte for each interrupt.
    const ITARGETSR: u64 = 0x800;
    let (GicRegisters::V2 { distributor, .. } | GicRegisters::V3 { distributor, .. }) = machine::get().gic;
    let interrupt = disk::place().map_or(0, |place| place.interrupt);
    let (word, bit) = (u64::from(interrupt / 32 * 4), 1 << (interrupt % 32));
    if clear {
        // SAFETY: an interrupt that nobody waits for.
        let _ = unsafe { WRITE32.attempt(distributor + ICPENDR + word, bit) };
        if let GicRegisters::V2 { .. } = machine::get().gic {
            // QEMU's GICv2 makes nothing pending that no CPU is a target of.
            // SAFETY: as above, and of its neighbours.
            let _ = unsafe { WRITE32.attempt(distributor + ITARGETSR + u64::from(interrupt / 4 * 4), 0x0101_0101) };
        }
    }
    // SAFETY: reading it is harmless.
    let read = unsafe { READ32.attempt(distributor + ISPENDR + word, 0) };
    read.is_ok_and(|pending| pending & bit != 0)
}

/// Checks that the disk was stopped, and takes no more.
fn stopped(disk: &mut Disk, what: &str) {
    check!(disk.registers.read(register::STATUS) & NEEDS_RESET != 0, "{what}: the disk goes on");
    check!(disk.registers.read(register::INTERRUPT_STATUS) & 2 != 0, "{what}: InterruptStatus does not tell");
    check!(pending(false), "{what}: the disk's interrupt is not pending");
    check_eq!(disk.take_used(), None, "{what}: what the disk has used");
    disk.prepare(0, false, 0, disk.rings + 3 * PAGE + 2048, SECTOR as u32);
    disk.offer(0);
    disk.notify();
    check_eq!(disk.take_used(), None, "{what}: what the disk has used of a good request behind it");
}

pub fn descriptor_loops() -> Outcome {
    required()?;
    for last in 0..4 {
        attack("a loop", |disk| {
            let data = disk.rings + 3 * PAGE + 1024;
            for number in 0..4 {
                let next = if number == 3 { last } else { number + 1 };
                disk.set(number, Descriptor { address: data, bytes: 16, flags: NEXT, next });
            }
            Ok(0)
        })?;
    }
    // As long as the table, and back; and a chain that another has a part of.
    attack("a loop over the whole table", |disk| {
        let data = disk.rings + 3 * PAGE + 1024;
        for number in 0..disk.size {
            disk.set(number, Descriptor { address: data, bytes: 16, flags: NEXT, next: (number + 1) % disk.size });
        }
        Ok(0)
    })?;
    attack("two chains with one end", |disk| {
        let data = disk.rings + 3 * PAGE + 1024;
        disk.set(0, Descriptor { address: data, bytes: 16, flags: NEXT, next: 1 });
        disk.set(1, Descriptor { address: data, bytes: 16, flags: NEXT, next: 0 });
        Ok(1)
    })?;
    works()
}

pub fn descriptors_out_of_the_table() -> Outcome {
    required()?;
    for head in [16, 17, 255, 0x8000, 0xffff] {
        attack("a head out of the table", |_| Ok(head))?;
    }
    for next in [16, 256, 0x7fff, 0xffff] {
        attack("a descriptor out of the table", |disk| {
            let data = disk.rings + 3 * PAGE + 1024;
            disk.set(0, Descriptor { address: data, bytes: 16, flags: NEXT, next });
            Ok(0)
        })?;
    }
    works()
}

pub fn flags_and_order() -> Outcome {
    required()?;
    // 4 is INDIRECT.
    for flags in [4, 4 | NEXT, 8, 0x80, 0x8000] {
        attack("flags that were not agreed on", |disk| {
            disk.prepare(0, false, 0, disk.rings + 3 * PAGE + 1024, SECTOR as u32);
            disk.set(1, Descriptor { address: disk.rings + 3 * PAGE, bytes: 64, flags, next: 2 });
            Ok(0)
        })?;
    }
    attack("an empty segment", |disk| {
        disk.prepare(0, false, 0, disk.rings + 3 * PAGE + 1024, 0);
        Ok(0)
    })?;
    attack("what is read behind what is written", |disk| {
        let data = disk.rings + 3 * PAGE + 1024;
        disk.set(0, Descriptor { address: data, bytes: 16, flags: NEXT | WRITE, next: 1 });
        disk.set(1, Descriptor { address: data, bytes: 16, flags: 0, next: 0 });
        Ok(0)
    })?;
    works()
}

pub fn segments_outside() -> Outcome {
    required()?;
    let own = hypercall::own_memory().next().map_or(machine::RAM_BASE..machine::RAM_BASE, |own| own);
    let ram_end = machine::get().ram().last().map_or(0, |ram| ram.end);
    for (address, bytes) in [
        (0, 512),
        (machine::get().uart, 4096),
        (own.start, 512),
        (own.start + 0x20_0000, 4096),
        (own.end - 512, 512),
        (own.start - 256, 512),
        (own.end - 256, 512),
        (ram_end, 512),
        (ram_end - 512, 1024),
        (ram_end - 512, u32::MAX),
        (machine::RAM_BASE - 512, 1024),
        (u64::MAX - 255, 512),
        (u64::MAX, 1),
        (1 << 63, 4096),
        (1 << 52, 4096),
    ] {
        for write in [false, true] {
            attack("a segment outside", |disk| {
                disk.prepare(0, write, SPARE, address, bytes);
                Ok(0)
            })?;
        }
    }
    works()
}

/// Where the guest may not write, neither may its disk.
pub fn segments_protected() -> Outcome {
    required()?;
    let target = page()?;
    let range = target..target + PAGE;
    check_eq!(services::protect(&range, permissions::READ), status::SUCCESS, "protection");
    attack("a segment in a protected page", |disk| {
        disk.prepare(0, false, 0, target, SECTOR as u32);
        Ok(0)
    })?;
    let before = target.wrapping_sub(SECTOR);
    attack("a segment that ends in a protected page", |disk| {
        disk.prepare(0, false, 0, before, 2 * SECTOR as u32);
        Ok(0)
    })?;
    check_eq!(crate::machine::disk::load::<u64>(target), 0, "the first word of a page that nobody may write");
    // Reading it is something else.
    let mut disk = Disk::open(16)?;
    disk.request(true, SPARE, target, SECTOR as u32)?;
    drop(disk);
    check_eq!(services::protect(&range, services::ALL), status::SUCCESS, "the end of protection");
    works()
}

pub fn index_jumps() -> Outcome {
    required()?;
    for by in [17, 18, 0x7fff, 0x8000, 0xffff] {
        let before = integrity();
        let mut disk = Disk::open(16)?;
        pending(true);
        disk.jump(by);
        disk.notify();
        stopped(&mut disk, "a jump of the index");
        check_eq!(integrity(), before, "what is EL2's");
    }
    works()
}

/// Until when a CPU changes descriptors.
static CHANGING: AtomicBool = AtomicBool::new(false);
/// The table that it changes.
static TABLE: AtomicU64 = AtomicU64::new(0);

/// Changes descriptor 1 between what is good and what is not, in every word, as fast as it can.
fn change(good: u64) -> u64 {
    let own = hypercall::own_memory().next().map_or(machine::RAM_BASE, |own| own.start);
    let mut random = Random::new(options::get().seed, 0x7e57);
    let table = TABLE.load(Relaxed);
    let mut count = 0;
    while CHANGING.load(Relaxed) {
        let addresses = [good, own, own + 0x1000, u64::MAX - 255, 0x0800_0000];
        store(table + 16, addresses[random.below(5) as usize]);
        let lengths: [u64; 4] = [512, 512, 256, 0];
        let flags = [NEXT | WRITE, NEXT | WRITE, 4, WRITE];
        let next = [2, 2, 1, 999];
        store(
            table + 24,
            lengths[random.below(4) as usize]
                | u64::from(flags[random.below(4) as usize]) << 32
                | next[random.below(4) as usize] << 48,
        );
        count += 1;
    }
    count
}

pub fn changed_while_read() -> Outcome {
    required()?;
    if smp::count() < 2 {
        skip!("one CPU");
    }
    let before = integrity();
    let buffer = page()?;
    let (mut good, mut bad) = (0, 0);
    let end = timer::now() + timer::milliseconds(options::get().storm * 1000);
    let mut disk = Disk::open(16)?;
    TABLE.store(disk.rings, Relaxed);
    CHANGING.store(true, Relaxed);
    smp::post(1, change, buffer)?;
    while timer::now() < end {
        disk.prepare(0, false, 0, buffer, SECTOR as u32);
        disk.offer(0);
        disk.notify();
        if disk.registers.read(register::STATUS) & NEEDS_RESET == 0 {
            let mut used = false;
            timer::wait_until(5000, || {
                used = disk.take_used().is_some();
                used
            });
            check!(used, "a request that was taken does not end");
            good += 1;
        } else {
            bad += 1;
            // The same rings again: the other CPU goes on.
            disk.again()?;
        }
    }
    CHANGING.store(false, Relaxed);
    smp::wait(1, 10_000)?;
    drop(disk);
    check!(good > 0 && bad > 0, "{good} requests were taken and {bad} were not: the race did not happen");
    check_eq!(integrity(), before, "what is EL2's");
    works()
}

/// Resets with requests on their way.
pub fn reset_in_flight() -> Outcome {
    required()?;
    let before = integrity();
    let buffer = page()?;
    for round in 0..200u64 {
        let mut disk = Disk::open(16)?;
        for head in [0, 3, 6, 9, 12] {
            disk.prepare(head, round % 2 == 0, SPARE, buffer, PAGE as u32);
            disk.offer(head);
            disk.notify();
        }
        if round % 3 == 0 {
            disk.take_used();
        }
        disk.registers.write(register::STATUS, 0);
        check_eq!(disk.registers.read(register::STATUS), 0, "Status after a reset");
        // Nothing comes of what is left.
        disk.notify();
        disk.registers.write(register::INTERRUPT_ACK, 3);
        drop(disk);
        memory_is_reused(buffer);
    }
    check_eq!(integrity(), before, "what is EL2's");
    works()
}

/// After a reset the memory is the driver's alone: what it stores stays.
fn memory_is_reused(buffer: u64) {
    let mark = timer::now();
    store(buffer, mark);
    for _ in 0..100 {
        cpu::relax();
    }
    check_eq!(crate::machine::disk::load::<u64>(buffer), mark, "memory after a reset");
}

/// Notifies and acknowledges as long as the other does.
fn notify_too(_: u64) -> u64 {
    let Some(place) = crate::machine::disk::place() else { return 0 };
    let mut count = 0;
    while CHANGING.load(Relaxed) {
        place.registers.write(register::QUEUE_NOTIFY, 0);
        place.registers.write(register::INTERRUPT_ACK, 1);
        count += 1;
    }
    count
}

pub fn two_cpus() -> Outcome {
    required()?;
    if smp::count() < 2 {
        skip!("one CPU");
    }
    let buffer = page()?;
    let mut disk = Disk::open(16)?;
    CHANGING.store(true, Relaxed);
    for other in 1..smp::count() {
        smp::post(other, notify_too, 0)?;
    }
    let end = timer::now() + timer::milliseconds(options::get().storm * 1000);
    let mut sector = 0;
    while timer::now() < end {
        sector = (sector + 1) % 48;
        disk.request(false, sector, buffer, PAGE as u32)?;
        check_filled(buffer, sector, PAGE);
    }
    CHANGING.store(false, Relaxed);
    let mut others = 0;
    for other in 1..smp::count() {
        others += smp::wait(other, 10_000)?;
    }
    check!(others > 0, "no other CPU has notified");
    Ok(())
}
