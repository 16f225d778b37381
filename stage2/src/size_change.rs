//! The three ways to change a leaf's size. Nothing outside this file knows which one is in use.
//!
//! Sources: Arm ARM R_PVTFW, R_KFLJB, R_KHRBC (what a level allows), R_WHZWS (what always needs a break), I_PJZBK and
//! R_MRRPW (nT), R_RTBRL (hardware dirty state).

use crate::address::{IpaRange, PhysAddr};
use crate::counters::Event;
use crate::descriptor::{Descriptor, bits};
use crate::features::BbmLevel;
use crate::geometry::RUN;
use crate::invalidate::Pending;
use crate::platform::{Dsb, Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::walk::Entry;

/// How a leaf changes its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Method {
    /// Break-before-make: invalid, invalidate, valid again. Level 0.
    Break,
    /// Mark the block nT, invalidate, replace, invalidate. Level 1.
    Nt,
    /// One store. Levels 2 and 3.
    Direct,
}

impl Method {
    pub(crate) const fn new(level: BbmLevel) -> Self {
        match level {
            BbmLevel::Level0 => Method::Break,
            BbmLevel::Level1 => Method::Nt,
            BbmLevel::Level2 | BbmLevel::Level3 => Method::Direct,
        }
    }
}

impl<P: TableMemory + Maintenance> Stage2<P> {
    /// Replaces a block, no member of a run, by the table `child`, which is filled from `old` and translates the same.
    ///
    /// # Errors
    ///
    /// The entry held something else than `old`; nothing was published.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn publish_table(&self, entry: &Entry, old: Descriptor, child: PhysAddr) -> Result<(), u64> {
        let new = Descriptor::table(child).0;
        match self.method {
            Method::Direct => {
                // Orders the child's entries before the entry that leads to them.
                self.dsb(Dsb::IshSt);
                self.replace(entry.slot, old.0, new)
            }
            Method::Nt => {
                self.replace(entry.slot, old.0, old.0 | bits::NT)?;
                // Nobody may hold the block without nT when the table appears. Also orders the child's entries.
                self.invalidate_leaf(entry.ipa);
                self.overwrite(entry.slot, new);
                // Nobody may hold the block when this returns.
                self.invalidate_leaf(entry.ipa);
                Ok(())
            }
            Method::Break => {
                self.replace(entry.slot, old.0, Descriptor::BROKEN.0)?;
                self.count(Event::InvalidWindow);
                // Nobody may hold the block when the table appears. Also orders the child's entries.
                self.invalidate_leaf(entry.ipa);
                self.overwrite(entry.slot, new);
                // Orders the new entry before anything that relies on the memory being mapped again.
                self.dsb(Dsb::IshSt);
                Ok(())
            }
        }
    }

    /// Replaces a table by the block `new`, which translates the same. Needs exclusive use of the engine: nobody else
    /// writes the entry. The caller must keep the table's frame until it has completed `pending`.
    pub(crate) fn publish_block(&self, entry: &Entry, new: Descriptor, pending: &mut Pending) {
        match self.method {
            Method::Direct => self.overwrite(entry.slot, new.0),
            Method::Nt => {
                self.overwrite(entry.slot, new.0 | bits::NT);
                // Nobody may hold smaller entries when nT goes.
                self.complete(&Pending::of(entry.range()));
                self.overwrite(entry.slot, new.0);
            }
            Method::Break => {
                self.overwrite(entry.slot, Descriptor::BROKEN.0);
                self.count(Event::InvalidWindow);
                // Nobody may hold smaller entries when the block appears.
                self.complete(&Pending::of(entry.range()));
                self.overwrite(entry.slot, new.0);
                // Orders the new entry before anything that relies on the memory being mapped again.
                self.dsb(Dsb::IshSt);
            }
        }
        // At level 2 small entries and the block may be held together up to here.
        pending.add(entry.range());
    }

    /// Sets the Contiguous bit on a run of sixteen leaves that translate alike. Exclusive, as for
    /// [`Stage2::publish_block`].
    pub(crate) fn make_run(&self, first: Slot, run: IpaRange, pending: &mut Pending) {
        self.rewrite_run(first, run, |value| value | bits::CONTIGUOUS);
        self.count(Event::CollapseRun);
        // Entries of single members and of the run may be held together up to here.
        pending.add(run);
    }

    /// Takes the Contiguous bit off the run that `entry` belongs to. On return the bit is gone, whoever took it, or
    /// another PE is about to finish: read the entry again.
    pub(crate) fn dissolve_run(&self, entry: &Entry) {
        debug_assert!(entry.is_run_member());
        let first = Slot { index: entry.slot.index - entry.slot.index % RUN, ..entry.slot };
        match self.method {
            Method::Break => {
                // The first member is the run's lock: who breaks it owns the other fifteen.
                let leader = Descriptor(self.load(first));
                if leader.is_busy(entry.level) {
                    return self.wait_for(first, entry.level);
                }
                if !leader.is_contiguous() || self.replace(first, leader.0, leader.broken().0).is_err() {
                    return;
                }
                self.rebuild_run(first, 1, entry.run(), |value| value & !bits::CONTIGUOUS);
                self.count(Event::SplitRun);
            }
            // The Contiguous bit changes directly from level 1 on. No invalidation: all entries that may be held agree,
            // and whoever changes a member next invalidates its address, which a cached run covers (R_LQLSD), once no
            // run is half taken apart.
            Method::Nt | Method::Direct => {
                let dissolving = self.under_way.begin_dissolving();
                for index in first.index..first.index + RUN {
                    self.clear_contiguous(Slot { index, ..first }, entry);
                }
                // Orders the members before the word that the run is apart: walks that start after it see no bit.
                self.dsb(Dsb::IshSt);
                drop(dissolving);
            }
        }
    }

    /// Clears the bit in one member, unless the member has become something else.
    fn clear_contiguous(&self, slot: Slot, entry: &Entry) {
        loop {
            let value = Descriptor(self.load(slot));
            if !value.is_valid() || value.is_table(entry.level) || !value.is_contiguous() {
                return;
            }
            if value.is_busy(entry.level) {
                // The run's permissions are being changed, by a PE that waits for nobody. A member without the bit must
                // not be waited for: who works on that may be waiting for this PE.
                self.wait_for(slot, entry.level);
                continue;
            }
            if self.replace(slot, value.0, value.0 & !bits::CONTIGUOUS).is_ok() {
                if slot.index.is_multiple_of(RUN) {
                    self.count(Event::SplitRun);
                }
                return;
            }
        }
    }

    /// Changes a leaf, no member of a run, by break-before-make: for the core on which that is needed to take execute
    /// permission away ([`Errata::break_to_deny_execute`](crate::Errata)). On return no PE holds the old leaf.
    ///
    /// # Errors
    ///
    /// The entry held something else; nothing has changed.
    #[cold]
    #[inline(never)]
    pub(crate) fn change_by_break(&self, entry: &Entry, new: Descriptor) -> Result<(), u64> {
        self.replace(entry.slot, entry.value.0, entry.value.broken().0)?;
        self.count(Event::InvalidWindow);
        // Nobody may hold the executable leaf when the other appears.
        self.complete(&Pending::of(entry.range()));
        self.overwrite(entry.slot, new.0);
        // Orders the new entry before anything that relies on the memory being mapped again.
        self.dsb(Dsb::IshSt);
        Ok(())
    }

    /// Changes the permissions of a whole run, in such a way that two PEs that do so at once leave it uniform: the first
    /// member is marked busy meanwhile. Says whether it was a run still; otherwise read the entry again.
    pub(crate) fn change_run(&self, entry: &Entry, change: impl Fn(u64) -> u64) -> bool {
        let first = Slot { index: entry.slot.index - entry.slot.index % RUN, ..entry.slot };
        let leader = Descriptor(self.load(first));
        if leader.is_busy(entry.level) {
            self.wait_for(first, entry.level);
            return false;
        }
        if !leader.is_valid()
            || !leader.is_contiguous()
            || self.replace(first, leader.0, leader.0 | bits::BUSY).is_err()
        {
            return false;
        }
        for index in first.index + 1..first.index + RUN {
            let slot = Slot { index, ..first };
            let mut value = self.load(slot);
            // Another PE may take the run apart at the same time, but no further than the first member.
            while let Err(found) = self.replace(slot, value, change(value)) {
                value = found;
            }
        }
        self.overwrite(first, change(leader.0));
        true
    }

    fn rewrite_run(&self, first: Slot, run: IpaRange, change: impl Fn(u64) -> u64) {
        if self.method == Method::Break {
            return self.rebuild_run(first, 0, run, change);
        }
        for index in first.index..first.index + RUN {
            let slot = Slot { index, ..first };
            self.overwrite(slot, change(self.load(slot)));
        }
    }

    /// Break-before-make for a whole run, in one window. The first `broken` members are broken already.
    fn rebuild_run(&self, first: Slot, broken: usize, run: IpaRange, change: impl Fn(u64) -> u64) {
        let slot = |n| Slot { index: first.index + n, ..first };
        for n in broken..RUN {
            // Other PEs may still change a member's permissions until it is broken.
            let mut value = self.load(slot(n));
            while let Err(found) = self.replace(slot(n), value, Descriptor(value).broken().0) {
                value = found;
            }
        }
        self.count(Event::InvalidWindow);
        // Nobody may hold a member or the run when the new members appear.
        self.complete(&Pending::of(run));
        for n in 0..RUN {
            let value = Descriptor(self.load(slot(n))).mended();
            self.overwrite(slot(n), change(value.0));
        }
        // Orders the new entries before anything that relies on the memory being mapped again.
        self.dsb(Dsb::IshSt);
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
    pub(crate) fn hold_writes(&self, entry: &Entry) -> Result<Descriptor, u64> {
        // Leaves that hardware marks come with the first log by hardware.
        if self.method == Method::Break || !self.hardware_logged {
            return Ok(entry.value);
        }
        self.hold_marked(entry)
    }

    #[cfg_attr(not(feature = "small"), inline(never))]
    fn hold_marked(&self, entry: &Entry) -> Result<Descriptor, u64> {
        let marked = entry.value.has_dbm();
        let taken = if marked { bits::DBM | bits::WRITE } else { 0 };
        let held = entry.value.0 & !taken | bits::BUSY;
        // From here on no other PE changes the entry: what may be cached of it does not grow. For the invalidation below it
        // also is this PE's own store, after what it has read, which the DSB before the TLBI orders.
        self.replace(entry.slot, entry.value.0, held)?;
        if marked {
            self.count(Event::ReadOnlyWindow);
        }
        // A leaf without DBM may be cached with it: another change has taken DBM away, in this batch or on another PE, and not
        // invalidated yet. Logs tell nothing of that, since a leaf keeps DBM after its log has ended.
        if marked || self.under_way.others_taking(0) {
            // After this no PE holds an entry that lets a write through or marks the descriptor.
            self.invalidate_leaf(entry.ipa);
        }
        Ok(Descriptor(held))
    }
}
