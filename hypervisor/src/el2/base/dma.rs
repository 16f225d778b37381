//! Devices of the hypervisor's own that read and write memory: what their drivers need.

use crate::el2::base::{device, frames::FRAMES, own_map};
use core::ptr::NonNull;
use hypervisor::machine::Machine;
use hypervisor::range::PhysRange;
use stage2::{PAGE_SIZE, PhysAddr};
use virtio_drivers::transport::mmio::{MmioError, MmioTransport, VirtIOHeader};
use virtio_drivers::{BufferDirection, Hal};

/// Virtio, 4.2.2: "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;

/// The registers of the machine's first virtio-mmio transport that `fits` and has a device of this kind (Virtio, 5). Called before
/// the own map is in force.
pub fn find(machine: &Machine, kind: u32, fits: impl Fn(PhysRange) -> bool) -> Option<PhysRange> {
    let is_that = |registers: PhysRange| {
        // Its registers are aligned to their own size, and reached through one page.
        let usable = registers.size() >= 0x100 && registers.start().is_multiple_of(0x100);
        if !usable || !own_map::early_map_device(registers.start()) {
            return false;
        }
        // SAFETY: the device tree has a virtio-mmio transport there, now mapped; reading its identification does nothing. The tree
        // may be wrong, and nothing answer.
        let read = |offset: u64| unsafe { device::load(registers.start() + offset, 4) };
        read(0) == Some(MAGIC.into()) && read(8) == Some(kind.into())
    };
    let mut registers = machine.virtio.iter().map(|device| device.registers);
    registers.find(|&registers| fits(registers) && is_that(registers))
}

/// The transport at `registers`, for a driver.
///
/// # Errors
///
/// The driver's crate's: the registers are none of a device's.
///
/// # Safety
///
/// [`find`] has found it, the own map has it, and this is called once for it: it is the hypervisor's own.
pub unsafe fn transport(registers: PhysRange) -> Result<MmioTransport<'static>, MmioError> {
    let header = NonNull::new(registers.start() as *mut VirtIOHeader).unwrap_or(NonNull::dangling());
    // SAFETY: the caller's promise: a transport, mapped as device memory for good, that nothing else uses.
    unsafe { MmioTransport::new(header, registers.size() as usize) }
}

/// DMA memory: frames of the hypervisor's own, which lie where devices and EL2 both see them.
pub struct Dma;

// SAFETY: frames come from the pool, are mapped at their physical addresses, and are given to one caller only.
unsafe impl Hal for Dma {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (u64, NonNull<u8>) {
        let frames = FRAMES.allocate(pages as u64, 1);
        match frames.and_then(|frames| Some((frames.0, NonNull::new(frames.0 as *mut u8)?))) {
            Some((address, pointer)) => {
                // SAFETY: the frames are this function's alone so far.
                unsafe { pointer.write_bytes(0, pages * PAGE_SIZE as usize) };
                (address, pointer)
            }
            // The crate takes address 0 for "no memory".
            None => (0, NonNull::dangling()),
        }
    }

    unsafe fn dma_dealloc(address: u64, _: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller's promise: allocated by `dma_alloc`, not used any more.
        unsafe { FRAMES.free(PhysAddr(address), pages as u64) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: u64, _: usize) -> NonNull<u8> {
        // Asked for PCI only; memory is mapped where it lies.
        NonNull::new(address as *mut u8).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> u64 {
        buffer.cast::<u8>().addr().get() as u64
    }

    unsafe fn unshare(_: u64, _: NonNull<[u8]>, _: BufferDirection) {}
}
