//! FF-A calls, made by SMC.

use arm_ffa::interface_args::{ConsoleLogChars, ConsoleLogChars64};
use arm_ffa::{FfaError, Interface};
use core::arch::asm;
use secure_partition::service::{self, REGISTERS, VERSION};

/// Calls the SPM.
pub fn call(interface: &Interface) -> Result<Interface, FfaError> {
    let mut registers = [0; REGISTERS];
    interface.to_regs(VERSION, &mut registers);
    raw(&mut registers);
    match service::decode(&registers)? {
        Interface::Error { error_code, .. } => Err(error_code),
        answer => Ok(answer),
    }
}

/// Calls the SPM with these registers, and returns what it left in them.
pub fn raw(registers: &mut [u64; REGISTERS]) {
    let r = registers;
    // SAFETY: the SPM changes x0 to x17 (SMCCC 1.2) and the memory that the calls are about, which is why there is no
    // `nomem`.
    unsafe {
        asm!(
            "smc #0",
            inout("x0") r[0], inout("x1") r[1], inout("x2") r[2], inout("x3") r[3], inout("x4") r[4], inout("x5") r[5],
            inout("x6") r[6], inout("x7") r[7], inout("x8") r[8], inout("x9") r[9], inout("x10") r[10],
            inout("x11") r[11], inout("x12") r[12], inout("x13") r[13], inout("x14") r[14], inout("x15") r[15],
            inout("x16") r[16], inout("x17") r[17],
            options(nostack)
        );
    }
}

/// Prints a line, in the SPM's console.
pub fn log(text: &str) {
    let mut chars = ConsoleLogChars64::default();
    chars.push(text.as_bytes());
    // There is nobody to tell if it fails.
    let _ = call(&Interface::ConsoleLog { chars: ConsoleLogChars::Chars64(chars) });
}
