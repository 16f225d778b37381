//! What TLBs and walk caches may still hold that memory does not say any more.
//!
//! Every PE may walk at any moment, so it may hold all that memory says now; that part is never stored. What is stored
//! here is the rest: the value that a store replaced, until an invalidation has taken it from every PE. A table that a
//! store replaced stands for itself and for everything in it.

use crate::memory::FrameId;
use crate::span::Span;
use crate::translation::Translation;
use core::ops::Range;
use std::collections::BTreeMap;

/// PEs that the model can have.
pub const MAX_PES: usize = 5;

/// A set of PEs.
pub(crate) type Mask = u8;

/// Sizes that an entry can have, whatever the granule: those of leaves and runs, and of tables (log2 of bytes).
const SHIFTS: [u8; 15] = [12, 14, 16, 21, 25, 29, 30, 34, 36, 39, 41, 42, 47, 48, 55];

/// What a replaced descriptor was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Held {
    /// A leaf, or the run that it was a member of.
    Leaf(Translation),
    /// A way into the table in this frame.
    Table(FrameId),
}

/// Something that memory does not say any more and that PEs may still hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stale {
    pub held: Held,
    pub span: Span,
    /// PEs that may hold it as an entry of stage 2 or of a walk cache.
    pub tlb: Mask,
    /// PEs that may hold entries that combine it with stage 1.
    pub combined: Mask,
    /// When each PE lost the entry of stage 2, from which combined entries came.
    pub gone_at: [u64; MAX_PES],
    /// Stores that replaced it and that are not yet ordered: a walk may still read the old value.
    pub visible: u16,
    /// When the last of these became ordered.
    pub hidden_at: u64,
    /// The operation (or 0) and the event that replaced it.
    pub operation: u64,
    pub replaced_at: u64,
}

impl Stale {
    pub fn is_gone(&self) -> bool {
        self.tlb | self.combined == 0
    }

    /// An invalidation issued at `time` finds an entry that no walk can bring back.
    pub fn hidden_before(&self, time: u64) -> bool {
        self.visible == 0 && self.hidden_at < time
    }
}

/// The place of an entry in [`Tlb`]: size, address, and a number that tells entries of one place apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Key {
    shift: u8,
    base: u64,
    number: u64,
}

/// All such entries of one VMID.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tlb {
    entries: BTreeMap<Key, Stale>,
    /// How many entries there are of each of [`SHIFTS`].
    count: [u32; SHIFTS.len()],
    /// Entries that some PE may hold in combined form only.
    combined_only: Vec<Key>,
    numbers: u64,
}

fn class(shift: u8) -> usize {
    SHIFTS.iter().position(|&s| s >= shift).unwrap_or(SHIFTS.len() - 1)
}

impl Tlb {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, key: Key) -> Option<&Stale> {
        self.entries.get(&key)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut Stale> {
        self.entries.get_mut(&key)
    }

    /// Adds an entry, or says again that a known one may be held. Returns where it is, and what was held there before.
    pub fn insert(&mut self, stale: Stale) -> (Key, Option<Stale>) {
        let Span { shift, base, .. } = stale.span;
        let here = Key { shift, base, number: 0 }..=Key { shift, base, number: u64::MAX };
        for (&key, known) in self.entries.range_mut(here) {
            if known.held == stale.held {
                let before = *known;
                known.tlb |= stale.tlb;
                known.combined |= stale.combined;
                known.visible += stale.visible;
                known.hidden_at = known.hidden_at.max(stale.hidden_at);
                known.operation = stale.operation;
                known.replaced_at = stale.replaced_at;
                return (key, Some(before));
            }
        }
        self.numbers += 1;
        let key = Key { shift, base, number: self.numbers };
        self.entries.insert(key, stale);
        self.count[class(shift)] += 1;
        (key, None)
    }

    pub fn remove(&mut self, key: Key) {
        if self.entries.remove(&key).is_some() {
            self.count[class(key.shift)] -= 1;
        }
    }

    /// Notes that PEs have lost the entry of stage 2 and may hold combined ones.
    pub fn note_combined_only(&mut self, key: Key) {
        if self.combined_only.last() != Some(&key) {
            self.combined_only.push(key);
        }
    }

    pub fn take_combined_only(&mut self) -> Vec<Key> {
        core::mem::take(&mut self.combined_only)
    }

    /// The entries that overlap `range`.
    pub fn overlapping<'a>(&'a self, range: &Range<u64>) -> impl Iterator<Item = (Key, &'a Stale)> {
        let range = range.clone();
        let classes = SHIFTS.iter().zip(self.count).filter(|&(_, count)| count > 0);
        classes.flat_map(move |(&shift, _)| {
            let first = range.start >> shift << shift;
            let from = Key { shift, base: first, number: 0 };
            let to = Key { shift, base: range.end.max(first), number: 0 };
            self.entries.range(from..to).map(|(&key, stale)| (key, stale))
        })
    }

    pub fn keys(&self) -> Vec<Key> {
        self.entries.keys().copied().collect()
    }
}

impl core::fmt::Display for Stale {
    /// The PEs that may hold the entry.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let list = |mask: Mask| {
            let pes: Vec<_> = (0..MAX_PES).filter(|pe| mask & 1 << pe != 0).map(|pe| format!("PE{pe}")).collect();
            pes.join(", ")
        };
        if self.tlb != 0 {
            write!(f, "{}", list(self.tlb))?;
        } else {
            write!(f, "{} (combined with stage 1)", list(self.combined))?;
        }
        if self.visible > 0 {
            write!(f, " (the store that replaced it is not ordered by a DSB)")?;
        }
        Ok(())
    }
}
