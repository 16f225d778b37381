//! Memory for the payload itself and for its tests: the largest free part of RAM, handed out from below.
//!
//! What a test took is given back when it ends, however it ends: the runner notes the [`Mark`] before it.

use crate::machine::image;
use crate::machine::tree::{self, Machine};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

static START: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Finds the largest part of RAM that is neither image nor device tree.
pub fn init(machine: &Machine) {
    let image = image::parts();
    let taken = [image.text.start..image.data.end, machine.tree_range.clone()];
    let largest = free_ranges(machine.ram(), &taken).max_by_key(|range| range.end - range.start).expect("some memory");
    START.store(largest.start, Ordering::Relaxed);
    NEXT.store(largest.start, Ordering::Relaxed);
    END.store(largest.end, Ordering::Relaxed);
}

/// The parts of `ram` between the two `taken` ranges, in whole pages.
fn free_ranges<'a>(ram: &'a [Range<u64>], taken: &'a [Range<u64>; 2]) -> impl Iterator<Item = Range<u64>> + 'a {
    ram.iter().flat_map(move |range| {
        let mut cuts = taken.clone();
        cuts.sort_unstable_by_key(|cut| cut.start);
        let [first, second] = cuts;
        [
            range.start..range.end.min(first.start),
            range.start.max(first.end)..range.end.min(second.start),
            range.start.max(second.end)..range.end,
        ]
        .map(|part| part.start.next_multiple_of(PAGE)..part.end / PAGE * PAGE)
        .into_iter()
        .filter(|part| part.start < part.end)
    })
}

/// The memory that tests may use and that nothing is in: from the next free page to the end.
pub fn free() -> Range<u64> {
    NEXT.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)
}

/// Memory of `size` bytes whose address is a multiple of `alignment` (a power of two), or `None` if there is not as
/// much. Its contents are whatever they were.
pub fn allocate(size: u64, alignment: u64) -> Option<u64> {
    let end = END.load(Ordering::Relaxed);
    let place = |next: u64| {
        next.checked_next_multiple_of(alignment.max(PAGE)).filter(|start| end.saturating_sub(*start) >= size)
    };
    let take = |next| place(next).map(|start| start + size.next_multiple_of(PAGE));
    NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().and_then(place)
}

/// A page of zeros.
pub fn allocate_zeroed_page() -> Option<u64> {
    let page = allocate(PAGE, PAGE)?;
    // SAFETY: the page was just taken, is RAM by the tree and mapped, and nobody else uses it.
    unsafe { core::ptr::write_bytes(page as *mut u8, 0, PAGE as usize) };
    Some(page)
}

/// A state of the allocator to go back to.
pub struct Mark(u64);

/// The state now.
pub fn mark() -> Mark {
    Mark(NEXT.load(Ordering::Relaxed))
}

/// Gives back everything that was taken after the mark.
pub fn release_to(mark: &Mark) {
    NEXT.store(mark.0, Ordering::Relaxed);
}

/// Whether the page at `address` is RAM that the payload itself lives in: image, tree, or something taken.
pub fn in_use(address: u64) -> bool {
    let image = image::parts();
    let tree = &tree::get().tree_range;
    let taken = START.load(Ordering::Relaxed)..NEXT.load(Ordering::Relaxed);
    [image.text.start..image.data.end, tree.start / PAGE * PAGE..tree.end, taken]
        .iter()
        .any(|range| range.contains(&address))
}
