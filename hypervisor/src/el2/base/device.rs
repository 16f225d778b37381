//! Accesses to registers that may not answer: devices' on the guest's account, where an external abort is the guest's and not
//! EL2's end, and system registers that a CPU should have and may not.

use core::arch::asm;
use hypervisor::range::PhysRange;
use stage2::PAGE_SIZE;

/// Executes one access, whose instruction has a fix-up (vectors.S), and returns the register that it has loaded or stored; nothing if it took
/// an exception.
///
/// What an exception at EL2 changes is put back: the guest's return address and state, and SP_EL0. ESR_EL2 and FAR_EL2 stay
/// those of EL2's own exception. An abort that comes late, as an SError, is the guest's, too: vectors.S says why.
macro_rules! access {
    ($instruction:literal, $address:expr, $value:expr) => {{
        let (done, value): (u64, u64);
        // SAFETY: the promise of the caller of `load` or `store`; an exception goes on behind the instruction.
        unsafe {
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
            )
        }
        (done != 0).then_some(value)
    }};
}

/// Where in `range`, which a tree calls memory, nothing answers: a tree is from outside, and what is no memory, or is not mapped,
/// would be EL2's end. One load a page.
///
/// # Safety
///
/// What is there may be read.
pub unsafe fn silent_part(range: PhysRange) -> Option<u64> {
    let first = range.start() & !7;
    let pages = (first & !(PAGE_SIZE - 1)..range.end()).step_by(PAGE_SIZE as usize).skip(1);
    // SAFETY: the caller's promise.
    core::iter::once(first).chain(pages).find(|&at| unsafe { load(at, 8) }.is_none())
}

/// Loads a register of 1, 2, 4 or 8 bytes; nothing if the access takes an exception.
///
/// # Safety
///
/// There is such a register at `address`, mapped as device memory, which may be read.
pub unsafe fn load(address: u64, bytes: u8) -> Option<u64> {
    match bytes {
        1 => access!("ldrb {value:w}, [{address}]", address, 0u64),
        2 => access!("ldrh {value:w}, [{address}]", address, 0u64),
        4 => access!("ldr {value:w}, [{address}]", address, 0u64),
        _ => access!("ldr {value}, [{address}]", address, 0u64),
    }
}

/// Stores to a register of 1, 2, 4 or 8 bytes; nothing if the access takes an exception.
///
/// # Safety
///
/// There is such a register at `address`, mapped as device memory, and storing `value` there harms nothing of EL2's.
pub unsafe fn store(address: u64, bytes: u8, value: u64) -> Option<()> {
    let stored = match bytes {
        1 => access!("strb {value:w}, [{address}]", address, value),
        2 => access!("strh {value:w}, [{address}]", address, value),
        4 => access!("str {value:w}, [{address}]", address, value),
        _ => access!("str {value}, [{address}]", address, value),
    };
    stored.map(|_| ())
}

/// The claim tags, as DBGCLAIMCLR_EL1 shows them; nothing where the CPU has none, as QEMU's before version 8.
pub fn load_claim() -> Option<u64> {
    // SAFETY: reading has no effect; where the register is missing, the exception is mended.
    access!("mrs {value}, S2_0_C7_C9_6 // {address}", 0u64, 0u64)
}

/// Clears all claim tags, then sets these.
pub fn store_claim(tags: u64) -> Option<()> {
    // SAFETY: tags belong to the guest; where the registers are missing, the exception is mended.
    access!("msr S2_0_C7_C9_6, {value} // {address}", 0u64, u64::MAX)?;
    // SAFETY: as above.
    access!("msr S2_0_C7_C8_6, {value} // {address}", 0u64, tags).map(|_| ())
}
