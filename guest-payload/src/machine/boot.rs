//! What the boot code in `boot.S` shares with the rest: the state at entry, stacks, and the first stage-1 tables.

use crate::machine::image;
use crate::machine::mmu::{self, MmuRegisters};
use core::cell::UnsafeCell;

core::arch::global_asm!(include_str!("boot.S"));

/// The boot CPU's registers at the Image's first instruction. `boot.S` writes it, by offset.
#[repr(C)]
pub struct BootState {
    /// x0 to x3.
    pub registers: [u64; 4],
    /// `CurrentEL`.
    pub current_el: u64,
    /// `DAIF`.
    pub daif: u64,
    /// `SCTLR_EL1`.
    pub sctlr: u64,
    /// `SPSel`.
    pub sp_sel: u64,
}

/// A static that is written by the boot code, before there is any reference to it, and only read afterwards.
#[repr(transparent)]
struct WrittenAtBoot<T>(UnsafeCell<T>);

// SAFETY: the only writes happen on the boot CPU before any other CPU runs.
unsafe impl<T> Sync for WrittenAtBoot<T> {}

/// A stack, used by one CPU.
#[repr(C, align(4096))]
struct Stack<const SIZE: usize>(UnsafeCell<[u8; SIZE]>);

// SAFETY: no code takes a reference to the contents; the boot CPU alone has its stack pointers in here.
unsafe impl<const SIZE: usize> Sync for Stack<SIZE> {}

#[unsafe(no_mangle)]
static BOOT_STATE: WrittenAtBoot<BootState> =
    WrittenAtBoot(UnsafeCell::new(BootState { registers: [0; 4], current_el: 0, daif: 0, sctlr: 0, sp_sel: 0 }));

/// The boot CPU's stack; `boot.S` knows the size.
#[unsafe(no_mangle)]
static PRIMARY_STACK: Stack<65536> = Stack(UnsafeCell::new([0; 65536]));

/// The boot CPU's stack for exceptions; `boot.S` knows the size.
#[unsafe(no_mangle)]
static PRIMARY_EXCEPTION_STACK: Stack<16384> = Stack(UnsafeCell::new([0; 16384]));

/// The first tables: a level 0 table and a level 1 table each for the image and for the device tree.
#[repr(C, align(4096))]
struct EarlyTables([[u64; 512]; 3]);

static EARLY_TABLES: WrittenAtBoot<EarlyTables> = WrittenAtBoot(UnsafeCell::new(EarlyTables([[0; 512]; 3])));

static EARLY_REGISTERS: WrittenAtBoot<MmuRegisters> = WrittenAtBoot(UnsafeCell::new(MmuRegisters::ZERO));

/// The boot CPU's registers at entry.
pub fn state() -> &'static BootState {
    // SAFETY: `boot.S` wrote it before any Rust code ran; nobody writes it any more.
    unsafe { &*BOOT_STATE.0.get() }
}

unsafe extern "C" {
    fn secondary_entry();
}

/// The address that PSCI CPU_ON gets.
pub fn secondary_entry_address() -> u64 {
    secondary_entry as *const () as u64
}

/// Fills the first tables and returns the registers to load: the image's and the device tree's 1 GiB blocks, normal
/// memory, nothing else. Enough to read the tree; `mmu::init` replaces it.
///
/// # Safety
///
/// Called once, by `boot.S`, with the MMU off. With the MMU off there must be no atomic access in here.
#[unsafe(no_mangle)]
unsafe extern "C" fn early_tables(device_tree: u64) -> *const MmuRegisters {
    let tables = EARLY_TABLES.0.get().cast::<u64>();
    let image = image::parts().text.start;
    let set = |table: usize, index: u64, value: u64| {
        let slot = tables.wrapping_add(table * 512 + index as usize);
        // SAFETY: inside the three tables of 512 entries, to which no other CPU or reference exists yet.
        unsafe { slot.write_volatile(value) };
    };
    let gigabyte = |address: u64| address >> 30 << 30;
    let level1 = |table: usize| tables as u64 + (table * 4096) as u64;
    let slots = [image >> 39 & 511, device_tree >> 39 & 511];
    let device_tree_table = if slots[0] == slots[1] { 1 } else { 2 };
    set(0, slots[1], mmu::table_descriptor(level1(device_tree_table)));
    set(0, slots[0], mmu::table_descriptor(level1(1)));
    set(device_tree_table, device_tree >> 30 & 511, mmu::block_descriptor(gigabyte(device_tree), mmu::NORMAL_RWX));
    set(1, image >> 30 & 511, mmu::block_descriptor(gigabyte(image), mmu::NORMAL_RWX));
    let registers = EARLY_REGISTERS.0.get();
    // SAFETY: as above: nobody else refers to it.
    unsafe { registers.write_volatile(MmuRegisters::new(tables as u64, 0)) };
    registers
}
