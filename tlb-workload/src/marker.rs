//! Marks that a plugin of QEMU's looks for (`tlb-plugin`): HINTs that the architecture has no use for, which do nothing.

use core::arch::asm;

/// From here on all accesses are watched.
pub fn watch() {
    // SAFETY: a HINT changes nothing. The compiler does not move accesses across: it must take the memory for changed.
    unsafe { asm!("hint #96", options(nostack)) }
}

/// From here on they are counted, in the window of this number.
pub fn open(window: u64) {
    // SAFETY: as above.
    unsafe { asm!("hint #97", in("x0") window, options(nostack)) }
}

/// The window ends here.
pub fn close() {
    // SAFETY: as above.
    unsafe { asm!("hint #98", options(nostack)) }
}
