//! Whether the hypervisor is there, and which memory is its own.

use crate::machine::conduit::call;
use crate::machine::{self, exceptions};
use core::ops::Range;
use hypervisor_abi::{UID, function, status};
use spin::Once;

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
pub fn required() -> crate::machine::report::Outcome {
    if present() {
        Ok(())
    } else if crate::options::get().bare {
        skip!("no hypervisor");
    } else {
        fail!("the hypervisor does not answer with its UID (\"bare\" on the command line skips this)");
    }
}
