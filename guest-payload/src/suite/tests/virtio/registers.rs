//! The register frame: what is offered, what is ignored, and what a queue may be.

use super::fixture::{integrity, page, required, works};
use crate::calls::hypercall;
use crate::machine::disk::{self, Disk, NEEDS_RESET, READY, register, set_queue};
use crate::machine::memory::PAGE;
use crate::machine::probe::{READ8, READ16, READ32, READ64, WRITE8, WRITE16, WRITE32, WRITE64};
use crate::machine::report::Outcome;
use crate::machine::{self, GicRegisters};

/// SEG_MAX, RO, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE: what a disk may offer in the lower half.
const ALLOWED: u32 = 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11;

pub fn features() -> Outcome {
    required()?;
    let registers = Disk::reset()?;
    check_eq!(registers.read(register::MAGIC_VALUE), 0x7472_6976, "MagicValue");
    check_eq!(registers.read(register::VERSION), 2, "Version");
    check_eq!(registers.read(register::DEVICE_ID), 2, "DeviceID");
    let offered = |select| {
        registers.write(register::DEVICE_FEATURES_SEL, select);
        registers.read(register::DEVICE_FEATURES)
    };
    check_eq!(offered(0) & !ALLOWED, 0, "features that are not to be offered");
    check_eq!(offered(1), 1, "the upper half of the features: VERSION_1 alone");
    check_eq!(offered(2), 0, "features above the 63rd");
    // INDIRECT_DESC and EVENT_IDX; RING_PACKED and ACCESS_PLATFORM; none at all.
    for (low, high) in [(1 << 28, 1), (1 << 29, 1), (0, 1 | 1 << 2), (0, 1 | 1 << 1), (0, 0), (u32::MAX, u32::MAX)] {
        registers.write(register::STATUS, 0);
        registers.write(register::STATUS, 1 | 2);
        for (select, half) in [(0, low), (1, high)] {
            registers.write(register::DRIVER_FEATURES_SEL, select);
            registers.write(register::DRIVER_FEATURES, half);
        }
        registers.write(register::STATUS, READY | 4);
        check_eq!(registers.read(register::STATUS) & (8 | 4), 0, "Status with features {high:#x}'{low:08x}");
    }
    works()
}

/// Loads and stores of every width all over the frame, and over its end: nothing but the frame answers.
pub fn widths() -> Outcome {
    required()?;
    let before = integrity();
    let registers = Disk::reset()?;
    let (start, end) = (registers.base(), registers.base() + registers.size());
    for (bytes, read, write) in [(1, READ8, WRITE8), (2, READ16, WRITE16), (4, READ32, WRITE32), (8, READ64, WRITE64)] {
        for address in (start..end).step_by(bytes) {
            // SAFETY: without a queue the disk writes no memory.
            let loaded = unsafe { read.attempt(address, 0) };
            // SAFETY: as above.
            let stored = unsafe { write.attempt(address, 0) };
            check!(loaded.is_ok() && stored.is_ok(), "{bytes} bytes at {address:#x}: {loaded:?}, {stored:?}");
            // SAFETY: as above.
            let _ = unsafe { write.attempt(address, u64::MAX) };
            if bytes != 4 && address < start + register::CONFIG {
                check_eq!(loaded.ok(), Some(0), "{bytes} bytes at {address:#x}, which is a word's register");
            }
        }
        // What is beside it in its page is another transport.
        for address in [start.wrapping_sub(bytes as u64), end].into_iter().filter(|at| at / PAGE == start / PAGE) {
            // SAFETY: no device is there.
            unsafe { read.must_abort(address, 0, "the transport beside the disk's") };
        }
    }
    check_eq!(integrity(), before, "what is EL2's");
    works()
}

pub fn queue_sizes() -> Outcome {
    required()?;
    let ring = page()?;
    for size in [0, 3, 5, 255, 257, 512, 0x8000, 0x1_0000, 0x1_0008, u32::MAX] {
        let registers = Disk::reset()?;
        set_queue(registers, size, [ring, ring, ring]);
        check_eq!(registers.read(register::QUEUE_READY), 0, "QueueReady with {size:#x} descriptors");
        check!(registers.read(register::STATUS) & NEEDS_RESET != 0, "the device goes on after a queue of {size:#x}");
    }
    // There is one queue.
    let registers = Disk::reset()?;
    for select in [1, 2, 0xffff, u32::MAX] {
        registers.write(register::QUEUE_SEL, select);
        check_eq!(registers.read(register::QUEUE_NUM_MAX), 0, "QueueNumMax of queue {select}");
    }
    works()
}

/// Rings anywhere but in the guest's memory.
pub fn ring_places() -> Outcome {
    required()?;
    let before = integrity();
    let good = page()?;
    let gic = match machine::get().gic {
        GicRegisters::V2 { distributor, .. } | GicRegisters::V3 { distributor, .. } => distributor,
    };
    let ram_end = machine::get().ram().last().map_or(0, |ram| ram.end);
    let own = hypercall::own_memory().next().map_or(0, |own| own.start);
    let frame = disk::place().map_or(0, |place| place.registers.base());
    let elsewhere = [
        0,
        gic,
        machine::get().uart,
        frame,
        own,
        own + 0x10_0000,
        ram_end,
        ram_end - 16,
        1 << 47,
        !15,
        !0 << 12,
        good + 1,
    ];
    for bad in elsewhere {
        for place in 0..3 {
            let registers = Disk::reset()?;
            let mut rings = [good, good + 0x400, good + 0x800];
            rings[place] = bad;
            set_queue(registers, 16, rings);
            check_eq!(registers.read(register::QUEUE_READY), 0, "QueueReady with ring {place} at {bad:#x}");
        }
    }
    check_eq!(integrity(), before, "what is EL2's");
    works()
}

/// A queue that was taken back from a disk at work stays so until a reset.
pub fn ready_again() -> Outcome {
    required()?;
    let buffer = page()?;
    let mut disk = Disk::open(16)?;
    disk.request(false, 1, buffer, 512)?;
    disk.registers.write(register::QUEUE_READY, 0);
    check_eq!(disk.registers.read(register::QUEUE_READY), 0, "QueueReady after 0");
    disk.registers.write(register::QUEUE_READY, 1);
    check_eq!(disk.registers.read(register::QUEUE_READY), 0, "QueueReady after 0 and 1");
    disk.prepare(0, false, 2, buffer, 512);
    disk.offer(0);
    disk.notify();
    check_eq!(disk.take_used(), None, "a request in a queue that was taken back");
    drop(disk);
    works()
}
