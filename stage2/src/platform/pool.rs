//! Table frames from a fixed piece of memory: for embedders without an allocator.

use crate::arch::address::{PAGE_SIZE, PhysAddr};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

/// Frames in one word of a pool's bitmap.
const FRAMES: usize = u64::BITS as usize;
/// The most frames that a pool gives at once, and so its alignment: a root of sixteen tables of 4 KiB, or one table of 64 KiB.
const ALIGNMENT: u64 = 16 * PAGE_SIZE;

/// Hands out frames of a range of physical memory, at most 64 × `WORDS` of them: the `allocate` and `free` of an
/// embedder's [`FrameAllocator`](crate::FrameAllocator).
///
/// Lock-free, so that it can be called from the fault path of any PE. Cost: one load for each 64 frames in use, one
/// compare-exchange.
#[derive(Debug)]
pub struct FramePool<const WORDS: usize> {
    first: PhysAddr,
    /// One bit a frame: set while it is in use, or where there is none.
    used: [AtomicU64; WORDS],
}

impl<const WORDS: usize> FramePool<WORDS> {
    /// A pool of the whole frames in the `bytes` bytes at `start`, from the first multiple of 64 KiB on. What exceeds
    /// 64 × `WORDS` frames is left alone.
    ///
    /// The pool never touches the memory; a caller that reads and writes the frames must own it.
    #[must_use]
    pub const fn new(start: PhysAddr, bytes: u64) -> Self {
        let first = PhysAddr(start.0.wrapping_add(ALIGNMENT - 1)).align_down(ALIGNMENT);
        let skipped = first.0.wrapping_sub(start.0);
        let frames = bytes.saturating_sub(skipped) / PAGE_SIZE;
        let mut used = [const { AtomicU64::new(u64::MAX) }; WORDS];
        let mut word = 0;
        while word < WORDS && ((word * FRAMES) as u64) < frames {
            let here = frames - (word * FRAMES) as u64;
            used[word] = AtomicU64::new(if here >= FRAMES as u64 { 0 } else { u64::MAX << here });
            word += 1;
        }
        Self { first, used }
    }

    /// `frames` adjacent frames, aligned to their total size; `None` if there are no such, or if `frames` is not a
    /// power of two up to 16. The contents are whatever they were.
    #[must_use]
    pub fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        let frame = take(&self.used, frames)?;
        Some(self.first.offset(frame as u64 * PAGE_SIZE))
    }

    /// Takes back what [`FramePool::allocate`] gave.
    ///
    /// # Safety
    ///
    /// `first` and `frames` are as they were allocated here, and nothing uses the frames any more.
    pub unsafe fn free(&self, first: PhysAddr, frames: usize) {
        put(&self.used, (first.0.wrapping_sub(self.first.0) / PAGE_SIZE) as usize, frames);
    }

    /// Frames that could be allocated one by one now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.used.iter().map(|word| word.load(Ordering::Relaxed).count_zeros() as usize).sum()
    }
}

/// A [`FramePool`] that brings its memory along, for a `static`: 64 × `WORDS` frames in `.bss`.
///
/// For programs whose static memory is mapped at its physical address.
#[derive(Debug)]
#[repr(C, align(65536))]
pub struct StaticPool<const WORDS: usize> {
    memory: UnsafeCell<[[[u64; 512]; FRAMES]; WORDS]>,
    used: [AtomicU64; WORDS],
}

// SAFETY: the memory is reached only through addresses that `allocate` gives out, to one owner at a time.
unsafe impl<const WORDS: usize> Sync for StaticPool<WORDS> {}

impl<const WORDS: usize> StaticPool<WORDS> {
    /// A pool with all frames free.
    #[must_use]
    pub const fn new() -> Self {
        Self { memory: UnsafeCell::new([[[0; 512]; FRAMES]; WORDS]), used: [const { AtomicU64::new(0) }; WORDS] }
    }

    /// As [`FramePool::allocate`].
    #[must_use]
    pub fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        let frame = take(&self.used, frames)?;
        Some(self.first().offset(frame as u64 * PAGE_SIZE))
    }

    /// As [`FramePool::free`].
    ///
    /// # Safety
    ///
    /// `first` and `frames` are as they were allocated here, and nothing uses the frames any more.
    pub unsafe fn free(&self, first: PhysAddr, frames: usize) {
        put(&self.used, (first.0.wrapping_sub(self.first().0) / PAGE_SIZE) as usize, frames);
    }

    /// Frames that could be allocated one by one now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.used.iter().map(|word| word.load(Ordering::Relaxed).count_zeros() as usize).sum()
    }

    fn first(&self) -> PhysAddr {
        PhysAddr(self.memory.get().expose_provenance() as u64)
    }
}

impl<const WORDS: usize> Default for StaticPool<WORDS> {
    fn default() -> Self {
        Self::new()
    }
}

/// Marks `frames` adjacent free frames as used, at a multiple of `frames`, and returns the first one's number.
fn take(used: &[AtomicU64], frames: usize) -> Option<usize> {
    if !frames.is_power_of_two() || frames > 16 {
        return None;
    }
    let run = (1 << frames) - 1;
    for (word, cell) in used.iter().enumerate() {
        let mut value = cell.load(Ordering::Relaxed);
        // A run never spans two words, since both are aligned to its size.
        while let Some(at) = (0..FRAMES).step_by(frames).find(|at| value & run << at == 0) {
            // Acquire: what the last owner did with the frames comes before what the next one does.
            match cell.compare_exchange_weak(value, value | run << at, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(word * FRAMES + at),
                Err(now) => value = now,
            }
        }
    }
    None
}

/// Marks frames as free again.
fn put(used: &[AtomicU64], first: usize, frames: usize) {
    let run = ((1 << frames) - 1) << (first % FRAMES);
    if let Some(cell) = used.get(first / FRAMES) {
        // Release: what this owner did with the frames comes before what the next one does.
        let before = cell.fetch_and(!run, Ordering::Release);
        debug_assert_eq!(before & run, run, "freed twice, or never allocated");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn frames_are_aligned_and_no_two_overlap() {
        let pool = FramePool::<3>::new(PhysAddr(0x4000_1000), 0x10_0000);
        // From 0x4001_0000 on there are 0xf1 frames, of which 192 fit the bitmap.
        assert_eq!(pool.available(), 192);
        let mut seen = BTreeSet::new();
        let mut taken = Vec::new();
        for frames in [1, 16, 2, 8, 1, 4, 16, 1].into_iter().cycle() {
            let Some(first) = pool.allocate(frames) else { break };
            assert!(first.is_aligned(frames as u64 * PAGE_SIZE) && first.0 >= 0x4001_0000);
            for n in 0..frames as u64 {
                assert!(seen.insert(first.0 + n * PAGE_SIZE), "{first} twice");
            }
            taken.push((first, frames));
        }
        assert!(seen.last() < Some(&(0x4001_0000 + 192 * PAGE_SIZE)));
        assert_eq!(pool.available(), 192 - seen.len());
        for (first, frames) in taken {
            // SAFETY: allocated above, used by nothing.
            unsafe { pool.free(first, frames) };
        }
        assert_eq!(pool.available(), 192);
    }

    #[test]
    fn the_end_of_the_memory_is_the_end_of_the_pool() {
        let pool = FramePool::<2>::new(PhysAddr(0), 67 * PAGE_SIZE + 0xfff);
        assert_eq!(pool.available(), 67);
        for n in 0..67 {
            assert_eq!(pool.allocate(1), Some(PhysAddr(n * PAGE_SIZE)));
        }
        assert_eq!(pool.allocate(1), None);
        assert_eq!(FramePool::<2>::new(PhysAddr(0x1000), 0x1000).available(), 0, "less than the alignment takes");
        assert_eq!(FramePool::<2>::new(PhysAddr(!0xfff), u64::MAX).allocate(3), None);
    }

    #[test]
    fn only_what_the_engine_may_ask_for_is_given() {
        static POOL: StaticPool<1> = StaticPool::new();
        for frames in [0, 3, 17, 32, usize::MAX] {
            assert_eq!(POOL.allocate(frames), None);
        }
        let root = POOL.allocate(16).unwrap();
        assert!(root.is_aligned(16 * PAGE_SIZE));
        // SAFETY: allocated above, used by nothing.
        unsafe { POOL.free(root, 16) };
        assert_eq!(POOL.available(), 64);
    }

    #[test]
    fn threads_share_a_pool() {
        static POOL: StaticPool<1> = StaticPool::new();
        static OWNERS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                scope.spawn(move || {
                    for round in 0..20_000 {
                        let frames = 1 << (round % 3);
                        let Some(first) = POOL.allocate(frames) else { continue };
                        let at = ((first.0 - POOL.first().0) / PAGE_SIZE) as usize;
                        for owner in &OWNERS[at..at + frames] {
                            assert_eq!(owner.swap(thread, Ordering::Relaxed), 0);
                        }
                        for owner in &OWNERS[at..at + frames] {
                            assert_eq!(owner.swap(0, Ordering::Relaxed), thread);
                        }
                        // SAFETY: allocated above, used no more.
                        unsafe { POOL.free(first, frames) };
                    }
                });
            }
        });
        assert_eq!(POOL.available(), 64);
    }
}
