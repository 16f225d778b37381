//! The granule of the guest's table, which is chosen when the image is built: 4 KiB, or by a feature 16 or 64 KiB.
//!
//! It is about what stage 2 maps and nothing else: EL2's own map, stacks and frames stay 4 KiB, and what is told of the guest's
//! memory (dirty pages, a saved guest) counts pages of 4 KiB whatever the granule. The guest does not see it.

use stage2::{Granule as _, LeafSize};

#[cfg(all(feature = "granule-16k", feature = "granule-64k"))]
compile_error!("the guest's table has one granule: choose one of the features granule-16k and granule-64k");
#[cfg(all(feature = "events", any(feature = "granule-16k", feature = "granule-64k")))]
compile_error!("the record of events is one of tables of 4 KiB: leave out the feature events, or the granule");

/// The granule of the guest's table.
#[cfg(not(any(feature = "granule-16k", feature = "granule-64k")))]
pub type Granule = stage2::Granule4K;
/// The granule of the guest's table.
#[cfg(all(feature = "granule-16k", not(feature = "granule-64k")))]
pub type Granule = stage2::Granule16K;
/// The granule of the guest's table.
#[cfg(feature = "granule-64k")]
pub type Granule = stage2::Granule64K;

/// Bytes of a page that the guest's table maps: what is in one page is the guest's together, or not at all.
pub const PAGE: u64 = Granule::BYTES;
/// Frames of 4 KiB in such a page, and in a table.
pub const FRAMES: u64 = Granule::FRAMES as u64;

/// Of the engine's leaf sizes, largest first, or of what there is for each of them, those that the guest's table has a place for: all but
/// blocks of 512 GiB, which come with FEAT_LPA2.
pub fn of_sizes<T>([_, rest @ ..]: [T; LeafSize::DESCENDING.len()]) -> [T; LeafSize::DESCENDING.len() - 1] {
    rest
}

/// Calls `each` with words of pages of 4 KiB, as [`hypervisor_abi::manager::words`] has them, for a word of `frames` times larger
/// pages, of which the first lies at `address`. `frames` is a power of two up to 64.
#[inline]
pub fn in_frames(frames: u64, address: u64, bits: u64, mut each: impl FnMut(u64, u64)) {
    if frames == 1 {
        return each(address, bits);
    }
    let pages = 64 / frames;
    let (one, all) = (u64::MAX >> (64 - frames), u64::MAX >> (64 - pages));
    for word in 0..frames {
        let part = bits >> (word * pages) & all;
        if part != 0 {
            let set = (0..pages).filter(|page| part >> page & 1 != 0).map(|page| one << (page * frames));
            each(address + word * 64 * stage2::PAGE_SIZE, set.sum());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        /// Page by page, by division alone.
        #[test]
        fn a_page_is_all_of_its_frames(shift in 0u32..=6, bits: u64) {
            const START: u64 = 0x4000_0000;
            let frames = 1 << shift;
            let page_of = |address: u64| (address - START) / stage2::PAGE_SIZE / frames;
            let mut got = Vec::new();
            in_frames(frames, START, bits, |address, word| {
                got.extend((0..64).filter(|bit| word >> bit & 1 != 0).map(|bit| address + bit * stage2::PAGE_SIZE));
            });
            let all = (0..64 * frames).map(|frame| START + frame * stage2::PAGE_SIZE);
            let expected: Vec<u64> = all.filter(|&address| bits >> page_of(address) & 1 != 0).collect();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_table_and_a_page_have_one_size() {
        assert_eq!(PAGE, FRAMES * stage2::PAGE_SIZE);
    }
}
