//! Stage-2 aborts: what happened, and what the engine can do about it.
//!
//! Source: Arm ARM D24.2.45 (ESR_EL2, ISS for Data and Instruction Aborts), D24.2.63 (HPFAR_EL2), D8.17.

mod first_write;

use crate::arch::address::Ipa;
use crate::arch::descriptor::{MemoryType, bits};
use crate::platform::counters::Event;
use crate::platform::{Dsb, Maintenance, Scope, TableMemory, Tlbi};
use crate::table::Stage2;
use crate::table::walk::Entry;

/// Faults in a row on one address that are answered before the engine gives up.
const PATIENCE: u32 = 64;

/// What kind of abort it was (ESR_EL2.ISS.xFSC, without the level, which may be wrong: I_GYJBJ).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Translation fault: 0b0001xx.
    Translation,
    /// Access flag fault: 0b0010xx.
    AccessFlag,
    /// Permission fault: 0b0011xx.
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
    /// Whether ESR_EL2, of a data abort, says that the leaf's permission refused a plain store: what tracking and protecting
    /// memory make of every first write, told by one comparison. Its address is to be translated with `AT S1E1R`.
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
            0x04..=0x07 => Status::Translation,
            0x08..=0x0b => Status::AccessFlag,
            0x0c..=0x0f => Status::Permission,
            0x30 => Status::Conflict,
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
    /// stage-1 walks; otherwise translate FAR_EL2 with `AT S1E1R`, and call [`Stage2::untranslated`] if that fails: the guest
    /// has changed its tables meanwhile, and will fault again if it must.
    #[must_use]
    #[inline(always)]
    pub const fn hpfar_is_valid(&self) -> bool {
        self.stage1_walk || matches!(self.status, Status::Translation | Status::AccessFlag)
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
    /// The table is frozen ([`Stage2::freeze`]): wait until it has been thawed, holding no lock, then return to the
    /// guest.
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
        let page = (address >> crate::arch::address::PAGE_SHIFT) + 1;
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
            // The syndrome may describe the old table or the new one (I_GYJBJ): the address is good for nothing but this.
            Status::Conflict => return self.conflict(abort.va, history),
            Status::Permission => self.count(Event::FaultPermission),
            Status::Translation => self.count(Event::FaultTranslation),
            Status::AccessFlag => self.count(Event::FaultAccessFlag),
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
            self.answer_write(entry, abort.ipa);
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
        // With HCR_EL2.PTW a walk through a device is refused, whatever the leaf's permissions: no other try ends better.
        let refused =
            abort.stage1_walk && abort.status == Status::Permission && leaf.attributes().memory == MemoryType::Device
                || abort.write && !leaf.is_writable()
                || abort.stage1_walk && leaf.0 & bits::READ == 0
                || abort.execute && leaf.0 & bits::NO_EXECUTE != 0
                || !abort.write && !abort.execute && leaf.0 & bits::READ == 0;
        if refused {
            // The access is not tried again: whatever aborts next is another one.
            history.clear();
            return Outcome::Denied;
        }
        if abort.write {
            // Another PE has just made the page writable. It may not have come to marking it yet, and this PE writes
            // next.
            if let Some(dirty_log) = self.logs.at(abort.ipa) {
                dirty_log.bitmap.mark(abort.ipa);
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
        self.invalidate_more(history.again(abort.ipa.0, self.in_flight.changes()), Some(abort.ipa), abort.va)
    }

    /// Answers a permission fault of the calling PE whose address `va` could not be translated: the guest has changed its own
    /// tables since, and tries again. What the PE holds of the address is removed, and more each time that it fails again.
    ///
    /// An external abort on EL2's walk is answered likewise: without its TLB entry, the guest's next access walks the same
    /// tables, and takes the abort itself.
    #[cold]
    #[inline(never)]
    pub fn untranslated(&self, va: u64, why: Untranslated, history: &mut FaultHistory) -> Outcome {
        /// PAR_EL1.FST: TLB conflict abort.
        const CONFLICT: u8 = 0x30;
        self.count(Event::FaultNoTranslation);
        match why {
            Untranslated::Fault(CONFLICT) => self.conflict(va, history),
            _ => self.invalidate_more(history.again(va, self.in_flight.changes()), None, va),
        }
    }

    /// Removes what the calling PE holds of an address, and more each time that the same abort comes back.
    fn invalidate_more(&self, repeats: u32, ipa: Option<Ipa>, va: u64) -> Outcome {
        match (repeats, ipa) {
            (0, Some(ipa)) => self.invalidate_local(ipa, va),
            (0, None) => {
                self.tlbi(Tlbi::VaLocal { va });
                // Completes it; the exception return that follows synchronises the context.
                self.dsb(Dsb::Nsh);
            }
            (1, _) => {
                self.count(Event::EscalateVmallE1);
                // Orders the descriptors before the invalidation.
                self.dsb(Dsb::IshSt);
                if let Some(ipa) = ipa {
                    self.tlbi(Tlbi::Ipa { ipa, scope: Scope::Local });
                    // Completes the stage-2 entry's invalidation before the combined ones go.
                    self.dsb(Dsb::Nsh);
                }
                self.tlbi(Tlbi::VmallE1(Scope::Local));
                // Completes it on this PE.
                self.dsb(Dsb::Nsh);
                self.isb();
            }
            (..PATIENCE, _) => {
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
    fn conflict(&self, va: u64, history: &mut FaultHistory) -> Outcome {
        self.count(Event::FaultConflict);
        self.invalidate_all_local();
        if history.again(va, self.in_flight.changes()) < PATIENCE { Outcome::Retry } else { Outcome::Stuck }
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
