//! Instructions that a model must be told of.

use crate::invalidate::Operation;

/// What an instruction does to translations, or to memory without being a load or a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// It invalidates; the register with this number says what.
    Invalidate(Operation, u8),
    /// It writes one of the [`crate::Registers`].
    SetsRegister,
    /// DC ZVA, GVA or GZVA: it stores to the block at the address in the register with this number.
    ZeroesBlock(u8),
    /// HINT, with its number.
    Hint(u8),
}

/// What the instruction with this encoding does, if the model must know.
#[must_use]
pub fn decode(opcode: u32) -> Option<Instruction> {
    // System instructions (Arm ARM, C4.1.96): 1101 0101 00 L op0 op1 CRn CRm op2 Rt.
    if opcode >> 22 != 0b11_0101_0100 {
        return None;
    }
    let bits = |low: u32, count: u32| opcode >> low & ((1 << count) - 1);
    let (is_read, op0, op1) = (bits(21, 1) == 1, bits(19, 2), bits(16, 3));
    let (crn, crm, op2, rt) = (bits(12, 4), bits(8, 4), bits(5, 3), bits(0, 5) as u8);
    match (is_read, op0, op1, crn, crm, op2) {
        (false, 0, 3, 2, _, _) if rt == 31 => Some(Instruction::Hint((crm << 3 | op2) as u8)),
        (false, 1, 3, 7, 4, 1 | 3 | 4) => Some(Instruction::ZeroesBlock(rt)),
        (false, 1, _, 8 | 9, _, _) => {
            Operation::decode(op1, crm, op2).map(|operation| Instruction::Invalidate(operation, rt))
        }
        // SCTLR_EL1; TTBR0_EL1, TTBR1_EL1, TCR_EL1; HCR_EL2; VTTBR_EL2, VTCR_EL2.
        (false, 3, 0, 1, 0, 0) | (false, 3, 0, 2, 0, 0..=2) | (false, 3, 4, 1, 1, 0) | (false, 3, 4, 2, 1, 0 | 2) => {
            Some(Instruction::SetsRegister)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invalidate::{Invalidation, Scope};

    /// Encodings from an assembler.
    #[test]
    fn instructions_are_known_by_their_encodings() {
        for opcode in [0xd518_2000, 0xd518_2021, 0xd518_2042, 0xd518_1003, 0xd51c_2100, 0xd51c_2140, 0xd51c_1100] {
            assert_eq!(decode(opcode), Some(Instruction::SetsRegister), "{opcode:#x}");
        }
        assert_eq!(decode(0xd50b_7425), Some(Instruction::ZeroesBlock(5)));
        assert_eq!(decode(0xd503_2c1f), Some(Instruction::Hint(96)));
        // nop, a load, a read of TTBR0_EL1, dsb ish, ic ialluis.
        let others = [0xf940_0000, 0xd538_2000, 0xd503_3b9f, 0xd508_711f];
        assert!(others.iter().all(|&opcode| decode(opcode).is_none()));
        assert_eq!(decode(0xd503_201f), Some(Instruction::Hint(0)));
    }

    #[test]
    fn invalidations_say_what_they_are_about() {
        let about = |opcode: u32, value: u64| match decode(opcode) {
            Some(Instruction::Invalidate(operation, _)) => Some((operation.scope, operation.with(value))),
            _ => None,
        };
        let va = |start: u64, bytes: u64, asid: Option<u16>, leaves_only: bool| Invalidation::Addresses {
            start,
            last: start + (bytes - 1),
            asid,
            leaves_only,
        };
        use Scope::{Broadcast, Local};
        // vmalle1is, vmalle1, aside1is x0.
        assert_eq!(about(0xd508_831f, 0), Some((Broadcast, Invalidation::Stage1)));
        assert_eq!(about(0xd508_871f, 0), Some((Local, Invalidation::Stage1)));
        assert_eq!(about(0xd508_8340, 7 << 48), Some((Broadcast, Invalidation::Asid(7))));
        // vale1is x0, vaale1is x0, vae1 x0: of an address with bit 55, and one without.
        let high = 0xfff_ffff_f123 | 9 << 48;
        assert_eq!(about(0xd508_83a0, high), Some((Broadcast, va(0xffff_ffff_ff12_3000, 4096, Some(9), true))));
        assert_eq!(about(0xd508_83e0, high), Some((Broadcast, va(0xffff_ffff_ff12_3000, 4096, None, true))));
        assert_eq!(about(0xd508_8720, 0x1234), Some((Local, va(0x123_4000, 4096, Some(0), false))));
        // rvae1is x0, rvaale1is x0, rvae1 x0: NUM = 3, SCALE = 1, 4 KiB: 4 << 6 pages.
        let range = 1 << 46 | 1 << 44 | 3 << 39 | 0x1234;
        assert_eq!(about(0xd508_8220, range), Some((Broadcast, va(0x123_4000, 256 * 4096, Some(0), false))));
        assert_eq!(about(0xd508_82e0, range), Some((Broadcast, va(0x123_4000, 256 * 4096, None, true))));
        assert_eq!(about(0xd508_8620, range), Some((Local, va(0x123_4000, 256 * 4096, Some(0), false))));
        // ipas2e1is x0, ipas2le1 x0, ripas2e1is x0.
        let ipas = |bytes: u64, leaves_only| Invalidation::Ipas {
            start: 0x4000_0000,
            last: 0x4000_0000 + bytes - 1,
            leaves_only,
        };
        assert_eq!(about(0xd50c_8020, 0x4_0000), Some((Broadcast, ipas(4096, false))));
        assert_eq!(about(0xd50c_84a0, 0x4_0000), Some((Local, ipas(4096, true))));
        assert_eq!(about(0xd50c_8040, 1 << 46 | 0x4_0000), Some((Broadcast, ipas(2 * 4096, false))));
        // vmalls12e1is, alle1; and alle2, which is about EL2's own.
        assert_eq!(about(0xd50c_83df, 0), Some((Broadcast, Invalidation::All)));
        assert_eq!(about(0xd50c_879f, 0), Some((Local, Invalidation::All)));
        assert_eq!(about(0xd50c_871f, 0), None);
    }
}
