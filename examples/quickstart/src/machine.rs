//! What the engine needs of this machine, and what the program needs of QEMU's `virt`.

use core::arch::asm;
use core::fmt::{self, Write};
use stage2::aarch64::{El2, NonSecure};
use stage2::pool::StaticPool;
use stage2::*;

/// 64 frames for tables, in .bss, which is mapped where it is.
static POOL: StaticPool<1> = StaticPool::new();
/// One for each CPU; this program has one.
pub static COUNTERS: Counters = Counters::new();

/// The machine, as the engine knows it.
pub struct Machine;

// SAFETY: the pool's frames are the engine's alone, and mapped at their physical address as Normal, write-back, inner
// shareable memory (boot.S).
unsafe impl FrameAllocator for Machine {
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        POOL.allocate(frames)
    }
    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        // SAFETY: the caller's promise.
        unsafe { POOL.free(first, frames) };
    }
}

// SAFETY: the instructions are the regime's own; there is one table, whose VMID is in VTTBR_EL2 all the time.
unsafe impl Maintenance for Machine {
    fn dsb(&self, barrier: Dsb) {
        El2::<NonSecure>::dsb(barrier);
    }
    fn isb(&self) {
        El2::<NonSecure>::isb();
    }
    fn tlbi(&self, _: Vmid, tlbi: Tlbi) {
        El2::<NonSecure>::tlbi(tlbi);
    }
    fn counters(&self) -> &Counters {
        &COUNTERS
    }
}

/// ESR_EL2.EC of an HVC.
pub const HVC: u64 = 0x16;

/// ESR_EL2: why the guest was stopped.
pub fn esr() -> u64 {
    let esr;
    // SAFETY: reading the register has no effect.
    unsafe { asm!("mrs {}, esr_el2", out(reg) esr, options(nomem, nostack, preserves_flags)) };
    esr
}

/// The UART.
pub struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const DATA: *mut u32 = 0x0900_0000 as *mut u32;
        for byte in text.bytes() {
            // SAFETY: the PL011's data register, mapped as a device. QEMU's takes any number of bytes.
            unsafe { DATA.write_volatile(byte.into()) };
        }
        Ok(())
    }
}

/// Prints a line.
macro_rules! say {
    ($($word:tt)*) => {{
        // The UART takes everything.
        let _ = core::fmt::Write::write_fmt(&mut $crate::machine::Uart, format_args!($($word)*));
        let _ = core::fmt::Write::write_str(&mut $crate::machine::Uart, "\r\n");
    }};
}
pub(crate) use say;

/// Says how it ended, and turns the machine off (PSCI).
pub fn stop(how: &str) -> ! {
    say!("end: {how}");
    // SAFETY: SYSTEM_OFF does not return.
    unsafe { asm!("smc #0", "b .", in("x0") 0x8400_0008_u64, options(noreturn)) }
}

#[unsafe(no_mangle)]
extern "C" fn exception_at_el2() -> ! {
    say!("an exception at EL2: ESR_EL2 {:#x}", esr());
    stop("crashed")
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("{info}");
    stop("crashed")
}
