//! Linux's system calls (arm64: the number in x8, arguments from x0 on), and where the program starts and ends.

use core::arch::{asm, global_asm};

// Linux enters with a stack that is aligned, at its top the number of arguments, and with no return address.
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x30, xzr", "mov x0, sp", "b program");

const PIPE: u64 = 59;
const READ: u64 = 63;
const WRITE: u64 = 64;
const EXIT_GROUP: u64 = 94;
const NANOSLEEP: u64 = 101;
const CLOCK_GETTIME: u64 = 113;
const CLOCK_MONOTONIC: u64 = 1;
/// The list's entry with the CPU's capabilities.
const AT_HWCAP: u64 = 16;

/// # Safety
///
/// The call must leave all memory alone that the program uses otherwise.
unsafe fn call(number: u64, arguments: [u64; 3]) -> u64 {
    let [mut x0, x1, x2] = arguments;
    // SAFETY: the caller's promise; the kernel changes x0 alone.
    unsafe { asm!("svc #0", in("x8") number, inlateout("x0") x0, in("x1") x1, in("x2") x2, options(nostack)) };
    x0
}

/// What the CPU has, as the kernel says on the stack that a program begins with: arguments, environment, then pairs.
pub fn capabilities(stack: *const u64) -> u64 {
    // SAFETY: the kernel's layout: a count, so many pointers and a zero; pointers up to a zero; pairs up to one that is zero.
    unsafe {
        let mut at = stack.add(*stack as usize + 2);
        while *at != 0 {
            at = at.add(1);
        }
        at = at.add(1);
        while *at != 0 {
            if *at == AT_HWCAP {
                return *at.add(1);
            }
            at = at.add(2);
        }
    }
    0
}

/// Ends the program.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: nothing is used afterwards.
        let _ = unsafe { call(EXIT_GROUP, [status as u64, 0, 0]) };
    }
}

/// Writes to standard output.
pub fn print(text: &str) {
    // SAFETY: the kernel reads the text.
    let _ = unsafe { call(WRITE, [1, text.as_ptr() as u64, text.len() as u64]) };
}

/// Nanoseconds since some moment, by the clock that does not go back.
pub fn now() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: the kernel writes two words.
    let _ = unsafe { call(CLOCK_GETTIME, [CLOCK_MONOTONIC, time.as_mut_ptr() as u64, 0]) };
    time[0] * 1_000_000_000 + time[1]
}

/// Sleeps so many nanoseconds, less than a second.
pub fn sleep(nanoseconds: u64) {
    let time = [0, nanoseconds];
    // SAFETY: the kernel reads two words.
    let _ = unsafe { call(NANOSLEEP, [time.as_ptr() as u64, 0, 0]) };
}

/// A pipe.
pub struct Pipe {
    read: u64,
    write: u64,
}

impl Pipe {
    /// A new one.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn new() -> Result<Self, u64> {
        let mut ends = [0u32; 2];
        // SAFETY: the kernel writes two numbers.
        match unsafe { call(PIPE, [ends.as_mut_ptr() as u64, 0, 0]) } {
            0 => Ok(Self { read: ends[0].into(), write: ends[1].into() }),
            error => Err(error),
        }
    }

    /// Writes; a pipe has room for 64 KiB. Returns how many bytes, or an error's number.
    pub fn write(&self, from: &[u8]) -> u64 {
        // SAFETY: the kernel reads the bytes.
        unsafe { call(WRITE, [self.write, from.as_ptr() as u64, from.len() as u64]) }
    }

    /// Reads. Returns how many bytes, or an error's number.
    pub fn read(&self, to: &mut [u8]) -> u64 {
        // SAFETY: the kernel writes the bytes.
        unsafe { call(READ, [self.read, to.as_mut_ptr() as u64, to.len() as u64]) }
    }
}

/// Words as bytes.
pub fn bytes(words: &[u64]) -> &[u8] {
    // SAFETY: each byte of a word is one.
    unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// Words as bytes that may change.
pub fn bytes_mut(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: as above, and any bytes are words.
    unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    print("save-worker: wrong: panic\n");
    exit(101)
}
