//! The safe way for a table's frame out of use: after the invalidation, never before.

use crate::arch::address::PhysAddr;
use crate::arch::descriptor::{Descriptor, Kind};
use crate::arch::geometry::Level;
use crate::arch::granule::Granule;
use crate::platform::{Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::tlb::Pending;
use core::mem::MaybeUninit;

/// Tables that wait for one invalidation.
const DETACHED: usize = if cfg!(feature = "small") { 8 } else { 32 };

/// Tables that no descriptor leads to any more, but that walk caches may: they are freed after the invalidation, never
/// before. Use under `&mut self` only.
pub(crate) struct RetiredTables<'t, P: TableMemory + Maintenance, G: Granule> {
    table: &'t Stage2<P, G>,
    pub(crate) pending: Pending,
    /// Each with its level in the bits that a frame's address has no use for.
    frames: [MaybeUninit<u64>; DETACHED],
    count: usize,
}

impl<'t, P: TableMemory + Maintenance, G: Granule> RetiredTables<'t, P, G> {
    pub(crate) fn new(table: &'t Stage2<P, G>) -> Self {
        Self { table, pending: Pending::new(), frames: [const { MaybeUninit::uninit() }; DETACHED], count: 0 }
    }

    /// Takes over a table of `level`, with all tables below it. The entry that led to it has been replaced, and its
    /// range is part of `pending`.
    pub(crate) fn push(&mut self, frame: PhysAddr, level: Level) {
        if self.count == DETACHED {
            self.flush();
        }
        if let Some(place) = self.frames.get_mut(self.count) {
            place.write(frame.0 | level as u64);
            self.count += 1;
        }
    }

    /// Invalidates what is pending, then frees. On return no PE uses anything old.
    pub(crate) fn flush(&mut self) {
        self.table.complete(&self.pending);
        self.pending = Pending::new();
        for packed in self.frames.iter().take(self.count) {
            // SAFETY: `push` has written the first `count`.
            let packed = unsafe { packed.assume_init() };
            let frame = PhysAddr(packed).align_down(G::BYTES);
            let level = match packed - frame.0 {
                1 => Level::L1,
                2 => Level::L2,
                // The root is never pushed.
                _ => Level::L3,
            };
            if level != Level::L3 {
                self.table.free_tables_below(frame, level, 1);
            }
            // SAFETY: nothing leads to the table since it was pushed, and walk caches are empty of it since `complete`.
            unsafe { self.table.free(frame) };
        }
        self.count = 0;
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Drop for RetiredTables<'_, P, G> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Frees all tables that `tables` adjacent tables of `level` lead to, but not these themselves.
    ///
    /// Nothing may lead to the given tables any more, in memory or in a cache.
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn free_tables_below(&self, first: PhysAddr, top: Level, tables: usize) {
        // The table of each level that is being gone through, and its next entry.
        let mut path = [(first, 0); Level::L3 as usize + 1];
        let mut level = top;
        while let Some((table, next)) = path.get_mut(level as usize) {
            let entries = if level == top { tables * G::ENTRIES } else { G::ENTRIES };
            let Some(below) = level.below().filter(|_| *next < entries) else {
                // All below the table is free.
                let Some(above) = level.above().filter(|_| level != top) else { return };
                // SAFETY: the only way to the frame was through a table that nothing leads to any more.
                unsafe { self.free(*table) };
                level = above;
                continue;
            };
            let part = (*next / G::ENTRIES) as u64 * G::BYTES;
            let slot = Slot { table: table.offset(part), index: *next % G::ENTRIES };
            *next += 1;
            if let Kind::Table(frame) = Descriptor(self.load(slot)).kind_of::<G>(level) {
                if let Some(place) = path.get_mut(below as usize) {
                    *place = (frame, 0);
                }
                level = below;
            }
        }
    }
}
