//! The image's move to an end of RAM.
//!
//! It is made by what has been loaded, as soon as the device tree and the options have been read: the loaded image copies
//! itself as it was before its first instruction, and starts the copy as a loader would. What the copy finds in the tree is
//! the same; that it is a copy, and of what, is the one word in it that is not the file's.
//!
//! The file's .data, which this code has written since, boot.S has kept behind .bss. Text and constants nothing has written
//! but `relocate`, which writes the same words again wherever the image lies; and .bss, heap and stacks have no first contents.

use crate::el2::base::{cpu, device, own_map, registers};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use hypervisor::machine::{Machine, Needs, Stays};
use hypervisor::range::PhysRange;

unsafe extern "C" {
    static __rodata_end: u8;
    static __bss_start: u8;
    static __pristine_data: u8;
    static enter_image_end: u8;
    fn enter_image(tree: u64, image: u64) -> !;
}

/// No image begins here.
const NOWHERE: u64 = 1;

/// What a copy of the image is told by the one that made it.
#[repr(C)]
struct Origin {
    /// Where the image lay that moved here.
    moved_from: AtomicU64,
    /// CNTPCT_EL0 when that one had begun.
    begun: AtomicU64,
    /// Where firmware had loaded the image as an EFI application.
    application: AtomicU64,
}

/// This image's. No zeros, so that it lies in .data: a copy's words are written before the copy runs.
static ORIGIN: Origin = Origin {
    moved_from: AtomicU64::new(NOWHERE),
    begun: AtomicU64::new(NOWHERE),
    application: AtomicU64::new(NOWHERE),
};

/// What has become of the images that were loaded.
pub struct Place {
    /// Where the image lay that this is the copy of, or why it is that one itself.
    moved: Result<PhysRange, Stays>,
    /// Where the EFI application lay, if firmware started it.
    application: Option<PhysRange>,
}

/// Moves the image, and returns in the copy's first instruction only, or where it stays.
pub fn settle(machine: &Machine, needs: &Needs) -> Place {
    let image_at = |word: &AtomicU64| {
        let start = Some(word.load(Relaxed)).filter(|start| *start != NOWHERE)?;
        PhysRange::with_size(start, needs.image.size())
    };
    let application = image_at(&ORIGIN.application);
    if let Some(from) = image_at(&ORIGIN.moved_from) {
        // What the loaded image has taken counts, too.
        cpu::this_cpu().entered_at.store(ORIGIN.begun.load(Relaxed), Relaxed);
        return Place { moved: Ok(from), application };
    }
    let stays = match machine.better_place(needs) {
        // There is a place for the tree, or this would not be one for the image.
        Ok(place) => match machine.tree_place(place, needs) {
            Some(tree) => move_to(place.at_most(needs.image.size()), tree, needs),
            None => Stays::Taken { what: "the device tree".into(), range: needs.tree },
        },
        Err(why) => why,
    };
    Place { moved: Err(stays), application }
}

/// Tells the copy of the EFI application at `copy` where the application lies.
///
/// # Safety
///
/// A copy of this image is there, which does not run yet.
pub unsafe fn tell_application(copy: u64) {
    // SAFETY: the caller's promise. If the copy moves in turn, the word goes along: it is in .data before boot.S keeps that.
    unsafe { tell(copy, &ORIGIN.application, own_map::image_start()) };
}

/// Writes a word of [`ORIGIN`] in the copy at `copy`.
///
/// # Safety
///
/// A copy of this image is there, which does not run yet.
unsafe fn tell(copy: u64, word: &'static AtomicU64, value: u64) {
    let place = (&raw const *word) as u64 - own_map::image_start() + copy;
    // SAFETY: the caller's promise: it is the copy's own word, which nothing reads yet.
    unsafe { core::ptr::write(place as *mut u64, value) };
}

/// Moves the image to `to`, and before that the device tree to `tree` if it lies elsewhere. Returns where that is no memory.
fn move_to(to: PhysRange, tree: PhysRange, needs: &Needs) -> Stays {
    for range in [to, tree] {
        if !own_map::early_map_memory(range) {
            return Stays::OutOfReach { range };
        }
        // SAFETY: the tree has free memory there, or lies there, and that may be read.
        if let Some(at) = unsafe { device::silent_part(range) } {
            return Stays::NoMemory { at };
        }
    }

    let start = needs.image.start();
    let [data, bss, pristine] =
        [&raw const __rodata_end, &raw const __bss_start, &raw const __pristine_data].map(|symbol| symbol as u64);
    let in_copy = |address: u64| address - start + to.start();
    // The tree first: the image may go where it lies. The copy of the image reads it anew, and checks what it reads.
    let tree_bytes = if tree == needs.tree { 0 } else { tree.size() };
    let parts = [
        (needs.tree.start(), tree.start(), tree_bytes),
        (start, in_copy(start), data - start),
        (pristine, in_copy(data), bss - data),
    ];
    for (from, place, bytes) in parts {
        // SAFETY: both places are free memory that is mapped, and nobody's, but for the tree that has been copied by then:
        // neither the image nor anything that was loaded lies there. What is copied are the tree, and parts of the image that
        // nothing writes any more.
        if !unsafe { copy(from, place, bytes) } {
            return Stays::NoMemory { at: place };
        }
    }
    for (word, value) in [(&ORIGIN.moved_from, start), (&ORIGIN.begun, cpu::this_cpu().entered_at.load(Relaxed))] {
        // SAFETY: the copy has just been made.
        unsafe { tell(to.start(), word, value) };
    }
    // SAFETY: a whole image with room for its BSS is there, and the tree.
    unsafe { enter(tree.start(), to) }
}

/// Copies bytes, and says whether they can be read again: from memory, and not from a cache. A word of each line is looked at:
/// memory that is not there lacks whole lines of it.
///
/// # Safety
///
/// Both places are mapped, multiples of 8, and do not overlap; `from` can be read, and nobody uses what is at `place`.
unsafe fn copy(from: u64, place: u64, bytes: u64) -> bool {
    // SAFETY: the caller's promise.
    unsafe { registers::copy(from as usize, place as usize, bytes as usize) };
    registers::clean_to_memory(place as usize, bytes as usize);
    (0..bytes & !7).step_by(registers::cache_line()).all(|offset| {
        // SAFETY: the same, and the copy has been written.
        let [from, copy] = [from, place].map(|at| unsafe { ((at + offset) as *const u64).read_volatile() });
        from == copy
    })
}

/// Enters an image as a loader does, with the device tree's address in x0, and caches and MMU off.
///
/// # Safety
///
/// An arm64 Image of this program lies in `image`, with room for its BSS. Nothing of what runs now is used again.
pub unsafe fn enter(tree: u64, image: PhysRange) -> ! {
    let leaving = enter_image as *const u8 as usize;
    // What is fetched or read without caches: the way to it, and the image. Its BSS, too, or a line that is dirty yet would
    // be written over what the image has written there.
    registers::clean_to_memory(leaving, (&raw const enter_image_end) as usize - leaving);
    registers::clean_to_memory(image.start() as usize, image.size() as usize);
    // SAFETY: the caller's promise.
    unsafe { enter_image(tree, image.start()) }
}

impl Place {
    /// Zeroes what the images that were loaded have left behind, of which the guest gets all that is not in `own`, the
    /// hypervisor's memory. Called before anything is put there.
    pub fn clear_old(&self, machine: &Machine, own: PhysRange) {
        let left: Vec<PhysRange> = self.moved.iter().chain(&self.application).copied().collect();
        for range in machine.left_behind(own, &left) {
            // SAFETY: an image lay there that does not run any more: RAM, mapped, and nobody's.
            unsafe { registers::zero(range.start() as usize, range.size() as usize) };
            // The guest reads memory with its caches off at first.
            registers::clean_to_memory(range.start() as usize, range.size() as usize);
        }
    }

    /// What the log says of it. `needs` are the image's where it lies.
    pub fn tell(&self, machine: &Machine, needs: &Needs) {
        if let Some(application) = self.application {
            log::info!("started by UEFI firmware, as an application at {application}");
        }
        let shape = machine.guest_shape(machine.own_memory(needs));
        match &self.moved {
            Ok(image) => {
                let before = machine.guest_shape(machine.own_memory(&Needs { image: *image, ..*needs }));
                log::info!(
                    "image moved from {:#x} to the end of RAM; guest's memory: {shape}, before: {before}",
                    image.start()
                );
            }
            Err(why) => log::info!("image stays where it was loaded: {why}; guest's memory: {shape}"),
        }
    }
}
