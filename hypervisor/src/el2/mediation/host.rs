//! What [`virtio_mediation`] needs of the machine.

use crate::el2::base::{device, frames::FRAMES};
use crate::el2::guest_memory::table_lock::Table;
use crate::el2::guest_memory::{GuestMemory, platform::Platform};
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use hypervisor::granule::PAGE;
use hypervisor::machine;
use hypervisor::range::PhysRange;
use stage2::{Ipa, IpaRange, Maintenance, PAGE_SIZE};
use virtio_mediation::{Environment, Rings};

/// Where a device's registers are, and its interrupt.
pub struct Registers {
    /// The first register's address. EL2 has the frame mapped, for itself.
    pub start: u64,
    /// The address of the distributor's register that makes its interrupt pending, and the bit.
    pending: (u64, u32),
}

impl Registers {
    /// Those of `device`, which is one of [`machine::Machine::mediable`].
    pub fn new(device: &machine::Device, distributor: PhysRange) -> Self {
        /// GICD_ISPENDR<n> (Arm IHI 0069, 12.9.26; IHI 0048, 4.3.7).
        const ISPENDR: u64 = 0x200;
        let intid = device.interrupt.map_or(0, machine::Interrupt::intid);
        let pending = (distributor.start() + ISPENDR + 4 * u64::from(intid / 32), 1 << (intid % 32));
        Self { start: device.registers.start(), pending }
    }
}

/// A device's registers, the guest's memory, and the table that says what the guest may do there.
pub struct Host<'t> {
    pub memory: &'t GuestMemory,
    pub table: &'t Table,
    pub registers: &'t Registers,
    /// Whether what is written is marked; not only in a test of the audit.
    pub marks: bool,
}

/// Waits a moment for another CPU.
pub fn wait() {
    Platform.wait();
}

/// The pages that these bytes are in.
#[inline(always)]
fn pages(start: u64, bytes: u64) -> Option<IpaRange> {
    let end = start.checked_add(bytes)?.checked_next_multiple_of(PAGE)?;
    IpaRange::new(Ipa(start).align_down(PAGE), Ipa(end)).ok()
}

impl Environment for Host<'_> {
    #[inline(always)]
    fn is_ram(&self, start: u64, bytes: u64) -> bool {
        self.memory.ram_at(start).is_some_and(|ram| bytes <= ram.end().0 - start)
    }

    fn ram_bytes(&self) -> u64 {
        self.memory.ram_bytes()
    }

    #[inline(always)]
    fn is_writable(&self, start: u64, bytes: u64) -> bool {
        pages(start, bytes).is_some_and(|pages| self.table.grants_writes(pages))
    }

    #[inline(always)]
    fn load_u16(&self, address: u64) -> u16 {
        // SAFETY: the crate asks for aligned memory that `is_ram` has found to be the guest's: RAM, mapped where it lies, for good.
        // The guest's stores at the same time are other atomic accesses.
        unsafe { AtomicU16::from_ptr(address as *mut u16) }.load(Relaxed)
    }

    #[inline(always)]
    fn load_u64(&self, address: u64) -> u64 {
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU64::from_ptr(address as *mut u64) }.load(Relaxed)
    }

    #[inline(always)]
    fn store_u32(&self, address: u64, value: u32) {
        // SAFETY: as in `load_u16`; nothing of EL2's is in the guest's RAM.
        unsafe { AtomicU32::from_ptr(address as *mut u32) }.store(value, Relaxed);
    }

    #[inline(always)]
    fn mark_written(&self, start: u64, bytes: u64) {
        if self.marks
            && let Some(pages) = pages(start, bytes)
        {
            self.table.mark_written(pages);
        }
    }

    #[inline(always)]
    fn read_register(&self, offset: u64, bytes: u8) -> u32 {
        // SAFETY: an aligned register in the frame, which is mapped as device memory; a load of any has no effect beyond the
        // device's own state.
        unsafe { device::load(self.registers.start + offset, bytes) }.unwrap_or(0) as u32
    }

    #[inline(always)]
    fn write_register(&self, offset: u64, bytes: u8, value: u32) {
        // SAFETY: an aligned register in the frame, which is mapped as device memory. The device reads and writes the memory that
        // its rings name: those of `rings`, and in them segments of the guest's RAM that were checked.
        let _ = unsafe { device::store(self.registers.start + offset, bytes, value.into()) };
    }

    fn raise_interrupt(&self) {
        let (register, bit) = self.registers.pending;
        // SAFETY: GICD_ISPENDR, mapped as device memory; ones make pending what they stand for, which is the guest's interrupt.
        let _ = unsafe { device::store(register, 4, bit.into()) };
    }

    #[inline(always)]
    fn order_loads(&self) {
        // OSH: a coherent device is in the outer shareable domain.
        // SAFETY: a barrier.
        unsafe { core::arch::asm!("dmb oshld", options(nostack, preserves_flags)) };
    }

    #[inline(always)]
    fn order_stores(&self) {
        // All accesses, not stores alone: a mark of what was loaded comes before the index that lets the guest use it again.
        // SAFETY: a barrier.
        unsafe { core::arch::asm!("dmb osh", options(nostack, preserves_flags)) };
    }
}

/// Two pages for rings of EL2's own; nothing if there is no memory.
pub fn rings() -> Option<Rings<'static>> {
    const BYTES: usize = 2 * PAGE_SIZE as usize;
    let address = FRAMES.allocate(2, 1)?.0;
    let start = address as *mut u8;
    // SAFETY: the two frames are this function's alone, mapped and aligned.
    unsafe { start.write_bytes(0, BYTES) };
    // SAFETY: the first page, initialised, never freed; the device's accesses at the same time are atomic, too.
    let descriptors = unsafe { core::slice::from_raw_parts(start.cast::<AtomicU64>(), Rings::DESCRIPTOR_WORDS) };
    let second = (address + PAGE_SIZE) as *mut AtomicU16;
    // SAFETY: as above, of the second page's first half.
    let available = unsafe { core::slice::from_raw_parts(second, Rings::AVAILABLE_WORDS) };
    let rest = (address + PAGE_SIZE + 2 * Rings::AVAILABLE_WORDS as u64) as *mut AtomicU32;
    // SAFETY: as above, of the rest of the second page.
    let used = unsafe { core::slice::from_raw_parts(rest, Rings::USED_WORDS) };
    Rings::new(descriptors, available, used, address)
}
