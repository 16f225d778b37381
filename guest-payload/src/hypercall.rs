//! Calls to the hypervisor and the firmware, by the SMC Calling Convention.

use crate::exceptions;
use crate::machine::{self, Conduit};
use core::ops::Range;
use hypervisor_abi::{UID, function, status};
use smccc::psci;
use spin::Once;

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
    let value = call(machine::conduit(), function, [x1, x2, x3, 0])[0];
    // SMC32 functions answer in w0; the upper half of x0 is then undefined.
    if function & 1 << 30 == 0 { i64::from(value as u32 as i32) } else { value as i64 }
}

/// Switches the machine off.
pub fn system_off() -> ! {
    psci(psci::PSCI_SYSTEM_OFF, [0; 3]);
    // Nobody did. There is nothing left to do, and an exception would end here again.
    loop {
        crate::cpu::wfi();
    }
}

unsafe extern "C" fn call_uid(_: u64, _: u64) -> u64 {
    let answer = call(machine::get().conduit, function::CALL_UID, [0; 4]);
    u64::from((0..4).all(|word| answer[word] as u32 == UID[word]))
}

static PRESENT: Once<bool> = Once::new();

/// Whether the hypervisor answers with its UID. Without one the call may be an exception.
pub fn present() -> bool {
    // SAFETY: `call_uid` has no requirements and holds nothing.
    *PRESENT.call_once(|| unsafe { exceptions::catch(call_uid, 0, 0) } == Ok(1))
}

/// The hypervisor's own memory as far as it tells, range by range.
pub fn own_memory() -> impl Iterator<Item = Range<u64>> {
    let range = |index| {
        let [x0, start, size, _] = call(machine::get().conduit, function::OWN_MEMORY, [index, 0, 0, 0]);
        (x0 as i64 == status::SUCCESS).then_some(start..start + size)
    };
    // A hypervisor that never says "no more" is cut short.
    (0..64).map_while(range)
}

/// What a test returns early with if it makes no sense without the hypervisor.
///
/// # Errors
///
/// Skipped if the hypervisor is absent and need not be there; failed if it is absent otherwise.
pub fn required() -> crate::report::Outcome {
    if present() {
        Ok(())
    } else if crate::options::get().bare {
        skip!("no hypervisor");
    } else {
        fail!("the hypervisor does not answer with its UID (\"bare\" on the command line skips this)");
    }
}
