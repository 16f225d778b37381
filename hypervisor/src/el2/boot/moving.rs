//! The image's move to an end of RAM.
//!
//! It is made by what has been loaded, as soon as the device tree and the options have been read: the loaded image copies
//! itself as it was before its first instruction, and starts the copy as a loader would. What the copy finds in the tree is
//! the same; that it is a copy, and of what, is the one word in it that is not the file's.
//!
//! The file's .data, which this code has written since, boot.S has kept behind .bss. Text and constants nothing has written
//! but `relocate`, which writes the same words again wherever the image lies; and .bss, heap and stacks have no first contents.

use crate::el2::base::{device, own_map, registers};
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
const NOT_MOVED: u64 = 1;

/// Where this image was copied from. No zero, so that it lies in .data: the copy's word is written before the copy runs.
static MOVED_FROM: AtomicU64 = AtomicU64::new(NOT_MOVED);

/// What has become of the image that was loaded.
pub enum Place {
    /// This is its copy; the loaded one was there.
    Moved(PhysRange),
    /// It is this one.
    Stayed(Stays),
}

/// Moves the image, and returns in the copy's first instruction only, or where it stays.
pub fn settle(machine: &Machine, needs: &Needs) -> Place {
    let from = MOVED_FROM.load(Relaxed);
    if from != NOT_MOVED {
        return Place::Moved(PhysRange::with_size(from, needs.image.size()).unwrap_or_default());
    }
    Place::Stayed(match machine.better_place(needs) {
        Ok(place) => move_to(place.at_most(needs.image.size()), needs),
        Err(why) => why,
    })
}

/// Moves the image to `to`. Returns where that is no memory.
fn move_to(to: PhysRange, needs: &Needs) -> Stays {
    if !own_map::early_map_memory(to) {
        return Stays::OutOfReach { range: to };
    }
    // The tree is from outside. Where it has memory that there is none, an abort would be EL2's end.
    // SAFETY: the tree has free memory there, which may be read.
    let answers = |at: &u64| unsafe { device::load(*at, 8) }.is_some();
    if let Some(at) = (to.start()..to.end()).step_by(stage2::PAGE_SIZE as usize).find(|at| !answers(at)) {
        return Stays::NoMemory { at };
    }

    let start = needs.image.start();
    let [data, bss, pristine] =
        [&raw const __rodata_end, &raw const __bss_start, &raw const __pristine_data].map(|symbol| symbol as u64);
    let in_copy = |address: u64| address - start + to.start();
    let parts = [(start, in_copy(start), data - start), (pristine, in_copy(data), bss - data)];
    for (from, place, bytes) in parts {
        // SAFETY: `to` has room for the image, is mapped, and nobody's: neither the image nor anything that was loaded lies
        // there. What is copied are parts of the image that nothing writes any more.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, place as *mut u8, bytes as usize) };
    }
    // What is read below comes from memory.
    registers::clean_to_memory(to.start() as usize, to.size() as usize);
    for (from, place, bytes) in parts {
        // SAFETY: as above, and the copy has been written.
        let [from, copy] =
            [from, place].map(|at| unsafe { core::slice::from_raw_parts(at as *const u8, bytes as usize) });
        if from != copy {
            return Stays::NoMemory { at: place };
        }
    }
    // SAFETY: the copy's own, which does not run yet.
    unsafe { core::ptr::write(in_copy((&raw const MOVED_FROM) as u64) as *mut u64, start) };
    // SAFETY: a whole image with room for its BSS is there, and the tree where it was.
    unsafe { enter(needs.tree.start(), to) }
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
    /// Zeroes what the loaded image has left behind, which the guest gets. Called before anything is put there.
    pub fn clear_old(&self) {
        let Self::Moved(from) = self else { return };
        // SAFETY: the loaded image lay there, which does not run any more: RAM, mapped, and nobody's.
        unsafe { core::ptr::write_bytes(from.start() as *mut u8, 0, from.size() as usize) };
        // The guest reads memory with its caches off at first.
        registers::clean_to_memory(from.start() as usize, from.size() as usize);
    }

    /// What the log says of it. `needs` are the image's where it lies.
    pub fn tell(&self, machine: &Machine, needs: &Needs) {
        let shape = machine.guest_shape(machine.own_memory(needs));
        match self {
            Self::Moved(image) => {
                let before = machine.guest_shape(machine.own_memory(&Needs { image: *image, ..*needs }));
                log::info!(
                    "image moved from {:#x} to the end of RAM; guest's memory: {shape}, before: {before}",
                    image.start()
                );
            }
            Self::Stayed(why) => log::info!("image stays where it was loaded: {why}; guest's memory: {shape}"),
        }
    }
}
