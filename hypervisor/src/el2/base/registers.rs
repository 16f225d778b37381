//! System registers by name, for those that `aarch64-cpu` does not have, and cache maintenance.

/// Reads a system register by the name that the assembler knows, or `S3_0_C0_C7_2` for one that it may not know.
macro_rules! read_register {
    ($name:expr) => {{
        let value: u64;
        // SAFETY: reading a system register that this CPU has, which the caller has made sure of, has no side effect.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register by name, or `encoded` by one of [`encoded`]. The value takes effect with the next ISB or ERET.
///
/// Not for registers that EL2's own translation depends on: only those that control or hold state of EL1 and EL0.
macro_rules! write_register {
    (encoded $register:ident, $value:expr) => {{
        use crate::el2::base::registers::encoded::$register;
        let value: u64 = $value;
        // SAFETY: the register holds or controls state of EL1 and EL0 only, as the macro's text asks; the CPU has it.
        unsafe {
            core::arch::asm!(
                "msr S3_{}_C{}_C{}_{}, {}",
                const $register.0, const $register.1, const $register.2, const $register.3,
                in(reg) value, options(nostack, preserves_flags)
            );
        }
    }};
    ($name:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the register holds or controls state of EL1 and EL0 only, so no memory of EL2's changes under Rust; the
        // CPU has it, which the caller has made sure of.
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags));
        }
    }};
}

pub(crate) use {read_register, write_register};

/// How MSR names a register that an assembler need not know: op1, CRn, CRm, op2; op0 is 3.
pub struct Encoding(pub u8, pub u8, pub u8, pub u8);

/// Such registers, under the names that they have in the Arm ARM.
pub mod encoded {
    use super::Encoding;

    pub const HCRX_EL2: Encoding = Encoding(4, 1, 2, 2);
    pub const ZCR_EL2: Encoding = Encoding(4, 1, 2, 0);
    pub const SMCR_EL2: Encoding = Encoding(4, 1, 2, 6);
    pub const TRFCR_EL2: Encoding = Encoding(4, 1, 2, 1);
    pub const MPAM2_EL2: Encoding = Encoding(4, 10, 5, 0);
    pub const HFGRTR_EL2: Encoding = Encoding(4, 1, 1, 4);
    pub const HFGWTR_EL2: Encoding = Encoding(4, 1, 1, 5);
    pub const HFGITR_EL2: Encoding = Encoding(4, 1, 1, 6);
    pub const HDFGRTR_EL2: Encoding = Encoding(4, 3, 1, 4);
    pub const HDFGWTR_EL2: Encoding = Encoding(4, 3, 1, 5);
    pub const HAFGRTR_EL2: Encoding = Encoding(4, 3, 1, 6);
    pub const HDFGRTR2_EL2: Encoding = Encoding(4, 3, 1, 0);
    pub const HDFGWTR2_EL2: Encoding = Encoding(4, 3, 1, 1);
    pub const HFGRTR2_EL2: Encoding = Encoding(4, 3, 1, 2);
    pub const HFGWTR2_EL2: Encoding = Encoding(4, 3, 1, 3);
    pub const HFGITR2_EL2: Encoding = Encoding(4, 3, 1, 7);
    pub const ICC_SRE_EL2: Encoding = Encoding(4, 12, 9, 5);
    pub const ICH_HCR_EL2: Encoding = Encoding(4, 12, 11, 0);
}

/// `ISB`: the register writes before it hold for what comes after.
#[inline(always)]
pub fn isb() {
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}

/// `DSB ISH`: memory accesses and maintenance before it are complete before what comes after.
#[inline(always)]
pub fn dsb_ish() {
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISH);
}

/// Bytes of the smallest data cache line (CTR_EL0.DminLine).
pub fn cache_line() -> usize {
    4 << (read_register!("ctr_el0") >> 16 & 0xf)
}

/// Cleans and invalidates `bytes` bytes from `start` to the point of coherency, so that code with the MMU off, and
/// devices, see what was written. Complete when it returns.
///
/// Two instructions a line: a guest's kernel has half a million.
pub fn clean_to_memory(start: usize, bytes: usize) {
    const ROUND: usize = 16;
    let (line, end) = (cache_line(), start + bytes);
    let mut at = start & !(line - 1);
    while at + ROUND * line <= end {
        // SAFETY: cleaning and invalidating changes no contents of memory.
        unsafe {
            core::arch::asm!(
                ".rept {round}", "dc civac, {at}", "add {at}, {at}, {line}", ".endr",
                at = inout(reg) at, line = in(reg) line, round = const ROUND, options(nostack, preserves_flags)
            );
        }
    }
    for address in (at..end).step_by(line) {
        // SAFETY: as above.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) address, options(nostack, preserves_flags)) };
    }
    // The lines have reached memory before anybody is told of them.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
}

/// Zeroes `bytes` bytes from `start`, by `DC ZVA` as far as that goes.
///
/// # Safety
///
/// They are the caller's to write, mapped as Normal memory, with the MMU on.
pub unsafe fn zero(start: usize, bytes: usize) {
    const ROUND: usize = 8;
    let id = read_register!("dczid_el0");
    // DCZID_EL0.DZP: it is prohibited. BS: the logarithm of its words of 4 bytes.
    let block = if id >> 4 & 1 == 0 { 4 << (id & 0xf) } else { usize::MAX };
    let end = start + bytes;
    let first = start.checked_next_multiple_of(block).filter(|first| *first <= end).unwrap_or(end);
    let mut at = first;
    while (end - at) / ROUND >= block {
        // SAFETY: the caller's promise, for whole blocks of the range.
        unsafe {
            core::arch::asm!(
                ".rept {round}", "dc zva, {at}", "add {at}, {at}, {block}", ".endr",
                at = inout(reg) at, block = in(reg) block, round = const ROUND, options(nostack, preserves_flags)
            );
        }
    }
    for part in [start..first, at..end] {
        // SAFETY: the caller's promise.
        unsafe { core::ptr::write_bytes(part.start as *mut u8, 0, part.len()) };
    }
}

/// Copies `bytes` bytes, of images: the compiler's `memcpy` takes five times as many instructions.
///
/// # Safety
///
/// As for [`core::ptr::copy_nonoverlapping`]; both addresses are multiples of 8.
pub unsafe fn copy(from: usize, to: usize, bytes: usize) {
    const ROUND: usize = 64;
    let (mut at, mut place) = (from, to);
    for _ in 0..bytes / ROUND {
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!(
                ".rept 2",
                "ldp {a}, {b}, [{at}], #16", "ldp {c}, {d}, [{at}], #16",
                "stp {a}, {b}, [{place}], #16", "stp {c}, {d}, [{place}], #16",
                ".endr",
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                at = inout(reg) at, place = inout(reg) place, options(nostack, preserves_flags)
            );
        }
    }
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy_nonoverlapping(at as *const u8, place as *mut u8, bytes % ROUND) };
}

/// Makes instructions that were written as data visible to fetches by all CPUs, once they are clean.
pub fn invalidate_instruction_caches() {
    // SAFETY: only caches change.
    unsafe { core::arch::asm!("ic ialluis", options(nostack, preserves_flags)) };
    // The invalidation is complete on all CPUs before the code is run.
    dsb_ish();
    isb();
}
