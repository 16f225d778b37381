//! Changing what the guest may do, page by page, with large leaves split at the range's edges only.

use crate::arch::address::{Ipa, IpaRange};
use crate::arch::descriptor::{Descriptor, PERMISSION_BITS, Permissions, bits, execute_rights};
use crate::arch::error::Error;
use crate::arch::geometry::{LeafSize, Level};
use crate::arch::granule::{Granule, Granule4K};
use crate::bitmap::logs::Mechanism;
use crate::platform::{Maintenance, TableMemory};
use crate::table::Stage2;
use crate::table::in_flight::Granting;
use crate::table::spare::SpareTables;
use crate::table::tlb::Pending;
use crate::table::walk::{Entry, Next, Visitor};
use core::sync::atomic::Ordering::SeqCst;

/// Several changes and one invalidation at the end: [`Stage2::batch`].
///
/// A change is in the table at once, but until [`Batch::finish`] (or drop) has returned, PEs may go on using what they
/// have cached.
#[derive(Debug)]
#[must_use = "dropping a batch at once makes it an expensive way to do nothing"]
pub struct Batch<'t, P: TableMemory + Maintenance, G: Granule = Granule4K> {
    table: &'t Stage2<P, G>,
    pending: Pending,
    announced: Option<Granting<'t>>,
}

impl<P: TableMemory + Maintenance, G: Granule> Batch<'_, P, G> {
    /// [`Stage2::protect`], with the invalidation left to the end of the batch.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::protect`].
    #[cfg_attr(feature = "small", inline(never))]
    pub fn protect(&mut self, range: IpaRange, permissions: Permissions) -> Result<(), Error> {
        let table = self.table;
        table.check(range)?;
        table.check_execute(permissions)?;
        let change = Change::to(permissions);
        if !permissions.read {
            // Before the first descriptor that says so.
            table.unreadable.store(true, SeqCst);
        }
        let result = match table.only_revokes(change) {
            // Where no leaf reaches over an edge, nothing can fail, and the short way need not come to its end.
            Some(mask) if table.has_clear_edges(range) => {
                self.announced.get_or_insert_with(|| table.in_flight.begin_granting());
                if table.revoke_bits(range, mask, &mut self.pending) { Ok(()) } else { self.visit(range, change) }
            }
            _ => self.visit(range, change),
        };
        if table.in_flight.others_revoking(1) {
            // A leaf that was right already may be so thanks to a PE that has not invalidated it yet.
            self.pending.add(range);
        }
        result
    }

    /// The way that everything can go: edges, then leaf by leaf.
    #[inline(never)]
    fn visit(&mut self, range: IpaRange, change: Change) -> Result<(), Error> {
        let table = self.table;
        let wants = |entry: &Entry<G>| change.of(entry.value, table.tracking(entry)) != entry.value;
        let mut reserve = table.reserve_edges(range, wants)?;
        table.split_edges(range, wants, &mut reserve)?;
        self.announced.get_or_insert_with(|| table.in_flight.begin_granting());
        let denies = if table.config.features.errata.break_to_deny_execute { execute_rights(0) } else { 0 };
        table.visit(range, &mut Protect { change, range, reserve, pending: &mut self.pending, denies })
    }

    /// [`Stage2::split`]. Splitting needs no invalidation of its own; this is here so that it can stand in its place
    /// among the changes of a batch.
    ///
    /// # Errors
    ///
    /// As for [`Stage2::split`].
    pub fn split(&mut self, range: IpaRange, to: LeafSize) -> Result<(), Error> {
        self.table.split(range, to)
    }

    /// Invalidates what the batch has changed. On return no PE uses an old permission.
    pub fn finish(self) {
        drop(self);
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Drop for Batch<'_, P, G> {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.table.in_flight.note_change();
            self.table.invalidate_pending(&self.pending);
        }
        // After the last barrier: from here on no PE needs to invalidate for this batch.
        self.announced = None;
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    fn tracking(&self, entry: &Entry<G>) -> Tracking {
        self.logs.at(entry.ipa).map(|dirty_log| dirty_log.mechanism)
    }

    /// The bits that `change` takes from any leaf, if taking bits is all that it does.
    fn only_revokes(&self, change: Change) -> Option<u64> {
        let sets = change.granted & (bits::WRITE_GRANTED | bits::NO_EXECUTE | bits::EXECUTE_APART) != 0
            || change.granted & bits::READ != 0 && self.unreadable.load(SeqCst)
            // Hardware's marks would have to go to the bitmap first; and a PE that has made a leaf busy to split it
            // relies on its staying as it is.
            || self.hardware_logged;
        (!cfg!(feature = "small") && !sets).then_some(PERMISSION_BITS & !change.granted)
    }

    /// Whether no leaf reaches over the edges of `range`, or only one that is found before anything has changed.
    #[inline(always)]
    fn has_clear_edges(&self, range: IpaRange) -> bool {
        let block_bytes = Level::L2.bytes::<G>();
        let table_bytes = Level::L1.bytes::<G>();
        // Blocks of one level-2 table: only a run can reach over, or what this table is missing for.
        let blocks = (range.start().0 | range.end().0).is_multiple_of(block_bytes);
        blocks && range.start().0 / table_bytes == (range.end().0 - 1) / table_bytes
            || self.is_edge(range.start()) && self.is_edge(range.end())
    }

    /// Whether `edge` is surely the first address of a leaf, or of nothing. It stays one: leaves are put together under
    /// `&mut self` only.
    #[inline(always)]
    fn is_edge(&self, edge: Ipa) -> bool {
        if edge == self.geometry.range().end() {
            return true;
        }
        let entry = self.lookup(edge);
        !entry.value.is_busy(entry.level) && entry.ipa == edge && !entry.is_run_member()
    }

    /// A batch of changes that share one invalidation.
    pub fn batch(&self) -> Batch<'_, P, G> {
        Batch { table: self, pending: Pending::new(), announced: None }
    }

    /// Gives all of `range` that is mapped the permissions. Leaves that reach over an edge are split there, and nowhere
    /// else; a leaf that has the permissions already is not touched. Holes stay holes.
    ///
    /// Permissions never need break-before-make (R_GPPYH). Cost: at most six frames, one compare-exchange a leaf, and
    /// one invalidation if anything was taken away.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`]; [`Error::MissingFeature`]; [`Error::OutOfMemory`] for the edges, before anything has changed (unless another PE
    /// changes a leaf at an edge at the same time, so that it comes to need splitting half-way).
    pub fn protect(&self, range: IpaRange, permissions: Permissions) -> Result<(), Error> {
        let mut batch = self.batch();
        batch.protect(range, permissions)
    }
}

/// The permissions that a leaf is to have.
#[derive(Clone, Copy)]
struct Change {
    granted: u64,
}

/// How a page is logged, if it is.
type Tracking = Option<Mechanism>;

impl Change {
    fn to(permissions: Permissions) -> Self {
        Self { granted: permissions.encode() }
    }

    /// The leaf with the new permissions. Where writes stay granted, tracking stays as it is; where they come to be
    /// granted, it begins as the log has it.
    fn of(self, leaf: Descriptor, tracking: Tracking) -> Descriptor {
        let mut granted = self.granted;
        if granted & bits::WRITE_GRANTED != 0 {
            let open = match tracking {
                _ if leaf.0 & bits::WRITE_GRANTED != 0 => leaf.0 & (bits::WRITE | bits::DBM),
                None => bits::WRITE,
                Some(mechanism) if mechanism.is_hardware() => bits::DBM,
                Some(_) => 0,
            };
            granted = granted & !bits::WRITE | open;
        }
        Descriptor(leaf.0 & !PERMISSION_BITS | granted)
    }
}

/// Whether `new` forbids something that `old` let through: then old TLB entries must go.
#[cfg_attr(feature = "small", inline(never))]
fn revokes(old: Descriptor, new: Descriptor) -> bool {
    let rights = |leaf: Descriptor| {
        let write = if leaf.is_writable() { bits::WRITE } else { 0 };
        leaf.0 & bits::READ | write | execute_rights(leaf.0)
    };
    rights(old) & !rights(new) != 0
}

struct Protect<'t, 'p, P: TableMemory + Maintenance, G: Granule> {
    change: Change,
    range: IpaRange,
    reserve: SpareTables<'t, P, G>,
    pending: &'p mut Pending,
    /// Of [`execute_rights`], those that are taken away by a break, if any.
    denies: u64,
}

impl<P: TableMemory + Maintenance, G: Granule> Protect<'_, '_, P, G> {
    /// Whether the core's errata want the change by break-before-make.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    fn needs_break(&self, old: Descriptor, new: Descriptor) -> bool {
        execute_rights(old.0) & !execute_rights(new.0) & self.denies != 0
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Visitor<P, G> for Protect<'_, '_, P, G> {
    #[inline(always)]
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error> {
        if !entry.is_leaf() {
            return Ok(Next::Continue);
        }
        let new = self.change.of(entry.value, table.tracking(entry));
        if new == entry.value {
            return Ok(Next::Continue);
        }
        if entry.is_run_member() {
            let whole = self.range.covers(entry.run()) && entry.ipa == entry.run().start();
            if whole && !self.needs_break(entry.value, new) {
                if revokes(entry.value, new) {
                    self.pending.add(entry.run());
                }
                let change = self.change;
                let tracking = table.tracking(entry);
                table.change_run(entry, |leaf| change.of(Descriptor(leaf), tracking).0);
            } else {
                // Another PE has changed the run, or its end of the edge, since. Or its members are broken one by one.
                table.split_run(entry);
            }
            return Ok(Next::Retry);
        }
        // Only when another PE has changed a leaf at the edge that was right when the edges were split.
        if part != entry.range() && entry.level != Level::L3 {
            table.split_leaf(entry, &[None; 2], &mut self.reserve)?;
            return Ok(Next::Retry);
        }
        if entry.value.has_dbm() && entry.value.0 & bits::WRITE != 0 && !new.has_dbm() {
            // The dirty state that the descriptor has lives on in the bitmap; first, so that no harvest finds neither.
            table.logs.mark_written(part);
        }
        if self.needs_break(entry.value, new) {
            let done = table.change_by_break(entry, new);
            return Ok(if done.is_ok() { Next::Continue } else { Next::Retry });
        }
        if table.replace(entry.slot, entry.value.0, new.0).is_err() {
            return Ok(Next::Retry);
        }
        if revokes(entry.value, new) {
            self.pending.add(part);
        }
        Ok(Next::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::address::PhysAddr;
    use crate::arch::descriptor::{Attributes, Execute};

    fn leaf(extra_clear: u64, extra_set: u64) -> Descriptor {
        let ram = Descriptor::leaf(Level::L3, PhysAddr(0x1000), Attributes::RAM.encode());
        Descriptor(ram.0 & !extra_clear | extra_set)
    }

    #[test]
    fn tracking_survives_a_change_of_other_permissions() {
        let change = Change::to(Permissions::READ_WRITE);
        assert_eq!(change.of(leaf(bits::WRITE, 0), None), leaf(bits::WRITE, bits::NO_EXECUTE));
        assert_eq!(change.of(leaf(bits::WRITE, bits::DBM), None), leaf(bits::WRITE, bits::DBM | bits::NO_EXECUTE));
        assert_eq!(change.of(leaf(0, bits::DBM), None), leaf(0, bits::DBM | bits::NO_EXECUTE));
    }

    #[test]
    fn denial_ends_tracking_and_a_new_grant_begins_it_as_the_log_has_it() {
        let deny = Change::to(Permissions::READ_EXECUTE);
        for before in [leaf(0, 0), leaf(bits::WRITE, 0), leaf(0, bits::DBM), leaf(bits::WRITE, bits::DBM)] {
            let after = deny.of(before, None);
            assert!(!after.is_writable() && !after.is_write_protected() && !after.has_dbm());
        }
        let denied = deny.of(leaf(0, 0), None);
        let grant = Change::to(Permissions::ALL);
        assert_eq!(grant.of(denied, None), leaf(0, 0));
        assert_eq!(grant.of(denied, Some(Mechanism::WriteProtect)), leaf(bits::WRITE, 0));
        assert_eq!(grant.of(denied, Some(Mechanism::HardwarePage)), leaf(bits::WRITE, bits::DBM));
    }

    #[test]
    fn what_takes_rights_away() {
        let with = |permissions| Change::to(permissions).of(leaf(0, 0), None);
        let (all, ro, none) = (with(Permissions::ALL), with(Permissions::READ), with(Permissions::NONE));
        assert!(revokes(all, ro) && revokes(ro, none) && revokes(all, none));
        assert!(!revokes(ro, all) && !revokes(none, ro) && !revokes(all, all));
        assert!(revokes(leaf(bits::WRITE, bits::DBM), leaf(bits::WRITE, 0)), "DBM lets writes through");
        assert!(revokes(with(Permissions::READ_EXECUTE), with(Permissions::READ_WRITE)));
        let executes = |execute| with(Permissions { execute, ..Permissions::READ });
        let all = [Execute::Never, Execute::El0, Execute::El1, Execute::Always];
        for (old, new) in all.into_iter().flat_map(|old| all.map(|new| (old, new))) {
            let lost = [false, true].into_iter().any(|el0| old.at(el0) && !new.at(el0));
            assert_eq!(revokes(executes(old), executes(new)), lost, "{old:?} to {new:?}");
        }
    }
}
