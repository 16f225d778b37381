//! What ESR_EL2, HPFAR_EL2 and PAR_EL1 say of an abort.
//!
//! Source: Arm ARM D24.2.45 (ESR_EL2, ISS for Data and Instruction Aborts), D24.2.63 (HPFAR_EL2).

use crate::arch::address::{Ipa, PAGE_SIZE};

/// What kind of abort it was (ESR_EL2.ISS.xFSC, without the level, which may be wrong: I_GYJBJ).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Address size fault, 0b0000xx, and 0b101001 and 0b101100 of levels −1 and −2: an output address of the tables is
    /// larger than the PE can send. No descriptor of the engine's has one, so there is nothing to repair.
    AddressSize,
    /// Translation fault: 0b0001xx, and 0b101011 and 0b101010 of levels −1 and −2. The engine's tables have no such
    /// levels, but the stage 1 of a guest with 52-bit addresses has, and QEMU 7.2 reports the level of that walk.
    Translation,
    /// Access flag fault: 0b0010xx. A descriptor of level −1 is a table's, and has none.
    AccessFlag,
    /// Permission fault: 0b0011xx. There is none at level −1, for the same reason.
    Permission,
    /// TLB conflict abort: 0b110000.
    Conflict,
}

/// An abort that was taken to EL2 from a lower exception level because of stage 2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    /// What kind.
    pub status: Status,
    /// The access was a write, or an update of a stage-1 descriptor by hardware.
    pub write: bool,
    /// It was an instruction fetch.
    pub execute: bool,
    /// The abort was on a stage-1 walk (S1PTW): the address is that of the guest's table.
    pub stage1_walk: bool,
    /// The access was made at EL0 (SPSR_EL2.M; ESR_EL2 does not say). It counts for a fetch from a leaf that lets EL0 or EL1
    /// alone execute.
    pub el0: bool,
    /// Where: any address in the page.
    pub ipa: Ipa,
    /// The guest virtual address of the access (FAR_EL2).
    pub va: u64,
}

/// An abort with all that the registers say of it: for [`Stage2::answer`](crate::Stage2::answer).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The tables are asked about an address.
    Abort(Abort),
    /// The guest has changed its own tables since: its address has no IPA any more.
    Untranslated {
        /// The guest virtual address of the access (FAR_EL2).
        va: u64,
        /// Why it has none.
        why: Untranslated,
    },
}

/// ESR_EL2 of an abort, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syndrome {
    status: Status,
    write: bool,
    execute: bool,
    stage1_walk: bool,
}

/// ESR_EL2.ISS.WnR.
const WNR: u64 = 1 << 6;
/// ESR_EL2.ISS.S1PTW.
const S1PTW: u64 = 1 << 7;
/// ESR_EL2.ISS.CM.
const CM: u64 = 1 << 8;

/// What kind of access an abort ended, whatever its cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// An instruction fetch.
    Fetch,
    /// Data.
    Data {
        /// ESR_EL2.ISS.WnR.
        write: bool,
        /// Cache maintenance or an address translation (ESR_EL2.ISS.CM), for which WnR is 1 too.
        maintenance: bool,
    },
}

impl AccessKind {
    /// Of an abort from a lower exception level; nothing for other exceptions.
    #[must_use]
    #[inline(always)]
    pub const fn of(esr: u64) -> Option<Self> {
        const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
        const DATA_ABORT_LOWER: u64 = 0x24;
        match esr >> 26 & 0x3f {
            INSTRUCTION_ABORT_LOWER => Some(Self::Fetch),
            DATA_ABORT_LOWER => Some(Self::Data { write: esr & WNR != 0, maintenance: esr & CM != 0 }),
            _ => None,
        }
    }
}

/// Why an address has no translation by stage 1 (any more), or none that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Untranslated {
    /// The walk failed: PAR_EL1.FST.
    Fault(u8),
    /// The walk was an exception at EL2: an external abort.
    Exception,
}

impl Syndrome {
    /// Whether ESR_EL2, of a data abort, says that the leaf's permission refused a plain store: what tracking and
    /// protecting memory make of every first write, told by one comparison. Its address is to be translated with `AT
    /// S1E1R`.
    #[must_use]
    #[inline(always)]
    pub const fn is_refused_store(esr: u64) -> bool {
        const KIND: u64 = 0x3c;
        const PERMISSION: u64 = 0x0c;
        esr & (KIND | WNR | S1PTW | CM) == PERMISSION | WNR
    }

    /// Takes ESR_EL2 apart. `None` unless it is an instruction or data abort from a lower exception level with a status
    /// that has to do with the tables (an external abort, for example, has not).
    #[must_use]
    #[inline(always)]
    pub const fn decode(esr: u64) -> Option<Self> {
        let Some(kind) = AccessKind::of(esr) else { return None };
        let status = match esr & 0x3f {
            0x00..=0x03 | 0x29 | 0x2c => Status::AddressSize,
            0x04..=0x07 | 0x2a | 0x2b => Status::Translation,
            0x08..=0x0b => Status::AccessFlag,
            0x0c..=0x0f => Status::Permission,
            0x30 => Status::Conflict,
            // External aborts and ECC errors (0x10, 0x12 to 0x18, 0x1a to 0x1f; of the walk at level −1: 0x13 and
            // 0x1b), tag checks (0x11), alignment (0x21), granule protection (0x22 to 0x28), updates that memory can't
            // do (0x31), what implementations define (0x34, 0x35), and what the architecture keeps for later.
            _ => return None,
        };
        let stage1_walk = esr & S1PTW != 0;
        Some(Self {
            status,
            // WnR is 0 for hardware's update of a stage-1 descriptor (measured), which a readable page can refuse for
            // no other reason than that it is a write. Cache maintenance sets WnR but writes nothing.
            write: match stage1_walk {
                true => matches!(status, Status::Permission),
                // What writes nothing needs write permission all the same, where that is what it was refused.
                false => match kind {
                    AccessKind::Fetch => false,
                    AccessKind::Data { write, maintenance } => {
                        write && (!maintenance || matches!(status, Status::Permission))
                    }
                },
            },
            execute: matches!(kind, AccessKind::Fetch) && !stage1_walk,
            stage1_walk,
        })
    }

    /// Whether HPFAR_EL2 holds the faulting IPA. It does for translation, access flag and address size faults and on
    /// stage-1 walks; otherwise, unless [`Syndrome::needs_no_address`], translate FAR_EL2 with `AT S1E1R`, and call
    /// [`Stage2::untranslated`](crate::Stage2::untranslated) if that fails: the guest has changed its tables meanwhile,
    /// and will fault again if it must. `aarch64::read_abort` does all that.
    #[must_use]
    #[inline(always)]
    pub const fn hpfar_is_valid(&self) -> bool {
        self.stage1_walk || matches!(self.status, Status::Translation | Status::AccessFlag | Status::AddressSize)
    }

    /// Whether the abort can be answered without knowing the IPA: a TLB conflict abort can, and has to be, since the
    /// translation by `AT` would meet the same conflict. Give [`Syndrome::at`] any IPA then.
    #[must_use]
    #[inline(always)]
    pub const fn needs_no_address(&self) -> bool {
        matches!(self.status, Status::Conflict)
    }

    /// The abort, where its IPA has to come from `translate`: not called where HPFAR_EL2, with the value `hpfar`, has it, nor
    /// for a conflict, which `AT` would meet as well. The low 12 bits are those of `va`, FAR_EL2, but for a stage-1 walk, of
    /// whose address they are no part.
    #[inline(always)]
    pub fn taken(self, va: u64, hpfar: u64, translate: impl FnOnce() -> Result<Ipa, Untranslated>) -> Taken {
        let ipa = if self.needs_no_address() {
            Ipa(0)
        } else if self.hpfar_is_valid() {
            let in_page = if self.stage1_walk { 0 } else { va & (PAGE_SIZE - 1) };
            ipa_from_hpfar(hpfar).offset(in_page)
        } else {
            match translate() {
                Ok(ipa) => ipa,
                Err(why) => return Taken::Untranslated { va, why },
            }
        };
        Taken::Abort(self.at(ipa, va))
    }

    /// The abort at `ipa`, whose virtual address is `va`; of an access at EL1, unless [`Abort::el0`] is set.
    #[must_use]
    #[inline(always)]
    pub const fn at(self, ipa: Ipa, va: u64) -> Abort {
        Abort {
            status: self.status,
            write: self.write,
            execute: self.execute,
            stage1_walk: self.stage1_walk,
            el0: false,
            ipa,
            va,
        }
    }
}

/// The IPA in HPFAR_EL2: bits 43:4 are IPA\[51:12\].
#[must_use]
#[inline(always)]
pub const fn ipa_from_hpfar(hpfar: u64) -> Ipa {
    Ipa((hpfar & 0x0000_0fff_ffff_fff0) << 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_a_load_and_a_fetch() {
        let decode = |esr| Syndrome::decode(esr).unwrap();
        let store = decode(0x9200_004f);
        assert_eq!((store.status, store.write, store.execute), (Status::Permission, true, false));
        let load = decode(0x9200_0007);
        assert_eq!((load.status, load.write, load.execute), (Status::Translation, false, false));
        let fetch = decode(0x8200_000d);
        assert_eq!((fetch.status, fetch.write, fetch.execute), (Status::Permission, false, true));
        assert!(!store.hpfar_is_valid() && load.hpfar_is_valid() && !fetch.hpfar_is_valid());
        let flag = decode(0x9200_0009);
        assert_eq!((flag.status, flag.write, flag.hpfar_is_valid()), (Status::AccessFlag, false, true));
        assert!(decode(0x9200_0030).needs_no_address() && !store.needs_no_address());
    }

    /// All 64 values of the fault status, by kind; what is not here has nothing to do with the tables, or does not
    /// exist.
    const STATUSES: [(Status, &[u64]); 5] = [
        (Status::AddressSize, &[0b00_0000, 0b00_0001, 0b00_0010, 0b00_0011, 0b10_1001, 0b10_1100]),
        (Status::Translation, &[0b00_0100, 0b00_0101, 0b00_0110, 0b00_0111, 0b10_1010, 0b10_1011]),
        (Status::AccessFlag, &[0b00_1000, 0b00_1001, 0b00_1010, 0b00_1011]),
        (Status::Permission, &[0b00_1100, 0b00_1101, 0b00_1110, 0b00_1111]),
        (Status::Conflict, &[0b11_0000]),
    ];

    #[test]
    fn every_fault_status_of_both_kinds_of_abort() {
        const DATA: u64 = 0x24 << 26;
        const INSTRUCTION: u64 = 0x20 << 26;
        const WNR: u64 = 1 << 6;
        const S1PTW: u64 = 1 << 7;
        for value in 0..64 {
            let expected = STATUSES.iter().find(|(_, values)| values.contains(&value)).map(|(status, _)| *status);
            for class in [DATA, INSTRUCTION] {
                for flags in [0, WNR, S1PTW] {
                    let case = format!("class {:#x}, status {value:#x}, flags {flags:#x}", class >> 26);
                    let syndrome = Syndrome::decode(class | 1 << 25 | flags | value);
                    assert_eq!(syndrome.map(|syndrome| syndrome.status), expected, "{case}");
                    let (Some(syndrome), Some(status)) = (syndrome, expected) else { continue };
                    let walk = flags == S1PTW;
                    // HPFAR_EL2 is UNKNOWN for a permission fault that is not on a walk, and for a conflict.
                    let address = walk || !matches!(status, Status::Permission | Status::Conflict);
                    assert_eq!(syndrome.hpfar_is_valid(), address, "{case}");
                    let write = if walk { status == Status::Permission } else { class == DATA && flags == WNR };
                    let execute = class == INSTRUCTION && !walk;
                    let seen = (syndrome.stage1_walk, syndrome.write, syndrome.execute);
                    assert_eq!(seen, (walk, write, execute), "{case}");
                }
            }
        }
    }

    #[test]
    fn a_stage_1_walk_of_level_minus_1() {
        // Seen on QEMU, where a guest with 52-bit addresses met an invalid window.
        let fetch = Syndrome::decode(0x8200_00ab).unwrap();
        assert_eq!((fetch.status, fetch.write, fetch.execute), (Status::Translation, false, false));
        assert!(fetch.stage1_walk && fetch.hpfar_is_valid());
    }

    #[test]
    fn an_update_on_a_stage_1_walk_is_a_write() {
        // Measured on QEMU: S1PTW = 1, WnR = 0, level 1.
        let update = Syndrome::decode(0x9200_008d).unwrap();
        assert!(update.write && update.stage1_walk && update.hpfar_is_valid());
        // The same on an instruction's walk.
        let update = Syndrome::decode(0x8200_008d).unwrap();
        assert!(update.write && !update.execute);
        // A walk that finds nothing mapped is none.
        assert!(!Syndrome::decode(0x9200_0085).unwrap().write);
    }

    #[test]
    fn cache_maintenance_writes_nothing_but_may_want_the_permission() {
        assert!(!Syndrome::decode(0x9200_0147).unwrap().write);
        assert!(Syndrome::decode(0x9200_014f).unwrap().write);
    }

    #[test]
    fn conflict_and_others() {
        assert_eq!(Syndrome::decode(0x9200_0030).unwrap().status, Status::Conflict);
        assert_eq!(Syndrome::decode(0x8200_0030).unwrap().status, Status::Conflict);
        for esr in [0x9200_0010, 0x9200_0021, 0x5600_0000, 0x9600_0047] {
            assert_eq!(Syndrome::decode(esr), None, "{esr:#x}");
        }
    }

    #[test]
    fn a_refused_store_is_what_the_whole_syndrome_says() {
        for iss in 0..1 << 10 {
            let esr = 0x9200_0000 | iss;
            let plain = Syndrome::decode(esr).is_some_and(|syndrome| {
                syndrome.status == Status::Permission && syndrome.write && !syndrome.stage1_walk && iss & CM == 0
            });
            assert_eq!(Syndrome::is_refused_store(esr), plain, "{esr:#x}");
        }
    }

    #[test]
    fn an_address_comes_from_where_it_is_known_and_at_is_not_asked_about_a_conflict() {
        const VA: u64 = 0xffff_0000_0000_0123;
        const HPFAR: u64 = 0x4020_0000 >> 8;
        let why = Untranslated::Fault(0x07);
        let taken = |esr, at| {
            let mut asked = false;
            let translate = || {
                asked = true;
                at
            };
            let taken = Syndrome::decode(esr).unwrap().taken(VA, HPFAR, translate);
            (taken, asked)
        };
        let ipa = |taken| match taken {
            (Taken::Abort(abort), asked) => (abort.ipa, asked),
            (Taken::Untranslated { .. }, _) => panic!("{taken:?}"),
        };
        // A translation fault, one on a stage-1 walk, whose address is not the access's, and a permission fault there.
        assert_eq!(ipa(taken(0x9200_0007, Err(why))), (Ipa(0x4020_0123), false));
        assert_eq!(ipa(taken(0x9200_0087, Err(why))), (Ipa(0x4020_0000), false));
        assert_eq!(ipa(taken(0x9200_008d, Err(why))), (Ipa(0x4020_0000), false));
        // Another permission fault.
        assert_eq!(ipa(taken(0x9200_004f, Ok(Ipa(0x5000_0123)))), (Ipa(0x5000_0123), true));
        assert_eq!(taken(0x9200_004f, Err(why)), (Taken::Untranslated { va: VA, why }, true));
        // A TLB conflict abort: AT would meet it again, for ever.
        assert!(!taken(0x9200_0030, Err(why)).1 && matches!(taken(0x8200_0030, Err(why)), (Taken::Abort(_), false)));
    }

    #[test]
    fn accesses_that_aborts_end() {
        assert_eq!(AccessKind::of(0x8200_004f), Some(AccessKind::Fetch));
        for (bits, write, maintenance) in [(0, false, false), (WNR, true, false), (WNR | CM, true, true)] {
            assert_eq!(AccessKind::of(0x9200_0010 | bits), Some(AccessKind::Data { write, maintenance }));
        }
        assert_eq!(AccessKind::of(0x9600_0010), None, "an abort of EL2's own");
    }

    #[test]
    fn hpfar_holds_the_page() {
        assert_eq!(ipa_from_hpfar(0x0000_0000_0004_0200 << 4), Ipa(0x4020_0000));
    }
}
