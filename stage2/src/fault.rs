//! Stage-2 aborts: what happened, and what the engine can do about it.
//!
//! Source: Arm ARM D24.2.45 (ESR_EL2, ISS for Data and Instruction Aborts), D24.2.63 (HPFAR_EL2), D8.17.

use crate::address::Ipa;
use crate::counters::Event;
use crate::descriptor::bits;
use crate::platform::{Dsb, Maintenance, Scope, TableMemory, Tlbi};
use crate::table::Stage2;
use crate::walk::Entry;

/// Faults in a row on one address that are answered before the engine gives up.
const PATIENCE: u32 = 64;

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
    /// Where: any address in the page.
    pub ipa: Ipa,
    /// The guest virtual address of the access (FAR_EL2).
    pub va: u64,
}

/// ESR_EL2 of an abort, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syndrome {
    status: Status,
    write: bool,
    execute: bool,
    stage1_walk: bool,
}

impl Syndrome {
    /// Takes ESR_EL2 apart. `None` unless it is an instruction or data abort from a lower exception level with a status
    /// that has to do with the tables (an external abort, for example, has not).
    #[must_use]
    #[inline(always)]
    pub const fn decode(esr: u64) -> Option<Self> {
        const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
        const DATA_ABORT_LOWER: u64 = 0x24;
        const WNR: u64 = 1 << 6;
        const S1PTW: u64 = 1 << 7;
        const CM: u64 = 1 << 8;
        let class = esr >> 26 & 0x3f;
        if class != INSTRUCTION_ABORT_LOWER && class != DATA_ABORT_LOWER {
            return None;
        }
        let status = match esr & 0x3f {
            0x00..=0x03 | 0x29 | 0x2c => Status::AddressSize,
            0x04..=0x07 | 0x2a | 0x2b => Status::Translation,
            0x08..=0x0b => Status::AccessFlag,
            0x0c..=0x0f => Status::Permission,
            0x30 => Status::Conflict,
            // External aborts and ECC errors (0x10, 0x12 to 0x18, 0x1a to 0x1f; of the walk at level −1: 0x13 and 0x1b),
            // tag checks (0x11), alignment (0x21), granule protection (0x22 to 0x28), updates that memory can't do (0x31),
            // what implementations define (0x34, 0x35), and what the architecture keeps for later.
            _ => return None,
        };
        let stage1_walk = esr & S1PTW != 0;
        let data = class == DATA_ABORT_LOWER;
        Some(Self {
            status,
            // WnR is 0 for hardware's update of a stage-1 descriptor (measured), which a readable page can refuse for no
            // other reason than that it is a write. Cache maintenance sets WnR but writes nothing.
            write: match stage1_walk {
                true => matches!(status, Status::Permission),
                // What writes nothing needs write permission all the same, where that is what it was refused.
                false => data && esr & WNR != 0 && (esr & CM == 0 || matches!(status, Status::Permission)),
            },
            execute: !data && !stage1_walk,
            stage1_walk,
        })
    }

    /// Whether HPFAR_EL2 holds the faulting IPA. It does for translation, access flag and address size faults and on
    /// stage-1 walks; otherwise translate FAR_EL2 with `AT S1E1R`, and go back to the guest if that fails: the guest has
    /// changed its tables meanwhile, and will fault again if it must.
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

    /// The abort at `ipa`, whose virtual address is `va`.
    #[must_use]
    #[inline(always)]
    pub const fn at(self, ipa: Ipa, va: u64) -> Abort {
        Abort { status: self.status, write: self.write, execute: self.execute, stage1_walk: self.stage1_walk, ipa, va }
    }
}

/// The IPA in HPFAR_EL2: bits 43:4 are IPA\[51:12\].
#[must_use]
#[inline(always)]
pub const fn ipa_from_hpfar(hpfar: u64) -> Ipa {
    Ipa((hpfar & 0x0000_0fff_ffff_fff0) << 8)
}

/// What the embedder does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Return to the guest, at the same instruction.
    Retry,
    /// Nothing is mapped there: emulate a device, or give the guest an external abort.
    Unmapped,
    /// The owner of the mapping forbids the access.
    Denied,
    /// The table is frozen ([`Stage2::freeze`]): wait until it has been thawed, holding no lock, then return to the guest.
    Frozen,
    /// The same access has aborted too often in a row although the tables allow it: something is broken. Say so.
    Stuck,
}

/// What one PE remembers from one abort to the next, to notice one that comes back.
#[derive(Clone, Copy, Debug)]
pub struct FaultHistory {
    /// One more than the last abort's page; 0: there was none.
    page: u64,
    changes: u64,
    repeats: u32,
}

impl Default for FaultHistory {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultHistory {
    /// No abort yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { page: 0, changes: 0, repeats: 0 }
    }

    /// How often the page has aborted in a row before, for nothing, with nothing changed in the table since.
    fn again(&mut self, address: u64, changes: u64) -> u32 {
        let page = (address >> crate::address::PAGE_SHIFT) + 1;
        let same = page == self.page && changes == self.changes;
        self.repeats = if same { self.repeats.saturating_add(1) } else { 0 };
        (self.page, self.changes) = (page, changes);
        self.repeats
    }

    /// The last abort had a cause that is gone now.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        self.page = 0;
    }
}

impl<P: TableMemory + Maintenance> Stage2<P> {
    /// Handles a stage-2 abort of the calling PE, as far as the tables are concerned.
    ///
    /// Cost of a first write to a write-protected page: one walk, one compare-exchange, two local TLBIs.
    #[cfg_attr(not(feature = "small"), inline)]
    #[cfg_attr(feature = "small", inline(never))]
    pub fn fault(&self, abort: &Abort, history: &mut FaultHistory) -> Outcome {
        match abort.status {
            Status::Conflict => return self.conflict(abort, history),
            Status::Permission => self.count(Event::FaultPermission),
            Status::Translation => self.count(Event::FaultTranslation),
            Status::AccessFlag => self.count(Event::FaultAccessFlag),
            Status::AddressSize => return Outcome::Unmapped,
        }
        if abort.ipa.0 >> self.geometry.ipa_bits() != 0 {
            return Outcome::Unmapped;
        }
        if self.frozen.is_some() {
            return Outcome::Frozen;
        }
        let entry = self.lookup(abort.ipa);
        if entry.value.is_busy(entry.level) {
            // Another PE changes the entry; the access may well be right once it has finished.
            self.wait_for(entry.slot, entry.level);
            return Outcome::Retry;
        }
        if !entry.is_leaf() {
            return Outcome::Unmapped;
        }
        if abort.write && entry.value.is_write_protected() {
            self.open_for_write(entry, abort.ipa);
            self.invalidate_local(abort.ipa, abort.va);
            history.clear();
            return Outcome::Retry;
        }
        self.untracked(&entry, abort, history)
    }

    // Out of line, as are the others that are cold: what they need on the stack would be saved for every fault.
    #[cold]
    #[inline(never)]
    fn untracked(&self, entry: &Entry, abort: &Abort, history: &mut FaultHistory) -> Outcome {
        let leaf = entry.value;
        let refused = abort.write && !leaf.is_writable()
            || abort.stage1_walk && leaf.0 & bits::READ == 0
            || abort.execute && leaf.0 & bits::NO_EXECUTE != 0
            || !abort.write && !abort.execute && leaf.0 & bits::READ == 0;
        if refused {
            return Outcome::Denied;
        }
        if abort.write {
            // Another PE has just opened the page. It may not have come to marking it yet, and this PE writes next.
            if let Some(tracked) = self.logs.at(abort.ipa) {
                tracked.marks.mark(abort.ipa);
            }
        }
        if leaf.0 & bits::ACCESS == 0 {
            // 0 to 1 needs no invalidation: such entries are not cached (I_WZCBG). A lost race means that it changed.
            let _ = self.replace(entry.slot, leaf.0, leaf.0 | bits::ACCESS);
            history.clear();
            return Outcome::Retry;
        }
        self.spurious(abort, history)
    }

    /// The tables allow the access, so the PE used something older: a translation from before a change that only added
    /// rights (another alias, another PE), or one that was broken for a moment.
    fn spurious(&self, abort: &Abort, history: &mut FaultHistory) -> Outcome {
        self.count(Event::FaultSpurious);
        match history.again(abort.ipa.0, self.under_way.changes()) {
            0 => self.invalidate_local(abort.ipa, abort.va),
            1 => {
                self.count(Event::EscalateVmallE1);
                // Orders the descriptors before the invalidation.
                self.dsb(Dsb::IshSt);
                self.tlbi(Tlbi::Ipa { ipa: abort.ipa, scope: Scope::Local });
                // Completes the stage-2 entry's invalidation before the combined ones go.
                self.dsb(Dsb::Nsh);
                self.tlbi(Tlbi::VmallE1(Scope::Local));
                // Completes it on this PE.
                self.dsb(Dsb::Nsh);
                self.isb();
            }
            repeats if repeats < PATIENCE => {
                self.count(Event::EscalateVmallS12E1);
                self.invalidate_all_local();
            }
            _ => return Outcome::Stuck,
        }
        Outcome::Retry
    }

    /// Two entries of this PE's TLB match one address (R_FWRMB). Only the ALL forms are sure to remove them (R_BLRKC,
    /// R_GRVDR); local is enough (I_JCCRT). The guest's own stage 1 can be the cause as well as a split of ours.
    #[cold]
    #[inline(never)]
    fn conflict(&self, abort: &Abort, history: &mut FaultHistory) -> Outcome {
        self.count(Event::FaultConflict);
        self.invalidate_all_local();
        // The syndrome may describe the old table or the new one (I_GYJBJ), so the address is good for nothing but this.
        if history.again(abort.va, self.under_way.changes()) < PATIENCE { Outcome::Retry } else { Outcome::Stuck }
    }

    fn invalidate_all_local(&self) {
        // Orders the descriptors before the invalidation.
        self.dsb(Dsb::IshSt);
        self.tlbi(Tlbi::VmallS12E1(Scope::Local));
        // Completes it on this PE.
        self.dsb(Dsb::Nsh);
        self.isb();
    }
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

    /// All 64 values of the fault status, by kind; what is not here has nothing to do with the tables, or does not exist.
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
    fn hpfar_holds_the_page() {
        assert_eq!(ipa_from_hpfar(0x0000_0000_0004_0200 << 4), Ipa(0x4020_0000));
    }
}
