//! Lines on the machine's UART.

use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer};
use core::fmt::{self, Write};
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use spin::{Mutex, Once};

/// UART0 of QEMU's `virt`.
const PL011: NonZeroUsize = NonZeroUsize::new(0x0900_0000).unwrap();

static UART: Once<Mutex<Uart<'static>>> = Once::new();

/// Any will do: QEMU's UART has no line.
const BAUD_RATE: u32 = 115_200;
/// The UART's clock on `virt`.
const CLOCK: u32 = 24_000_000;

fn uart() -> &'static Mutex<Uart<'static>> {
    UART.call_once(|| {
        let registers = NonNull::with_exposed_provenance(PL011);
        // SAFETY: the UART's registers are mapped there as device memory, and used by nothing but this.
        let registers: UniqueMmioPointer<'static, PL011Registers> = unsafe { UniqueMmioPointer::new(registers) };
        let mut uart = Uart::new(registers);
        let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
        // Fails for a baud rate that the clock can't make, which this one can.
        let _ = uart.enable(line, BAUD_RATE, CLOCK);
        Mutex::new(uart)
    })
}

struct Line<'l>(&'l mut Uart<'static>);

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // `write_word` does not wait for room.
            while self.0.is_tx_fifo_full() {
                core::hint::spin_loop();
            }
            self.0.write_word(byte);
        }
        Ok(())
    }
}

/// Writes a line whole.
pub fn line(who: &str, text: fmt::Arguments<'_>) {
    let mut uart = uart().lock();
    // Writing to the UART can't fail.
    let _ = write!(Line(&mut uart), "[{who}] {text}\r\n");
}

/// Writes a line of the SPM's.
macro_rules! say {
    ($($argument:tt)*) => { $crate::console::line("spm", format_args!($($argument)*)) };
}
pub(crate) use say;
