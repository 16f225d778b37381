//! Calls over a conduit, by the SMC Calling Convention: to the firmware, and to the hypervisor.

use crate::machine::cpu;
use crate::machine::tree::{self, Conduit};
use smccc::psci;

/// x0 to x3 after a call.
pub type Answer = [u64; 4];

/// Makes a call with up to four arguments, over a conduit.
pub fn call(conduit: Conduit, function: u32, arguments: [u64; 4]) -> Answer {
    let mut all = [0; 17];
    all[..4].copy_from_slice(&arguments);
    let answer = match conduit {
        Conduit::Hvc => smccc::hvc64(function, all),
        Conduit::Smc => smccc::smc64(function, all),
    };
    [answer[0], answer[1], answer[2], answer[3]]
}

/// Makes a PSCI call over the tree's conduit. The answer is a status or a 32-bit value, whose sign counts.
pub fn psci(function: u32, arguments: [u64; 3]) -> i64 {
    let [x1, x2, x3] = arguments;
    let value = call(tree::conduit(), function, [x1, x2, x3, 0])[0];
    // SMC32 functions answer in w0; the upper half of x0 is then undefined.
    if function & 1 << 30 == 0 { i64::from(value as u32 as i32) } else { value as i64 }
}

/// Switches the machine off.
pub fn system_off() -> ! {
    psci(psci::PSCI_SYSTEM_OFF, [0; 3]);
    // The firmware did not. There is nothing left to do, and an exception would end here again.
    loop {
        cpu::wfi();
    }
}
