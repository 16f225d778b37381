//! Frames set aside before the first descriptor changes: prepare, then commit.

use crate::arch::address::{Ipa, IpaRange, PhysAddr};
use crate::arch::error::Error;
use crate::arch::geometry::Level;
use crate::arch::granule::Granule;
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
pub(crate) struct SpareTables<'t, P: TableMemory + Maintenance, G: Granule> {
    table: &'t Stage2<P, G>,
    head: Option<PhysAddr>,
}

impl<'t, P: TableMemory + Maintenance, G: Granule> SpareTables<'t, P, G> {
    /// No frames: each is allocated when it is taken.
    pub(crate) const fn none(table: &'t Stage2<P, G>) -> Self {
        Self { table, head: None }
    }

    /// `frames` frames, or none at all and the error.
    pub(crate) fn new(table: &'t Stage2<P, G>, frames: usize, ipa: Ipa) -> Result<Self, Error> {
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

impl<P: TableMemory + Maintenance, G: Granule> Drop for SpareTables<'_, P, G> {
    fn drop(&mut self) {
        while let Some(frame) = self.head {
            let next = self.table.load(Slot { table: frame, index: 0 });
            self.head = linked(next);
            // SAFETY: a reserved frame was never published, so nothing leads to it.
            unsafe { self.table.free(frame) };
        }
    }
}

/// The tables that a split at `edge` will make under an entry of `level`, at most two, as (level, first address).
fn tables_at<G: Granule>(mut level: Level, edge: Ipa) -> [Option<(Level, Ipa)>; 2] {
    let mut tables = [None; 2];
    for table in &mut tables {
        match level.below() {
            Some(below) if !edge.is_aligned(level.bytes::<G>()) => {
                *table = Some((below, edge.align_down(level.bytes::<G>())));
                level = below;
            }
            _ => break,
        }
    }
    tables
}

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Reserves what splitting at the edges of `range` takes: at most two tables an edge, or three where it is in a block of
    /// level 0; those that serve both edges are counted once. Leaves that `wants` turns down are not going to be split.
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn reserve_edges(
        &self,
        range: IpaRange,
        wants: impl Fn(&Entry<G>) -> bool,
    ) -> Result<SpareTables<'_, P, G>, Error> {
        let mut needed = [None; 4];
        // Tables of level 1, and the last block of level 0 that one of them is for.
        let (mut large, mut last) = (0, None);
        for edge in [range.start(), range.end()] {
            if edge == self.geometry.range().end() {
                continue;
            }
            let entry = self.lookup_stable(edge);
            if !entry.is_leaf() || !wants(&entry) {
                continue;
            }
            let mut level = entry.level;
            let block = edge.align_down(Level::L0.bytes::<G>());
            if G::LEVEL_0_BLOCKS && level == Level::L0 && edge != block {
                large += usize::from(last.replace(block) != Some(block));
                level = Level::L1;
            }
            for table in tables_at::<G>(level, edge).into_iter().flatten() {
                if !needed.contains(&Some(table))
                    && let Some(free) = needed.iter_mut().find(|free| free.is_none())
                {
                    *free = Some(table);
                }
            }
        }
        SpareTables::new(self, large + needed.iter().flatten().count(), range.start())
    }
}
