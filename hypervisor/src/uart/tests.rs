//! Bytes sent through the registers of a made-up UART of each kind.

use super::*;
use std::cell::{Cell, RefCell};

/// A UART with room for a byte every third time that it is looked at.
struct Device {
    port: Port,
    /// Its registers: data, status, what the latter reads as when there is room, and when there is none.
    data: u64,
    status: u64,
    ready: u32,
    busy: u32,
    looks: Cell<u32>,
    /// How often `status` has to be looked at.
    slow: u32,
    /// Whether it does not answer at all.
    gone: bool,
    sent: RefCell<Vec<u8>>,
}

impl Device {
    fn new(port: Port, (data, status): (u64, u64), (ready, busy): (u32, u32)) -> Self {
        Self { port, data, status, ready, busy, looks: Cell::new(0), slow: 3, gone: false, sent: RefCell::default() }
    }

    fn send(&self, text: &[u8]) -> Vec<u8> {
        let patience = Transmitter::new();
        text.iter().for_each(|&byte| self.port.send(self, &patience, byte));
        self.sent.take()
    }
}

impl Registers for Device {
    fn load(&self, address: u64, bytes: u8) -> Option<u32> {
        assert_eq!((address, bytes), (self.port.address + self.status, self.port.width));
        self.looks.set(self.looks.get() + 1);
        if self.gone {
            return None;
        }
        Some(if self.looks.get() >= self.slow { self.ready } else { self.busy })
    }

    fn store(&self, address: u64, bytes: u8, value: u32) {
        assert_eq!((address, bytes), (self.port.address + self.data, self.port.width));
        assert!(self.looks.replace(0) >= self.slow, "written while there was no room");
        self.sent.borrow_mut().push(value as u8);
    }
}

fn port(kind: Kind, shift: u8, width: u8) -> Port {
    Port { address: 0xff00_0000, kind, shift, width }
}

/// Offsets and bits as the manuals have them.
fn devices() -> [Device; 7] {
    [
        Device::new(port(Kind::Pl011, 0, 4), (0x00, 0x18), (0x90, 0x20)),
        Device::new(port(Kind::Sbsa, 0, 4), (0x00, 0x18), (0x90, 0x20)),
        Device::new(port(Kind::Ns16550, 0, 1), (0, 5), (0x60, 0x00)),
        Device::new(port(Kind::Ns16550, 2, 4), (0, 0x14), (0x60, 0x00)),
        Device::new(port(Kind::Ns16550, 1, 2), (0, 0xa), (0x60, 0x01)),
        Device::new(port(Kind::Cadence, 0, 4), (0x30, 0x2c), (0x08, 0x10)),
        Device::new(port(Kind::Imx, 0, 4), (0x40, 0xb4), (0x60, 0x10)),
    ]
}

#[test]
fn every_byte_is_sent_when_there_is_room_for_it() {
    for device in devices() {
        assert_eq!(device.send(b"hello"), b"hello", "{:?}", device.port);
    }
}

#[test]
fn a_uart_that_is_off_is_given_up() {
    for (busy, gone) in devices().into_iter().zip(devices()) {
        assert_eq!(Device { slow: u32::MAX, ..busy }.send(b"hello"), b"");
        assert_eq!(Device { gone: true, ..gone }.send(b"hello"), b"");
    }
}
