//! The calls of firmware, made safe.
//!
//! Everything here is for the time while boot services run. Firmware is trusted with memory: what it allocates is free,
//! what it maps stays mapped, and the tables that it passes are there.

use alloc::vec::Vec;
use core::ffi::c_void;
use core::fmt::{self, Write};
use core::ptr::{self, NonNull};
use hypervisor::efi::EfiError;
use hypervisor::efi::leave::{BootServices, ReadMap};
use hypervisor::efi::memory_map::PAGE;
use hypervisor::range::PhysRange;
use r_efi::base::{Guid, Handle};
use r_efi::protocols::loaded_image;
use r_efi::system::{self, LOADER_DATA, SystemTable};

/// EFI_DTB_TABLE_GUID (UEFI 4.6.1.3; Devicetree in the configuration table).
const DEVICE_TREE: Guid =
    Guid::from_fields(0xb1b6_21d5, 0xf19c, 0x41a5, 0x83, 0x0b, &[0xd9, 0x15, 0x2c, 0x69, 0xaa, 0xe0]);
/// Descriptors that the memory map may gain between two calls.
const MAP_SLACK: usize = 32;

/// Firmware, as the image's entry is given it.
pub struct Firmware {
    handle: Handle,
    table: NonNull<SystemTable>,
}

impl Firmware {
    /// # Safety
    ///
    /// The arguments are those of an image's entry (UEFI 4.1), boot services run, and the result is not used after they
    /// have ended.
    pub unsafe fn new(handle: Handle, table: *mut SystemTable) -> Self {
        // SAFETY: firmware passes a table.
        Self { handle, table: unsafe { NonNull::new_unchecked(table) } }
    }

    /// Where the system table is.
    fn table(&self) -> &SystemTable {
        // SAFETY: `new` was promised a table, which stays as long as boot services do.
        unsafe { self.table.as_ref() }
    }

    fn services(&self) -> &system::BootServices {
        // SAFETY: as above: the system table names its boot services until they end.
        unsafe { &*self.table().boot_services }
    }

    /// Prints on firmware's console, if it has one.
    pub fn print(&self, text: fmt::Arguments<'_>) {
        // Printing does not fail: what firmware can't show is lost.
        let _ = Printer(self).write_fmt(text);
    }

    /// The device tree's address, by the configuration table.
    pub fn device_tree(&self) -> Option<*const u8> {
        let table = self.table();
        if table.configuration_table.is_null() {
            return None;
        }
        // SAFETY: the system table says that there are so many entries.
        let entries = unsafe { core::slice::from_raw_parts(table.configuration_table, table.number_of_table_entries) };
        let entry = entries.iter().find(|entry| entry.vendor_guid == DEVICE_TREE)?;
        (!entry.vendor_table.is_null()).then_some(entry.vendor_table.cast_const().cast())
    }

    /// The interface of a protocol on a handle.
    pub fn protocol<T>(&self, handle: Handle, guid: &Guid) -> Option<NonNull<T>> {
        let mut interface: *mut c_void = ptr::null_mut();
        // SAFETY: a boot service; firmware only reads the GUID.
        let status =
            unsafe { (self.services().handle_protocol)(handle, ptr::from_ref(guid).cast_mut(), &mut interface) };
        if status.is_error() { None } else { NonNull::new(interface.cast()) }
    }

    /// What firmware knows of the image that runs.
    pub fn loaded_image(&self) -> Option<&loaded_image::Protocol> {
        let interface = self.protocol(self.handle, &loaded_image::PROTOCOL_GUID)?;
        // SAFETY: firmware keeps the interface as long as the image is loaded, and changes nothing in it.
        Some(unsafe { interface.as_ref() })
    }

    /// The image's load options; none where it has none.
    pub fn load_options(&self) -> Result<&[u16], EfiError> {
        let Some(image) = self.loaded_image().filter(|image| !image.load_options.is_null()) else { return Ok(&[]) };
        let (options, bytes) = (image.load_options.cast_const().cast::<u16>(), image.load_options_size as usize);
        if !options.is_aligned() || bytes > 1 << 16 {
            return Err(EfiError::LoadOptions);
        }
        // SAFETY: firmware says that so many bytes are there, and they are aligned.
        Ok(unsafe { core::slice::from_raw_parts(options, bytes / 2) })
    }

    /// Allocates memory that stays after boot services: `bytes` bytes, at a multiple of `alignment`, which is at least
    /// a page's. Not zeroed. `bytes` are at most 2^48.
    pub fn allocate(&self, what: &'static str, bytes: u64, alignment: u64) -> Result<Pages<'_>, EfiError> {
        let size = bytes.next_multiple_of(PAGE);
        let (mut address, pages) = (0, ((size + alignment) / PAGE - 1) as usize);
        // SAFETY: a boot service; it writes the address.
        let status =
            unsafe { (self.services().allocate_pages)(system::ALLOCATE_ANY_PAGES, LOADER_DATA, pages, &mut address) };
        match PhysRange::with_size(address.next_multiple_of(alignment), size) {
            Some(range) if !status.is_error() => Ok(Pages { firmware: self, address, pages, range }),
            _ => Err(EfiError::NoMemory { what, bytes }),
        }
    }

    /// Words that a buffer for the memory map needs.
    pub fn map_words(&self) -> usize {
        let (mut bytes, mut key, mut size, mut version) = (0, 0, 0, 0);
        // SAFETY: a boot service; with no room in the buffer it says how much it would need.
        let _ =
            unsafe { (self.services().get_memory_map)(&mut bytes, ptr::null_mut(), &mut key, &mut size, &mut version) };
        bytes.saturating_add(size.saturating_mul(MAP_SLACK)).min(1 << 20) / 8
    }

    /// The memory map, read into `buffer`.
    pub fn read_map(&self, buffer: &mut [u64]) -> Option<ReadMap> {
        let (mut bytes, mut key, mut descriptor_size, mut version) = (size_of_val(buffer), 0, 0, 0);
        // SAFETY: a boot service; it writes no more bytes than it is told that the buffer has, aligned as descriptors
        // are.
        let status = unsafe {
            (self.services().get_memory_map)(
                &mut bytes,
                buffer.as_mut_ptr().cast(),
                &mut key,
                &mut descriptor_size,
                &mut version,
            )
        };
        (!status.is_error()).then_some(ReadMap { bytes, key, descriptor_size })
    }

    /// Bytes of RAM by the memory map; uses no memory of the image's own.
    pub fn ram_bytes(&self) -> Result<u64, EfiError> {
        let words = self.map_words();
        let pages = self.allocate("memory map", words as u64 * 8, PAGE)?;
        // SAFETY: the pages are new, and used here alone; any contents will do.
        let buffer = unsafe { core::slice::from_raw_parts_mut(pages.range().start() as *mut u64, words) };
        let map = self.read_map(buffer).ok_or(EfiError::NoMemoryMap)?;
        Ok(map.view(buffer)?.ram_bytes())
    }
}

impl BootServices for &Firmware {
    fn memory_map(&mut self, buffer: &mut [u64]) -> Option<ReadMap> {
        self.read_map(buffer)
    }

    fn exit(&mut self, key: usize) -> bool {
        // SAFETY: the handle is the image's own. The caller knows that boot services may have ended.
        !unsafe { (self.services().exit_boot_services)(self.handle, key) }.is_error()
    }
}

/// Memory that firmware has allocated; freed with this value, which must not happen once boot services have ended.
pub struct Pages<'a> {
    firmware: &'a Firmware,
    /// As firmware knows it.
    address: u64,
    pages: usize,
    range: PhysRange,
}

impl Pages<'_> {
    /// The part that was asked for.
    pub fn range(&self) -> PhysRange {
        self.range
    }

    /// The same memory, of which so many bytes count.
    pub fn shortened_to(mut self, bytes: u64) -> Self {
        let start = self.range.start();
        self.range = PhysRange::with_size(start, bytes.min(self.range.size())).unwrap_or(self.range);
        self
    }

    /// Keeps it for ever.
    pub fn keep(self) -> PhysRange {
        let range = self.range;
        core::mem::forget(self);
        range
    }
}

impl Drop for Pages<'_> {
    fn drop(&mut self) {
        // SAFETY: firmware allocated these pages, and nothing uses them any more. It frees them or it does not.
        let _ = unsafe { (self.firmware.services().free_pages)(self.address, self.pages) };
    }
}

/// A path in firmware's own form: UTF-16, `\` between names, a NUL behind it.
pub fn path(text: &str) -> Vec<u16> {
    let separated = |unit| if unit == u16::from(b'/') { u16::from(b'\\') } else { unit };
    text.encode_utf16().map(separated).chain([0]).collect()
}

/// Writes to the console in short pieces, without the heap.
struct Printer<'a>(&'a Firmware);

impl Write for Printer<'_> {
    #[inline(never)]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const PIECE: usize = 63;
        let console = self.0.table().con_out;
        let Some(console) = NonNull::new(console) else { return Ok(()) };
        // SAFETY: the system table names its console's interface, which firmware does not change.
        let output = unsafe { console.as_ref() }.output_string;
        let mut units = text.encode_utf16();
        loop {
            let mut piece = [0; PIECE + 1];
            let mut count = 0;
            for (slot, unit) in piece.iter_mut().zip(units.by_ref().take(PIECE)) {
                *slot = unit;
                count += 1;
            }
            if count == 0 {
                return Ok(());
            }
            // SAFETY: the console reads the text up to the NUL behind it.
            let _ = unsafe { output(console.as_ptr(), piece.as_mut_ptr()) };
        }
    }
}
