//! Exceptions that EL2 makes the guest take.

use crate::el2::base::cpu;
use crate::el2::base::registers::{read_register, write_register};
use hypervisor::injection::{self, Exception};

/// ESR_ELx.IL: the instruction has 32 bits.
pub const LONG_INSTRUCTION: u64 = 1 << 25;

/// The trapped instruction is undefined.
pub fn undefined(esr: u64) {
    inject(Exception::Undefined, esr, None);
}

/// The access to `address`, by an instruction or its fetch, ends with a synchronous external abort.
pub fn abort(exception: Exception, esr: u64, address: u64) {
    inject(exception, esr, Some(address));
}

/// Makes the ERET arrive in the guest's handler. EL1's registers are live: nothing else runs at EL1 meanwhile.
fn inject(exception: Exception, esr: u64, fault_address: Option<u64>) {
    let Some(id) = cpu::this_cpu().id.get() else { return };
    let spsr = read_register!("spsr_el2");
    let entry = injection::enter(exception, spsr, esr & LONG_INSTRUCTION != 0, read_register!("sctlr_el1"), id);
    write_register!("spsr_el1", spsr);
    write_register!("elr_el1", read_register!("elr_el2"));
    write_register!("esr_el1", entry.syndrome);
    if let Some(address) = fault_address {
        write_register!("far_el1", address);
    }
    write_register!("elr_el2", read_register!("vbar_el1").wrapping_add(entry.vector));
    write_register!("spsr_el2", entry.pstate);
}
