//! A driver for the disk that the hypervisor mediates: a virtio-mmio block device with one split ring (VIRTIO 1.2, 2.7, 4.2 and
//! 5.2). It does what tests tell it, the forbidden too.

use crate::machine::memory::{self, PAGE};
use crate::machine::mmio::Registers;
use crate::machine::report::Stop;
use crate::machine::tree::{cell, get, registers};
use crate::machine::{cpu, mmu, timer};
use core::sync::atomic::{Ordering::SeqCst, fence};
use spin::Once;

/// Registers of the frame.
pub mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const CONFIG: u64 = 0x100;
}

/// ACKNOWLEDGE, DRIVER and FEATURES_OK of Status.
pub const READY: u32 = 1 | 2 | 8;
/// DRIVER_OK.
pub const DRIVER_OK: u32 = 4;
/// DEVICE_NEEDS_RESET.
pub const NEEDS_RESET: u32 = 64;
/// VERSION_1, in the upper half of the features.
pub const VERSION_1: u32 = 1;
/// FLUSH, in the lower half.
pub const FLUSH: u32 = 1 << 9;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
/// The device writes it.
pub const WRITE: u16 = 2;

/// A descriptor.
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// Where.
    pub address: u64,
    /// How much.
    pub bytes: u32,
    /// [`NEXT`], [`WRITE`].
    pub flags: u16,
    /// The one behind it.
    pub next: u16,
}

/// Where the machine's mediated disk is.
pub struct Place {
    /// Its registers.
    pub registers: Registers,
    /// Its interrupt.
    pub interrupt: u32,
}

static PLACE: Once<Option<Place>> = Once::new();

/// The disk, if there is one and [`init`] has looked for it.
pub fn place() -> Option<&'static Place> {
    PLACE.get().and_then(Option::as_ref)
}

/// Looks for the disk in the tree and maps its registers, for good.
pub fn init() {
    let find = || {
        let node = get().tree.find_compatible(&["virtio,mmio"])?;
        let frame = registers(node, 0)?;
        let interrupt = 32 + cell(node.property("interrupts")?.value, 1);
        let page = frame.start / PAGE * PAGE;
        mmu::map_device(page..page + PAGE);
        // SAFETY: mapped just now. What is written there makes a device write memory only where a test's rings say so.
        Some(Place { registers: unsafe { Registers::new(frame) }, interrupt })
    };
    PLACE.call_once(find);
}

/// The disk with one queue in memory of the test's.
pub struct Disk {
    /// Its registers.
    pub registers: Registers,
    /// The queue's pages: descriptors, available ring, used ring, then one for headers and statuses.
    pub rings: u64,
    /// Descriptors.
    pub size: u16,
    available: u16,
    used: u16,
}

/// Status that a request ends with, before the device has written it.
const NO_STATUS: u8 = 0xff;

impl Disk {
    /// Resets the disk and agrees on features, with no queue as yet.
    pub fn reset() -> Result<Registers, Stop> {
        let Some(place) = place() else { skip!("no mediated disk") };
        let registers = place.registers;
        registers.write(register::STATUS, 0);
        if !timer::wait_until(5000, || registers.read(register::STATUS) == 0) {
            fail!("the disk does not reset");
        }
        registers.write(register::STATUS, 1 | 2);
        for (select, half) in [(0, FLUSH), (1, VERSION_1)] {
            registers.write(register::DRIVER_FEATURES_SEL, select);
            registers.write(register::DRIVER_FEATURES, half);
        }
        registers.write(register::STATUS, READY);
        check_eq!(registers.read(register::STATUS), READY, "Status after FEATURES_OK");
        Ok(registers)
    }

    /// The disk with a queue of `size` descriptors.
    pub fn open(size: u16) -> Result<Self, Stop> {
        let registers = Self::reset()?;
        let Some(rings) = memory::allocate(4 * PAGE, PAGE) else { fail!("no memory for rings") };
        // SAFETY: the pages were just taken, and the device is reset.
        unsafe { core::ptr::write_bytes(rings as *mut u8, 0, 4 * PAGE as usize) };
        let disk = Self { registers, rings, size, available: 0, used: 0 };
        disk.set_queue(size.into(), [rings, rings + PAGE, rings + 2 * PAGE]);
        check_eq!(registers.read(register::QUEUE_READY), 1, "QueueReady of a good queue");
        registers.write(register::STATUS, READY | DRIVER_OK);
        check_eq!(registers.read(register::STATUS), READY | DRIVER_OK, "Status of a disk that works");
        Ok(disk)
    }

    /// Resets the disk and begins anew with the same rings; descriptors stay as they are.
    pub fn again(&mut self) -> Result<(), Stop> {
        Self::reset()?;
        (self.available, self.used) = (0, 0);
        // SAFETY: the available and the used ring of a device that is reset.
        unsafe { core::ptr::write_bytes((self.rings + PAGE) as *mut u8, 0, 2 * PAGE as usize) };
        self.set_queue(self.size.into(), [self.rings, self.rings + PAGE, self.rings + 2 * PAGE]);
        self.registers.write(register::STATUS, READY | DRIVER_OK);
        check_eq!(self.registers.read(register::QUEUE_READY), 1, "QueueReady of a good queue");
        Ok(())
    }

    /// Writes a queue's registers, and QueueReady.
    pub fn set_queue(&self, size: u32, rings: [u64; 3]) {
        set_queue(self.registers, size, rings);
    }

    /// Sets descriptor `number`.
    pub fn set(&self, number: u16, Descriptor { address, bytes, flags, next }: Descriptor) {
        let at = self.rings + 16 * u64::from(number);
        store(at, address);
        store(at + 8, u64::from(bytes) | u64::from(flags) << 32 | u64::from(next) << 48);
    }

    /// Puts `head` into the available ring.
    pub fn offer(&mut self, head: u16) {
        store(self.rings + PAGE + 4 + 2 * u64::from(self.available % self.size), head);
        self.jump(1);
    }

    /// Moves the available index on.
    pub fn jump(&mut self, by: u16) {
        self.available = self.available.wrapping_add(by);
        // The device that sees the index sees what it covers.
        fence(SeqCst);
        store(self.rings + PAGE + 2, self.available);
    }

    /// Tells the device.
    pub fn notify(&self) {
        fence(SeqCst);
        self.registers.write(register::QUEUE_NOTIFY, 0);
    }

    /// Takes what the interrupt would tell of, and the next head that was used, with the bytes that were written.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        let pending = self.registers.read(register::INTERRUPT_STATUS);
        self.registers.write(register::INTERRUPT_ACK, pending);
        self.look_used()
    }

    /// The next head that was used, without touching a register.
    pub fn look_used(&mut self) -> Option<(u32, u32)> {
        let ring = self.rings + 2 * PAGE;
        if load::<u16>(ring + 2) == self.used {
            return None;
        }
        fence(SeqCst);
        let at = ring + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        Some((load(at), load(at + 4)))
    }

    /// Prepares a request for `bytes` bytes at `buffer`, from `sector` on, in three descriptors from `head` on.
    pub fn prepare(&self, head: u16, write: bool, sector: u64, buffer: u64, bytes: u32) {
        let header = self.rings + 3 * PAGE + 32 * u64::from(head / 3);
        store(header, u64::from(write));
        store(header + 8, sector);
        store(header + 16, NO_STATUS);
        let data = if write { 0 } else { WRITE };
        self.set(head, Descriptor { address: header, bytes: 16, flags: NEXT, next: head + 1 });
        self.set(head + 1, Descriptor { address: buffer, bytes, flags: NEXT | data, next: head + 2 });
        self.set(head + 2, Descriptor { address: header + 16, bytes: 1, flags: WRITE, next: 0 });
    }

    /// The status of the request in three descriptors from `head` on: 0 is OK.
    pub fn status(&self, head: u16) -> u8 {
        load(self.rings + 3 * PAGE + 32 * u64::from(head / 3) + 16)
    }

    /// Does a request and waits for it.
    pub fn request(&mut self, write: bool, sector: u64, buffer: u64, bytes: u32) -> Result<(), Stop> {
        self.prepare(0, write, sector, buffer, bytes);
        self.offer(0);
        self.notify();
        self.wait_for(0)
    }

    /// Waits for the request at `head`, which is the next to end, and that it is OK.
    pub fn wait_for(&mut self, head: u16) -> Result<(), Stop> {
        let mut used = None;
        timer::wait_until(5000, || {
            used = self.take_used();
            cpu::relax();
            used.is_some()
        });
        check_eq!(used.map(|(id, _)| id), Some(head.into()), "the head that the disk has used");
        check_eq!(self.status(head), 0, "the request's status");
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.registers.write(register::STATUS, 0);
        timer::wait_until(5000, || self.registers.read(register::STATUS) == 0);
    }
}

/// Writes queue 0's registers, and QueueReady.
pub fn set_queue(registers: Registers, size: u32, rings: [u64; 3]) {
    registers.write(register::QUEUE_SEL, 0);
    registers.write(register::QUEUE_NUM, size);
    for (register, ring) in
        [register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE].into_iter().zip(rings)
    {
        registers.write(register, ring as u32);
        registers.write(register + 4, (ring >> 32) as u32);
    }
    registers.write(register::QUEUE_READY, 1);
}

/// Stores to memory that a device, or another CPU, looks at.
pub fn store<T>(address: u64, value: T) {
    // SAFETY: aligned memory of the test's rings and buffers, to which there are no references.
    unsafe { (address as *mut T).write_volatile(value) };
}

/// Loads from memory that a device, or another CPU, writes.
pub fn load<T: Copy>(address: u64) -> T {
    // SAFETY: as in `store`; all bytes are values of the integers that are asked for.
    unsafe { (address as *const T).read_volatile() }
}
