//! Rights taken away in bulk: by one atomic instruction a leaf, whatever the leaf is.

use crate::arch::address::IpaRange;
use crate::arch::descriptor::{Descriptor, bits};
use crate::arch::features::Method;
use crate::arch::geometry::Level;
use crate::arch::granule::Granule;
use crate::platform::counters::Event;
use crate::platform::{Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::tlb::Pending;

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// Takes the bits of `mask` from all leaves of `range`, by one atomic instruction each, whatever they are. Says
    /// whether that was all there is to do; otherwise it is to be done leaf by leaf.
    pub(crate) fn revoke_bits(&self, range: IpaRange, mask: u64, pending: &mut Pending) -> bool {
        let table_bytes = Level::L1.bytes::<G>();
        let (mut ipa, mut done) = (range.start(), true);
        while ipa < range.end() {
            let part = IpaRange::new_unchecked(ipa, ipa.align_down(table_bytes).offset(table_bytes).min(range.end()));
            let Some(slot) = self.level_2_slot(ipa) else { return false };
            if (part.start().0 | part.end().0).is_multiple_of(Level::L2.bytes::<G>()) {
                match self.revoke_leaves(slot, part, Level::L2, mask, pending) {
                    None => return false,
                    // With a table among them, some of the bits are its address's.
                    Some(seen) if seen & bits::TABLE != 0 => done &= self.revoke_pages(slot, part, mask, pending),
                    Some(seen) => done &= seen & (bits::BUSY | bits::NT) == 0,
                }
            } else {
                done &= self.revoke_pages(slot, part, mask, pending);
            }
            ipa = part.end();
        }
        done
    }

    /// The same for the pages of `part`, whose level-2 entries begin at `slot`; blocks are left alone, and are whole in
    /// a part that begins and ends with them.
    #[inline(always)]
    fn revoke_pages(&self, mut slot: Slot, part: IpaRange, mask: u64, pending: &mut Pending) -> bool {
        let block_bytes = Level::L2.bytes::<G>();
        let (mut ipa, mut done) = (part.start(), true);
        while ipa < part.end() {
            let pages = IpaRange::new_unchecked(ipa, ipa.align_down(block_bytes).offset(block_bytes).min(part.end()));
            let value = Descriptor(self.load(slot));
            if value.is_table(Level::L2) {
                let first = Slot { table: value.address_of::<G>(), index: Level::L3.index_of::<G>(ipa) };
                let seen = self.revoke_leaves(first, pages, Level::L3, mask, pending);
                // A PE that had marked an entry busy may write over what was done to it.
                done &= seen.is_some_and(|seen| seen & bits::BUSY == 0);
            } else {
                // A block that has lost the bits already, or nothing; or else it is not this way's.
                done &= value.0 & mask == 0 && !value.is_busy(Level::L2);
            }
            slot.index += 1;
            ipa = pages.end();
        }
        done
    }

    /// The same for the entries of `part` from `first` on, all in one table of `level`, and returns all bits that were
    /// set. `None`: there are runs, and nothing has been done.
    #[inline(always)]
    fn revoke_leaves(
        &self,
        first: Slot,
        part: IpaRange,
        level: Level,
        mask: u64,
        pending: &mut Pending,
    ) -> Option<u64> {
        let run = level.run::<G>();
        let count = (part.bytes() >> level.shift_of::<G>()) as usize;
        // A run's members change together. A PE that takes a run apart goes upwards: when the last member is out of it,
        // all are.
        let (mut index, last) = (first.index | (run - 1), (first.index + count - 1) | (run - 1));
        let sample = self.load(Slot { index, ..first });
        let mut any = sample;
        let at = |index| self.load(Slot { index, ..first });
        // Four at a time, then one by one.
        while index + 4 * run <= last {
            any |= at(index + run) | at(index + 2 * run) | at(index + 3 * run) | at(index + 4 * run);
            index += 4 * run;
        }
        while index < last {
            index += run;
            any |= at(index);
        }
        if any & (bits::CONTIGUOUS | bits::BUSY) != 0 {
            return None;
        }
        if level == Level::L3 && count >= run && sample & mask != 0 && self.method != Method::Break {
            // Pages, one of which is known to change. No PE marks one busy that is in no run (but for a break that an erratum asks for, which keeps what is taken), and no run is made in a
            // table that others reach but under `&mut self`: there is nothing to see. (With break-before-make a run's
            // members come back by plain stores, in any order: the last may be back, and others busy still.)
            self.platform.counters().add(Event::DescriptorWrite, count as u64);
            pending.add(part);
            // SAFETY: as below.
            unsafe { self.platform.clear_run::<false>(first, count, mask, self.config.features.lse) };
            return Some(mask);
        }
        // SAFETY: as for all descriptors (`table.rs`); the features are those of the weakest PE. Tables and what is not
        // valid have none of the bits, or are busy.
        let seen = unsafe { self.platform.clear_run::<true>(first, count, mask, self.config.features.lse) };
        if seen & mask != 0 {
            self.platform.counters().add(Event::DescriptorWrite, count as u64);
            pending.add(part);
        }
        Some(seen)
    }
}
