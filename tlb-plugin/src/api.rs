//! The part of QEMU's plugin interface, version 4, that is used (`include/qemu/qemu-plugin.h`), and of GLib's arrays.
//!
//! The rest of the crate calls the safe functions here. They hold as long as they are called from a callback of QEMU's, which
//! is the only way into the crate.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::NonNull;

/// The version that the declarations are of. QEMU refuses a plugin of a version that it does not have.
pub const VERSION: c_int = 4;

/// What QEMU calls this plugin.
pub type Id = u64;

/// QEMU's own types, of which there are pointers only.
macro_rules! opaque {
    ($($name:ident)*) => {$(
        #[repr(C)]
        pub struct $name {
            _private: [u8; 0],
        }
    )*};
}
opaque!(RawBlock RawInstruction RawHardwareAddress RawRegister);

#[repr(C)]
struct GArray {
    data: *mut c_char,
    length: c_uint,
}

#[repr(C)]
struct GByteArray {
    data: *mut u8,
    length: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RegisterDescriptor {
    handle: *mut RawRegister,
    name: *const c_char,
    _feature: *const c_char,
}

/// Called when an instruction is about to be executed.
pub type OnExecution = extern "C" fn(vcpu: c_uint, data: *mut c_void);
/// Called when an instruction has loaded or stored.
pub type OnAccess = extern "C" fn(vcpu: c_uint, access: u32, va: u64, data: *mut c_void);
/// Called when a block of instructions is translated.
pub type OnTranslation = extern "C" fn(id: Id, block: *mut RawBlock);
/// Called when something is over.
pub type OnEnd = extern "C" fn(id: Id);

const NO_REGISTERS: c_int = 0;
const READS_REGISTERS: c_int = 1;
const LOADS_AND_STORES: c_int = 3;

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: OnTranslation);
    fn qemu_plugin_reset(id: Id, callback: OnEnd);
    fn qemu_plugin_tb_n_insns(block: *const RawBlock) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const RawBlock, index: usize) -> *mut RawInstruction;
    fn qemu_plugin_insn_data(instruction: *const RawInstruction, to: *mut c_void, length: usize) -> usize;
    fn qemu_plugin_insn_vaddr(instruction: *const RawInstruction) -> u64;
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: *mut RawInstruction,
        callback: OnExecution,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        instruction: *mut RawInstruction,
        callback: OnAccess,
        flags: c_int,
        which: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_mem_is_store(access: u32) -> bool;
    fn qemu_plugin_get_hwaddr(access: u32, va: u64) -> *mut RawHardwareAddress;
    fn qemu_plugin_hwaddr_phys_addr(address: *const RawHardwareAddress) -> u64;
    fn qemu_plugin_get_registers() -> *mut GArray;
    fn qemu_plugin_read_register(register: *mut RawRegister, to: *mut GByteArray) -> c_int;
    fn g_byte_array_new() -> *mut GByteArray;
    fn g_byte_array_set_size(array: *mut GByteArray, length: c_uint) -> *mut GByteArray;
    fn g_array_free(array: *mut GArray, with_data: c_int) -> *mut c_char;
}

/// Has `callback` called for each block that is translated from now on.
pub fn on_translation(id: Id, callback: OnTranslation) {
    // SAFETY: `id` is the one that QEMU has given; the callback is a function, which stays.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, callback) }
}

/// Forgets all translated code and all callbacks, soon, and calls `then`, which may set up new ones.
pub fn reset(id: Id, then: OnEnd) {
    // SAFETY: as above. It is called from an instruction's callback, not from the installation, where it is not allowed.
    unsafe { qemu_plugin_reset(id, then) }
}

/// Whether an access was a store.
pub fn is_store(access: u32) -> bool {
    // SAFETY: `access` is what QEMU has given to the callback of an access; it is looked at by value.
    unsafe { qemu_plugin_mem_is_store(access) }
}

/// The physical address that QEMU itself has come to for an access, within its callback.
pub fn physical_address(access: u32, va: u64) -> Option<u64> {
    // SAFETY: called from the callback of that access, with its address.
    let address = NonNull::new(unsafe { qemu_plugin_get_hwaddr(access, va) })?;
    // SAFETY: QEMU's pointer is valid until the callback ends.
    Some(unsafe { qemu_plugin_hwaddr_phys_addr(address.as_ptr()) })
}

/// An instruction while its block is translated.
#[derive(Clone, Copy)]
pub struct Instruction(*mut RawInstruction);

/// The instructions of a block, within the callback of its translation.
pub fn instructions(block: *mut RawBlock) -> impl Iterator<Item = Instruction> {
    // SAFETY: QEMU has given the block to the callback.
    let count = unsafe { qemu_plugin_tb_n_insns(block) };
    // SAFETY: as above; the index is below the count.
    (0..count).map(move |index| Instruction(unsafe { qemu_plugin_tb_get_insn(block, index) }))
}

impl Instruction {
    /// Its encoding; 0 if it is none of four bytes.
    pub fn opcode(self) -> u32 {
        let mut bytes = [0u8; 4];
        // SAFETY: the instruction is one of a block that is being translated; QEMU writes as many bytes as it is told, or less.
        let length = unsafe { qemu_plugin_insn_data(self.0, bytes.as_mut_ptr().cast(), bytes.len()) };
        if length == bytes.len() { u32::from_le_bytes(bytes) } else { 0 }
    }

    /// Its virtual address.
    pub fn address(self) -> u64 {
        // SAFETY: the instruction is one of a block that is being translated.
        unsafe { qemu_plugin_insn_vaddr(self.0) }
    }

    /// Has `callback` called with `data` before each execution. It may read registers.
    pub fn on_execution(self, callback: OnExecution, data: u64) {
        let data = std::ptr::without_provenance_mut(data as usize);
        // SAFETY: as above; QEMU hands `data` on and looks at it no further.
        unsafe { qemu_plugin_register_vcpu_insn_exec_cb(self.0, callback, READS_REGISTERS, data) }
    }

    /// Has `callback` called with `data` after each load and store.
    pub fn on_access(self, callback: OnAccess, data: u64) {
        let data = std::ptr::without_provenance_mut(data as usize);
        // SAFETY: as above.
        unsafe { qemu_plugin_register_vcpu_mem_cb(self.0, callback, NO_REGISTERS, LOADS_AND_STORES, data) }
    }
}

/// A register that the interface shows.
#[derive(Clone, Copy)]
pub struct Register(NonNull<RawRegister>);

// SAFETY: the handle is a number that QEMU has dressed as a pointer, the same for all vCPUs of a kind; nothing is behind it.
unsafe impl Send for Register {}

/// All registers of the executing vCPU by name.
pub fn registers() -> Vec<(String, Register)> {
    // SAFETY: called from a callback of a vCPU's.
    let Some(array) = NonNull::new(unsafe { qemu_plugin_get_registers() }) else { return Vec::new() };
    // SAFETY: QEMU has just made the array, for the caller.
    let GArray { data, length } = unsafe { array.read() };
    // SAFETY: it has so many descriptors, aligned by GLib's allocator, and lives until it is freed below.
    let descriptors = unsafe { std::slice::from_raw_parts(data.cast::<RegisterDescriptor>(), length as usize) };
    let named = descriptors.iter().filter_map(|&RegisterDescriptor { handle, name, .. }| {
        // SAFETY: QEMU's names end with a zero and stay.
        let name = unsafe { CStr::from_ptr(name) };
        Some((name.to_string_lossy().into_owned(), Register(NonNull::new(handle)?)))
    });
    let named = named.collect();
    // SAFETY: the array was made for the caller, who frees it once; nothing of it is used any more.
    unsafe { g_array_free(array.as_ptr(), 1) };
    named
}

/// Where a register is read to, again and again.
pub struct Buffer(NonNull<GByteArray>);

// SAFETY: the array is the buffer's own, which is used by one thread at a time (`&mut self`).
unsafe impl Send for Buffer {}

impl Buffer {
    /// An empty one.
    pub fn new() -> Option<Self> {
        // SAFETY: GLib makes an array, or ends the program.
        NonNull::new(unsafe { g_byte_array_new() }).map(Self)
    }

    /// Reads a register of the executing vCPU, within a callback that may; its low 64 bits.
    pub fn read(&mut self, register: Register) -> Option<u64> {
        // SAFETY: the array is this buffer's own.
        unsafe { g_byte_array_set_size(self.0.as_ptr(), 0) };
        // SAFETY: called from a callback that may read registers, with a handle of QEMU's.
        // What it returns is the bytes up to version 5, and from then on whether there are any: the array has how many.
        unsafe { qemu_plugin_read_register(register.0.as_ptr(), self.0.as_ptr()) };
        // SAFETY: the array is there, whatever QEMU has put into it.
        let array = unsafe { self.0.read() };
        let length = Some(array.length as usize).filter(|&length| length > 0)?.min(8);
        // SAFETY: the array has at least so many bytes.
        let bytes = unsafe { std::slice::from_raw_parts(array.data, length) };
        // The target's order is little-endian.
        Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }
}
