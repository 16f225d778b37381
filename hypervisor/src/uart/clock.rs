//! The rate of a UART's clock, as its divisor tells it: where the device tree leaves that to a clock controller, which the guest
//! does not get, what firmware has set is all that is known.
//!
//! Firmware has divided the clock for the speed that it printed with. A guest's driver that is told the rate that follows from
//! both divides it by the same for the same speed, whatever the rate really is.

use super::{Kind, Port, Registers};
use crate::transmitter::Transmitter;

/// Rates that are believed, in Hz: what a divisor tells that nobody has set is no rate.
const BELIEVED: core::ops::RangeInclusive<u64> = 1_000_000..=1_000_000_000;
/// LCR.DLAB: the first two registers of a 16550 are its divisor.
const DIVISOR_LATCH: u32 = 1 << 7;
/// LSR.TEMT: all has been sent.
const ALL_SENT: u32 = 1 << 6;

impl Port {
    /// The rate in Hz of the clock of a UART that is set to `speed` bits a second; nothing where the divisor has not been set, or
    /// there is none. Nobody else uses the UART meanwhile.
    pub fn clock_hz(&self, registers: &impl Registers, patience: &Transmitter, speed: u32) -> Option<u32> {
        let load = |offset: u64| registers.load(self.address + offset, self.width).map(u64::from);
        // Clocks for one bit, as a fraction.
        let (clocks, bits) = match self.kind {
            // UARTIBRD, and UARTFBRD in 64ths, of 16 clocks each.
            Kind::Pl011 => ((load(0x24)? & 0xffff) << 6 | load(0x28)? & 0x3f, 4),
            Kind::Sbsa => return None,
            Kind::Ns16550 => (self.divisor(registers, patience)? * 16, 1),
            // Baud_rate_gen, Baud_rate_divider, and mode.CLKS, which divides by 8 first.
            Kind::Cadence => {
                let first = if load(0x04)? & 1 == 0 { 1 } else { 8 };
                ((load(0x18)? & 0xffff) * ((load(0x34)? & 0xff) + 1) * first, 1)
            }
            // UBMR and UBIR, of 16 clocks each, which UFCR.RFDIV divides first.
            Kind::Imx => {
                let first = [6, 5, 4, 3, 2, 1, 7].get((load(0x90)? >> 7 & 7) as usize)?;
                (((load(0xa8)? & 0xffff) + 1) * 16 * first, (load(0xa4)? & 0xffff) + 1)
            }
        };
        let rate = u64::from(speed) * clocks / bits;
        u32::try_from(rate).ok().filter(|_| BELIEVED.contains(&rate))
    }

    /// The divisor of a 16550, DLM and DLL, which lie where the data are otherwise.
    fn divisor(&self, registers: &impl Registers, patience: &Transmitter) -> Option<u64> {
        let at = |register: u64| self.address + (register << self.shift);
        let load = |register: u64| registers.load(at(register), self.width);
        // While it sends, DesignWare's ignores a store to LCR.
        if !patience.wait_for_room(|| load(5).is_none_or(|state| state & ALL_SENT == 0)) {
            return None;
        }
        let control = load(3)?;
        registers.store(at(3), self.width, control | DIVISOR_LATCH);
        let reached = load(3)? & DIVISOR_LATCH != 0;
        let divisor = reached.then(|| Some(u64::from(load(1)? & 0xff) << 8 | u64::from(load(0)? & 0xff)));
        registers.store(at(3), self.width, control);
        divisor.flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    /// A UART whose registers hold what was stored, by offset. That of a 16550 has DLL and DLM at 0x100 and 0x101.
    struct Device {
        port: Port,
        registers: RefCell<BTreeMap<u64, u32>>,
        /// Whether a store to LCR is ignored.
        busy: bool,
    }

    impl Registers for Device {
        fn load(&self, address: u64, bytes: u8) -> Option<u32> {
            assert_eq!(bytes, self.port.width);
            let (offset, registers) = (address - self.port.address, self.registers.borrow());
            let latched = registers.get(&(3 << self.port.shift)).is_some_and(|control| control & 0x80 != 0);
            let is_divisor = self.port.kind == Kind::Ns16550 && latched && offset >> self.port.shift < 2;
            let offset = if is_divisor { 0x100 + (offset >> self.port.shift) } else { offset };
            Some(registers.get(&offset).copied().unwrap_or(0))
        }

        fn store(&self, address: u64, bytes: u8, value: u32) {
            assert_eq!((address - self.port.address, bytes), (3 << self.port.shift, self.port.width), "not LCR");
            if !self.busy {
                self.registers.borrow_mut().insert(address - self.port.address, value);
            }
        }
    }

    fn device(kind: Kind, shift: u8, registers: &[(u64, u32)]) -> Device {
        let port = Port { address: 0xff00_0000, kind, shift, width: 4 };
        Device { port, registers: RefCell::new(registers.iter().copied().collect()), busy: false }
    }

    fn rate(device: &Device, speed: u32) -> Option<u32> {
        device.port.clock_hz(device, &Transmitter::new(), speed)
    }

    /// 115200 times 16 times the divisors that firmware of these boards sets.
    #[test]
    fn the_rate_follows_from_what_firmware_has_set() {
        // 48 MHz by 26 and 3/64 (HiKey); 24 MHz by 13 and 1/64.
        assert_eq!(rate(&device(Kind::Pl011, 0, &[(0x24, 26), (0x28, 3)]), 115_200), Some(48_009_600));
        assert_eq!(rate(&device(Kind::Pl011, 0, &[(0x24, 13), (0x28, 1)]), 115_200), Some(23_990_400));
        // 24 MHz by 1, for 1500000 (Rockchip); by 13.
        let rockchip = device(Kind::Ns16550, 2, &[(0x14, 0x60), (0xc, 3), (0x100, 1)]);
        assert_eq!(rate(&rockchip, 1_500_000), Some(24_000_000));
        assert_eq!(rockchip.registers.borrow()[&0xc], 3, "LCR is as it was");
        let slow = device(Kind::Ns16550, 0, &[(5, 0x60), (3, 0x13), (0x100, 0x0d), (0x101, 1)]);
        assert_eq!(rate(&slow, 9600), Some(9600 * 16 * 0x10d));
        // 100 MHz by 124 and 7 (ZynqMP), and an eighth of it.
        assert_eq!(rate(&device(Kind::Cadence, 0, &[(0x18, 124), (0x34, 6)]), 115_200), Some(99_993_600));
        assert_eq!(rate(&device(Kind::Cadence, 0, &[(0x04, 1), (0x18, 31), (0x34, 6)]), 57_600), Some(99_993_600));
        // 24 MHz, not divided, by 104 / 16 for U-Boot's UBIR of 0xf.
        let imx = device(Kind::Imx, 0, &[(0x90, 5 << 7), (0xa4, 0xf), (0xa8, 0xcf)]);
        assert_eq!(rate(&imx, 115_200), Some(23_961_600));
    }

    #[test]
    fn what_nobody_has_set_tells_nothing() {
        assert_eq!(rate(&device(Kind::Pl011, 0, &[]), 115_200), None);
        assert_eq!(rate(&device(Kind::Sbsa, 0, &[(0x24, 26)]), 115_200), None);
        // What QEMU's ZynqMP has after a reset.
        assert_eq!(rate(&device(Kind::Cadence, 0, &[(0x18, 0x28b), (0x34, 0xf)]), 115_200), None);
        assert_eq!(rate(&device(Kind::Imx, 0, &[(0x90, 7 << 7)]), 115_200), None);
        assert_eq!(rate(&device(Kind::Ns16550, 0, &[(5, 0x60)]), 115_200), None);
    }

    #[test]
    fn a_16550_that_does_not_show_its_divisor_is_left_alone() {
        let mut device = device(Kind::Ns16550, 0, &[(5, 0x20), (3, 3), (0, 0x41), (0x100, 13)]);
        assert_eq!(rate(&device, 115_200), None, "it still sends");
        device.registers.borrow_mut().insert(5, 0x60);
        device.busy = true;
        assert_eq!(rate(&device, 115_200), None, "LCR cannot be stored to");
        device.busy = false;
        assert_eq!(rate(&device, 115_200), Some(115_200 * 16 * 13));
    }
}
