//! Unmapping, and the safe way for a table's frame out of use.

use crate::arch::address::IpaRange;
use crate::arch::descriptor::{Descriptor, Kind};
use crate::arch::error::Error;
use crate::arch::granule::Granule;
use crate::platform::{Maintenance, TableMemory};
use crate::table::Stage2;
use crate::table::retire::RetiredTables;
use crate::table::spare::SpareTables;
use crate::table::walk::{Entry, Next, Visitor};

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Unmaps all of `range`: every access to it faults. Leaves that reach over an edge are split there; holes stay
    /// holes. Tables that lie wholly in the range are freed.
    ///
    /// Cost: at most six frames for the edges, one store an entry, one invalidation for each 32 tables freed.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`]; [`Error::OutOfMemory`] for the edges, before anything has changed.
    pub fn unmap(&mut self, range: IpaRange) -> Result<(), Error> {
        self.check(range)?;
        self.in_flight.advance_epoch();
        let mut reserve = self.reserve_edges(range, |_| true)?;
        self.split_edges(range, |_| true, &mut reserve)?;
        let mut detached = RetiredTables::new(self);
        self.visit(range, &mut Unmap { reserve, detached: &mut detached })?;
        // What hardware has marked goes with the descriptors; the memory behind them may live on.
        self.logs.mark_hardware_written(range);
        Ok(())
    }
}

struct Unmap<'t, 'd, P: TableMemory + Maintenance, G: Granule> {
    reserve: SpareTables<'t, P, G>,
    detached: &'d mut RetiredTables<'t, P, G>,
}

impl<P: TableMemory + Maintenance, G: Granule> Visitor<P, G> for Unmap<'_, '_, P, G> {
    fn entry(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<Next, Error> {
        if !entry.is_leaf() {
            return Ok(Next::Continue);
        }
        if part != entry.range() {
            // The edges have been split, so this is never reached; splitting is right in any case.
            table.split_leaf(entry, &[None; 2], &mut self.reserve)?;
            return Ok(Next::Retry);
        }
        table.overwrite(entry.slot, Descriptor::INVALID.0);
        self.detached.pending.add(part);
        Ok(Next::Continue)
    }

    fn enter(&mut self, table: &Stage2<P, G>, entry: &Entry<G>, part: IpaRange) -> Result<bool, Error> {
        let (Kind::Table(frame), Some(below)) = (entry.value.kind_of::<G>(entry.level), entry.level.below()) else {
            return Ok(true);
        };
        if part != entry.range() {
            return Ok(true);
        }
        table.overwrite(entry.slot, Descriptor::INVALID.0);
        self.detached.pending.add(part);
        self.detached.push(frame, below);
        Ok(false)
    }
}
