//! Contiguous runs: leaves with the Contiguous bit are made, changed and taken apart together.
//!
//! Sources: Arm ARM R_KFLJB, R_KHRBC (what a BBM level allows), R_LQLSD (the bit and TLBIs), R_JKCXG (dirty state).

use crate::arch::address::IpaRange;
use crate::arch::descriptor::{Descriptor, bits};
use crate::arch::features::Method;
use crate::arch::geometry::Level;
use crate::arch::granule::Granule;
use crate::platform::counters::Event;
use crate::platform::{Dsb, Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::tlb::Pending;
use crate::table::walk::Entry;

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Sets the Contiguous bit on a run of leaves that translate alike. Exclusive, as for
    /// [`Stage2::publish_block`].
    pub(crate) fn make_run(&self, first: Slot, level: Level, run: IpaRange, pending: &mut Pending) {
        self.rewrite_run(first, level, run, |value| value | bits::CONTIGUOUS);
        self.count(Event::CollapseRun);
        // Entries of single members and of the run may be held together up to here.
        pending.add(run);
    }

    /// Takes the Contiguous bit off the run that `entry` belongs to. On return the bit is gone, taken by this PE or
    /// another, or another PE is about to finish: read the entry again.
    pub(crate) fn split_run(&self, entry: &Entry<G>) {
        debug_assert!(entry.is_run_member());
        let length = entry.level.run::<G>();
        let first = Slot { index: entry.slot.index - entry.slot.index % length, ..entry.slot };
        match self.method {
            Method::Break => {
                // The first member is the run's lock: the PE that breaks it owns the others.
                let leader = Descriptor(self.load(first));
                if leader.is_busy(entry.level) {
                    return self.wait_for(first, entry.level);
                }
                if !leader.is_contiguous() || self.replace(first, leader.0, leader.break_entry().0).is_err() {
                    return;
                }
                self.rebuild_run(first, 1, entry.level, entry.run(), |value| value & !bits::CONTIGUOUS);
                self.count(Event::SplitRun);
            }
            // The Contiguous bit changes directly from level 1 on. No invalidation: all entries that may be held agree,
            // and the PE that changes a member next invalidates its address, which a cached run covers (R_LQLSD), once
            // no run is half taken apart.
            Method::Nt | Method::Direct => {
                let splitting = self.in_flight.begin_splitting_run();
                for index in first.index..first.index + length {
                    self.clear_contiguous(Slot { index, ..first }, entry);
                }
                // Orders the members before the word that the run is apart: walks that start after it see no bit.
                self.dsb(Dsb::IshSt);
                drop(splitting);
            }
        }
    }

    /// Clears the bit in one member, unless the member has become something else.
    fn clear_contiguous(&self, slot: Slot, entry: &Entry<G>) {
        loop {
            let value = Descriptor(self.load(slot));
            if !value.is_valid() || value.is_table(entry.level) || !value.is_contiguous() {
                return;
            }
            if value.is_busy(entry.level) {
                // The run's permissions are being changed, by a PE that waits for no other. A member without the bit
                // must not be waited for: the PE that works on that may be waiting for this one.
                self.wait_for(slot, entry.level);
                continue;
            }
            if self.replace(slot, value.0, value.0 & !bits::CONTIGUOUS).is_ok() {
                if slot.index.is_multiple_of(entry.level.run::<G>()) {
                    self.count(Event::SplitRun);
                }
                return;
            }
        }
    }

    /// Changes the permissions of a whole run, in such a way that two PEs that do so at once leave it uniform: the
    /// first member is marked busy meanwhile. Says whether it was a run still; otherwise read the entry again.
    pub(crate) fn change_run(&self, entry: &Entry<G>, change: impl Fn(u64) -> u64) -> bool {
        let length = entry.level.run::<G>();
        let first = Slot { index: entry.slot.index - entry.slot.index % length, ..entry.slot };
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
        for index in first.index + 1..first.index + length {
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

    fn rewrite_run(&self, first: Slot, level: Level, run: IpaRange, change: impl Fn(u64) -> u64) {
        if self.method == Method::Break {
            return self.rebuild_run(first, 0, level, run, change);
        }
        for index in first.index..first.index + level.run::<G>() {
            let slot = Slot { index, ..first };
            self.overwrite(slot, change(self.load(slot)));
        }
    }

    /// Break-before-make for a whole run, in one window. The first `broken` members are broken already.
    fn rebuild_run(&self, first: Slot, broken: usize, level: Level, run: IpaRange, change: impl Fn(u64) -> u64) {
        let length = level.run::<G>();
        let slot = |n| Slot { index: first.index + n, ..first };
        for n in broken..length {
            // Other PEs may still change a member's permissions until it is broken.
            let mut value = self.load(slot(n));
            while let Err(found) = self.replace(slot(n), value, Descriptor(value).break_entry().0) {
                value = found;
            }
        }
        self.count(Event::InvalidWindow);
        // No PE may hold a member or the run when the new members appear.
        self.complete(&Pending::of(run));
        for n in 0..length {
            let value = Descriptor(self.load(slot(n))).restore();
            self.overwrite(slot(n), change(value.0));
        }
        // Orders the new entries before anything that relies on the memory being mapped again.
        self.dsb(Dsb::IshSt);
    }
}
