//! Random changes of the guest's table while the guest runs: what a test of the engine on a machine is made of.

use crate::el2::guest_memory::{operations, table_lock::TableLock, watch, watch::Set};
use crate::el2::manager::dirty::Region;
use crate::el2::manager::why::Why;
use hypervisor::granule::PAGE;
use hypervisor::policy::Policy;
use hypervisor::range::PhysRange;
use stage2::{IpaRange, LeafSize};

/// Pages that one change is about, at most: those of 32 MiB, so that the guest never waits for long.
const MOST_PAGES: u64 = (32 << 20) / PAGE;

/// Marsaglia's xorshift64*: nothing here needs more.
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }

    /// A range in one of the regions; every length from a page to the most has its share.
    fn range(&mut self, regions: &[Region]) -> Option<IpaRange> {
        let region = regions.get(self.below(regions.len().max(1) as u64) as usize)?.range;
        let pages = region.bytes() / PAGE;
        let first = self.below(pages);
        let most = (1u64 << self.below(1 + u64::from(MOST_PAGES.ilog2()))).min(pages - first);
        let pages = 1 + self.below(most);
        IpaRange::from_size(region.start().offset(first * PAGE), pages * PAGE).ok()
    }
}

/// Does so many random changes. Without any, everything is made as large and as open again as it was.
///
/// # Errors
///
/// The engine's sentence, when a change fails for more than a lack of memory.
pub fn churn(table: &TableLock, regions: &[Region], seed: u64, changes: u32) -> Result<(), Why> {
    if changes == 0 {
        open_all(regions)?;
        return Ok(operations::collapse(table, regions.iter().map(|region| &region.range))?);
    }
    let mut chance = Chance::new(seed);
    for _ in 0..changes {
        let Some(range) = chance.range(regions) else { return Ok(()) };
        let pages = PhysRange::new(range.start().0, range.end().0).ok_or("an empty range")?;
        match chance.below(8) {
            0..3 => {
                let [.., run, page] = LeafSize::DESCENDING;
                let size = [page, page, run, LeafSize::Block2M][chance.below(4) as usize % 4];
                operations::split(table, range, size)?;
            }
            3..5 => {
                if watch::set(pages, Some(Policy::Report), || false)? == Set::NoRoom {
                    open_all(regions)?;
                }
            }
            5 => drop(watch::set(pages, None, || false)?),
            _ => operations::collapse_piece(table, range)?,
        }
    }
    Ok(())
}

/// No store is reported any more.
fn open_all(regions: &[Region]) -> Result<(), Why> {
    for Region { range, .. } in regions {
        let range = PhysRange::new(range.start().0, range.end().0).ok_or("an empty range")?;
        let _ = watch::set(range, None, || false)?;
    }
    Ok(())
}
