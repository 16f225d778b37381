//! The heap: for the device trees, the hypervisor's own tables and what else start-up needs. Once the guest runs, nothing
//! allocates but the bitmaps of the guest's own logs (`hypercalls=on`) and the state of a guest that is saved or comes, and
//! all of it is refused where there is no room.

use buddy_system_allocator::LockedHeap;
use core::cell::UnsafeCell;

const BYTES: usize = 4 << 20;

/// The heap's memory.
#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; BYTES]>);

// SAFETY: the memory is handed to the allocator, once, and reached through it alone.
unsafe impl Sync for Memory {}

// SAFETY: the linker script puts `.noinit` into writable memory; any first contents will do.
#[unsafe(link_section = ".noinit")]
static MEMORY: Memory = Memory(UnsafeCell::new([0; BYTES]));

#[global_allocator]
static HEAP: LockedHeap<32> = LockedHeap::empty();

/// Bytes that are free, in whatever pieces.
pub fn free_bytes() -> usize {
    let heap = HEAP.lock();
    heap.stats_total_bytes() - heap.stats_alloc_actual()
}

/// Gives the heap its memory. Called once, before the first allocation, with the caches on (the lock needs them).
pub fn init() {
    let start = MEMORY.0.get().addr();
    // SAFETY: the memory is not used for anything else, and this is called once.
    unsafe { HEAP.lock().init(start, BYTES) };
}
