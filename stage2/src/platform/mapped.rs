//! Table memory that is mapped at an offset from its physical address: the fast bodies of [`TableMemory`].

use crate::arch::address::PhysAddr;
use crate::platform::counters::Counters;
#[cfg(target_arch = "aarch64")]
use crate::platform::traits::GROUP;
use crate::platform::traits::{Dsb, FrameAllocator, Maintenance, Slot, TableMemory, Tlbi, Vmid};
use core::sync::atomic::{AtomicU64, Ordering};

/// Descriptors in a round of the loops of atomic instructions.
const BULK: usize = 32;
/// Stores in a round of a fill, which is half a KiB of code with 64.
#[cfg(target_arch = "aarch64")]
const ROUND: usize = if cfg!(feature = "small") { 16 } else { 64 };

/// A platform whose table frames come from `A` and are mapped at [`FrameAllocator::offset`] from their physical addresses:
/// every method of [`TableMemory`], with bodies that use the CPU's best instructions. An `A` that implements [`Maintenance`]
/// as well makes it all that the engine asks for.
///
/// A platform that wants to see each access, such as a recorder, implements [`TableMemory`] itself: the bodies that the trait
/// provides go through `load`, `store` and `compare_exchange`, one descriptor at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mapped<A> {
    allocator: A,
}

impl<A> Mapped<A> {
    /// Tables in frames of `allocator`.
    pub const fn new(allocator: A) -> Self {
        Self { allocator }
    }

    /// Where the frames come from.
    #[must_use]
    #[inline(always)]
    pub const fn allocator(&self) -> &A {
        &self.allocator
    }
}

impl<A: FrameAllocator> Mapped<A> {
    #[inline(always)]
    fn pointer(&self, slot: Slot) -> *mut u64 {
        core::ptr::with_exposed_provenance_mut(slot.address().offset(self.allocator.offset()).0 as usize)
    }

    /// # Safety
    ///
    /// The slot lies in a live frame of the allocator's.
    #[inline(always)]
    unsafe fn cell(&self, slot: Slot) -> &AtomicU64 {
        // SAFETY: the caller's promise, and the allocator's: the frame is mapped there, and only ever accessed atomically.
        // A slot's address is a multiple of 8.
        unsafe { AtomicU64::from_ptr(self.pointer(slot)) }
    }

    /// One slot after the other, from `done` on. Out of line: unrolled, it would take the registers of what it is
    /// inlined into.
    ///
    /// # Safety
    ///
    /// As for [`TableMemory::load`], for all of the slots.
    #[cold]
    #[inline(never)]
    unsafe fn clear_each(&self, first: Slot, done: usize, count: usize, mask: u64) -> u64 {
        let mut seen = 0;
        for index in first.index + done..first.index + count {
            // SAFETY: the caller's promise.
            seen |= unsafe { self.fetch_clear(Slot { index, ..first }, mask) };
        }
        seen
    }
}

// SAFETY: the allocator's frames are the engine's alone and mapped where `pointer` says; each access is one of a
// descriptor's 64 bits, and read-modify-writes acquire and release. (By exclusive accesses where the build's CPU features
// have no LSE: every CPU has those.)
unsafe impl<A: FrameAllocator> TableMemory for Mapped<A> {
    #[inline(always)]
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        self.allocator.allocate(frames)
    }

    #[inline(always)]
    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.allocator.free(first, frames) };
    }

    #[inline(always)]
    unsafe fn load(&self, slot: Slot) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { self.cell(slot) }.load(Ordering::Acquire)
    }

    #[inline(always)]
    unsafe fn store(&self, slot: Slot, value: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.cell(slot) }.store(value, Ordering::Relaxed);
    }

    #[inline(always)]
    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the caller's promise.
        unsafe { self.cell(slot) }.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    #[inline(always)]
    unsafe fn fetch_clear(&self, slot: Slot, mask: u64) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { self.cell(slot) }.fetch_and(!mask, Ordering::AcqRel)
    }

    #[inline(always)]
    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the caller's promise.
        unsafe {
            fill_in_pairs(self.pointer(Slot { table, index: 0 }), first, step);
        }
        #[cfg(not(target_arch = "aarch64"))]
        for index in 0..crate::arch::geometry::ENTRIES {
            // SAFETY: the caller's promise; the index is below 512.
            unsafe { self.store(Slot { table, index }, first.wrapping_add(step.wrapping_mul(index as u64))) };
        }
    }

    // By `LDCLRAL` with `lse`, and by exclusive accesses without.
    #[inline(always)]
    unsafe fn clear_run<const SEE: bool>(&self, first: Slot, count: usize, mask: u64, lse: bool) -> u64 {
        let rounds = if lse && cfg!(target_arch = "aarch64") { count / BULK } else { 0 };
        let mut seen = 0u64;
        #[cfg(target_arch = "aarch64")]
        {
            let mut at = self.pointer(first);
            // The operand for `seen` is left out where no caller looks at it: it would take a register and an
            // instruction.
            macro_rules! round {
                ($see:literal $($seen:tt)*) => {
                    // SAFETY: the caller's promise: aligned slots, and a PE that has the instruction.
                    unsafe {
                        core::arch::asm!(
                            ".arch_extension lse",
                            ".rept {round}",
                            "ldclral {mask}, {old}, [{at}]",
                            $see,
                            "add {at}, {at}, #8",
                            ".endr",
                            mask = in(reg) mask,
                            at = inout(reg) at,
                            old = out(reg) _,
                            round = const BULK,
                            $($seen)*
                            options(nostack, preserves_flags)
                        )
                    }
                };
            }
            for _ in 0..rounds {
                if SEE {
                    round!("orr {seen}, {seen}, {old}" seen = inout(reg) seen,);
                } else {
                    round!("");
                }
            }
            let _ = at;
        }
        if rounds * BULK != count {
            // SAFETY: the caller's promise.
            seen |= unsafe { self.clear_each(first, rounds * BULK, count, mask) };
        }
        seen
    }

    // By `LDSETAL`, as for `clear_run`.
    #[inline(always)]
    unsafe fn set_run(&self, first: Slot, count: usize, mask: u64, lse: bool) {
        let rounds = if lse && cfg!(target_arch = "aarch64") { count / BULK } else { 0 };
        #[cfg(target_arch = "aarch64")]
        for round in 0..rounds {
            // SAFETY: the caller's promise: aligned slots, and a PE that has the instruction.
            unsafe {
                core::arch::asm!(
                    ".arch_extension lse",
                    ".rept {round}",
                    "ldsetal {mask}, {old}, [{at}]",
                    "add {at}, {at}, #8",
                    ".endr",
                    mask = in(reg) mask,
                    at = inout(reg) self.pointer(Slot { index: first.index + round * BULK, ..first }) => _,
                    old = out(reg) _,
                    round = const BULK,
                    options(nostack, preserves_flags)
                );
            }
        }
        for index in first.index + rounds * BULK..first.index + count {
            // SAFETY: the caller's promise.
            unsafe { self.cell(Slot { index, ..first }) }.fetch_or(mask, Ordering::AcqRel);
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn group_with<const SET: bool>(&self, first: Slot, mask: u64) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { group_by_pairs::<SET>(self.pointer(first), mask) }
    }

    #[inline(always)]
    unsafe fn is_filled(&self, table: PhysAddr, first: u64, step: u64) -> bool {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the caller's promise.
        unsafe {
            is_filled_by_pairs(self.pointer(Slot { table, index: 0 }), first, step)
        }
        #[cfg(not(target_arch = "aarch64"))]
        (0..crate::arch::geometry::ENTRIES).all(|index| {
            // SAFETY: the caller's promise; the index is below 512.
            unsafe { self.load(Slot { table, index }) == first.wrapping_add(step.wrapping_mul(index as u64)) }
        })
    }
}

// SAFETY: all is the allocator's own.
unsafe impl<A: Maintenance> Maintenance for Mapped<A> {
    #[inline(always)]
    fn dsb(&self, barrier: Dsb) {
        self.allocator.dsb(barrier);
    }

    #[inline(always)]
    fn isb(&self) {
        self.allocator.isb();
    }

    #[inline(always)]
    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        self.allocator.tlbi(vmid, tlbi);
    }

    #[inline(always)]
    fn counters(&self) -> &Counters {
        self.allocator.counters()
    }

    #[inline(always)]
    fn wait(&self) {
        self.allocator.wait();
    }
}

/// First whether any has such a bit, since mostly none has: one and a half instructions an entry. The carry of the
/// comparison with 1 says that something is left of an entry.
///
/// # Safety
///
/// As for [`TableMemory::group_with`]; the slots are mapped at `at`.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn group_by_pairs<const SET: bool>(at: *const u64, mask: u64) -> u32 {
    let which: u64;
    macro_rules! look {
        ($gather:literal, $keep:literal) => {
            // SAFETY: the caller's promise: aligned slots. LDP is two 64-bit single-copy atomic loads.
            unsafe {
                core::arch::asm!(
                    "mov {which}, #0",
                    ".set at, 0",
                    ".rept {pairs}",
                    "ldp {a}, {b}, [{at}, #at]",
                    concat!($gather, " {which}, {which}, {a}"),
                    concat!($gather, " {which}, {which}, {b}"),
                    ".set at, at + 16",
                    ".endr",
                    "ands {which}, {which}, {mask}",
                    "b.eq 2f",
                    "mov {which}, #0",
                    // The first entry's bit is the last to come in.
                    ".rept {pairs}",
                    ".set at, at - 16",
                    "ldp {a}, {b}, [{at}, #at]",
                    concat!($keep, " {b}, {mask}, {b}"),
                    "cmp {b}, #1",
                    "adc {which}, {which}, {which}",
                    concat!($keep, " {a}, {mask}, {a}"),
                    "cmp {a}, #1",
                    "adc {which}, {which}, {which}",
                    ".endr",
                    "2:",
                    a = out(reg) _,
                    b = out(reg) _,
                    which = out(reg) which,
                    at = in(reg) at,
                    mask = in(reg) mask,
                    pairs = const GROUP / 2,
                    options(nostack, readonly)
                );
            }
        };
    }
    if SET {
        look!("orr", "and");
    } else {
        look!("orn", "bic");
    }
    which as u32
}

/// Sixteen entries a round, with one branch: the flags stay equal as long as all are.
///
/// # Safety
///
/// As for [`TableMemory::is_filled`]; the table is mapped at `at`.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn is_filled_by_pairs(mut at: *const u64, first: u64, step: u64) -> bool {
    let mut expected = first;
    for _ in 0..crate::arch::geometry::ENTRIES / 16 {
        let same: u64;
        // SAFETY: the caller's promise: sixteen aligned slots.
        unsafe {
            core::arch::asm!(
                // Z is set.
                "cmp xzr, xzr",
                ".rept 8",
                "ldp {a}, {b}, [{at}], #16",
                "ccmp {a}, {expected}, #0, eq",
                "add {expected}, {expected}, {step}",
                "ccmp {b}, {expected}, #0, eq",
                "add {expected}, {expected}, {step}",
                ".endr",
                "cset {same}, eq",
                a = out(reg) _,
                b = out(reg) _,
                same = lateout(reg) same,
                expected = inout(reg) expected,
                at = inout(reg) at,
                step = in(reg) step,
                options(nostack, readonly)
            );
        }
        if same == 0 {
            return false;
        }
    }
    true
}

/// Sixty-four stores a round, since the compiler does not unroll this far.
///
/// # Safety
///
/// As for [`TableMemory::fill`]; the table is mapped at `at`.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn fill_in_pairs(mut at: *mut u64, first: u64, step: u64) {
    let mut value = first;
    for _ in 0..crate::arch::geometry::ENTRIES / ROUND {
        // SAFETY: the caller's promise: aligned slots of a frame that only this PE uses. STP is two 64-bit
        // single-copy atomic stores.
        unsafe {
            core::arch::asm!(
                ".rept {pairs}",
                "add {next}, {value}, {step}",
                "stp {value}, {next}, [{at}], #16",
                "add {value}, {next}, {step}",
                ".endr",
                value = inout(reg) value,
                at = inout(reg) at,
                next = out(reg) _,
                step = in(reg) step,
                pairs = const ROUND / 2,
                options(nostack, preserves_flags)
            );
        }
    }
    let _ = (value, at);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::pool::StaticPool;

    /// Frames of a pool that are given out by other addresses than they are mapped at.
    struct Elsewhere<'p>(&'p StaticPool<1>, u64);

    // SAFETY: the pool's frames, mapped `self.1` bytes above what they are said to lie at.
    unsafe impl FrameAllocator for Elsewhere<'_> {
        fn allocate(&self, frames: usize) -> Option<PhysAddr> {
            self.0.allocate(frames).map(|first| PhysAddr(first.0.wrapping_sub(self.1)))
        }
        unsafe fn free(&self, first: PhysAddr, frames: usize) {
            // SAFETY: the caller's promise.
            unsafe { self.0.free(first.offset(self.1), frames) };
        }
        fn offset(&self) -> u64 {
            self.1
        }
    }

    #[test]
    fn a_table_is_filled_read_and_changed_where_it_is_mapped() {
        static POOL: StaticPool<1> = StaticPool::new();
        for offset in [0, 0x7000_0000_0000, 0x1000_u64.wrapping_neg()] {
            let memory = Mapped::new(Elsewhere(&POOL, offset));
            let table = memory.allocate(1).unwrap();
            // SAFETY (all): the frame was allocated above and is this test's; indices are below 512.
            // SAFETY: see above.
            unsafe { memory.fill(table, 7, 0x1000) };
            // SAFETY: see above.
            let load = |index| unsafe { memory.load(Slot { table, index }) };
            assert!((0..512).all(|index| load(index) == 7 + 0x1000 * index as u64));
            // SAFETY: see above.
            let filled = |step| unsafe { memory.is_filled(table, 7, step) };
            assert!(filled(0x1000) && !filled(0x2000));
            let last = Slot { table, index: 511 };
            // SAFETY: see above.
            let exchange = |old, new| unsafe { memory.compare_exchange(last, old, new) };
            assert_eq!(exchange(0, 1), Err(7 + 0x1000 * 511));
            // SAFETY: see above.
            unsafe { memory.store(last, 2) };
            assert_eq!(exchange(2, 3), Ok(()));
            assert!(load(511) == 3 && !filled(0x1000));
            // SAFETY: see above.
            let with = |first, mask| unsafe { memory.group_with::<true>(Slot { table, index: first }, mask) };
            assert_eq!((with(32, 0x1000), with(32, 1 << 17), with(480, 8)), (0xaaaa_aaaa, u32::MAX, 0));
            // The last slot is 3 now.
            assert_eq!((with(480, 4), with(480, 0x1000), with(448, 4)), (u32::MAX >> 1, 0x2aaa_aaaa, u32::MAX));
            // SAFETY: see above.
            let without = |first, mask| unsafe { memory.group_with::<false>(Slot { table, index: first }, mask) };
            assert_eq!((without(480, 4), without(448, 7), without(0, 0x1001)), (1 << 31, 0, 0x5555_5555));
            // SAFETY: see above.
            unsafe { memory.set_run(Slot { table, index: 1 }, 70, 8, false) };
            assert_eq!((with(0, 8), with(32, 8), with(64, 8)), (u32::MAX - 1, u32::MAX, 0x7f));
            // SAFETY: see above.
            let seen = unsafe { memory.clear_run::<true>(Slot { table, index: 400 }, 112, 1, false) };
            assert_eq!((seen & 1, load(399), load(400), load(511)), (1, 7 + 0x1000 * 399, 6 + 0x1000 * 400, 2));
            // SAFETY: see above; used no more.
            unsafe { memory.free(table, 1) };
        }
        assert_eq!(POOL.available(), 64);
    }
}
