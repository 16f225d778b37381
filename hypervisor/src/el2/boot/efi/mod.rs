//! The image as an EFI application: from firmware to the entry that every other boot loader uses.
//!
//! It runs where firmware put it, on firmware's stack and map, and calls firmware. The first thing that it does is to copy
//! the image, before anything writes `.data`, to a place with room for the hypervisor's tables behind it; the copy is what
//! runs in the end. All errors but the last of [`leave`](efi::leave::leave) come while boot services still run: they are
//! told on firmware's console, what was allocated is freed, and firmware goes on to the next boot option.

mod files;
mod firmware;

use crate::el2::base::{cpu, heap, own_map, refusal::Refusal, registers};
use crate::el2::boot::moving;
use crate::el2::guest_memory::events;
use alloc::vec;
use core::arch::global_asm;
use core::convert::Infallible;
use firmware::{Firmware, Pages};
use hypervisor::efi::load_options::LoadOptions;
use hypervisor::efi::tree::{self, Loaded};
use hypervisor::efi::{EfiError, leave};
use hypervisor::image;
use hypervisor::machine::{Machine, pool_bytes};
use hypervisor::options::Options;
use hypervisor::range::PhysRange;
use hypervisor::tree::Tree;
use hypervisor::tree_check::{self, CheckedTree};
use r_efi::base::{Handle, Status};
use r_efi::system::SystemTable;

global_asm!(include_str!("efi.S"), efi_main = sym efi_main);

unsafe extern "C" {
    static __bss_start: u8;
    static __file_mark: [u8; 8];
}

/// The hypervisor's own memory is whole blocks of this many bytes.
const BLOCK: u64 = 2 << 20;
/// Room that the tree may take beyond what it takes at first: the memory map grows a little until it is final.
const TREE_SLACK: u64 = 4096;

/// Called by efi.S. Returns where the hypervisor cannot be started.
///
/// # Safety
///
/// Firmware calls it as UEFI 4.1 says, once, and the image has been relocated.
unsafe extern "C" fn efi_main(handle: Handle, table: *mut SystemTable) -> Status {
    // SAFETY: the caller's promise.
    let firmware = unsafe { Firmware::new(handle, table) };
    let refuse = |reason: &dyn core::fmt::Display| {
        firmware.print(format_args!("\r\n[unbroken] refused: {reason}\r\n"));
        Status::LOAD_ERROR
    };
    let copy = match copy_image(&firmware) {
        Ok(copy) => copy,
        Err(error) => return refuse(&error),
    };
    // From here on, this image's data are no longer what the file had. A panic finds this CPU's area from now on, and what
    // firmware had in the register comes back with it.
    let firmwares = cpu::BOOT_AREA.lend();
    heap::init();
    let status = match start(&firmware, copy) {
        Err(Refusal(reason)) => refuse(&reason),
    };
    firmwares.restore();
    status
}

/// Copies the image, which nothing has changed yet but its relocation, to where it is to run. Allocates nothing of the
/// image's own.
fn copy_image<'a>(firmware: &'a Firmware) -> Result<Pages<'a>, EfiError> {
    let level = registers::read_register!("CurrentEL") >> 2 & 3;
    if level != 2 {
        return Err(EfiError::ExceptionLevel { level });
    }
    // SAFETY: a constant of the image. It is read as memory, for the file may have been cut short.
    let mark = unsafe { (&raw const __file_mark).read_volatile() };
    if mark != *b"UNBROKEN" {
        return Err(EfiError::Truncated);
    }
    let (image, bss) = (own_map::image(), (&raw const __bss_start) as u64);
    // With room for everything that may be asked of the hypervisor: what it does not need, the guest gets.
    let pool = pool_bytes(firmware.ram_bytes()?, true) + events::BYTES;
    let bytes = (image.size() + pool).next_multiple_of(BLOCK);
    let copy = firmware.allocate("hypervisor", bytes, BLOCK)?;
    let (from, to) = (image.start(), copy.range().start());
    // SAFETY: the bytes up to .bss are what firmware loaded of the file; the pages are new and have room.
    unsafe { core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, (bss - from) as usize) };
    Ok(copy)
}

/// Everything up to the copy's first instruction.
fn start(firmware: &Firmware, copy: Pages<'_>) -> Result<Infallible, Refusal> {
    let tree = read_tree(firmware)?;
    // A boot loader that has put modules into the tree has put the options there, too.
    let by_loader = tree::has_modules(&Tree::open(&tree));
    let options = (!by_loader).then(|| LoadOptions::parse(firmware.load_options()?)).transpose()?;
    // The files stay allocated until boot services end, or an error frees them.
    let files = options.as_ref().map(|options| files::load(firmware, options)).transpose()?;
    let loaded = options.as_ref().zip(files.as_ref()).map(|(options, files)| Loaded {
        options: &options.hypervisor,
        kernel: files.kernel.range(),
        arguments: &options.guest,
        initrd: files.initrd.as_ref().map(Pages::range),
    });

    let mut map = vec![0_u64; firmware.map_words()];
    let first = firmware.read_map(&mut map).ok_or(EfiError::NoMemoryMap)?.view(&map)?.memory()?;
    let size = tree::write(&tree, &first, loaded.as_ref())?.len() as u64 + TREE_SLACK;
    let place = firmware.allocate("device tree", size, hypervisor::efi::memory_map::PAGE)?;

    let mut services = firmware;
    let (written, (kernel, initrd)) = leave::leave(&mut services, &mut map, |map| {
        let written = tree::write(&tree, &map.memory()?, loaded.as_ref())?;
        if written.len() as u64 > place.range().size() {
            return Err(EfiError::TreeGrew { bytes: written.len() }.into());
        }
        let modules = check(&written, copy.range(), place.range())?;
        Ok::<_, Refusal>((written, modules))
    })?;

    // Boot services have ended: nothing below calls firmware, and nothing is freed.
    let (copy, place) = (copy.keep(), place.keep());
    // SAFETY: the copy has been made, and does not run yet.
    unsafe { moving::tell_application(copy.start()) };
    core::mem::forget(files);
    // SAFETY: the pages were allocated for it, and it has been found to fit.
    unsafe { core::ptr::copy_nonoverlapping(written.as_ptr(), place.start() as *mut u8, written.len()) };
    // What runs, or is read, with the caches off: the image with its BSS, the tree, a kernel that is not moved.
    for range in [Some(kernel), initrd, Some(place)].into_iter().flatten() {
        registers::clean_to_memory(range.start() as usize, range.size() as usize);
    }
    // SAFETY: boot services have ended, the copy is a whole image with its BSS's room, and the tree is clean.
    unsafe { moving::enter(place.start(), copy.at_most(own_map::image().size())) }
}

/// Firmware's device tree.
fn read_tree(firmware: &Firmware) -> Result<CheckedTree, Refusal> {
    let address = firmware.device_tree().ok_or(EfiError::NoTree)?;
    let cannot = |error| Refusal(alloc::format!("the device tree at {address:p} cannot be used: {error}"));
    // SAFETY: the configuration table says that a tree is there: eight bytes at least. Bytes need no alignment.
    let header = unsafe { core::ptr::read(address.cast::<[u8; 8]>()) };
    let size = tree_check::total_size(header).map_err(cannot)?;
    // SAFETY: its header says that it has so many bytes; nobody writes there while boot services wait for this call.
    let bytes = unsafe { core::slice::from_raw_parts(address, size) };
    CheckedTree::new(bytes).map_err(cannot)
}

/// Reads the tree as the image will do once nobody is left who could go on, and returns the modules in it. `own` is the
/// place that the image is copied to, `place` the tree's.
fn check(tree: &[u8], own: PhysRange, place: PhysRange) -> Result<(PhysRange, Option<PhysRange>), Refusal> {
    let machine = Machine::read(&CheckedTree::new(tree)?)?;
    Options::parse(&machine.bootargs)?;
    machine.check_placement(own, place)?;
    let kernel = machine.kernel()?.range;
    // SAFETY: the module lies in RAM, apart from everything else, by firmware's own map.
    image::examine(unsafe { core::slice::from_raw_parts(kernel.start() as *const u8, kernel.size() as usize) })?;
    Ok((kernel, machine.initrd.map(|initrd| initrd.range)))
}
