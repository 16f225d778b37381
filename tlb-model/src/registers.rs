//! The registers that say how addresses are translated (Arm ARM, D24.2), and what they say.

use crate::memory::Problem;

/// Their values, as they are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub tcr: u64,
    /// TTBR0_EL1.
    pub ttbr0: u64,
    /// TTBR1_EL1.
    pub ttbr1: u64,
    /// HCR_EL2; 0 without an EL2.
    pub hcr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// VTTBR_EL2.
    pub vttbr: u64,
}

/// A TTBR's or VTTBR's table address: below 48 bits, without CnP.
const TABLE_ADDRESS: u64 = 0x0000_ffff_ffff_fffe;

/// A table to walk from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// The table's address: an IPA at stage 1, a PA at stage 2.
    pub table: u64,
    /// The level that the walk starts at.
    pub level: u8,
    /// Bits of the addresses that it translates.
    pub bits: u8,
}

fn field(register: u64, low: u32, bits: u32) -> u64 {
    register >> low & ((1 << bits) - 1)
}

impl Registers {
    /// Whether stage 1 translates (SCTLR_EL1.M).
    #[must_use]
    pub(crate) fn has_stage1(&self) -> bool {
        self.sctlr & 1 != 0
    }

    /// Whether stage 2 translates (HCR_EL2.VM; DC has the effect of VM).
    #[must_use]
    pub(crate) fn has_stage2(&self) -> bool {
        const VM: u64 = 1;
        const DC: u64 = 1 << 12;
        self.hcr & (VM | DC) != 0
    }

    /// The VMID (VTTBR_EL2).
    pub(crate) fn vmid(&self) -> u16 {
        (self.vttbr >> 48) as u16
    }

    /// The ASID that translations now have (TCR_EL1.A1, AS).
    #[must_use]
    pub(crate) fn asid(&self) -> u16 {
        const A1: u64 = 1 << 22;
        const AS_16_BITS: u64 = 1 << 36;
        let ttbr = if self.tcr & A1 != 0 { self.ttbr1 } else { self.ttbr0 };
        let asid = (ttbr >> 48) as u16;
        if self.tcr & AS_16_BITS != 0 { asid } else { asid & 0xff }
    }

    /// An address without its tag: bit 55 stands in for all bits above the ones that are translated.
    #[must_use]
    pub(crate) fn untagged(&self, va: u64) -> u64 {
        let t_sz = if va >> 55 & 1 != 0 { field(self.tcr, 16, 6) } else { field(self.tcr, 0, 6) };
        if !self.has_stage1() || t_sz == 0 {
            return va;
        }
        let above = u64::MAX << (64 - t_sz);
        if va >> 55 & 1 != 0 { va | above } else { va & !above }
    }

    /// Where stage 1 walks from for `va`.
    pub(crate) fn stage1_root(&self, va: u64) -> Result<Root, Problem> {
        const DS: u64 = 1 << 59;
        let upper = va >> 55 & 1 != 0;
        // TG0 and TG1 are encoded apart: 4 KiB is 0 in one and 2 in the other.
        let (ttbr, t_sz, is_4k) = if upper {
            (self.ttbr1, field(self.tcr, 16, 6), field(self.tcr, 30, 2) == 2)
        } else {
            (self.ttbr0, field(self.tcr, 0, 6), field(self.tcr, 14, 2) == 0)
        };
        if !is_4k {
            return Err(Problem::Unknown("stage-1 granules other than 4 KiB"));
        }
        if self.tcr & DS != 0 {
            return Err(Problem::Unknown("stage-1 addresses of 52 bits (TCR_EL1.DS)"));
        }
        if !(16..=48).contains(&t_sz) {
            return Err(Problem::Unknown("this TCR_EL1.TnSZ"));
        }
        let bits = 64 - t_sz as u8;
        // Nine bits a level below the highest, twelve in the page.
        let levels = (bits - 12).div_ceil(9);
        Ok(Root { table: ttbr & TABLE_ADDRESS, level: 4 - levels, bits })
    }

    /// Where stage 2 walks from.
    pub(crate) fn stage2_root(&self) -> Result<Root, Problem> {
        const DS: u64 = 1 << 32;
        if field(self.vtcr, 14, 2) != 0 {
            return Err(Problem::Unknown("stage-2 granules other than 4 KiB"));
        }
        if self.vtcr & DS != 0 {
            return Err(Problem::Unknown("stage-2 addresses of 52 bits (VTCR_EL2.DS)"));
        }
        let t_sz = field(self.vtcr, 0, 6);
        if !(16..=39).contains(&t_sz) {
            return Err(Problem::Unknown("this VTCR_EL2.T0SZ"));
        }
        let level = match field(self.vtcr, 6, 2) {
            0 => 2,
            1 => 1,
            2 => 0,
            _ => 3,
        };
        Ok(Root { table: self.vttbr & TABLE_ADDRESS, level, bits: 64 - t_sz as u8 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux sets for 48 bits: TG1 and TG0 of 4 KiB, A1, AS.
    const TCR: u64 = 1 << 36 | 2 << 30 | 1 << 22 | 16 << 16 | 16;

    #[test]
    fn bit_55_picks_the_table() {
        let registers =
            Registers { sctlr: 1, tcr: TCR, ttbr0: 0x1001, ttbr1: 0x0042_0000_0000_2000, ..Default::default() };
        let (low, high) = (registers.stage1_root(0x1000).unwrap(), registers.stage1_root(u64::MAX << 47).unwrap());
        assert_eq!((low.table, low.level, low.bits), (0x1000, 0, 48));
        assert_eq!(high.table, 0x2000);
        assert_eq!(registers.asid(), 0x42);
        assert_eq!(registers.untagged(0xff00_0000_0000_1000), 0x1000);
        assert_eq!(registers.untagged(0x80ff_ffff_ffff_f000), 0xffff_ffff_ffff_f000);
    }

    #[test]
    fn fewer_bits_have_fewer_levels() {
        for (bits, level) in [(48, 0), (40, 0), (39, 1), (31, 1), (30, 2), (25, 2)] {
            let registers = Registers { tcr: 2 << 30 | (64 - bits) << 16 | (64 - bits), ..Default::default() };
            assert_eq!(registers.stage1_root(0).unwrap().level, level, "{bits} bits");
        }
    }

    #[test]
    fn what_the_model_does_not_know_is_refused() {
        let stage1 = |tcr| Registers { tcr, ..Default::default() }.stage1_root(0);
        let stage2 = |vtcr| Registers { vtcr, ..Default::default() }.stage2_root();
        assert!(stage1(TCR | 1 << 14).is_err() && stage1(TCR | 1 << 59).is_err() && stage1(2 << 30).is_err());
        assert!(stage2(1 << 6 | 25 | 1 << 14).is_err() && stage2(1 << 6 | 25 | 1 << 32).is_err() && stage2(0).is_err());
        assert_eq!(stage2(1 << 6 | 25).unwrap().level, 1);
        assert_eq!(stage2(2 << 6 | 16).unwrap().level, 0);
    }
}
