//! Table memory that is mapped at its physical address.

use crate::arch::address::PhysAddr;
use crate::platform::traits::Slot;
use core::sync::atomic::{AtomicU64, Ordering};

/// Descriptors in a round of the loops of atomic instructions.
const BULK: usize = 32;
/// Stores in a round of a fill, which is half a KiB of code with 64.
#[cfg(target_arch = "aarch64")]
const ROUND: usize = if cfg!(feature = "small") { 16 } else { 64 };

/// Descriptors at identity-mapped physical addresses: the body of an embedder's [`TableMemory`](crate::TableMemory).
///
/// All functions need the slot to be mapped at its physical address, as memory that the hardware's walks agree with.
#[derive(Debug)]
pub struct Identity;

impl Identity {
    #[inline(always)]
    fn pointer(slot: Slot) -> *mut u64 {
        core::ptr::with_exposed_provenance_mut(slot.address().0 as usize)
    }

    /// Loads with acquire semantics.
    ///
    /// # Safety
    ///
    /// The slot is mapped at its physical address and lies in a live table frame.
    #[inline(always)]
    #[must_use]
    pub unsafe fn load(slot: Slot) -> u64 {
        // SAFETY: the caller's promise; aligned, and only ever accessed atomically.
        unsafe { AtomicU64::from_ptr(Self::pointer(slot)) }.load(Ordering::Acquire)
    }

    /// Stores, relaxed.
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`].
    #[inline(always)]
    pub unsafe fn store(slot: Slot, value: u64) {
        // SAFETY: the caller's promise; aligned, and only ever accessed atomically.
        unsafe { AtomicU64::from_ptr(Self::pointer(slot)) }.store(value, Ordering::Relaxed);
    }

    /// Compare-exchange with acquire and release semantics, as the build's CPU features allow: by load-exclusive and
    /// store-exclusive, which every CPU has, unless the target says otherwise.
    ///
    /// # Errors
    ///
    /// The value found.
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`].
    #[inline(always)]
    pub unsafe fn compare_exchange(slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the caller's promise; aligned, and only ever accessed atomically.
        unsafe { AtomicU64::from_ptr(Self::pointer(slot)) }
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }

    /// Clears the bits of `mask`, with acquire and release semantics, and returns the value from before. By exclusive
    /// accesses, as for [`Identity::compare_exchange`].
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`].
    #[inline(always)]
    pub unsafe fn fetch_clear(slot: Slot, mask: u64) -> u64 {
        // SAFETY: the caller's promise; aligned, and only ever accessed atomically.
        unsafe { AtomicU64::from_ptr(Self::pointer(slot)) }.fetch_and(!mask, Ordering::AcqRel)
    }

    /// Stores `first`, `first + step`, … into all 512 slots.
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`], for all slots of `table`, and no other PE uses them.
    #[inline(always)]
    pub unsafe fn fill(table: PhysAddr, first: u64, step: u64) {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the caller's promise.
        unsafe {
            Self::fill_in_pairs(table, first, step);
        }
        #[cfg(not(target_arch = "aarch64"))]
        for index in 0..crate::arch::geometry::ENTRIES {
            // SAFETY: the caller's promise; the index is below 512.
            unsafe { Self::store(Slot { table, index }, first.wrapping_add(step.wrapping_mul(index as u64))) };
        }
    }

    /// Clears the bits of `mask` in `count` adjacent slots, with acquire and release semantics each. With `SEE`,
    /// returns all bits that were set in any of the slots before; without, what it returns says nothing. By `LDCLRAL`
    /// with `lse`, and by exclusive accesses without.
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`], for all of the slots. `lse` only where the PE has FEAT_LSE.
    #[inline(always)]
    pub unsafe fn clear_run<const SEE: bool>(first: Slot, count: usize, mask: u64, lse: bool) -> u64 {
        let rounds = if lse && cfg!(target_arch = "aarch64") { count / BULK } else { 0 };
        let mut seen = 0u64;
        #[cfg(target_arch = "aarch64")]
        {
            let mut at = Self::pointer(first);
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
            seen |= unsafe { Self::clear_each(first, rounds * BULK, count, mask) };
        }
        seen
    }

    /// One slot after the other, from `done` on. Out of line: unrolled, it would take the registers of what it is
    /// inlined into.
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`], for all of the slots.
    #[cold]
    #[inline(never)]
    unsafe fn clear_each(first: Slot, done: usize, count: usize, mask: u64) -> u64 {
        let mut seen = 0;
        for index in first.index + done..first.index + count {
            // SAFETY: the caller's promise.
            seen |= unsafe { Self::fetch_clear(Slot { index, ..first }, mask) };
        }
        seen
    }

    /// Whether all 512 slots hold `first`, `first + step`, …
    ///
    /// # Safety
    ///
    /// As for [`Identity::load`], for all slots of `table`, and no other PE writes them.
    #[inline(always)]
    #[must_use]
    pub unsafe fn is_filled(table: PhysAddr, first: u64, step: u64) -> bool {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the caller's promise.
        unsafe {
            Self::is_filled_by_pairs(table, first, step)
        }
        #[cfg(not(target_arch = "aarch64"))]
        (0..crate::arch::geometry::ENTRIES).all(|index| {
            // SAFETY: the caller's promise; the index is below 512.
            unsafe { Self::load(Slot { table, index }) == first.wrapping_add(step.wrapping_mul(index as u64)) }
        })
    }

    /// Sixteen entries a round, with one branch: the flags stay equal as long as all are.
    ///
    /// # Safety
    ///
    /// As for [`Identity::is_filled`].
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn is_filled_by_pairs(table: PhysAddr, first: u64, step: u64) -> bool {
        let mut expected = first;
        let mut at = Self::pointer(Slot { table, index: 0 });
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
    /// As for [`Identity::fill`].
    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    unsafe fn fill_in_pairs(table: PhysAddr, first: u64, step: u64) {
        let mut value = first;
        let mut at = Self::pointer(Slot { table, index: 0 });
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::pool::StaticPool;

    #[test]
    fn a_table_is_filled_read_and_changed_in_place() {
        static POOL: StaticPool<1> = StaticPool::new();
        let table = POOL.allocate(1).unwrap();
        // SAFETY: the pool's memory is mapped where it is, and the frame is this test's.
        unsafe { Identity::fill(table, 7, 0x1000) };
        // SAFETY: as above; indices are below 512.
        let load = |index| unsafe { Identity::load(Slot { table, index }) };
        assert!((0..512).all(|index| load(index) == 7 + 0x1000 * index as u64));
        let last = Slot { table, index: 511 };
        // SAFETY: as above.
        let exchange = |old, new| unsafe { Identity::compare_exchange(last, old, new) };
        assert_eq!(exchange(0, 1), Err(7 + 0x1000 * 511));
        // SAFETY: as above.
        unsafe { Identity::store(last, 2) };
        assert_eq!(exchange(2, 3), Ok(()));
        assert_eq!(load(511), 3);
        // SAFETY: allocated above, used no more.
        unsafe { POOL.free(table, 1) };
    }
}
