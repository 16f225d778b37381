//! What the disk writes is in the dirty log, and does not pass by what is watched.

use super::fixture::{page, required};
use crate::calls::services::{self, hvc, status_of};
use crate::machine::disk::{Disk, SECTOR, load, register};
use crate::machine::memory::{self, PAGE};
use crate::machine::report::{Outcome, Stop};
use crate::machine::timer;
use hypervisor_abi::{function, log, status, watch};

/// A log of one 2 MiB block, and a bitmap for it that is elsewhere.
struct Area {
    start: u64,
    bitmap: u64,
    handle: u64,
}

const BLOCK: u64 = 2 << 20;
const WORDS: u64 = BLOCK / PAGE / 64;

impl Area {
    fn new() -> Result<Self, Stop> {
        let Some(start) = memory::allocate(BLOCK, BLOCK) else { fail!("no memory for a block") };
        let bitmap = page()?;
        let [x0, handle, ..] = hvc(function::LOG_START, [start, BLOCK, log::WRITE_PROTECT]);
        check_eq!(x0 as i64, status::SUCCESS, "start of a log");
        Ok(Self { start, bitmap, handle })
    }

    /// Harvests, and says whether page `number` was reported.
    fn reports(&self, number: u64) -> bool {
        for word in 0..WORDS {
            crate::machine::disk::store(self.bitmap + 8 * word, 0u64);
        }
        let status = status_of(function::LOG_HARVEST, [self.handle, self.bitmap, WORDS]);
        check_eq!(status, status::SUCCESS, "harvest");
        load::<u64>(self.bitmap + 8 * (number / 64)) >> (number % 64) & 1 != 0
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        hvc(function::LOG_STOP, [self.handle, 0, 0]);
    }
}

/// Waits until the disk has done what it was told, without a register that would have EL2 drain.
fn quiet(disk: &Disk, head: u16) -> bool {
    timer::wait_until(5000, || disk.status(head) == 0)
}

/// What was handed to the disk is reported at each harvest until it is back, and once more then.
pub fn in_flight_is_reported() -> Outcome {
    required()?;
    let area = Area::new()?;
    let mut disk = Disk::open(16)?;
    check!(!area.reports(5), "a page that nobody has written");
    disk.prepare(0, false, 1, area.start + 5 * PAGE, SECTOR as u32);
    disk.offer(0);
    disk.notify();
    check!(quiet(&disk, 0), "the disk does not answer");
    // It has ended, and the driver has not acknowledged it: the harvest finds it.
    check!(area.reports(5), "a page that the disk has written before the harvest is not reported");
    check!(!area.reports(5), "a page that the disk has given back is reported again");
    check_eq!(disk.look_used().map(|used| used.0), Some(0), "what the harvest has drained");
    check!(disk.registers.read(register::INTERRUPT_STATUS) & 1 != 0, "InterruptStatus forgets what was drained");
    drop(disk);
    drop(area);
    Ok(())
}

/// What the driver's own acknowledgement drains is reported by the next harvest, and so is what a reset leaves undone.
pub fn drains_are_reported() -> Outcome {
    required()?;
    let area = Area::new()?;
    let mut disk = Disk::open(16)?;
    disk.request(false, 2, area.start + 7 * PAGE, SECTOR as u32)?;
    check!(area.reports(7), "a page that the disk has written is not reported");
    check!(!area.reports(7), "it is reported again");
    disk.prepare(0, false, 1, area.start + 9 * PAGE, SECTOR as u32);
    disk.offer(0);
    disk.notify();
    drop(disk);
    check!(area.reports(9), "a page that the disk had when it was reset is not reported");
    check!(!area.reports(9), "it is reported again");
    Ok(())
}

/// A page whose stores are watched: the disk's are, too.
pub fn stores_are_watched() -> Outcome {
    required()?;
    let target = page()?;
    let range = target..target + PAGE;
    let mut disk = Disk::open(16)?;
    check_eq!(services::watch(&range, watch::REPORT), status::SUCCESS, "watching");
    disk.request(false, 4, target, SECTOR as u32)?;
    let [x0, ipa, ..] = hvc(function::WATCH_TAKE, [0; 3]);
    check_eq!((x0 as i64, ipa), (status::SUCCESS, target), "the store that is reported");
    check_eq!(status_of(function::WATCH_TAKE, [0; 3]), status::NOT_FOUND, "more stores");
    check_eq!(services::watch(&range, watch::NONE), status::SUCCESS, "the end of watching");
    // The used ring is written for as long as the queue is ready.
    let ring = disk.rings + 2 * PAGE;
    check_eq!(services::watch(&(ring..ring + PAGE), watch::DENY), status::BUSY, "denial of what EL2 has to write");
    // A page that the disk has, as far as EL2 knows, is its own until it is given back.
    disk.prepare(0, false, 4, target, SECTOR as u32);
    disk.offer(0);
    disk.notify();
    check!(quiet(&disk, 0), "the disk does not answer");
    check_eq!(services::watch(&range, watch::DENY), status::BUSY, "denial of what the disk has");
    disk.wait_for(0)?;
    check_eq!(services::watch(&range, watch::DENY), status::SUCCESS, "denial");
    disk.prepare(0, false, 4, target, SECTOR as u32);
    disk.offer(0);
    disk.notify();
    check!(disk.registers.read(register::STATUS) & 64 != 0, "the disk may write where stores are denied");
    let [x0, ipa, ..] = hvc(function::WATCH_TAKE, [0; 3]);
    check_eq!((x0 as i64, ipa), (status::SUCCESS, target), "the store that is denied");
    check_eq!(services::watch(&range, watch::NONE), status::SUCCESS, "the end of denial");
    Ok(())
}
