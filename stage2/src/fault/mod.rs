//! Stage-2 aborts: what the engine can do about them.
//!
//! Source: Arm ARM D8.17.

mod first_write;
mod history;

use crate::arch::address::Ipa;
use crate::arch::descriptor::{bits, execute_rights, is_device};
use crate::arch::granule::Granule;
use crate::platform::counters::Event;
use crate::platform::{Dsb, Maintenance, Scope, TableMemory, Tlbi};
use crate::table::Stage2;
use crate::table::walk::Entry;

pub use crate::arch::syndrome::{Abort, AccessKind, Status, Syndrome, Taken, Untranslated, ipa_from_hpfar};
pub use history::FaultHistory;

/// Faults in a row on one address that are answered before the engine gives up.
const PATIENCE: u32 = 64;

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

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Handles what `aarch64::read_abort` has read: [`Stage2::fault`], or [`Stage2::untranslated`]. `history` is the calling
    /// PE's.
    #[cfg_attr(not(feature = "small"), inline)]
    pub fn answer(&self, taken: &Taken, history: &mut FaultHistory) -> Outcome {
        match taken {
            Taken::Abort(abort) => self.fault(abort, history),
            Taken::Untranslated { va, why } => self.untranslated(*va, *why, history),
        }
    }

    /// Handles a stage-2 abort of the calling PE, as far as the tables are concerned.
    ///
    /// Cost of a first write to a write-protected page: one walk, one compare-exchange, two local TLBIs.
    #[cfg_attr(not(feature = "small"), inline)]
    #[cfg_attr(feature = "small", inline(never))]
    pub fn fault(&self, abort: &Abort, history: &mut FaultHistory) -> Outcome {
        match abort.status {
            // The syndrome may describe the old table or the new one (I_GYJBJ): the address is good for nothing but
            // this.
            Status::Conflict => return self.conflict(abort.va, history),
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
    fn untracked(&self, entry: &Entry<G>, abort: &Abort, history: &mut FaultHistory) -> Outcome {
        let leaf = entry.value;
        let at = if abort.el0 { bits::NO_EXECUTE } else { bits::EXECUTE_APART };
        // With HCR_EL2.PTW a walk through a device is refused, whatever the leaf's permissions: no other try ends
        // better.
        let refused = abort.stage1_walk && abort.status == Status::Permission && is_device(leaf.0)
            || abort.write && !leaf.is_writable()
            || abort.stage1_walk && leaf.0 & bits::READ == 0
            || abort.execute && execute_rights(leaf.0) & at == 0
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

    /// Answers a permission fault of the calling PE whose address `va` could not be translated: the guest has changed
    /// its own tables since, and tries again. What the PE holds of the address is removed, and more each time that it
    /// fails again.
    ///
    /// An external abort on EL2's walk is answered likewise: without its TLB entry, the guest's next access walks the
    /// same tables, and takes the abort itself.
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
