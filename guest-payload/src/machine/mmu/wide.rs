//! Stage-1 tables of 52-bit addresses with 4 KiB pages (FEAT_LPA2): a walk starts at level −1.

use super::{MmuRegisters, ROOT, bits, slot, table_descriptor};
use crate::machine::cpu;
use crate::machine::memory::PAGE;
use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

/// TCR_EL1.DS: descriptors hold 52-bit addresses, and T0SZ may be less than 16.
pub const TCR_DS: u64 = 1 << 59;
const T0SZ: u64 = 0x3f;

/// The ASID of these tables; the others have 0 and 1.
const ASID: u64 = 2;

/// A copy of the payload's tables in the other format, below a table of level −1.
pub struct WideTables(MmuRegisters);

/// Whether the CPU has 52-bit addresses with 4 KiB pages at stage 1 (ID_AA64MMFR0_EL1.TGran4).
pub fn is_possible() -> bool {
    read_sysreg!("ID_AA64MMFR0_EL1") >> 28 & 0xf == 1
}

impl WideTables {
    /// Copies the tables as they are to `room`, whole pages that the test has allocated. `None` if it is too small.
    pub fn build(mut room: Range<u64>) -> Option<Self> {
        let root = take(&mut room)?;
        let below = copy(ROOT.load(Relaxed), 0, &mut room)?;
        slot(root, 0).store(table_descriptor(below), Relaxed);
        let mut registers = MmuRegisters::new(root, ASID);
        registers.tcr = registers.tcr & !T0SZ | 12 | TCR_DS;
        Some(Self(registers))
    }

    /// Runs `work`, which does not unwind, with these tables on the CPU that runs this. They map what the others mapped
    /// when they were copied, at the same addresses.
    pub fn with<R>(&self, work: impl FnOnce() -> R) -> R {
        let old = super::registers();
        exchange(&self.0);
        let result = work();
        exchange(&old);
        result
    }
}

/// The next page of `room`, zeroed.
fn take(room: &mut Range<u64>) -> Option<u64> {
    let page = room.start;
    room.start += PAGE;
    (0..512).for_each(|index| {
        if room.start <= room.end {
            slot(page, index).store(0, Relaxed)
        }
    });
    (room.start <= room.end).then_some(page)
}

/// Copies a table of `level` and all below it.
fn copy(from: u64, level: u32, room: &mut Range<u64>) -> Option<u64> {
    let to = take(room)?;
    for index in 0..512 {
        let old = slot(from, index).load(Relaxed);
        let new = if old & 1 == 0 {
            0
        } else if level < 3 && old & bits::TABLE_OR_PAGE == bits::TABLE_OR_PAGE {
            table_descriptor(copy(old & bits::ADDRESS, level + 1, room)?)
        } else {
            // With TCR_EL1.DS the field SH is bits 51:50 of the address; TCR_EL1.SH0 says what it said.
            old & !bits::INNER_SHAREABLE
        };
        slot(to, index).store(new, Relaxed);
    }
    Some(to)
}

/// Goes over to other tables that map the same.
fn exchange(new: &MmuRegisters) {
    const M: u64 = 1;
    cpu::without_interrupts(|| {
        // SAFETY: the size of addresses must not change under a walk, so the MMU is off meanwhile; code lies at its
        // physical address, and no data is accessed in between.
        unsafe {
            asm!(
                "dsb ish",                      // The tables are written before the walker is pointed at them.
                "msr SCTLR_EL1, {off}", "isb",  // The MMU is off before the registers change.
                "msr TCR_EL1, {tcr}", "msr TTBR0_EL1, {ttbr0}", "isb", // They hold before the invalidation.
                "tlbi vmalle1", "dsb nsh", "isb", // No entry of the old size is left when the MMU starts.
                "msr SCTLR_EL1, {on}", "isb",   // The next access is translated.
                off = in(reg) new.sctlr & !M, on = in(reg) new.sctlr, tcr = in(reg) new.tcr, ttbr0 = in(reg) new.ttbr0,
                options(nostack)
            );
        }
    });
}
