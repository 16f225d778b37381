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
fn cache_line() -> usize {
    4 << (read_register!("ctr_el0") >> 16 & 0xf)
}

/// Cleans and invalidates `bytes` bytes from `start` to the point of coherency, so that code with the MMU off, and
/// devices, see what was written. Complete when it returns.
pub fn clean_to_memory(start: usize, bytes: usize) {
    let line = cache_line();
    for address in (start & !(line - 1)..start + bytes).step_by(line) {
        // SAFETY: cleaning and invalidating changes no contents of memory.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) address, options(nostack, preserves_flags)) };
    }
    // The lines have reached memory before anybody is told of them.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::SY);
}

/// Makes instructions that were written as data visible to fetches by all CPUs, once they are clean.
pub fn invalidate_instruction_caches() {
    // SAFETY: only caches change.
    unsafe { core::arch::asm!("ic ialluis", options(nostack, preserves_flags)) };
    // The invalidation is complete on all CPUs before the code is run.
    dsb_ish();
    isb();
}
