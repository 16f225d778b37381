//! The guest's files, where no boot loader has loaded them: from the volume that the image itself came from.

use crate::el2::boot::efi::firmware::{Firmware, Pages, path};
use core::ffi::c_void;
use core::ptr::{self, NonNull};
use hypervisor::efi::EfiError;
use hypervisor::efi::load_options::LoadOptions;
use hypervisor::efi::memory_map::PAGE;
use r_efi::base::Status;
use r_efi::protocols::{file, simple_file_system};

/// The files, in memory.
pub struct Files<'a> {
    pub kernel: Pages<'a>,
    pub initrd: Option<Pages<'a>>,
}

/// Loads what the options name.
///
/// # Errors
///
/// [`EfiError::NoKernel`], [`EfiError::File`], [`EfiError::NoMemory`].
pub fn load<'a>(firmware: &'a Firmware, options: &LoadOptions) -> Result<Files<'a>, EfiError> {
    let kernel = options.kernel.as_deref().ok_or(EfiError::NoKernel)?;
    let kernel = load_file(firmware, "kernel", kernel)?;
    let initrd = options.initrd.as_deref();
    let initrd = initrd.map(|path| load_file(firmware, "initramfs", path)).transpose()?;
    Ok(Files { kernel, initrd })
}

fn load_file<'a>(firmware: &'a Firmware, what: &'static str, name: &str) -> Result<Pages<'a>, EfiError> {
    let cannot = EfiError::File { what };
    let file = root(firmware).and_then(|root| root.open(name)).ok_or(cannot)?;
    let size = file.size().filter(|size| (1..1 << 40).contains(size)).ok_or(cannot)?;
    let pages = firmware.allocate(what, size, PAGE)?.shortened_to(size);
    // SAFETY: the pages are new, and have that much room.
    let read = unsafe { file.read(pages.range().start() as *mut c_void, size as usize) };
    if read == Some(size as usize) { Ok(pages) } else { Err(cannot) }
}

/// The root of the volume that the image came from.
fn root(firmware: &Firmware) -> Option<File> {
    let device = firmware.loaded_image()?.device_handle;
    let volume: NonNull<simple_file_system::Protocol> =
        firmware.protocol(device, &simple_file_system::PROTOCOL_GUID)?;
    // SAFETY: firmware keeps the interface, and changes nothing in it.
    let open = unsafe { volume.as_ref() }.open_volume;
    let mut root = ptr::null_mut();
    // SAFETY: the interface is the volume's; firmware writes the pointer.
    let status = unsafe { open(volume.as_ptr(), &mut root) };
    File::new(status, root)
}

/// An open file, closed with this value.
struct File(NonNull<file::Protocol>);

impl File {
    fn new(status: Status, file: *mut file::Protocol) -> Option<Self> {
        if status.is_error() { None } else { NonNull::new(file).map(Self) }
    }

    fn calls(&self) -> &file::Protocol {
        // SAFETY: the file is open, and firmware changes nothing in its interface.
        unsafe { self.0.as_ref() }
    }

    /// Opens a file below this folder, for reading.
    fn open(&self, name: &str) -> Option<Self> {
        let (mut opened, mut name) = (ptr::null_mut(), path(name));
        // SAFETY: the folder is open; firmware reads the path up to its NUL and writes the pointer.
        let status =
            unsafe { (self.calls().open)(self.0.as_ptr(), &mut opened, name.as_mut_ptr(), file::MODE_READ, 0) };
        Self::new(status, opened)
    }

    fn seek(&self, position: u64) -> Option<()> {
        // SAFETY: the file is open.
        let status = unsafe { (self.calls().set_position)(self.0.as_ptr(), position) };
        (!status.is_error()).then_some(())
    }

    /// Bytes of it: the position of its end, which u64::MAX stands for (UEFI 13.5.10).
    fn size(&self) -> Option<u64> {
        self.seek(u64::MAX)?;
        let mut size = 0;
        // SAFETY: the file is open; firmware writes the position.
        let status = unsafe { (self.calls().get_position)(self.0.as_ptr(), &mut size) };
        self.seek(0)?;
        (!status.is_error()).then_some(size)
    }

    /// Reads at most `bytes` bytes and says how many.
    ///
    /// # Safety
    ///
    /// So many bytes at `to` are the caller's.
    unsafe fn read(&self, to: *mut c_void, mut bytes: usize) -> Option<usize> {
        // SAFETY: the file is open; the caller's promise.
        let status = unsafe { (self.calls().read)(self.0.as_ptr(), &mut bytes, to) };
        (!status.is_error()).then_some(bytes)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the file is open, and nothing uses it any more. Closing does not fail.
        let _ = unsafe { (self.calls().close)(self.0.as_ptr()) };
    }
}
