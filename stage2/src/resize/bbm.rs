//! The three ways to change a leaf's size. Nothing outside this file knows which one is in use.
//!
//! Sources: Arm ARM R_PVTFW, R_KFLJB, R_KHRBC (what a level allows), R_WHZWS (what always needs a break), I_PJZBK and
//! R_MRRPW (nT), R_RTBRL (hardware dirty state).

use crate::arch::address::PhysAddr;
use crate::arch::descriptor::{Descriptor, bits};
use crate::arch::features::Method;
use crate::arch::granule::Granule;
use crate::platform::counters::Event;
use crate::platform::{Dsb, Maintenance, TableMemory};
use crate::table::Stage2;
use crate::table::tlb::Pending;
use crate::table::walk::Entry;

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Replaces a block, no member of a run, by the table `child`, which is filled from `old` and translates the same.
    ///
    /// # Errors
    ///
    /// The entry held something else than `old`; nothing was published.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn publish_table(&self, entry: &Entry<G>, old: Descriptor, child: PhysAddr) -> Result<(), u64> {
        let new = Descriptor::table_of::<G>(child).0;
        match self.method {
            Method::Direct => {
                // Orders the child's entries before the entry that leads to them.
                self.dsb(Dsb::IshSt);
                self.replace(entry.slot, old.0, new)
            }
            Method::Nt => {
                self.replace(entry.slot, old.0, old.0 | bits::NT)?;
                // No PE may hold the block without nT when the table appears. Also orders the child's entries.
                self.invalidate_leaf(entry.ipa);
                self.overwrite(entry.slot, new);
                // No PE may hold the block when this returns.
                self.invalidate_leaf(entry.ipa);
                Ok(())
            }
            Method::Break => {
                self.replace(entry.slot, old.0, Descriptor::BROKEN.0)?;
                self.count(Event::InvalidWindow);
                // No PE may hold the block when the table appears. Also orders the child's entries.
                self.invalidate_leaf(entry.ipa);
                self.overwrite(entry.slot, new);
                // Orders the new entry before anything that relies on the memory being mapped again.
                self.dsb(Dsb::IshSt);
                Ok(())
            }
        }
    }

    /// Replaces a table by the block `new`, which translates the same. Needs exclusive use of the engine: no other PE
    /// writes the entry. The caller must keep the table's frame until it has completed `pending`.
    pub(crate) fn publish_block(&self, entry: &Entry<G>, new: Descriptor, pending: &mut Pending) {
        match self.method {
            Method::Direct => self.overwrite(entry.slot, new.0),
            Method::Nt => {
                self.overwrite(entry.slot, new.0 | bits::NT);
                // No PE may hold smaller entries when nT goes.
                self.complete(&Pending::of(entry.range()));
                self.overwrite(entry.slot, new.0);
            }
            Method::Break => {
                self.overwrite(entry.slot, Descriptor::BROKEN.0);
                self.count(Event::InvalidWindow);
                // No PE may hold smaller entries when the block appears.
                self.complete(&Pending::of(entry.range()));
                self.overwrite(entry.slot, new.0);
                // Orders the new entry before anything that relies on the memory being mapped again.
                self.dsb(Dsb::IshSt);
            }
        }
        // At level 2 small entries and the block may be held together up to here.
        pending.add(entry.range());
    }

    /// Before a leaf that hardware may mark dirty changes its size without a break: takes its write permission and DBM
    /// away and invalidates it, so that no dirty update can be lost or invented (R_RTBRL). Readers notice nothing;
    /// writers fault and wait for the busy mark. Returns the entry's value now, without the dirty state, which stays in
    /// `entry.value`.
    ///
    /// With break-before-make there is no need: the break itself is a compare-exchange that keeps the dirty state.
    ///
    /// # Errors
    ///
    /// The entry held something else; nothing has changed.
    #[cfg_attr(not(feature = "small"), inline(always))]
    pub(crate) fn hold_writes(&self, entry: &Entry<G>) -> Result<Descriptor, u64> {
        // Leaves that hardware marks come with the first log by hardware.
        if self.method == Method::Break || !self.hardware_logged {
            return Ok(entry.value);
        }
        self.hold_marked(entry)
    }

    #[cfg_attr(not(feature = "small"), inline(never))]
    fn hold_marked(&self, entry: &Entry<G>) -> Result<Descriptor, u64> {
        let marked = entry.value.has_dbm();
        let taken = if marked { bits::DBM | bits::WRITE } else { 0 };
        let held = entry.value.0 & !taken | bits::BUSY;
        // From here on no other PE changes the entry: what may be cached of it does not grow. For the invalidation
        // below it also is this PE's own store, after what it has read, which the DSB before the TLBI orders.
        self.replace(entry.slot, entry.value.0, held)?;
        if marked {
            self.count(Event::ReadOnlyWindow);
        }
        // A leaf without DBM may be cached with it: another change has taken DBM away, in this batch or on another PE,
        // and not invalidated yet. Logs tell nothing of that, since a leaf keeps DBM after its log has ended.
        if marked || self.in_flight.others_revoking(0) {
            // After this no PE holds an entry that lets a write through or marks the descriptor.
            self.invalidate_leaf(entry.ipa);
        }
        Ok(Descriptor(held))
    }

    /// Changes a leaf, no member of a run, by break-before-make: for the core on which that is needed to take execute
    /// permission away ([`Errata::break_to_deny_execute`](crate::Errata)). On return no PE holds the old leaf.
    ///
    /// # Errors
    ///
    /// The entry held something else; nothing has changed.
    #[cold]
    #[inline(never)]
    pub(crate) fn change_by_break(&self, entry: &Entry<G>, new: Descriptor) -> Result<(), u64> {
        // Broken, the entry holds the new leaf: a harvest or a deny beside this, which clear bits of pages without looking,
        // take them from what comes back.
        let mut broken = new.break_entry().0;
        self.replace(entry.slot, entry.value.0, broken)?;
        self.count(Event::InvalidWindow);
        // No PE may hold the executable leaf when the other appears.
        self.complete(&Pending::of(entry.range()));
        // Others only ever clear bits of it, so this ends.
        while let Err(found) = self.replace(entry.slot, broken, Descriptor(broken).restore().0) {
            broken = found;
        }
        // Orders the new entry before anything that relies on the memory being mapped again.
        self.dsb(Dsb::IshSt);
        Ok(())
    }
}
