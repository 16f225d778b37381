//! Who is there: the host, and the guest.

use crate::el2::base::{cpu, firmware, registers::read_register};
use crate::el2::guest_memory::events;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The guest has turned the machine off and waits for the host to be done.
static ENDED: AtomicBool = AtomicBool::new(false);
/// The host has said who it is, and not yet that it is done.
static ATTENDED: AtomicBool = AtomicBool::new(false);
/// CNTPCT_EL0 when the host was heard last.
static HEARD: AtomicU64 = AtomicU64::new(0);

/// The host has just been heard.
pub fn heard() {
    HEARD.store(read_register!("cntpct_el0"), Ordering::Relaxed);
}

/// Whether the guest has turned the machine off.
pub fn guest_has_ended() -> bool {
    ENDED.load(Ordering::Relaxed)
}

/// The host is there, or has gone.
pub fn attend(attended: bool) {
    events::attend(attended);
    ATTENDED.store(attended, Ordering::Relaxed);
}

/// The guest has turned the machine off: waits until the host has what it wants of it, or is silent for too long.
pub fn guest_ends() {
    const PATIENCE_SECONDS: u64 = 60;
    ENDED.store(true, Ordering::Relaxed);
    let patience = read_register!("cntfrq_el0") * PATIENCE_SECONDS;
    heard();
    while ATTENDED.load(Ordering::Relaxed) {
        firmware::park_if_stopped();
        if read_register!("cntpct_el0").saturating_sub(HEARD.load(Ordering::Relaxed)) > patience {
            log::warn!("manager: the host is silent for {PATIENCE_SECONDS} s; the machine ends without it");
            return;
        }
        cpu::pause();
    }
}
