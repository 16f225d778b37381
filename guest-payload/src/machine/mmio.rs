//! Registers of a device that the payload drives.

use core::ops::Range;

/// A range of device registers.
#[derive(Clone, Copy)]
pub struct Registers {
    base: u64,
    size: u64,
}

impl Registers {
    /// # Safety
    ///
    /// `range` is mapped as device memory for as long as the payload runs, reading in it as often as one likes harms
    /// nothing, and no write in it can change how memory is seen.
    pub unsafe fn new(range: Range<u64>) -> Self {
        Self { base: range.start, size: range.end - range.start }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// First address.
    pub fn base(&self) -> u64 {
        self.base
    }

    fn pointer(&self, offset: u64) -> *mut u32 {
        assert!(offset.is_multiple_of(4) && offset < self.size, "no such register");
        (self.base + offset) as *mut u32
    }

    /// Reads 32 bits.
    pub fn read(&self, offset: u64) -> u32 {
        // SAFETY: inside the range, for which `new` was promised that reading is harmless.
        unsafe { self.pointer(offset).read_volatile() }
    }

    /// Writes 32 bits.
    pub fn write(&self, offset: u64, value: u32) {
        // SAFETY: inside the range, for which `new` was promised that writing leaves memory alone.
        unsafe { self.pointer(offset).write_volatile(value) }
    }
}
