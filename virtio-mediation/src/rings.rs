//! The rings that the device sees.

use crate::environment::Environment;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// The most descriptors that a queue has: a table of them fills a page.
pub const MAX_SIZE: u16 = 256;

/// Bits of a descriptor's flags (2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;

/// A descriptor, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// From its two words, little-endian as EL2 is.
    pub(crate) const fn from_words(address: u64, rest: u64) -> Self {
        Self { address, bytes: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    const fn rest(self) -> u64 {
        self.bytes as u64 | (self.flags as u64) << 32 | (self.next as u64) << 48
    }

    pub(crate) const fn is_written(self) -> bool {
        self.flags & WRITE != 0
    }

    pub(crate) const fn has_next(self) -> bool {
        self.flags & NEXT != 0
    }
}

/// Two pages that the guest has no part of, and that the device reads and writes: descriptors in the first, the available
/// and the used ring in the second.
#[derive(Clone, Copy, Debug)]
pub struct Rings<'m> {
    descriptors: &'m [AtomicU64],
    available: &'m [AtomicU16],
    used: &'m [AtomicU32],
    address: u64,
}

impl<'m> Rings<'m> {
    /// 64-bit words of the descriptor table.
    pub const DESCRIPTOR_WORDS: usize = 2 * MAX_SIZE as usize;
    /// 16-bit words of the available ring, from the start of the second page.
    pub const AVAILABLE_WORDS: usize = 512;
    /// 32-bit words of the used ring, to the end of the second page.
    pub const USED_WORDS: usize = 768;
    const AVAILABLE_OFFSET: u64 = 4096;
    const USED_OFFSET: u64 = 4096 + 2 * Self::AVAILABLE_WORDS as u64;

    /// The rings in two adjacent pages at `address`, as the device sees it; nothing if a part has another length than it has to.
    #[must_use]
    pub fn new(
        descriptors: &'m [AtomicU64],
        available: &'m [AtomicU16],
        used: &'m [AtomicU32],
        address: u64,
    ) -> Option<Self> {
        let right = descriptors.len() == Self::DESCRIPTOR_WORDS
            && available.len() == Self::AVAILABLE_WORDS
            && used.len() == Self::USED_WORDS;
        right.then_some(Self { descriptors, available, used, address })
    }

    /// Makes everything zero. The device does not use it.
    pub(crate) fn clear(&self) {
        self.descriptors.iter().for_each(|word| word.store(0, Relaxed));
        self.restart();
    }

    /// Makes the available and the used ring zero. The device does not use them.
    pub(crate) fn restart(&self) {
        self.available.iter().for_each(|word| word.store(0, Relaxed));
        self.used.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Where the device finds descriptors, available ring and used ring.
    pub(crate) const fn addresses(&self) -> [u64; 3] {
        [self.address, self.address + Self::AVAILABLE_OFFSET, self.address + Self::USED_OFFSET]
    }

    /// Descriptor `number`; one of zeroes if there is no such.
    pub(crate) fn descriptor(&self, number: u16) -> Descriptor {
        let word = |index: usize| self.descriptors.get(index).map_or(0, |word| word.load(Relaxed));
        let first = 2 * usize::from(number);
        Descriptor::from_words(word(first), word(first + 1))
    }

    /// Sets descriptor `number`. Nothing that the device may look at leads there.
    pub(crate) fn set_descriptor(&self, number: u16, descriptor: Descriptor) {
        let first = 2 * usize::from(number);
        for (index, value) in [(first, descriptor.address), (first + 1, descriptor.rest())] {
            if let Some(word) = self.descriptors.get(index) {
                word.store(value, Relaxed);
            }
        }
    }

    /// Puts a head into the available ring's slot `slot`.
    pub(crate) fn set_available(&self, slot: u16, head: u16) {
        if let Some(word) = self.available.get(2 + usize::from(slot)) {
            word.store(head, Relaxed);
        }
    }

    /// Lets the device have what was put into the available ring before `index`. Its flags stay 0: every completion interrupts.
    pub(crate) fn publish(&self, environment: &impl Environment, index: u16) {
        // The device that sees the index sees descriptors and slots.
        environment.order_stores();
        if let Some(word) = self.available.get(1) {
            word.store(index, Relaxed);
        }
    }

    /// The used ring's index. Its flags are not looked at: every chain is told of.
    pub(crate) fn used_index(&self) -> u16 {
        self.used.first().map_or(0, |word| (word.load(Relaxed) >> 16) as u16)
    }

    /// What the used ring has in slot `slot`: a head, and how many bytes were written.
    pub(crate) fn used(&self, slot: u16) -> (u32, u32) {
        let word = |index: usize| self.used.get(index).map_or(0, |word| word.load(Relaxed));
        let first = 1 + 2 * usize::from(slot);
        (word(first), word(first + 1))
    }
}
