//! The console: whole lines, each beginning with `[unbroken] `, on the machine's UART and in memory.

use crate::el2::base::{device, memory_log::UNBROKEN_LOG};
use aarch64_cpu::registers::{CurrentEL, Readable};
use alloc::boxed::Box;
use core::fmt::{self, Write};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering::Acquire, Ordering::Release};
use hypervisor::transmitter::Transmitter;
use hypervisor::uart::{Port, Registers};
use log::{Level, LevelFilter, Log, Metadata, Record};
use spin::Mutex;

/// What every line begins with, so that a reader can tell them from the guest's.
const PREFIX: &str = "[unbroken] ";

/// The UART that is tried before the device tree has told: QEMU's `virt` machine has it there.
pub const LAST_RESORT: Port = Port::pl011(0x0900_0000);

struct Console {
    /// The UART; null while there is none.
    port: AtomicPtr<Port>,
    /// Held while lines are written, so that those of several CPUs do not mix.
    line: Mutex<()>,
    transmitter: Transmitter,
}

static CONSOLE: Console =
    Console { port: AtomicPtr::new(ptr::null_mut()), line: Mutex::new(()), transmitter: Transmitter::new() };

/// Uses this UART from now on.
///
/// # Safety
///
/// Its registers are there, mapped as device memory for as long as anything is printed.
pub unsafe fn open(port: Port) {
    // It is opened a few times at most, and what was in use before may still be.
    let port = Box::leak(Box::new(port));
    CONSOLE.port.store(port, Release);
}

/// Prints in memory alone from now on: there is no UART.
pub fn close() {
    CONSOLE.port.store(ptr::null_mut(), Release);
}

/// The rate in Hz of the clock of the UART that is in use, which firmware has set to `speed` bits a second, where its divisor tells.
/// Called before anybody else uses the UART.
pub fn clock_hz(speed: u32) -> Option<u32> {
    let _held = CONSOLE.line.lock();
    port()?.clock_hz(&Hardware, &CONSOLE.transmitter, speed)
}

/// The UART that is in use.
fn port() -> Option<&'static Port> {
    // SAFETY: null, or from `open`, which has given it away for good.
    unsafe { CONSOLE.port.load(Acquire).as_ref() }
}

/// Makes `log` print here, up to `level`.
pub fn log_up_to(level: LevelFilter) {
    // Fails when the logger was set before, and then it is the same one.
    let _ = log::set_logger(&CONSOLE);
    log::set_max_level(level);
}

/// The UART's registers.
struct Hardware;

impl Registers for Hardware {
    fn load(&self, address: u64, bytes: u8) -> Option<u32> {
        if !at_el2() {
            return Some(match bytes {
                1 => plain_load::<u8>(address),
                2 => plain_load::<u16>(address),
                _ => plain_load::<u32>(address),
            });
        }
        // SAFETY: `open` was promised a UART there; reading its state changes nothing.
        unsafe { device::load(address, bytes) }.map(|value| value as u32)
    }

    fn store(&self, address: u64, bytes: u8, value: u32) {
        match bytes {
            _ if at_el2() => {
                // SAFETY: `open` was promised a UART there. The guest has it too and EL2 may interrupt itself when it crashes;
                // both can at worst mix up characters, since nothing but data is stored once there is a guest.
                let _ = unsafe { device::store(address, bytes, value.into()) };
            }
            1 => plain_store(address, value as u8),
            2 => plain_store(address, value as u16),
            _ => plain_store(address, value),
        }
    }
}

/// Whether what an access takes from which EL2 can go on is there: not at EL1 and EL3, where a refusal is printed.
fn at_el2() -> bool {
    CurrentEL.read(CurrentEL::EL) == 2
}

fn plain_load<T: Into<u32>>(address: u64) -> u32 {
    // SAFETY: as for `Hardware::load`.
    unsafe { ptr::with_exposed_provenance::<T>(address as usize).read_volatile() }.into()
}

fn plain_store<T>(address: u64, value: T) {
    // SAFETY: as for `Hardware::store`.
    unsafe { ptr::with_exposed_provenance_mut::<T>(address as usize).write_volatile(value) }
}

/// Writes to the UART, with the prefix in front of each line.
struct Lines {
    port: Option<&'static Port>,
    at_start: bool,
}

impl Lines {
    fn byte(&mut self, byte: u8) {
        UNBROKEN_LOG.push(byte);
        if let Some(port) = self.port {
            port.send(&Hardware, &CONSOLE.transmitter, byte);
        }
    }
}

impl Write for Lines {
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
    let mut lines = Lines { port: port(), at_start: true };
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
