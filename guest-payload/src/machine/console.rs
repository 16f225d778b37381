//! The console: a PL011, shared by the CPUs.

use crate::machine::tree::Machine;
use crate::machine::{cpu, mmu};
use arm_pl011_uart::{PL011Registers, Uart, UniqueMmioPointer};
use core::fmt::{self, Write};
use core::ptr::NonNull;
use spin::mutex::SpinMutex;

/// Prints to the console.
macro_rules! print {
    ($($argument:tt)*) => { $crate::machine::console::print(format_args!($($argument)*)) };
}

/// Prints a line to the console.
macro_rules! println {
    ($($argument:tt)*) => { $crate::machine::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}

static UART: SpinMutex<Option<Uart<'static>>> = SpinMutex::new(None);

/// Maps the tree's UART and prints to it from now on. The baud rate stays as the firmware set it.
pub fn init(machine: &Machine) {
    mmu::map_device(machine.uart..machine.uart + 0x1000);
    let Some(registers) = NonNull::new(machine.uart as *mut PL011Registers) else { return };
    // SAFETY: the page is a PL011 by the device tree, mapped as device memory just now, and used through this alone.
    *UART.lock() = Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }));
}

/// A console line ends with CR LF on the wire.
struct Translated<'a>(&'a mut Uart<'static>);

impl Write for Translated<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.0.write_word(b'\r');
            }
            // `write_word` does not wait for room.
            while self.0.is_tx_fifo_full() {
                cpu::relax();
            }
            self.0.write_word(byte);
        }
        Ok(())
    }
}

/// Prints, with interrupts masked so that no test ends while it holds the lock.
pub fn print(arguments: fmt::Arguments<'_>) {
    cpu::without_interrupts(|| {
        if let Some(uart) = UART.lock().as_mut() {
            // The writer never fails; a `Display` that does has lost its own text only.
            let _ = Translated(uart).write_fmt(arguments);
        }
    });
}
