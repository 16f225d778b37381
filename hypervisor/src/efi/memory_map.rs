//! Firmware's memory map: what of it is RAM, and what of that firmware keeps.

use super::EfiError;
use crate::range::{PhysRange, merged};
use alloc::vec::Vec;
use r_efi::system::{
    ACPI_MEMORY_NVS, ACPI_RECLAIM_MEMORY, BOOT_SERVICES_CODE, BOOT_SERVICES_DATA, CONVENTIONAL_MEMORY, LOADER_CODE,
    LOADER_DATA, MEMORY_WB, RESERVED_MEMORY_TYPE, RUNTIME_SERVICES_CODE, RUNTIME_SERVICES_DATA,
};

/// Bytes of the pages that the map counts in (UEFI 7.2.3), whatever the CPU's pages are.
pub const PAGE: u64 = 4096;
/// Words of a descriptor of version 1; later ones may be longer.
const DESCRIPTOR: usize = 5;

/// A memory map as GetMemoryMap writes it: 64-bit words.
#[derive(Clone, Copy)]
pub struct MemoryMap<'a> {
    words: &'a [u64],
    /// Words from one descriptor to the next.
    stride: usize,
}

/// RAM by the memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it: sorted, joined, not empty.
    pub ram: Vec<PhysRange>,
    /// What firmware keeps of it once boot services have ended: sorted, joined.
    pub kept: Vec<PhysRange>,
}

/// What a descriptor stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// RAM that is free once boot services have ended.
    Free,
    /// RAM that firmware, or ACPI, uses for ever.
    Kept,
    /// No RAM: devices, broken memory.
    Other,
}

impl<'a> MemoryMap<'a> {
    /// The map in `words`, whose descriptors follow each other by `descriptor_size` bytes.
    ///
    /// # Errors
    ///
    /// [`EfiError::DescriptorSize`].
    pub fn new(words: &'a [u64], descriptor_size: usize) -> Result<Self, EfiError> {
        let stride = descriptor_size / 8;
        if stride < DESCRIPTOR || !descriptor_size.is_multiple_of(8) {
            return Err(EfiError::DescriptorSize { size: descriptor_size });
        }
        Ok(Self { words, stride })
    }

    /// The descriptors, in the map's order; a rest that is shorter than one is left out.
    fn descriptors(self) -> impl Iterator<Item = Result<(Use, PhysRange), EfiError>> {
        self.words.chunks_exact(self.stride).enumerate().map(move |(index, words)| {
            // Type (32 bits and padding), physical start, virtual start, pages, attributes.
            let Some(&[kind, start, _, pages, attributes]) = words.first_chunk() else {
                return Err(EfiError::DescriptorSize { size: self.stride * 8 });
            };
            let cached = attributes & MEMORY_WB != 0;
            let kind = match kind as u32 {
                LOADER_CODE | LOADER_DATA | BOOT_SERVICES_CODE | BOOT_SERVICES_DATA | CONVENTIONAL_MEMORY if cached => {
                    Use::Free
                }
                RUNTIME_SERVICES_CODE
                | RUNTIME_SERVICES_DATA
                | ACPI_RECLAIM_MEMORY
                | ACPI_MEMORY_NVS
                | RESERVED_MEMORY_TYPE
                    if cached =>
                {
                    Use::Kept
                }
                _ => Use::Other,
            };
            let range = pages.checked_mul(PAGE).and_then(|size| PhysRange::with_size(start, size));
            let range = range.filter(|range| range.start().is_multiple_of(PAGE));
            Ok((kind, range.ok_or(EfiError::Descriptor { index })?))
        })
    }

    /// Bytes of RAM, at least: what overlaps counts twice. Descriptors that can't be read count as nothing.
    pub fn ram_bytes(self) -> u64 {
        let ram = self.descriptors().flatten().filter(|(kind, _)| *kind != Use::Other);
        ram.fold(0, |sum: u64, (_, range)| sum.saturating_add(range.size()))
    }

    /// Reads the whole map.
    ///
    /// # Errors
    ///
    /// [`EfiError::Descriptor`], [`EfiError::NoRam`].
    pub fn memory(self) -> Result<Memory, EfiError> {
        let (mut ram, mut kept) = (Vec::new(), Vec::new());
        for descriptor in self.descriptors() {
            let (kind, range) = descriptor?;
            if kind != Use::Other {
                ram.push(range);
            }
            if kind == Use::Kept {
                kept.push(range);
            }
        }
        let memory = Memory { ram: merged(ram), kept: merged(kept) };
        if memory.ram.is_empty() { Err(EfiError::NoRam) } else { Ok(memory) }
    }
}
