//! Where the hypervisor's own memory lies: around the image as it was loaded, or at an end of RAM, where it leaves the guest
//! memory without a hole.
//!
//! A loader puts an Image near the start of RAM, so that the guest's memory would be two pieces with the hypervisor between
//! them. There are guests that take RAM for one piece, and that look for their device tree at its start.

use super::parts::{Machine, PAGE_SIZE};
use super::placement::pool_bytes;
use crate::range::{PhysRange, without};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// The hypervisor's own memory begins at a multiple of this, and ends at one where it does not end with RAM, so that the
/// guest's leaves around it stay large.
const BLOCK: u64 = 2 << 20;
/// A pool of less is not worth trying.
const LEAST_POOL: u64 = 1 << 20;
/// Bits of address that EL2's own translation reaches.
const EL2_BITS: u8 = 48;
/// The sizes of leaves, runs included, the largest first: with pages of 4, 16 and 64 KiB.
const LEAVES: [&[u64]; 3] = [
    &[1 << 30, 32 << 20, 2 << 20, 64 << 10, 4 << 10],
    &[1 << 30, 32 << 20, 2 << 20, 16 << 10],
    &[16 << 30, 512 << 20, 2 << 20, 64 << 10],
];

/// What the hypervisor's own memory is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Where the image lies now, with its BSS and its heap.
    pub image: PhysRange,
    /// Bytes behind it: tables, the CPUs' areas.
    pub pool: u64,
    /// Where the machine's device tree lies.
    pub tree: PhysRange,
    /// Bits of physical address that the CPU has.
    pub pa_bits: u8,
}

/// What the guest's memory consists of. The smaller is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestShape {
    /// Ranges.
    pub ranges: usize,
    /// Whether it begins behind the first byte of RAM that firmware does not keep.
    pub late: bool,
    /// Leaves that map it.
    pub leaves: u64,
}

/// Why the image stays where it was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stays {
    /// It lies at an end of RAM.
    AtEnd,
    /// No range of RAM has so many bytes.
    TooSmall {
        /// Bytes of image and pool.
        bytes: u64,
    },
    /// Something lies where the image would go.
    Taken {
        /// What.
        what: String,
        /// Where it lies.
        range: PhysRange,
    },
    /// The guest's memory would not be in a better shape.
    NoGain,
    /// The image's first map does not reach it, or has it as a device.
    OutOfReach {
        /// Where the image would go.
        range: PhysRange,
    },
    /// The tree promises RAM where the image would go, and what is stored there cannot be read again.
    NoMemory {
        /// The address.
        at: u64,
    },
}

impl Machine {
    /// Bytes that the pool behind the image may need: see [`pool_bytes`]. `events`: bytes for a record of events.
    pub fn pool_bytes(&self, manager: bool, events: u64) -> u64 {
        let ram = self.ram.iter().fold(0_u64, |sum, range| sum.saturating_add(range.size()));
        pool_bytes(ram, manager).saturating_add(events)
    }

    /// The hypervisor's own memory with the image where it lies: the image, and behind it the pool, or as much of it as there
    /// is up to whatever lies there. If that is too little, the range overlaps it, which [`Machine::check_placement`] finds.
    pub fn own_memory(&self, needs: &Needs) -> PhysRange {
        let (start, image_end) = (needs.image.start() & !(BLOCK - 1), needs.image.end());
        let round_up = |address: u64| address.checked_next_multiple_of(BLOCK).unwrap_or(address);

        let free = self.free().into_iter().find(|range| range.contains(start)).map(|range| range.end());
        let loaded = self.loaded(needs.tree).map(|(_, range)| range.start());
        let limit = loaded.filter(|&address| address >= image_end).chain(free).min().unwrap_or(image_end);
        let wanted_end = image_end.saturating_add(needs.pool);

        // What is left of RAM behind it, if that is less than a block, is no range of its own for the guest.
        let fits = wanted_end <= limit && limit.saturating_sub(round_up(wanted_end)) < BLOCK;
        let end = if fits && Some(limit) == free {
            limit & !(PAGE_SIZE - 1)
        } else {
            round_up(wanted_end).min(limit & !(BLOCK - 1)).max(round_up(image_end.saturating_add(LEAST_POOL)))
        };
        PhysRange::new(start, end).unwrap_or(needs.image)
    }

    /// The guest's memory, by whole pages, where the hypervisor keeps `own`: sorted, joined.
    pub fn guest_memory(&self, own: PhysRange) -> Vec<PhysRange> {
        without(&self.free(), &[own]).into_iter().filter_map(|range| range.shrunk_to(self.page)).collect()
    }

    /// What of `left`, where images of the hypervisor lay that no longer run, the guest gets where the hypervisor keeps `own`. No
    /// module is in it: firmware may have put one where an application of its own had ended.
    pub fn left_behind(&self, own: PhysRange, left: &[PhysRange]) -> Vec<PhysRange> {
        let modules: Vec<PhysRange> = self.modules().map(|(_, range)| range).collect();
        let kept = without(left, &self.guest_memory(own));
        without(&without(left, &kept), &modules)
    }

    /// What that memory consists of.
    pub fn guest_shape(&self, own: PhysRange) -> GuestShape {
        let memory = self.guest_memory(own);
        let first = |ranges: &[PhysRange]| ranges.first().map(|range| range.start());
        let all = self.guest_memory(PhysRange::default());
        let sizes = LEAVES.into_iter().find(|sizes| sizes.last() == Some(&self.page)).unwrap_or_default();
        GuestShape {
            ranges: memory.len(),
            late: first(&memory) != first(&all),
            leaves: memory.iter().map(|&range| leaves(range, sizes)).sum(),
        }
    }

    /// The memory at an end of RAM that the hypervisor should have instead of what is around the image: of those ends that are
    /// free the one that leaves the guest's memory in the best shape. The image goes to its first byte.
    ///
    /// # Errors
    ///
    /// Why the image stays where it lies.
    pub fn better_place(&self, needs: &Needs) -> Result<PhysRange, Stays> {
        let own = self.own_memory(needs);
        let page_end = |range: &PhysRange| range.end() & !(PAGE_SIZE - 1);
        let mut free = self.free();
        if free.iter().any(|range| range.contains_range(needs.image) && page_end(range) == own.end()) {
            return Err(Stays::AtEnd);
        }
        // The largest first: what lies at its end is what is told.
        free.sort_by_key(|range| core::cmp::Reverse(range.size()));
        let bytes = needs.image.size().saturating_add(needs.pool);
        let mut why = Stays::TooSmall { bytes };
        let mut best: Option<(GuestShape, PhysRange)> = None;
        for range in free {
            let end = page_end(&range);
            let start = end.checked_sub(bytes).map(|start| start & !(BLOCK - 1));
            let place = start.filter(|&start| start >= range.start()).and_then(|start| PhysRange::new(start, end));
            let Some(place) = place.filter(|place| (place.end() - 1) >> needs.pa_bits.min(EL2_BITS) == 0) else {
                continue;
            };
            match self.in_the_way(place, needs) {
                Some((what, range)) if matches!(why, Stays::TooSmall { .. }) => why = Stays::Taken { what, range },
                Some(_) => {}
                None => {
                    let shape = self.guest_shape(place);
                    if best.is_none_or(|(other, _)| shape < other) {
                        best = Some((shape, place));
                    }
                }
            }
        }
        let (shape, place) = best.ok_or(why)?;
        if shape < self.guest_shape(own) { Ok(place) } else { Err(Stays::NoGain) }
    }

    /// RAM that firmware does not keep: sorted, joined.
    fn free(&self) -> Vec<PhysRange> {
        without(&self.ram, &self.reserved)
    }

    /// Where the device tree lies if the hypervisor has `place`: where it does now, or, if that is in `place`, where a copy of it
    /// goes first: below, where nothing else is. Nothing if there is no room.
    pub fn tree_place(&self, place: PhysRange, needs: &Needs) -> Option<PhysRange> {
        let tree = needs.tree;
        if !tree.overlaps(place) {
            return Some(tree);
        }
        let start = place.start().checked_sub(tree.size())? & !(PAGE_SIZE - 1);
        let copy = PhysRange::with_size(start, tree.size())?;
        let is_free = self.free().iter().any(|range| range.contains_range(copy));
        (is_free && !copy.overlaps(tree) && self.fixed_in(copy, needs).is_none()).then_some(copy)
    }

    /// What a loader has put into RAM, besides the image.
    fn loaded(&self, tree: PhysRange) -> impl Iterator<Item = (String, PhysRange)> {
        self.modules().chain([("the device tree".to_string(), tree)])
    }

    fn modules(&self) -> impl Iterator<Item = (String, PhysRange)> {
        let modules = self.kernel.iter().chain(&self.initrd);
        modules.map(|module| (alloc::format!("the module {}", module.name), module.range))
    }

    /// What keeps the image from going to `place`.
    fn in_the_way(&self, place: PhysRange, needs: &Needs) -> Option<(String, PhysRange)> {
        let tree = || self.tree_place(place, needs).is_none().then(|| ("the device tree".to_string(), needs.tree));
        self.fixed_in(place, needs).or_else(tree)
    }

    /// What lies in `place` and cannot be moved. A device that a tree has inside RAM may use that memory.
    fn fixed_in(&self, place: PhysRange, needs: &Needs) -> Option<(String, PhysRange)> {
        let image = ("the image itself".to_string(), needs.image);
        let loaded = self.modules().chain([image]).find(|(_, range)| range.overlaps(place));
        let device = || self.hidden.iter().find(|hidden| hidden.registers.overlaps(place));
        loaded.or_else(|| device().map(|hidden| (hidden.name.clone(), hidden.registers)))
    }
}

/// The fewest leaves of these sizes, the largest first, that map `range` at its own addresses.
fn leaves(range: PhysRange, sizes: &[u64]) -> u64 {
    let [size, smaller @ ..] = sizes else { return 0 };
    let Some(middle) = range.shrunk_to(*size) else { return leaves(range, smaller) };
    let ends = [PhysRange::new(range.start(), middle.start()), PhysRange::new(middle.end(), range.end())];
    middle.size() / size + ends.into_iter().flatten().map(|end| leaves(end, smaller)).sum::<u64>()
}

impl fmt::Display for GuestShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |number: u64| if number == 1 { "" } else { "s" };
        let (ranges, leaves) = (self.ranges, self.leaves);
        write!(f, "{ranges} range{}, {leaves} leaves", plural(ranges as u64))
    }
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtEnd => f.write_str("it lies at an end of RAM"),
            Self::TooSmall { bytes } => write!(f, "no range of RAM has the {} KiB that it takes", bytes.div_ceil(1024)),
            Self::Taken { what, range } => {
                write!(
                    f,
                    "{what} is at {range}, at the end of RAM; load it elsewhere for a guest's memory in one piece"
                )
            }
            Self::NoGain => f.write_str("the guest's memory would be in no better shape"),
            Self::OutOfReach { range } => write!(f, "{range}, where it would go, cannot be reached so early"),
            Self::NoMemory { at } => write!(f, "the device tree has RAM at {at:#x}, and there is none"),
        }
    }
}
