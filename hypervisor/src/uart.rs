//! UARTs, as far as sending needs: where each kind has its transmitter, and how to tell that there is room in it.
//!
//! Firmware has set the UART up, and the guest's driver will: EL2 changes nothing but the register for data, and, for a moment,
//! what shows a 16550's divisor. No library does
//! this for all kinds, with registers as far apart and as wide as a device tree says, and without waiting for ever.

use crate::transmitter::Transmitter;

mod clock;
#[cfg(test)]
mod tests;

/// A kind of UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Arm's PL011 (Arm DDI 0183).
    Pl011,
    /// What is left of a PL011 in Arm's Base System Architecture (Arm DEN 0094, appendix B): there is no clock to set.
    Sbsa,
    /// National Semiconductor's 16550, and what has its registers, these and others.
    Ns16550,
    /// Cadence's, in Xilinx' Zynq and ZynqMP (AMD UG1087, module UART).
    Cadence,
    /// NXP's, in i.MX from the i.MX21 on (IMX8MPRM, 16.2).
    Imx,
}

/// Where a UART's transmitter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The physical address of the first register.
    pub address: u64,
    /// The kind, which says what the registers mean.
    pub kind: Kind,
    /// How many bytes lie from one register of a 16550 to the next, as a power of two; at most 3.
    pub shift: u8,
    /// Bytes of an access: 1, 2 or 4.
    pub width: u8,
}

/// What there is of a transmitter.
struct Transmit {
    /// Where bytes are written.
    data: u64,
    /// Where the state is read.
    status: u64,
    /// The bit there that is of interest.
    bit: u32,
    /// Whether that bit says that there is room, or else that there is none.
    room: bool,
}

/// Loads and stores of a device's registers: the hardware's, or a test's.
pub trait Registers {
    /// Loads `bytes` bytes (1, 2 or 4) at a physical address, which is a multiple of that; nothing where nothing answers.
    fn load(&self, address: u64, bytes: u8) -> Option<u32>;
    /// Stores them; where nothing answers, in vain.
    fn store(&self, address: u64, bytes: u8, value: u32);
}

impl Port {
    /// A PL011.
    pub const fn pl011(address: u64) -> Self {
        Self { address, kind: Kind::Pl011, shift: 0, width: 4 }
    }

    const fn transmit(&self) -> Transmit {
        match self.kind {
            // UARTDR; UARTFR.TXFF.
            Kind::Pl011 | Kind::Sbsa => Transmit { data: 0, status: 0x18, bit: 1 << 5, room: false },
            // THR; LSR.THRE. With its FIFO on, THRE says that it is empty: one byte at a time is slow, and always right.
            Kind::Ns16550 => Transmit { data: 0, status: 5 << self.shift, bit: 1 << 5, room: true },
            // FIFO; Channel_sts.TFUL.
            Kind::Cadence => Transmit { data: 0x30, status: 0x2c, bit: 1 << 4, room: false },
            // UTXD; UTS.TXFULL.
            Kind::Imx => Transmit { data: 0x40, status: 0xb4, bit: 1 << 4, room: false },
        }
    }

    /// Bytes from the first register to the end of the last one that EL2 or a guest's driver uses.
    pub const fn least_bytes(&self) -> u64 {
        match self.kind {
            // Up to UARTICR.
            Kind::Pl011 | Kind::Sbsa => 0x48,
            Kind::Ns16550 => 8 << self.shift,
            Kind::Cadence => 0x48,
            Kind::Imx => 0xb8,
        }
    }

    /// Sends a byte, when there is room in the time that `patience` has.
    pub fn send(&self, registers: &impl Registers, patience: &Transmitter, byte: u8) {
        let Transmit { data, status, bit, room } = self.transmit();
        let is_full =
            || registers.load(self.address + status, self.width).is_none_or(|state| (state & bit != 0) != room);
        // The guest has the UART, too, and can switch it off: what does not fit is lost.
        if patience.wait_for_room(is_full) {
            registers.store(self.address + data, self.width, byte.into());
        }
    }
}
