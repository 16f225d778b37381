//! Stage 2 in Secure state (FEAT_SEL2): two IPA spaces, and what physical address space each leads to.
//!
//! Secure EL1&0 has a Secure and a Non-secure IPA space (its own stage 1 picks one by the NS bit), each with a table of
//! its own: VSTTBR_EL2 and VTTBR_EL2. Both are shaped by VTCR_EL2 but for the fields that VSTCR_EL2 has for the Secure
//! one.
//!
//! Source: Arm ARM (DDI 0487), the register descriptions of VSTCR_EL2 and VTCR_EL2.

/// A physical address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum PhysicalSpace {
    /// Secure.
    Secure,
    /// Non-secure.
    NonSecure,
}

impl PhysicalSpace {
    const fn is_non_secure(self) -> bool {
        matches!(self, PhysicalSpace::NonSecure)
    }
}

/// Where one IPA space's tables are, and where its output addresses lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Spaces {
    /// The tables that are walked: VSTCR_EL2.SW, VTCR_EL2.NSW.
    pub tables: PhysicalSpace,
    /// The memory that is accessed: VSTCR_EL2.SA, VTCR_EL2.NSA.
    pub output: PhysicalSpace,
}

impl Spaces {
    /// Tables and memory are Secure: what a secure partition's own memory is.
    pub const SECURE: Self = Self { tables: PhysicalSpace::Secure, output: PhysicalSpace::Secure };
    /// Memory of the Normal world, behind tables that it can't reach.
    pub const NORMAL_WORLD: Self = Self { tables: PhysicalSpace::Secure, output: PhysicalSpace::NonSecure };

    const fn bits(self) -> u64 {
        const W: u64 = 1 << 29;
        const A: u64 = 1 << 30;
        let mut bits = 0;
        if self.tables.is_non_secure() {
            bits |= W;
        }
        if self.output.is_non_secure() {
            bits |= A;
        }
        bits
    }
}

/// Values for the control registers of Secure stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecureControl {
    /// VSTCR_EL2: size and start level of the Secure IPA space's table; SW and SA.
    pub vstcr: u64,
    /// VTCR_EL2: size and start level of the Non-secure IPA space's table; NSW and NSA; what both tables share.
    pub vtcr: u64,
}

impl SecureControl {
    /// For the Secure IPA space's table whose [`Stage2::vtcr`](crate::Stage2::vtcr) is `secure_vtcr`, and the
    /// Non-secure IPA space's whose is `non_secure_vtcr`; both made with the same features.
    ///
    /// `None` for what the architecture does not have: tables in Non-secure memory lead to Non-secure memory only (SA
    /// behaves as 1 where SW is 1, NSA where NSW is 1), and the Non-secure IPA space leads to Secure memory only where
    /// the Secure one does (NSA behaves as 1 where SA is 1). Nor has VSTCR_EL2 more of its own than size, start level and
    /// granule: the format of descriptors (DS, PS), hardware updates and the rest are VTCR_EL2's for both tables.
    #[must_use]
    pub const fn new(secure_vtcr: u64, secure: Spaces, non_secure_vtcr: u64, non_secure: Spaces) -> Option<Self> {
        const T0SZ_SL0_TG0: u64 = 0x3f | 3 << 6 | 3 << 14;
        const RES1: u64 = 1 << 31;
        let (tables, output) = (secure.tables.is_non_secure(), secure.output.is_non_secure());
        let (ns_tables, ns_output) = (non_secure.tables.is_non_secure(), non_secure.output.is_non_secure());
        let shared_differs = (secure_vtcr ^ non_secure_vtcr) & !T0SZ_SL0_TG0 != 0;
        if tables && !output || (ns_tables || output) && !ns_output || shared_differs {
            return None;
        }
        Some(Self {
            vstcr: RES1 | secure_vtcr & T0SZ_SL0_TG0 | secure.bits(),
            vtcr: non_secure_vtcr | non_secure.bits(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VTCR: u64 = 0x8008_0000 | 2 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | 24;

    #[test]
    fn fields_are_in_their_places() {
        let control = SecureControl::new(VTCR, Spaces::SECURE, VTCR + 1, Spaces::NORMAL_WORLD).unwrap();
        assert_eq!(control.vstcr, 1 << 31 | 1 << 6 | 24, "SA = SW = 0");
        assert_eq!(control.vtcr, (VTCR + 1) | 1 << 30, "NSA = 1, NSW = 0");
        let granule = SecureControl::new(VTCR | 1 << 14, Spaces::SECURE, VTCR, Spaces::NORMAL_WORLD).unwrap();
        assert_eq!((granule.vstcr >> 14 & 3, granule.vtcr >> 14 & 3), (1, 0), "each table has its own");
        for differs in [1 << 32, 7 << 16, 1 << 22] {
            let control = SecureControl::new(VTCR ^ differs, Spaces::SECURE, VTCR, Spaces::NORMAL_WORLD);
            assert_eq!(control, None, "VSTCR_EL2 has no DS, PS, HD");
        }
        let all = Spaces { tables: PhysicalSpace::NonSecure, output: PhysicalSpace::NonSecure };
        let control = SecureControl::new(VTCR, all, VTCR, all).unwrap();
        assert_eq!((control.vstcr >> 29, control.vtcr >> 29), (7, 7));
    }

    #[test]
    fn what_the_architecture_overrides_is_refused() {
        let all = [PhysicalSpace::Secure, PhysicalSpace::NonSecure];
        let spaces = all.map(|tables| all.map(|output| Spaces { tables, output }));
        let mut accepted = 0;
        for secure in spaces.as_flattened() {
            for non_secure in spaces.as_flattened() {
                let Some(control) = SecureControl::new(VTCR, *secure, VTCR, *non_secure) else { continue };
                let (sw, sa) = (control.vstcr >> 29 & 1, control.vstcr >> 30 & 1);
                let (nsw, nsa) = (control.vtcr >> 29 & 1, control.vtcr >> 30 & 1);
                assert_eq!((sa, nsa), (sa | sw, nsa | nsw | sa), "what is written is what holds");
                accepted += 1;
            }
        }
        assert_eq!(accepted, 7);
    }
}
