//! The devices that the guest has for itself: the PL011 (Arm DDI 0183, 3.3) and the PL031 (Arm DDI 0224, 3.3).
//!
//! What waits in the UART's FIFOs is not saved: what was typed and not read is lost. The clock tells the time of the machine
//! that it is in.

use crate::el2::base::device;
use crate::el2::saving::error::{Error, room};
use crate::el2::saving::left_out::left_out;
use alloc::vec::Vec;
use hypervisor::machine::Machine;
use hypervisor::uart::Kind;

/// The UART's registers, in the order in which they are restored: UARTLCR_H takes the divisors over, and UARTCR enables.
const PL011: [(&str, u64); 7] = [
    ("UARTIBRD", 0x24),
    ("UARTFBRD", 0x28),
    ("UARTLCR_H", 0x2c),
    ("UARTIFLS", 0x34),
    ("UARTDMACR", 0x48),
    ("UARTIMSC", 0x38),
    ("UARTCR", 0x30),
];
/// The clock's: the alarm, and its mask.
const PL031: [(&str, u64); 2] = [("RTCMR", 0x4), ("RTCIMSC", 0x10)];
/// UARTRIS.TXRIS: the transmitter wants more.
const RIS: u64 = 0x3c;
const TXRIS: u64 = 1 << 5;
const UARTDR: u64 = 0;

/// Where they are.
pub struct Devices {
    uart: Option<u64>,
    rtc: Option<u64>,
}

impl Devices {
    /// Those of `machine`.
    ///
    /// # Errors
    ///
    /// A UART of another kind.
    pub fn new(machine: &Machine) -> Result<Self, Error> {
        if machine.uart.as_ref().is_some_and(|uart| uart.port.kind != Kind::Pl011) {
            return Err(Error::Said("the guest's UART is no PL011, and others are not saved"));
        }
        Ok(Self {
            uart: machine.uart.as_ref().map(|uart| uart.port.address),
            rtc: machine.rtc.as_ref().map(|rtc| rtc.registers.start()),
        })
    }

    fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let at = |base: Option<u64>, list: &'static [(&'static str, u64)]| {
            base.into_iter().flat_map(move |base| list.iter().map(move |&(name, offset)| (name, base + offset)))
        };
        at(self.uart, &PL011).chain(at(self.rtc, &PL031))
    }

    /// The values of all, each as 4 bytes, little-endian, and a byte that says whether the transmitter's interrupt is there.
    ///
    /// # Errors
    ///
    /// Where there is no memory for them.
    pub fn save(&self) -> Result<Vec<u8>, Error> {
        let mut values = room(self.bytes())?;
        values.extend(self.each().flat_map(|(_, address)| (load(address) as u32).to_le_bytes()));
        values.push((self.uart.is_some_and(|uart| load(uart + RIS) & TXRIS != 0)).into());
        Ok(values)
    }

    fn bytes(&self) -> usize {
        self.each().count() * size_of::<u32>() + 1
    }

    /// Whether these can be given back.
    ///
    /// # Errors
    ///
    /// Where there are more or fewer.
    pub fn check(&self, values: &[u8]) -> Result<(), Error> {
        let wrong = Error::Said("the file's UART and clock have other registers than this machine's");
        if values.len() == self.bytes() { Ok(()) } else { Err(wrong) }
    }

    /// Gives them back.
    ///
    /// # Errors
    ///
    /// Those of [`Devices::check`]; nothing has changed.
    pub fn restore(&self, values: &[u8]) -> Result<(), Error> {
        self.check(values)?;
        let Some((&transmits, values)) = values.split_last() else { return Ok(()) };
        for ((name, address), value) in self.each().zip(values.as_chunks::<4>().0) {
            if !left_out(name) {
                store(address, u32::from_le_bytes(*value).into());
            }
        }
        if let Some(uart) = self.uart.filter(|_| transmits != 0 && !left_out("UARTRIS")) {
            // The interrupt comes from a FIFO that runs empty, so something has to go through it: NUL, which no terminal shows.
            store(uart + UARTDR, 0);
        }
        Ok(())
    }
}

fn load(address: u64) -> u64 {
    // SAFETY: a register of a device that the guest has, which EL2 has mapped; reading it does nothing.
    unsafe { device::load(address, 4) }.unwrap_or(0)
}

fn store(address: u64, value: u64) {
    // SAFETY: as above: the guest could write the same.
    let _ = unsafe { device::store(address, 4, value) };
}
