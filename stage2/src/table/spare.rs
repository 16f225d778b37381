//! Frames set aside before the first descriptor changes: prepare, then commit.

use crate::arch::address::{Ipa, IpaRange, PhysAddr};
use crate::arch::error::Error;
use crate::arch::geometry::Level;
use crate::platform::{Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::walk::Entry;

/// Set in a link that leads somewhere: a frame may lie at address 0.
const LINK: u64 = 1;

fn linked(link: u64) -> Option<PhysAddr> {
    (link & LINK != 0).then_some(PhysAddr(link & !LINK))
}

/// Frames for one operation. What is left over goes back when it is dropped.
///
/// The frames are chained through their own first words, so that any number can be kept without an allocator.
#[derive(Debug)]
pub(crate) struct SpareTables<'t, P: TableMemory + Maintenance> {
    table: &'t Stage2<P>,
    head: Option<PhysAddr>,
}

impl<'t, P: TableMemory + Maintenance> SpareTables<'t, P> {
    /// No frames: each is allocated when it is taken.
    pub(crate) const fn none(table: &'t Stage2<P>) -> Self {
        Self { table, head: None }
    }

    /// `frames` frames, or none at all and the error.
    pub(crate) fn new(table: &'t Stage2<P>, frames: usize, ipa: Ipa) -> Result<Self, Error> {
        let mut reserve = Self::none(table);
        for _ in 0..frames {
            let frame = table.allocate(ipa)?;
            reserve.put(frame);
        }
        Ok(reserve)
    }

    /// A frame for a table that translates `ipa`: a reserved one while there are any.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn take(&mut self, ipa: Ipa) -> Result<PhysAddr, Error> {
        let Some(frame) = self.head else {
            return self.table.allocate(ipa);
        };
        let next = self.table.load(Slot { table: frame, index: 0 });
        self.head = linked(next);
        Ok(frame)
    }

    /// Takes an unused frame (back).
    pub(crate) fn put(&mut self, frame: PhysAddr) {
        let next = self.head.map_or(0, |head| head.0 | LINK);
        self.table.store(Slot { table: frame, index: 0 }, next);
        self.head = Some(frame);
    }
}

impl<P: TableMemory + Maintenance> Drop for SpareTables<'_, P> {
    fn drop(&mut self) {
        while let Some(frame) = self.head {
            let next = self.table.load(Slot { table: frame, index: 0 });
            self.head = linked(next);
            // SAFETY: a reserved frame was never published, so nothing leads to it.
            unsafe { self.table.free(frame) };
        }
    }
}

/// The tables that a split at `edge` will make under `entry`, at most two, as (level, first address).
fn tables_at(entry: &Entry, edge: Ipa) -> [Option<(Level, Ipa)>; 2] {
    let mut tables = [None; 2];
    let mut level = entry.level;
    for table in &mut tables {
        match level.below() {
            Some(below) if !edge.is_aligned(level.entry_bytes()) => {
                *table = Some((below, edge.align_down(level.entry_bytes())));
                level = below;
            }
            _ => break,
        }
    }
    tables
}

impl<P: TableMemory + Maintenance> Stage2<P> {
    /// Reserves what splitting at the edges of `range` takes: at most two tables an edge, those that serve both edges
    /// counted once. Leaves that `wants` turns down are not going to be split.
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn reserve_edges(
        &self,
        range: IpaRange,
        wants: impl Fn(&Entry) -> bool,
    ) -> Result<SpareTables<'_, P>, Error> {
        let mut needed = [None; 4];
        for edge in [range.start(), range.end()] {
            if edge == self.geometry.range().end() {
                continue;
            }
            let entry = self.lookup_stable(edge);
            if !entry.is_leaf() || !wants(&entry) {
                continue;
            }
            for table in tables_at(&entry, edge).into_iter().flatten() {
                if !needed.contains(&Some(table))
                    && let Some(free) = needed.iter_mut().find(|free| free.is_none())
                {
                    *free = Some(table);
                }
            }
        }
        SpareTables::new(self, needed.iter().flatten().count(), range.start())
    }
}
