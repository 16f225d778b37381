//! The machine's RAM, which QEMU keeps in a file.

use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::path::Path;
use tlb_model::Memory;

/// The RAM's file, mapped.
pub struct Ram {
    file: MmapRaw,
    base: u64,
}

impl Ram {
    /// Maps the file, which is RAM from the physical address `base` on.
    ///
    /// # Errors
    /// If it can't be opened or mapped.
    pub fn map(path: &Path, base: u64) -> io::Result<Self> {
        Ok(Self { file: MmapOptions::new().map_raw_read_only(&File::open(path)?)?, base })
    }
}

impl Memory for Ram {
    fn read(&self, address: u64) -> Option<u64> {
        let offset = usize::try_from(address.checked_sub(self.base)?).ok()?;
        if offset % 8 != 0 || offset.checked_add(8)? > self.file.len() {
            return None;
        }
        let word = self.file.as_ptr().wrapping_add(offset).cast::<u64>();
        // SAFETY: the eight bytes lie in the mapping and are aligned. The guest may write them at any time: the read is
        // volatile, and whatever it gives is a number. QEMU keeps the file's size.
        Some(u64::from_le(unsafe { word.read_volatile() }))
    }
}
