//! The guest's pages, as EL2 reads and writes them, and room of EL2's own for some.

use crate::el2::base::frames::FRAMES;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use hypervisor_abi::page_hash::{WORDS, page_hash};
use hypervisor_abi::saved::{Block, Checksum, Run};
use stage2::{IpaRange, PAGE_SIZE};

/// Whether all of a page is zero.
pub fn is_zero(page: &Block) -> bool {
    page.as_chunks::<8>().0.iter().all(|words| words.iter().fold(0, |sum, word| sum | word) == 0)
}

/// The guest's page at `address`, which stands still.
///
/// # Safety
///
/// It is RAM of the guest's, and nobody writes it while the reference is in use.
pub unsafe fn page<'p>(address: u64) -> &'p Block {
    // SAFETY: the caller's promise; RAM is mapped where it lies.
    unsafe { &*(address as *const Block) }
}

/// Copies the guest's page at `address`, which may change meanwhile: then it is copied again later.
///
/// # Safety
///
/// It is RAM of the guest's.
pub unsafe fn copy(address: u64, to: &mut Block) {
    for (word, to) in to.iter_mut().enumerate() {
        // SAFETY: the caller's promise: in the page, aligned, mapped. The guest's stores are other atomic accesses.
        *to = unsafe { AtomicU64::from_ptr((address + 8 * word as u64) as *mut u64) }.load(Relaxed);
    }
}

/// The bytes of a run of pages, to be read by a device.
///
/// # Safety
///
/// It is RAM of the guest's, and nobody writes it while the slice is in use.
pub unsafe fn bytes<'p>(run: Run) -> &'p [u8] {
    // SAFETY: the caller's promise; RAM is mapped where it lies.
    unsafe { core::slice::from_raw_parts(run.start() as *const u8, (run.count * PAGE_SIZE) as usize) }
}

/// The same, to be written.
///
/// # Safety
///
/// It is RAM of the guest's, and nobody else reads or writes it while the slice is in use: the guest does not run.
pub unsafe fn bytes_mut<'p>(run: Run) -> &'p mut [u8] {
    // SAFETY: the caller's promise; RAM is mapped where it lies.
    unsafe { core::slice::from_raw_parts_mut(run.start() as *mut u8, (run.count * PAGE_SIZE) as usize) }
}

/// The checksum of all pages of these ranges, in the order of their addresses. `pause` is called now and then.
///
/// # Safety
///
/// They are RAM of the guest's, and nobody writes it meanwhile.
pub unsafe fn hash_all(ranges: impl Iterator<Item = IpaRange>, mut pause: impl FnMut()) -> u64 {
    const OFTEN: u64 = 1024;
    let of_zero = page_hash(&[0; WORDS]);
    let mut sum = Checksum::new();
    for range in ranges {
        for number in 0..range.pages() {
            if number % OFTEN == 0 {
                pause();
            }
            // SAFETY: the caller's promise.
            let page = unsafe { page(range.start().0 + number * PAGE_SIZE) };
            // Most pages of most guests are zero, which is seen sooner than hashed.
            sum.add_hash(if is_zero(page) { of_zero } else { page_hash(page) });
        }
    }
    sum.value()
}

/// Pages of room.
pub const ROOM: usize = 64;

/// Room for a record: its header, and pages or state.
pub struct Room {
    /// The header.
    pub header: &'static mut Block,
    /// The payload.
    pub payload: &'static mut [Block; ROOM],
}

impl Room {
    /// Room of the pool's, for ever; nothing if there is none left.
    pub fn allocate() -> Option<Self> {
        let start = FRAMES.allocate(1 + ROOM as u64, 1)?.0;
        let all = start as *mut Block;
        // SAFETY: the frames are this function's alone, mapped and aligned.
        unsafe { all.write_bytes(0, 1 + ROOM) };
        // SAFETY: as above; initialised, and never freed.
        let header = unsafe { &mut *all };
        // SAFETY: as above, of the frames behind it.
        let payload = unsafe { &mut *((start + PAGE_SIZE) as *mut [Block; ROOM]) };
        Some(Self { header, payload })
    }
}

/// Words as the bytes that they are in memory, which is little-endian.
pub fn as_bytes(blocks: &[Block]) -> &[u8] {
    let words = blocks.as_flattened();
    // SAFETY: the same memory; every byte of a word is a byte, and a byte needs no alignment.
    unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// The same, to be written.
pub fn as_bytes_mut(blocks: &mut [Block]) -> &mut [u8] {
    let words = blocks.as_flattened_mut();
    // SAFETY: as in `as_bytes`; any bytes are words.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
