//! The first store to a page that a log write-protects: the page is made writable, then marked. On the way there the
//! leaf it lies in is split.

use crate::arch::address::Ipa;
use crate::arch::descriptor::{Descriptor, bits};
use crate::arch::geometry::Level;
use crate::arch::granule::Granule;
use crate::bitmap::logs::DirtyLog;
use crate::fault::FaultHistory;
use crate::platform::counters::Event;
use crate::platform::{Maintenance, Slot, TableMemory};
use crate::table::Stage2;
use crate::table::spare::SpareTables;
use crate::table::walk::Entry;

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// The abort that tracking makes frequent: a store to a page of a log that is write-protected. Does what
    /// [`Stage2::fault`] would, and returns whether it was that; if not, nothing has been done or counted.
    ///
    /// Cost: one load a level, one compare-exchange, the marks, two local TLBIs; nothing else, and it is small enough
    /// to be inlined into the exit path.
    #[inline(always)]
    pub fn first_write(&self, ipa: Ipa, va: u64, history: &mut FaultHistory) -> bool {
        // A log lies in the IPA space. In a frozen table a page may be made writable: the store finds no translation
        // all the same.
        let Some(dirty_log) = self.logs.at(ipa) else { return false };
        let Some(slot) = self.page_slot(ipa) else { return false };
        self.make_writable(slot, dirty_log, ipa, va, history)
    }

    /// Makes the page in `slot` writable if it is write-protected, and says whether it was.
    #[inline(always)]
    fn make_writable(
        &self,
        slot: Slot,
        dirty_log: &DirtyLog<G>,
        ipa: Ipa,
        va: u64,
        history: &mut FaultHistory,
    ) -> bool {
        let value = self.load(slot);
        const HELD: u64 = bits::VALID | bits::TABLE | bits::WRITE_GRANTED;
        const FREE: u64 = bits::WRITE | bits::DBM | bits::BUSY | bits::CONTIGUOUS;
        if value & (HELD | FREE) != HELD {
            return false;
        }
        // SAFETY: as for all descriptors (`table.rs`).
        if unsafe { self.platform.compare_exchange(slot, value, value | bits::WRITE) }.is_err() {
            return false;
        }
        // First writable, then marked: in the other order a harvest in between would lose the mark.
        dirty_log.bitmap.mark(ipa);
        self.invalidate_local_uncounted(ipa, va);
        self.platform.counters().add_first_write();
        history.clear();
        true
    }

    /// [`Stage2::first_write`] to a page that is still part of a block of 2 MiB: the block becomes a table of pages
    /// that are write-protected, of which one is made writable.
    ///
    /// Cost: a first write, and one frame and 512 descriptors.
    #[inline(always)]
    pub fn first_write_to_block(&self, ipa: Ipa, va: u64, history: &mut FaultHistory) -> bool {
        const HELD: u64 = bits::VALID | bits::WRITE_GRANTED;
        const FREE: u64 = bits::TABLE | bits::WRITE | bits::DBM | bits::BUSY | bits::NT | bits::CONTIGUOUS;
        if self.frozen.is_some() {
            return false;
        }
        let Some(dirty_log) = self.logs.at(ipa) else { return false };
        let Some(slot) = self.level_2_slot(ipa) else { return false };
        let block = Entry::at(slot, Level::L2, ipa, Descriptor(self.load(slot)));
        if block.value.0 & (HELD | FREE) != HELD {
            return false;
        }
        // Without memory, and where another PE was first, it is for `fault` to say what happens.
        let split = self.split_leaf(&block, &[Some(block.range()), None], &mut SpareTables::none(self));
        if !matches!(split, Ok(true)) {
            return false;
        }
        let Ok(page) = self.step(slot, Level::L2, Level::L3, ipa) else { return false };
        self.make_writable(page, dirty_log, ipa, va, history)
    }

    /// The first write to a leaf that is write-protected. `entry` is what the walk found.
    #[cfg_attr(not(feature = "small"), inline(always))]
    #[cfg_attr(feature = "small", inline(never))]
    pub(crate) fn answer_write(&self, entry: Entry<G>, ipa: Ipa) {
        let Some(dirty_log) = self.logs.at(ipa) else {
            // A log has ended: the leaf is made writable whole. If another PE was first, the guest finds out by trying
            // again.
            if entry.is_run_member() {
                self.change_run(&entry, |leaf| if leaf & bits::WRITE_GRANTED != 0 { leaf | bits::WRITE } else { leaf });
            } else {
                let _ = self.replace(entry.slot, entry.value.0, entry.value.0 | bits::WRITE);
            }
            return;
        };
        self.make_writable_in_log(entry, ipa, dirty_log);
    }

    /// Splits the leaf around `ipa` down to write-protected pages, unless it is a page, then makes the one page
    /// writable.
    #[inline(never)]
    fn make_writable_in_log(&self, mut entry: Entry<G>, ipa: Ipa, dirty_log: &DirtyLog<G>) {
        let mut reserve = SpareTables::none(self);
        while entry.value.is_write_protected() {
            if entry.level == Level::L3 && !entry.value.is_contiguous() {
                // Lost races (the page was made writable, denied, or protected again) end in another fault, or in none.
                let _ = self.replace(entry.slot, entry.value.0, entry.value.0 | bits::WRITE);
                break;
            }
            let plain = [Some(entry.range()), None];
            if self.split_leaf(&entry, &plain, &mut reserve).is_err() {
                // No memory: the guest goes on, at the price of precision.
                let _ = self.replace(entry.slot, entry.value.0, entry.value.0 | bits::WRITE);
                dirty_log.bitmap.mark_range(entry.range());
                self.count(Event::PrecisionLost);
                return;
            }
            entry = self.lookup_stable(ipa);
        }
        // Writable first: see `make_writable`, the frequent case in few instructions.
        dirty_log.bitmap.mark(ipa);
    }
}
