//! Accesses to devices' registers that EL2 makes on the guest's account: an external abort is the guest's, not EL2's end.

use core::arch::asm;

/// Executes one access, whose instruction has a fix-up (vectors.S), and returns the register that it has loaded or stored; nothing if it took
/// an exception.
///
/// What an exception at EL2 changes is put back: the guest's return address and state, and SP_EL0. ESR_EL2 and FAR_EL2 stay
/// those of EL2's own exception. An abort that comes late, as an SError, is the guest's, too: vectors.S says why.
macro_rules! access {
    ($instruction:literal, $address:expr, $value:expr) => {{
        let (done, value): (u64, u64);
        asm!(
            "mrs {elr}, elr_el2",
            "mrs {spsr}, spsr_el2",
            "mrs {sp}, sp_el0",
            "mov {done}, #1",
            concat!("2: ", $instruction),
            "3:",
            ".pushsection .text.fixup, \"ax\"",
            "4: msr elr_el2, {elr}",
            "msr spsr_el2, {spsr}",
            "msr sp_el0, {sp}",
            "mov {done}, #0",
            "b 3b",
            ".popsection",
            ".pushsection .exception_table, \"a\"",
            ".balign 4",
            ".word 2b - ., 4b - .",
            ".popsection",
            address = in(reg) $address,
            value = inout(reg) $value => value,
            done = out(reg) done,
            elr = out(reg) _,
            spsr = out(reg) _,
            sp = out(reg) _,
            options(nostack, preserves_flags)
        );
        (done != 0).then_some(value)
    }};
}

/// Loads a register of 8 bytes, or of 4; nothing if the access takes an exception.
///
/// # Safety
///
/// `address` is that of such a register, mapped as device memory, which may be read.
pub unsafe fn load(address: u64, wide: bool) -> Option<u64> {
    if wide {
        // SAFETY: the caller's promise; an exception goes on behind the instruction.
        unsafe { access!("ldr {value}, [{address}]", address, 0u64) }
    } else {
        // SAFETY: as above.
        unsafe { access!("ldr {value:w}, [{address}]", address, 0u64) }
    }
}

/// Stores to a register of 4 bytes; nothing if the access takes an exception.
///
/// # Safety
///
/// `address` is that of such a register, mapped as device memory, which may be given this value.
pub unsafe fn store(address: u64, value: u32) -> Option<()> {
    // SAFETY: the caller's promise; an exception goes on behind the instruction.
    unsafe { access!("str {value:w}, [{address}]", address, u64::from(value)) }.map(|_| ())
}
