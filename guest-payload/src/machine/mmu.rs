//! The payload's stage-1 tables: 4 KiB granule, 48-bit addresses, one regime for everything.
//!
//! The lower half of the address space is the identity: memory and the devices that the payload drives, fixed before the
//! suite starts. The upper half is for tests: an alias of any physical address at [`ALIAS`], with any attributes, undone
//! after each test by [`clear_alias`]. Tables that a test needs come from its own memory.

pub mod wide;

use crate::machine::tree::Machine;
use crate::machine::{image, memory};
use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Attribute bits of a leaf (Arm ARM, D8.3.1.2), without the address and the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes(pub u64);

/// Descriptor bits (Arm ARM, D8.3.1).
pub mod bits {
    /// Bits 1:0 of a Table or Page descriptor.
    pub const TABLE_OR_PAGE: u64 = 0b11;
    /// Bits 1:0 of a Block descriptor.
    pub const BLOCK: u64 = 0b01;
    /// AP[2]: read-only.
    pub const READ_ONLY: u64 = 1 << 7;
    /// SH: inner shareable.
    pub const INNER_SHAREABLE: u64 = 0b11 << 8;
    /// AF: accessed.
    pub const ACCESSED: u64 = 1 << 10;
    /// nG: belongs to the ASID.
    pub const NOT_GLOBAL: u64 = 1 << 11;
    /// DBM: hardware may make a read-only leaf writable.
    pub const DIRTY_MANAGEMENT: u64 = 1 << 51;
    /// PXN: EL1 does not execute it.
    pub const NEVER_EXECUTE_EL1: u64 = 1 << 53;
    /// UXN: EL0 does not execute it.
    pub const NEVER_EXECUTE_EL0: u64 = 1 << 54;
    /// The output address of a page.
    pub const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
}

/// MAIR_EL1: index 0 Device-nGnRE, 1 Normal write-back, 2 Normal non-cacheable, 3 Normal write-back, tagged.
const MAIR: u64 = 0x04 | 0xff << 8 | 0x44 << 16 | 0xf0 << 24;

const LEAF: u64 = bits::ACCESSED | bits::NOT_GLOBAL | bits::NEVER_EXECUTE_EL0 | bits::INNER_SHAREABLE;
const NORMAL: u64 = LEAF | 1 << 2;

/// Normal memory that may be written and executed.
pub const NORMAL_RWX: Attributes = Attributes(NORMAL);
/// Normal memory that may be written.
pub const NORMAL_RW: Attributes = Attributes(NORMAL | bits::NEVER_EXECUTE_EL1);
/// Normal memory that may be executed.
pub const NORMAL_RX: Attributes = Attributes(NORMAL | bits::READ_ONLY);
/// Normal memory that may be read.
pub const NORMAL_RO: Attributes = Attributes(NORMAL | bits::READ_ONLY | bits::NEVER_EXECUTE_EL1);
/// Normal memory with allocation tags that may be written.
pub const TAGGED_RW: Attributes = Attributes(LEAF | 3 << 2 | bits::NEVER_EXECUTE_EL1);
/// Device memory.
pub const DEVICE: Attributes = Attributes(LEAF | bits::NEVER_EXECUTE_EL1);

/// A Table descriptor.
pub const fn table_descriptor(table: u64) -> u64 {
    table & bits::ADDRESS | bits::TABLE_OR_PAGE
}

/// A Block descriptor.
pub const fn block_descriptor(address: u64, attributes: Attributes) -> u64 {
    address & bits::ADDRESS | attributes.0 | bits::BLOCK
}

/// A Page descriptor.
pub const fn page_descriptor(address: u64, attributes: Attributes) -> u64 {
    address & bits::ADDRESS | attributes.0 | bits::TABLE_OR_PAGE
}

/// What turns the MMU on; `enable_mmu` in boot.S reads it by offset.
#[repr(C)]
pub struct MmuRegisters {
    mair: u64,
    tcr: u64,
    ttbr0: u64,
    sctlr: u64,
}

/// SCTLR_EL1: MMU, data cache, stack alignment check for both levels, instruction cache; EIS, EOS, TSCXT, SPAN, nTLSMD
/// and LSMAOE set, as on a CPU without those features.
pub const SCTLR: u64 = 0x30d0_0800 | 1 << 12 | 1 << 4 | 1 << 3 | 1 << 2 | 1;

impl MmuRegisters {
    /// All zeros.
    pub const ZERO: Self = Self { mair: 0, tcr: 0, ttbr0: 0, sctlr: 0 };

    /// For the tables at `root` under `asid`.
    pub fn new(root: u64, asid: u64) -> Self {
        // PARange values above 48 bits need larger granules or LPA2; TCR_EL1.IPS has the same encoding.
        let pa_range = (read_sysreg!("ID_AA64MMFR0_EL1") & 0xf).min(5);
        // T0SZ 16; walks inner shareable write-back; no walks through TTBR1; the top byte may hold a tag (TBI0).
        let tcr = 1 << 37 | pa_range << 32 | 1 << 23 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8 | 16;
        Self { mair: MAIR, tcr, ttbr0: root | asid << 48, sctlr: SCTLR }
    }
}

/// The ASID of the final tables. The boot tables have 0, so the two can't conflict in a TLB.
const ASID: u64 = 1;

/// Virtual address of physical address 0 in the half for tests.
pub const ALIAS: u64 = 1 << 47;

static ROOT: AtomicU64 = AtomicU64::new(0);
static ALIAS_USED: AtomicBool = AtomicBool::new(false);

/// Builds the final tables and goes over to them.
pub fn init(machine: &Machine) {
    ROOT.store(memory::allocate_zeroed_page().expect("memory for tables"), Ordering::Relaxed);
    for range in machine.ram() {
        map(range.clone(), range.start, NORMAL_RWX);
    }
    let image = image::parts();
    for (range, attributes) in [(image.text, NORMAL_RX), (image.rodata, NORMAL_RO), (image.data, NORMAL_RW)] {
        map(range.clone(), range.start, attributes);
    }
    let registers = registers();
    // SAFETY: the new tables map everything in use as the boot tables do, and the ASID differs, so no entry cached from
    // the old tables is used. The DSB makes the tables visible to the walker before it is pointed at them.
    unsafe {
        asm!("dsb ish", "msr TTBR0_EL1, {}", "isb", in(reg) registers.ttbr0, options(nostack, preserves_flags));
    }
}

/// What every CPU loads.
pub fn registers() -> MmuRegisters {
    MmuRegisters::new(ROOT.load(Ordering::Relaxed), ASID)
}

/// Makes a device's registers accessible at their physical address.
pub fn map_device(range: Range<u64>) {
    map(range.clone(), range.start, DEVICE);
}

/// Makes the physical range accessible at the returned address, until the test ends. `range` is whole pages.
pub fn alias(range: Range<u64>, attributes: Attributes) -> u64 {
    let address = ALIAS + range.start;
    map(address..address + (range.end - range.start), range.start, attributes);
    address
}

/// Undoes everything in the half for tests.
pub fn clear_alias() {
    if !ALIAS_USED.swap(false, Ordering::Relaxed) {
        return;
    }
    let root = ROOT.load(Ordering::Relaxed);
    for index in 256..512 {
        slot(root, index).store(0, Ordering::Relaxed);
    }
    invalidate_all();
}

/// Size in bytes of what an entry of `level` covers.
const fn entry_size(level: u32) -> u64 {
    4096 << (9 * (3 - level))
}

/// Which entry of a table of `level` is for `address`.
const fn index(address: u64, level: u32) -> u64 {
    (address / entry_size(level)) % 512
}

fn slot(table: u64, index: u64) -> &'static AtomicU64 {
    // SAFETY: tables are pages of RAM that this module allocated for itself, mapped at their physical addresses; entries
    // are only accessed as atomics. A test's table is given back only after `clear_alias` unlinked it.
    unsafe { &*((table + index * 8) as *const AtomicU64) }
}

/// The entry of `level` (0 to 3) for `address`, with tables put in above it where there are none. A leaf that is in
/// the way is split into a table of the same contents.
///
/// # Panics
///
/// Without memory for a table.
pub fn entry(address: u64, level: u32) -> &'static AtomicU64 {
    if address >= ALIAS {
        ALIAS_USED.store(true, Ordering::Relaxed);
    }
    let mut table = ROOT.load(Ordering::Relaxed);
    for above in 0..level {
        let slot = slot(table, index(address, above));
        let old = slot.load(Ordering::Relaxed);
        table =
            if old & bits::TABLE_OR_PAGE == bits::TABLE_OR_PAGE { old & bits::ADDRESS } else { grow(slot, old, above) };
    }
    slot(table, index(address, level))
}

/// Replaces `old`, a leaf or nothing, in an entry of `level` with a table of the same contents.
fn grow(parent: &AtomicU64, old: u64, level: u32) -> u64 {
    let table = memory::allocate_zeroed_page().expect("memory for a stage-1 table");
    if old & 1 != 0 {
        let size = entry_size(level + 1);
        let kind = if level + 1 == 3 { bits::TABLE_OR_PAGE } else { bits::BLOCK };
        for index in 0..512 {
            slot(table, index).store((old & !0b11 | kind) + index * size, Ordering::Relaxed);
        }
        // Break-before-make, since the level may not promise more here. Nobody uses the range: identity leaves are split
        // before other CPUs run, and never the one this code is in.
        replace(parent, 0);
    }
    replace(parent, table_descriptor(table));
    table
}

/// Writes an entry; where it was valid, makes sure that no TLB keeps the old one.
fn replace(slot: &AtomicU64, descriptor: u64) {
    // The DSB makes the table behind a new entry visible to walkers before the entry is.
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
    let old = slot.swap(descriptor, Ordering::Relaxed);
    if old & 1 != 0 {
        invalidate_all();
    } else {
        // SAFETY: barriers; the entry is visible to the walker before the next access needs it.
        unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
    }
}

/// Forgets every cached translation of EL1&0 on all CPUs.
pub fn invalidate_all() {
    // SAFETY: an invalidation takes no rights away from what the tables say. DSB ISHST: the entry is written before the
    // invalidation; DSB ISH: the invalidation is done everywhere before what follows; ISB: for this CPU's fetches too.
    unsafe { asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", options(nostack, preserves_flags)) }
}

/// Maps `range` (whole pages) to the physical range that starts at `target`, with the largest leaves.
pub fn map(range: Range<u64>, target: u64, attributes: Attributes) {
    let mut address = range.start / memory::PAGE * memory::PAGE;
    let end = range.end.next_multiple_of(memory::PAGE);
    while address < end {
        let physical = target + (address - range.start);
        let fits = |level: u32| {
            let size = entry_size(level);
            address.is_multiple_of(size) && physical.is_multiple_of(size) && end - address >= size
        };
        let level = (1..3).find(|&level| fits(level)).unwrap_or(3);
        let kind = if level == 3 { bits::TABLE_OR_PAGE } else { bits::BLOCK };
        let slot = entry(address, level);
        let old = slot.load(Ordering::Relaxed);
        let new = physical & bits::ADDRESS | attributes.0 | kind;
        if old & 1 != 0 && old != new {
            replace(slot, 0);
        }
        if old != new {
            replace(slot, new);
        }
        address += entry_size(level);
    }
}
