//! The PL011 console: whole lines, each beginning with `[unbroken] `.

use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use core::fmt::{self, Write};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use hypervisor::transmitter::Transmitter;
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;

/// What every line begins with, so that a reader can tell them from the guest's.
const PREFIX: &str = "[unbroken] ";

/// Where a PL011 is tried before the device tree has told: QEMU's `virt` machine has it there.
pub const LAST_RESORT: usize = 0x0900_0000;

struct Console {
    /// The PL011's registers; null while there is none.
    registers: AtomicPtr<PL011Registers>,
    /// Held while lines are written, so that those of several CPUs do not mix.
    line: Mutex<()>,
    transmitter: Transmitter,
}

static CONSOLE: Console =
    Console { registers: AtomicPtr::new(ptr::null_mut()), line: Mutex::new(()), transmitter: Transmitter::new() };

/// Uses the PL011 at `address` from now on.
///
/// # Safety
///
/// A PL011's registers are there, mapped as device memory for as long as anything is printed.
pub unsafe fn open(address: usize) {
    CONSOLE.registers.store(ptr::with_exposed_provenance_mut(address), Relaxed);
}

/// Prints nothing from now on: there is no PL011.
pub fn close() {
    CONSOLE.registers.store(ptr::null_mut(), Relaxed);
}

/// Makes `log` print here, up to `level`.
pub fn log_up_to(level: LevelFilter) {
    // Fails when the logger was set before, and then it is the same one.
    let _ = log::set_logger(&CONSOLE);
    log::set_max_level(level);
}

/// Writes to the UART, with the prefix in front of each line.
struct Lines<'a> {
    uart: Uart<'a>,
    at_start: bool,
}

impl Lines<'_> {
    fn byte(&mut self, byte: u8) {
        // The guest has the UART, too, and can switch it off: what does not fit is lost.
        if CONSOLE.transmitter.wait_for_room(|| self.uart.is_tx_fifo_full()) {
            self.uart.write_word(byte);
        }
    }
}

impl Write for Lines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.at_start {
                self.at_start = false;
                PREFIX.bytes().for_each(|byte| self.byte(byte));
            }
            if byte == b'\n' {
                self.byte(b'\r');
                self.at_start = true;
            }
            self.byte(byte);
        }
        Ok(())
    }
}

/// Prints one or more whole lines.
pub fn print(text: fmt::Arguments<'_>) {
    let _held = CONSOLE.line.lock();
    print_without_lock(text);
}

/// Prints even while another CPU, or this one, is in the middle of a line: for crash reports, and before the caches are
/// on, when a lock cannot be taken.
pub fn print_without_lock(text: fmt::Arguments<'_>) {
    let Some(registers) = NonNull::new(CONSOLE.registers.load(Relaxed)) else { return };
    // SAFETY: `open` was promised a PL011 there. The guest has it too and EL2 may interrupt itself when it crashes;
    // both can at worst mix up characters, since only the data register is written and the flag register read.
    let uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    let mut lines = Lines { uart, at_start: true };
    // Writing to a UART does not fail.
    let _ = lines.write_fmt(text);
    let _ = lines.write_str("\n");
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            match record.level() {
                Level::Error => print(format_args!("error: {}", record.args())),
                Level::Warn => print(format_args!("warning: {}", record.args())),
                _ => print(*record.args()),
            }
        }
    }

    fn flush(&self) {}
}
