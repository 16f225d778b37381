//! Where the guest's kernel, initramfs and device tree go.

use super::{ImageError, Kernel};
use crate::range::{PhysRange, merged, without};
use alloc::vec::Vec;

const MIB: u64 = 1 << 20;
/// The base that `text_offset` counts from is aligned to this; a device tree has one such unit to itself, as it
/// "must not be placed within any 2M region which must be mapped with any specific attributes".
const BASE_ALIGNMENT: u64 = 2 * MIB;
/// The initramfs and the kernel lie in one window of this size that starts at a multiple of 1 GiB.
const INITRD_WINDOW: u64 = 32 << 30;
/// The room that QEMU leaves between a kernel's start and the initramfs or tree behind it.
const OPEN_END: u64 = 128 * MIB;
const PAGE_SIZE: u64 = 4096;

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What [`examine`](super::examine) found.
    pub kernel: Kernel,
    /// Where the kernel's file lies.
    pub kernel_file: PhysRange,
    /// Where the initramfs lies.
    pub initrd: Option<PhysRange>,
    /// Memory that will be the guest's: RAM without the hypervisor's and the firmware's.
    pub guest_ram: &'a [PhysRange],
}

/// A copy that must be made; source and destination may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// From where.
    pub from: PhysRange,
    /// To where; the size is the source's.
    pub to: u64,
}

/// Where everything goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// Copies to make, in this order: none overwrites what a later one reads.
    pub moves: Vec<Move>,
    /// The kernel's first byte, where it is entered.
    pub entry: u64,
    /// All memory of the kernel, BSS included.
    pub kernel: PhysRange,
    /// The initramfs.
    pub initrd: Option<PhysRange>,
    /// Room for the guest's device tree: 2 MiB, aligned to that.
    pub device_tree: PhysRange,
}

/// Plans the guest's memory. What can stay where it lies stays.
///
/// # Errors
///
/// [`ImageError::Size`] and [`ImageError::NoRoom`].
pub fn plan(request: &Request<'_>) -> Result<LoadPlan, ImageError> {
    let guest_ram = merged(request.guest_ram.to_vec());
    let space = Space { ranges: guest_ram };
    let kernel = place_kernel(request, &space)?;
    let initrd = request.initrd.map(|initrd| place_initrd(request, &space, kernel, initrd)).transpose()?;
    let device_tree = place_device_tree(request, &space, kernel, initrd)?;

    let mut moves = Vec::new();
    // The initramfs first: it goes where no file lies, while the kernel may go over the initramfs's old place.
    if let (Some(from), Some(to)) = (request.initrd, initrd) {
        moves.push(Move { from, to: to.start() });
    }
    moves.push(Move { from: request.kernel_file, to: kernel.start() });
    moves.retain(|copy| copy.from.start() != copy.to);
    Ok(LoadPlan { moves, entry: kernel.start(), kernel, initrd, device_tree })
}

/// Free memory to place things in.
struct Space {
    /// Sorted and joined.
    ranges: Vec<PhysRange>,
}

impl Space {
    fn without(&self, holes: &[PhysRange]) -> Self {
        Self { ranges: without(&self.ranges, holes) }
    }

    fn holds(&self, range: PhysRange) -> bool {
        self.ranges.iter().any(|free| free.contains_range(range))
    }

    fn largest(&self) -> Option<PhysRange> {
        // The first of those of the same size.
        self.ranges.iter().copied().reduce(|best, next| if next.size() > best.size() { next } else { best })
    }

    /// The place for a raw binary of `size` bytes: 2 MiB behind the start of the first range that leaves it room, or else of
    /// the largest.
    fn for_raw(&self, size: u64) -> Option<PhysRange> {
        let roomy = self.ranges.iter().copied().find(|range| range.size() >= OPEN_END);
        let range = roomy.or(self.largest())?;
        let floor = range.start().checked_next_multiple_of(BASE_ALIGNMENT)?.checked_add(BASE_ALIGNMENT)?;
        let alone = Self { ranges: Vec::from([range]) };
        alone.lowest(size, BASE_ALIGNMENT, 0, floor).or_else(|| self.lowest(size, BASE_ALIGNMENT, 0, 0))
    }

    /// The lowest place for `size` bytes, `offset` bytes behind a multiple of `alignment`, not below `floor`. What lies
    /// between that multiple and the place "has no special significance to the kernel", and need not be free.
    fn lowest(&self, size: u64, alignment: u64, offset: u64, floor: u64) -> Option<PhysRange> {
        self.ranges.iter().find_map(|free| {
            let least = free.start().max(floor).saturating_sub(offset);
            let base = least.checked_next_multiple_of(alignment)?;
            let place = PhysRange::with_size(base.checked_add(offset)?, size)?;
            free.contains_range(place).then_some(place)
        })
    }

    /// The highest place for `size` bytes that starts at a page and lies in `window`.
    fn highest(&self, size: u64, window: PhysRange) -> Option<PhysRange> {
        self.ranges.iter().rev().find_map(|free| {
            let start = free.end().min(window.end()).checked_sub(size)? & !(PAGE_SIZE - 1);
            let place = PhysRange::with_size(start, size)?;
            (free.contains_range(place) && window.contains_range(place)).then_some(place)
        })
    }

    fn no_room(&self, what: &'static str, size: u64) -> ImageError {
        ImageError::NoRoom { what, size, largest: self.largest().map_or(0, PhysRange::size) }
    }
}

/// Memory for the kernel, from its first byte to the end of its BSS.
fn place_kernel(request: &Request<'_>, space: &Space) -> Result<PhysRange, ImageError> {
    let (kernel, file) = (request.kernel, request.kernel_file);
    let offset = kernel.text_offset();
    // A file may be longer than its image_size (a signature behind it); all of it is copied.
    let size = kernel.image_size().max(file.size());
    let damaged = ImageError::Size { text_offset: offset, image_size: size };
    offset.checked_add(size).ok_or(damaged)?;

    let beside_initrd = space.without(request.initrd.as_slice());
    let lowest = |space: &Space| space.lowest(size, BASE_ALIGNMENT, offset, 0);
    let place = match kernel {
        Kernel::Image { anywhere: true, .. } => {
            let stays = file.start().checked_sub(offset).is_some_and(|base| base.is_multiple_of(BASE_ALIGNMENT));
            let here = PhysRange::with_size(file.start(), size).filter(|&here| stays && space.holds(here));
            here.or_else(|| lowest(&beside_initrd)).or_else(|| lowest(space))
        }
        Kernel::Image { .. } => lowest(&beside_initrd).or_else(|| lowest(space)),
        // How much memory a raw binary uses behind its end is unknown: it gets the start of a large range, and its tree the
        // 2 MiB below it. With one range of RAM that is where firmware has them on QEMU's machine.
        Kernel::Raw => space.for_raw(size),
    };
    place.ok_or_else(|| space.no_room("kernel", offset + size))
}

/// Memory for the initramfs: where it lies, if the kernel leaves that alone and reaches it.
fn place_initrd(
    request: &Request<'_>,
    space: &Space,
    kernel: PhysRange,
    initrd: PhysRange,
) -> Result<PhysRange, ImageError> {
    let taken = kernel_with_open_end(request, space, kernel);
    // A window that starts at the kernel's GiB always covers the kernel; one that ends there is as good.
    let gib = 1 << 30;
    let above = PhysRange::with_size(kernel.start() & !(gib - 1), INITRD_WINDOW);
    let below_end = kernel.end().checked_next_multiple_of(gib);
    let down = below_end.and_then(|end| PhysRange::new(end.saturating_sub(INITRD_WINDOW), end));
    let windows = || above.into_iter().chain(down);

    let below = tree_below(request, kernel);
    let beside_kernel = space.without(&[kernel, below]);
    if beside_kernel.holds(initrd) && windows().any(|window| window.contains_range(initrd)) {
        return Ok(initrd);
    }
    // Not over the kernel's file: it is copied later.
    let apart = space.without(&[taken, kernel, below, request.kernel_file]);
    let close = space.without(&[kernel, below, request.kernel_file]);
    let place =
        [&apart, &close].into_iter().find_map(|free| windows().find_map(|window| free.highest(initrd.size(), window)));
    place.ok_or_else(|| close.no_room("initramfs", initrd.size()))
}

/// The kernel's memory, and what a kernel that does not say its size may use behind that.
fn kernel_with_open_end(request: &Request<'_>, space: &Space, kernel: PhysRange) -> PhysRange {
    let around = space.ranges.iter().find(|range| range.contains_range(kernel));
    match around {
        Some(range) if request.kernel.image_size() == 0 => {
            // As QEMU does: half of the memory, at most 128 MiB.
            let room = (range.end() - kernel.start()) / 2;
            let end = kernel.start().saturating_add(room.min(OPEN_END)).max(kernel.end());
            PhysRange::new(kernel.start(), end).unwrap_or(kernel)
        }
        _ => kernel,
    }
}

/// Where a raw binary looks for its device tree: right below it. Empty for other kernels.
fn tree_below(request: &Request<'_>, kernel: PhysRange) -> PhysRange {
    let room = kernel.start().checked_sub(BASE_ALIGNMENT).filter(|_| request.kernel == Kernel::Raw);
    room.and_then(|start| PhysRange::new(start, kernel.start())).unwrap_or_default()
}

/// Memory for the device tree: behind the kernel, as near as can be (kernels before Linux 4.2 look no further than
/// 512 MiB), or else anywhere; for a raw binary right below it, or else above it.
fn place_device_tree(
    request: &Request<'_>,
    space: &Space,
    kernel: PhysRange,
    initrd: Option<PhysRange>,
) -> Result<PhysRange, ImageError> {
    let taken = kernel_with_open_end(request, space, kernel);
    let mut holes = Vec::from([kernel]);
    holes.extend(initrd);
    let free = space.without(&holes);
    let below = tree_below(request, kernel);
    if !below.is_empty() && free.holds(below) {
        return Ok(below);
    }
    let lowest = |floor| free.lowest(BASE_ALIGNMENT, BASE_ALIGNMENT, 0, floor);
    let place = lowest(taken.end()).or_else(|| lowest(kernel.end()));
    let place = place.or_else(|| (request.kernel != Kernel::Raw).then(|| lowest(0)).flatten());
    place.ok_or_else(|| free.no_room("device tree", BASE_ALIGNMENT))
}

#[cfg(test)]
mod tests;
