//! Linux's system calls (arm64: the number in x8, arguments from x0 on), and where the program starts and ends.

use core::arch::{asm, global_asm};

// Linux enters with a stack that is aligned, and with no return address.
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "b program");

const OPENAT: u64 = 56;
const READ: u64 = 63;
const WRITE: u64 = 64;
const PREAD: u64 = 67;
const PWRITE: u64 = 68;
const EXIT_GROUP: u64 = 94;
const MUNMAP: u64 = 215;
const MMAP: u64 = 222;
const MADVISE: u64 = 233;

/// # Safety
///
/// The call must leave all memory alone that the program uses otherwise.
unsafe fn call(number: u64, arguments: [u64; 6]) -> Result<u64, i64> {
    let [mut x0, x1, x2, x3, x4, x5] = arguments;
    // SAFETY: the caller's promise; the kernel changes x0 alone.
    unsafe {
        asm!("svc #0", in("x8") number, inlateout("x0") x0, in("x1") x1, in("x2") x2, in("x3") x3, in("x4") x4, in("x5") x5,
             options(nostack));
    }
    // -4095 to -1 are errors.
    match x0 as i64 {
        error @ -4095..0 => Err(error),
        _ => Ok(x0),
    }
}

/// Ends the program.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: nothing is used afterwards.
        let _ = unsafe { call(EXIT_GROUP, [status as u64, 0, 0, 0, 0, 0]) };
    }
}

/// Writes to standard output.
pub fn print(text: &str) {
    // SAFETY: the kernel reads the text.
    let _ = unsafe { call(WRITE, [1, text.as_ptr() as u64, text.len() as u64, 0, 0, 0]) };
}

/// Whether memory is to be in blocks of the kernel's.
#[derive(Clone, Copy)]
pub enum HugePages {
    /// Transparent huge pages, as far as there are any.
    Wanted,
    /// Pages of 4 KiB.
    Unwanted,
}

/// Memory of the program's own, filled with zeros, aligned to 2 MiB.
pub struct Memory {
    mapping: u64,
    bytes: u64,
}

/// The size of a huge page.
const HUGE: u64 = 2 << 20;

impl Memory {
    pub fn new(bytes: u64, huge: HugePages) -> Result<Self, i64> {
        const READ_WRITE: u64 = 3;
        const PRIVATE_ANONYMOUS: u64 = 0x22;
        // SAFETY: the kernel picks addresses that are not in use.
        let mapping = unsafe { call(MMAP, [0, bytes + HUGE, READ_WRITE, PRIVATE_ANONYMOUS, u64::MAX, 0])? };
        let memory = Self { mapping, bytes };
        let advice = match huge {
            HugePages::Wanted => 14,
            HugePages::Unwanted => 15,
        };
        // SAFETY: advice leaves the contents as they are.
        unsafe { call(MADVISE, [mapping, bytes + HUGE, advice, 0, 0, 0])? };
        Ok(memory)
    }

    /// All of it, as words.
    pub fn words(&mut self) -> &mut [u64] {
        let start = self.mapping.next_multiple_of(HUGE) as *mut u64;
        // SAFETY: the mapping has so many bytes behind the first multiple, readable, writable, initialised with zeros, and is
        // borrowed here as a whole.
        unsafe { core::slice::from_raw_parts_mut(start, self.bytes as usize / 8) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows it.
        let _ = unsafe { call(MUNMAP, [self.mapping, self.bytes + HUGE, 0, 0, 0, 0]) };
    }
}

/// An open file.
pub struct File(u64);

impl File {
    /// Makes a file, or empties it. `path` ends with a zero.
    pub fn create(path: &core::ffi::CStr) -> Result<Self, i64> {
        const HERE: u64 = -100i64 as u64;
        const READ_WRITE_CREATE_TRUNCATE: u64 = 0o1102;
        // SAFETY: the kernel reads the path.
        unsafe { call(OPENAT, [HERE, path.as_ptr() as u64, READ_WRITE_CREATE_TRUNCATE, 0o600, 0, 0]) }.map(Self)
    }

    /// Reads on from where the last call ended.
    pub fn read(&self, to: &mut [u8]) -> Result<u64, i64> {
        // SAFETY: the kernel writes into the buffer.
        unsafe { call(READ, [self.0, to.as_mut_ptr() as u64, to.len() as u64, 0, 0, 0]) }
    }

    /// Reads from an offset.
    pub fn read_at(&self, to: &mut [u8], offset: u64) -> Result<u64, i64> {
        // SAFETY: the kernel writes into the buffer.
        unsafe { call(PREAD, [self.0, to.as_mut_ptr() as u64, to.len() as u64, offset, 0, 0]) }
    }

    /// Writes at an offset.
    pub fn write_at(&self, from: &[u8], offset: u64) -> Result<u64, i64> {
        // SAFETY: the kernel reads the buffer.
        unsafe { call(PWRITE, [self.0, from.as_ptr() as u64, from.len() as u64, offset, 0, 0]) }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    print("tlb-workload: panic\n");
    exit(101)
}
