//! Leaving boot services: the memory map has to be the one that firmware has at that moment.

use super::EfiError;
use super::memory_map::MemoryMap;

/// How often it is tried. One stale map is usual (a timer's handler allocated in between), two have been seen.
pub const ATTEMPTS: usize = 8;

/// A memory map that was read into a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadMap {
    /// Bytes of it.
    pub bytes: usize,
    /// What ExitBootServices is to be called with.
    pub key: usize,
    /// Bytes from one descriptor to the next.
    pub descriptor_size: usize,
}

/// The two calls of firmware that leaving takes. Once the second one has failed, no other call may be made
/// (UEFI 7.4.6).
pub trait BootServices {
    /// GetMemoryMap. Nothing if it fails, as it does where the buffer is too small.
    fn memory_map(&mut self, buffer: &mut [u64]) -> Option<ReadMap>;

    /// ExitBootServices. False where the map is not the newest.
    fn exit(&mut self, key: usize) -> bool;
}

/// Ends boot services. `prepare` makes of the memory map what is needed afterwards, while an error can still be told; it
/// must not call firmware, for then the map would be an old one.
///
/// # Errors
///
/// [`EfiError::NoMemoryMap`], [`EfiError::DescriptorSize`], [`EfiError::StillThere`], and those of `prepare`.
pub fn leave<T, E: From<EfiError>>(
    services: &mut impl BootServices,
    buffer: &mut [u64],
    mut prepare: impl FnMut(MemoryMap<'_>) -> Result<T, E>,
) -> Result<T, E> {
    for _ in 0..ATTEMPTS {
        let map = services.memory_map(buffer).ok_or(EfiError::NoMemoryMap)?;
        let prepared = prepare(map.view(buffer)?)?;
        if services.exit(map.key) {
            return Ok(prepared);
        }
    }
    Err(EfiError::StillThere { attempts: ATTEMPTS }.into())
}

impl ReadMap {
    /// The map in the buffer that it was read into.
    ///
    /// # Errors
    ///
    /// [`EfiError::DescriptorSize`], or [`EfiError::NoMemoryMap`] where firmware says that it wrote more than there is room for.
    pub fn view(self, buffer: &[u64]) -> Result<MemoryMap<'_>, EfiError> {
        let words = buffer.get(..self.bytes / 8).ok_or(EfiError::NoMemoryMap)?;
        MemoryMap::new(words, self.descriptor_size)
    }
}
