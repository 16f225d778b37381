//! What the guest may do with the first page of a GICv3 redistributor (Arm IHI 0069, 12.11): 4 KiB of its first frame, 16, or
//! all 64.
//!
//! The page has the registers that make the redistributor read and write tables of LPIs in memory, at physical addresses
//! that stage 2 does not check. They are hidden, and LPIs with them; the rest is passed on.

/// What is done with one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Passed on to the hardware, with those bits of the value that are set in the mask.
    Masked(u64),
    /// Reads as 0; a write changes nothing.
    Nothing,
}

/// GICR_CTLR.
const CTLR: u64 = 0x00;
/// GICR_IIDR.
const IIDR: u64 = 0x04;
/// GICR_TYPER, 64 bits.
pub const TYPER: u64 = 0x08;
/// GICR_STATUSR.
const STATUSR: u64 = 0x10;
/// GICR_WAKER.
const WAKER: u64 = 0x14;

/// GICR_PIDR2, beyond the first 4 KiB.
pub const PIDR2: u64 = 0xffe8;
/// The identification registers, of which it is one, and the last of them.
const ID: u64 = 0xffd0;
const LAST_ID: u64 = 0xfffc;

/// GICR_CTLR without EnableLPIs (bit 0), CES (1) and IR (2), which have to do with LPIs.
const CTLR_MASK: u64 = 0xffff_fff8;
/// GICR_TYPER without PLPIS (bit 0), Dirty (2), DirectLPI (3), RVPEID (7) and VSGI (26). VLPIS (1) stays: it tells a guest
/// how far apart redistributors are, and can do nothing without physical LPIs and an ITS; its frames are not mapped.
const TYPER_MASK: u64 = !(0b1000_1101 | 1 << 26);

/// What is done with a load of `bytes` bytes at `offset` into the page.
pub const fn read(offset: u64, bytes: u8) -> Answer {
    match (offset, bytes) {
        (CTLR, 4) => Answer::Masked(CTLR_MASK),
        (TYPER, 8) => Answer::Masked(TYPER_MASK),
        (TYPER, 4) => Answer::Masked(TYPER_MASK & 0xffff_ffff),
        (0x0c, 4) => Answer::Masked(TYPER_MASK >> 32),
        (IIDR | STATUSR | WAKER | ID..=LAST_ID, 4) => Answer::Masked(0xffff_ffff),
        _ => Answer::Nothing,
    }
}

/// What is done with a store of `bytes` bytes at `offset` into the page.
pub const fn write(offset: u64, bytes: u8) -> Answer {
    match (offset, bytes) {
        (CTLR, 4) => Answer::Masked(CTLR_MASK),
        (STATUSR | WAKER, 4) => Answer::Masked(0xffff_ffff),
        _ => Answer::Nothing,
    }
}

/// GICR_PIDR2.ArchRev: what lies there is a frame of a GICv3 or GICv4.
pub const fn is_redistributor(pidr2: u64) -> bool {
    matches!(pidr2 >> 4 & 0xf, 3 | 4)
}

/// GICR_TYPER.VLPIS: the redistributor has two more 64 KiB frames, for virtual LPIs.
pub const fn has_virtual_lpis(typer: u64) -> bool {
    typer & 1 << 1 != 0
}

/// GICR_TYPER.Last: no redistributor follows in this region.
pub const fn is_last(typer: u64) -> bool {
    typer & 1 << 4 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lpis_cannot_be_enabled_or_aimed() {
        assert_eq!(write(CTLR, 4), Answer::Masked(CTLR_MASK));
        assert_eq!(CTLR_MASK & 7, 0);
        // SETLPIR, CLRLPIR, PROPBASER, PENDBASER, INVLPIR, INVALLR.
        for offset in [0x40, 0x48, 0x70, 0x78, 0xa0, 0xb0] {
            for offset in [offset, offset + 4] {
                for bytes in [4, 8] {
                    assert_eq!(write(offset, bytes), Answer::Nothing);
                    assert_eq!(read(offset, bytes), Answer::Nothing);
                }
            }
        }
    }

    #[test]
    fn a_guest_finds_its_redistributor_without_lpis() {
        let Answer::Masked(mask) = read(TYPER, 8) else { panic!("TYPER is hidden") };
        assert_eq!(mask & 0b1101, 0, "PLPIS, Dirty, DirectLPI");
        assert_ne!(mask & 0b10, 0, "VLPIS, which is the distance to the next redistributor");
        assert_eq!(mask >> 32, 0xffff_ffff, "the affinity");
        assert_ne!(mask & 1 << 4, 0, "Last");
        assert_eq!(read(TYPER, 4), Answer::Masked(mask & 0xffff_ffff));
        assert_eq!(read(TYPER + 4, 4), Answer::Masked(mask >> 32));
        assert_eq!(write(TYPER, 8), Answer::Nothing);
    }

    #[test]
    fn other_sizes_and_registers_do_nothing() {
        for offset in 0..0x1000 {
            for bytes in [1, 2] {
                assert_eq!((read(offset, bytes), write(offset, bytes)), (Answer::Nothing, Answer::Nothing));
            }
        }
        assert_eq!(read(0x20, 4), Answer::Nothing);
    }
}
