//! A disk by way of EL2: that it works, and that a driver that means harm reaches no memory but its own.
//!
//! Each attack has to end with DEVICE_NEEDS_RESET, an interrupt, no byte of the hypervisor's changed, and a disk that works
//! again after a reset.

mod attacks;
mod fixture;
mod registers;
mod reports;

use crate::machine::disk::{Disk, SECTOR, load, store};
use crate::machine::memory::PAGE;
use crate::machine::report::Outcome;
use crate::machine::timer;

use attacks::*;
use fixture::{FILLED, SPARE, check_filled, page, required};
use registers::*;
use reports::*;

group!("virtio", [
    reads_and_writes, many_requests: 60, a_queue_of_every_size, features, widths, queue_sizes, ring_places, ready_again,
    descriptor_loops, descriptors_out_of_the_table, flags_and_order, segments_outside, segments_protected, index_jumps,
    changed_while_read: 60, reset_in_flight: 60, two_cpus: 60, in_flight_is_reported, drains_are_reported,
    stores_are_watched,
]);

fn reads_and_writes() -> Outcome {
    required()?;
    let (buffer, other) = (page()?, page()?);
    let mut disk = Disk::open(16)?;
    for sector in [0, 1, 7, FILLED - PAGE / SECTOR] {
        disk.request(false, sector, buffer, PAGE as u32)?;
        check_filled(buffer, sector, PAGE);
    }
    for word in 0..PAGE / 8 {
        store(buffer + 8 * word, timer::now() ^ word << 32);
    }
    disk.request(true, SPARE, buffer, PAGE as u32)?;
    disk.request(false, SPARE, other, PAGE as u32)?;
    let differs = (0..PAGE / 8).find(|word| load::<u64>(buffer + 8 * word) != load(other + 8 * word));
    check_eq!(differs, None, "the first word that is read other than it was written");
    Ok(())
}

/// More at a time, and more in all than the indices count.
fn many_requests() -> Outcome {
    const AT_A_TIME: u16 = 5;
    required()?;
    let mut disk = Disk::open(16)?;
    let buffers = [page()?, page()?, page()?, page()?, page()?];
    for round in 0..14_000u64 {
        for (slot, buffer) in (0..AT_A_TIME).zip(buffers) {
            disk.prepare(3 * slot, false, (round + u64::from(slot)) % FILLED, buffer, SECTOR as u32);
            disk.offer(3 * slot);
        }
        disk.notify();
        let mut left = AT_A_TIME;
        let ended = timer::wait_until(5000, || {
            while disk.take_used().is_some() {
                left -= 1;
            }
            left == 0
        });
        check!(ended, "round {round}: {left} requests do not end");
        for (slot, buffer) in (0..AT_A_TIME).zip(buffers).filter(|_| ended && round % 512 == 0) {
            check_eq!(disk.status(3 * slot), 0, "status of request {slot}");
            check_filled(buffer, (round + u64::from(slot)) % FILLED, SECTOR);
        }
        if !ended {
            break;
        }
    }
    Ok(())
}

fn a_queue_of_every_size() -> Outcome {
    required()?;
    for size in [4, 8, 16, 32, 64, 128, 256] {
        let buffer = page()?;
        let mut disk = Disk::open(size)?;
        for sector in 0..u64::from(size).min(40) {
            disk.request(false, sector, buffer, SECTOR as u32)?;
            check_filled(buffer, sector, SECTOR);
        }
    }
    Ok(())
}
