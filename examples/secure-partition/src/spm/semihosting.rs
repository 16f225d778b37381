//! The machine's only contact to its host: its arguments and its exit status (Arm semihosting, DUI0471).

use core::arch::asm;

const SYS_GET_CMDLINE: u64 = 0x15;
const SYS_EXIT: u64 = 0x18;
const APPLICATION_EXIT: u64 = 0x2_0026;

/// # Safety
///
/// `block` is what the operation expects.
unsafe fn call(operation: u64, block: *mut [u64; 2]) -> u64 {
    let result;
    // SAFETY: the caller's promise; QEMU returns to the next instruction with the result in x0.
    unsafe { asm!("hlt #0xf000", inout("x0") operation => result, in("x1") block, options(nostack)) };
    result
}

/// The arguments that QEMU was given for the image, as one line.
pub fn command_line(buffer: &mut [u8]) -> &str {
    let mut block = [buffer.as_mut_ptr() as u64, buffer.len() as u64];
    // SAFETY: the block holds a buffer's address and length; the host writes there, and the length into the block.
    let result = unsafe { call(SYS_GET_CMDLINE, &raw mut block) };
    let length = if result == 0 { block[1] as usize } else { 0 };
    let text = buffer.get(..length).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or_default();
    text.trim_end_matches('\0')
}

/// Ends the machine; QEMU's exit status is `status`.
pub fn exit(status: u8) -> ! {
    let mut block = [APPLICATION_EXIT, status.into()];
    loop {
        // SAFETY: the block holds the reason and the status.
        unsafe { call(SYS_EXIT, &raw mut block) };
    }
}
