//! The dirty log of all of the guest's memory: one of the engine's logs for each range of RAM.

use crate::el2::base::frames::FRAMES;
use crate::el2::guest_memory::operations::split;
use crate::el2::guest_memory::{events, table_lock::TableLock};
use crate::el2::manager::why::Why;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;
use hypervisor::granule::{FRAMES as PAGE_FRAMES, Granule, PAGE, in_frames, of_sizes};
use hypervisor_abi::events::{Call, Record};
use hypervisor_abi::manager::{Census, Mechanism};
use stage2::page_set::{BLOCK_WORDS, WORD_PAGES};
use stage2::{Ipa, IpaRange, Layout, LeafSize, Log, LogOptions, PAGE_SIZE, PageSet};

/// Harvests in a row that find a block dirty before it is split to pages.
const HOT: u8 = 4;

/// Leaves and tables as they are now.
pub fn census(table: &TableLock) -> Census {
    let census = table.read().census();
    Census { leaves: of_sizes(census.leaves).map(|count| count as u64), table_bytes: census.tables as u64 * PAGE }
}

/// A range of the guest's memory, and what is kept for its pages.
pub struct Region {
    pub range: IpaRange,
    layout: Layout<Granule>,
    /// The log's bitmap, while no log has it.
    storage: Option<&'static [AtomicU64]>,
    log: Option<Log<Granule>>,
    /// The last harvest.
    report: &'static mut [u64],
    /// What was reported since the last audit: a bit for each page of the granule.
    pub since: &'static mut [u64],
    /// A hash for each 4 KiB at the last audit.
    pub hashes: &'static mut [u64],
    /// How often in a row each block was found dirty.
    heat: Vec<u8>,
}

impl Region {
    /// Memory for all of it; nothing if there is too little.
    pub fn new(range: IpaRange) -> Option<Self> {
        let layout = Layout::with_granule(range);
        let words = layout.words();
        let storage = zeroed(words)?;
        // SAFETY: the words are nobody else's, live for ever, and AtomicU64 has the representation of u64.
        let storage = unsafe { core::slice::from_raw_parts(storage.as_mut_ptr().cast::<AtomicU64>(), words) };
        Some(Self {
            range,
            layout,
            storage: Some(storage),
            log: None,
            report: zeroed(words)?,
            since: zeroed(words)?,
            hashes: zeroed(range.pages() as usize)?,
            heat: heat(words.div_ceil(BLOCK_WORDS))?,
        })
    }

    /// Whether the page was reported since the last audit.
    pub fn was_reported(&self, page: Ipa) -> bool {
        let bit = (page.0 - self.layout.word_ipa(0).0) / PAGE;
        self.since.get(bit as usize / 64).is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    /// Starts its log.
    ///
    /// # Errors
    ///
    /// A sentence; no log runs. Leaves may have been split.
    pub fn start(&mut self, table: &TableLock, mechanism: Mechanism, all_dirty: bool) -> Result<(), Why> {
        // Splitting beforehand, under the shared lock, leaves less to do while the guest's faults wait.
        let how = match mechanism {
            Mechanism::HardwarePage => {
                split(table, self.range, LeafSize::Page)?;
                stage2::Mechanism::HardwarePage
            }
            Mechanism::HardwareBlock => {
                split(table, self.range, LeafSize::Block2M)?;
                stage2::Mechanism::HardwareBlock
            }
            Mechanism::Auto | Mechanism::WriteProtect | Mechanism::WriteProtectEager => stage2::Mechanism::WriteProtect,
        };
        let options = LogOptions { mechanism: how, all_dirty };
        let storage = self.storage.ok_or("this range is logged already")?;
        let log = {
            let mut table = table.write();
            events::fallible(Call::Start, Some(self.range), || table.start_log(self.range, storage, options))
        };
        self.log = Some(log?);
        self.storage = None;
        self.heat.fill(0);
        self.since.fill(0);
        match mechanism {
            // Without memory for all of it, the rest is split at its first writes.
            Mechanism::WriteProtectEager => split(table, self.range, LeafSize::Page).or_else(|why| {
                log::warn!("manager: not everything is split eagerly: {why}");
                Ok(())
            }),
            _ => Ok(()),
        }
    }

    /// Ends its log. Leaves stay as they are.
    pub fn stop(&mut self, table: &TableLock) {
        if let Some(log) = self.log.take() {
            let range = log.range();
            let mut table = table.write();
            self.storage = events::operation(Call::End, Some(range), || table.stop_log_keeping_pages(log), |_| true);
        }
    }

    /// Harvests its log (in one step, or by a look and a clear of what it has shown), less what `drops` takes out on purpose, and calls `each` with the address and the bits of each
    /// word that has any. Returns the number of pages; there and in the words they are of 4 KiB.
    ///
    /// # Errors
    ///
    /// The engine's sentence.
    pub fn harvest(
        &mut self,
        table: &TableLock,
        look_first: bool,
        drops: &mut Drops,
        mut each: impl FnMut(u64, u64),
    ) -> Result<u64, Why> {
        let Some(log) = &mut self.log else { return Ok(0) };
        let mut set = PageSet::new(self.layout, self.report).ok_or("a bitmap is too small")?;
        let table = table.read();
        let taken = if look_first {
            table.peek(log, &mut set).and_then(|()| {
                let clear = || {
                    tell_pages(&set);
                    table.clear(log, &set)
                };
                events::fallible(Call::Clear, Some(self.range), clear)
            })
        } else {
            let harvest = || table.harvest(log, &mut set).inspect(|()| tell_pages(&set));
            events::fallible(Call::Harvest, Some(self.range), harvest)
        };
        taken?;
        drop(table);
        let words = set.bitmap().len();
        let mut pages = 0;
        for word in 0..words {
            let (Some(bits), Some(since)) = (self.report.get(word), self.since.get_mut(word)) else { break };
            let bits = drops.apply(*bits);
            if bits != 0 {
                *since |= bits;
                pages += u64::from(bits.count_ones()) * PAGE_FRAMES;
                in_frames(PAGE_FRAMES, self.layout.word_ipa(word).0, bits, &mut each);
            }
        }
        Ok(pages)
    }

    /// How many pages of 4 KiB are dirty, which they stay.
    ///
    /// # Errors
    ///
    /// The engine's.
    pub fn dirty(&mut self, table: &TableLock) -> Result<u64, Why> {
        let Some(log) = &mut self.log else { return Ok(0) };
        let mut set = PageSet::new(self.layout, self.report).ok_or("a bitmap is too small")?;
        table.read().peek(log, &mut set)?;
        Ok(set.bitmap().iter().map(|word| u64::from(word.count_ones()) * PAGE_FRAMES).sum())
    }

    /// Splits the blocks that were found dirty whole, again and again: from now on they are reported page by page.
    pub fn refine(&mut self, table: &TableLock) {
        let blocks = self.report.chunks_exact(BLOCK_WORDS).zip(&mut self.heat).enumerate();
        for (block, (words, heat)) in blocks {
            *heat = if words.iter().all(|word| *word == u64::MAX) { heat.saturating_add(1) } else { 0 };
            if *heat != HOT {
                continue;
            }
            // With 4 KiB pages a block of 2 MiB; a larger block is split at the first of its parts.
            let bytes = (BLOCK_WORDS * WORD_PAGES) as u64 * PAGE;
            let start = Ipa(self.range.start().align_down(bytes).0 + block as u64 * bytes);
            // No memory: it stays a block, reported whole.
            let _ = IpaRange::new(start, start.offset(bytes)).map(|block| split(table, block, LeafSize::Page));
        }
    }
}

/// Writes down which pages a harvest reports.
fn tell_pages(set: &PageSet<'_, Granule>) {
    if !events::is_kept() {
        return;
    }
    let mut open: Option<(u64, u64)> = None;
    let tell = |open: Option<(u64, u64)>| open.map(|(start, end)| events::push(|| Record::pages(start, end)));
    set.for_each(|page| {
        let start = match open {
            Some((start, end)) if end == page.0 => start,
            before => {
                tell(before);
                page.0
            }
        };
        open = Some((start, page.0 + PAGE));
    });
    tell(open);
}

/// Leaves out one reported page in so many, to show that an audit finds it.
pub struct Drops {
    every: Option<u64>,
    seen: u64,
}

impl Drops {
    /// Drops every `every`th page, or none.
    pub const fn new(every: Option<u64>) -> Self {
        Self { every, seen: 0 }
    }

    fn apply(&mut self, bits: u64) -> u64 {
        let Some(every) = self.every else { return bits };
        let (mut left, mut kept) = (bits, bits);
        while left != 0 {
            let lowest = left & left.wrapping_neg();
            left &= left - 1;
            self.seen += 1;
            if self.seen.is_multiple_of(every) {
                kept &= !lowest;
            }
        }
        kept
    }
}

/// A number for each block; nothing if the heap has no room.
fn heat(blocks: usize) -> Option<Vec<u8>> {
    let mut heat = Vec::new();
    heat.try_reserve_exact(blocks).ok()?;
    heat.resize(blocks, 0);
    Some(heat)
}

/// So many words of the hypervisor's own memory, for ever.
fn zeroed(words: usize) -> Option<&'static mut [u64]> {
    let frames = (words as u64 * 8).div_ceil(PAGE_SIZE);
    let start = FRAMES.allocate(frames, 1)?.0 as *mut u64;
    // SAFETY: the frames are this function's alone and hold so many words, mapped and aligned.
    unsafe { start.write_bytes(0, words) };
    // SAFETY: as above; initialised, and never freed.
    Some(unsafe { core::slice::from_raw_parts_mut(start, words) })
}
