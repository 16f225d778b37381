//! Loads and stores that EL2 carries out for the guest (Arm ARM D24.2.40, ISS for a Data Abort).

/// A load or store of one register, as ESR_EL2 describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whether it stores.
    pub write: bool,
    /// 1, 2, 4 or 8.
    pub bytes: u8,
    /// The general-purpose register's number; 31 is the zero register.
    pub register: u32,
    /// Whether what is loaded is sign-extended.
    sign_extend: bool,
    /// Whether the register is 64 bits wide.
    wide: bool,
}

impl Access {
    /// Takes ESR_EL2 apart. Nothing where it does not describe the access: pairs, write-back, atomics, cache
    /// maintenance, accesses of stage-1 walks.
    pub const fn from_syndrome(esr: u64) -> Option<Self> {
        const DATA_ABORT: u64 = 0x24;
        const ISV: u64 = 1 << 24;
        const SSE: u64 = 1 << 21;
        const SF: u64 = 1 << 15;
        const CM: u64 = 1 << 8;
        const S1PTW: u64 = 1 << 7;
        const WNR: u64 = 1 << 6;
        if esr >> 26 & 0x3f != DATA_ABORT || esr & ISV == 0 || esr & (CM | S1PTW) != 0 {
            return None;
        }
        Some(Self {
            write: esr & WNR != 0,
            bytes: 1 << (esr >> 22 & 3),
            register: (esr >> 16 & 31) as u32,
            sign_extend: esr & SSE != 0,
            wide: esr & SF != 0,
        })
    }

    /// What the register holds after `value` was loaded.
    pub const fn extend(&self, value: u64) -> u64 {
        let unused = 64 - 8 * self.bytes as u32;
        let value =
            if self.sign_extend { ((value << unused) as i64 >> unused) as u64 } else { value << unused >> unused };
        if self.wide { value } else { value as u32 as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ISV, size, sign, register, width, direction.
    fn syndrome(size: u64, sign: u64, register: u64, wide: u64, write: u64) -> u64 {
        0x24 << 26 | 1 << 25 | 1 << 24 | size << 22 | sign << 21 | register << 16 | wide << 15 | write << 6 | 7
    }

    #[test]
    fn loads_are_extended_as_the_instruction_says() {
        let load = |size, sign, wide| Access::from_syndrome(syndrome(size, sign, 3, wide, 0)).unwrap();
        assert_eq!(load(0, 0, 0).extend(0xfff0), 0xf0);
        assert_eq!(load(0, 1, 0).extend(0xf0), 0xffff_fff0);
        assert_eq!(load(1, 1, 1).extend(0x8000), 0xffff_ffff_ffff_8000);
        assert_eq!(load(2, 0, 0).extend(u64::MAX), 0xffff_ffff);
        assert_eq!(load(3, 0, 1).extend(u64::MAX), u64::MAX);
    }

    #[test]
    fn stores_and_registers() {
        let store = Access::from_syndrome(syndrome(2, 0, 31, 0, 1)).unwrap();
        assert_eq!((store.write, store.bytes, store.register), (true, 4, 31));
    }

    #[test]
    fn what_is_not_described_is_not_emulated() {
        let good = syndrome(2, 0, 0, 0, 0);
        for bad in [good & !(1 << 24), good | 1 << 8, good | 1 << 7, good & !(0x3f << 26) | 0x20 << 26] {
            assert_eq!(Access::from_syndrome(bad), None, "{bad:#x}");
        }
    }
}
