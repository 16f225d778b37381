//! The hypervisor's own memory: what belongs to it, and its stage-1 map.
//!
//! Everything is mapped where it lies. What can be executed cannot be written, and what can be written cannot be
//! executed; below each stack lies a page that is not mapped at all.

use crate::el2::base::{cpu, heap, refusal::Refusal, registers};
use aarch64_paging::descriptor::El23Attributes as Attributes;
use aarch64_paging::idmap::IdMap;
use aarch64_paging::paging::{El2, MemoryRegion};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use hypervisor::machine::{Gic, GuestRegisters, Machine, Needs};
use hypervisor::range::{PhysRange, merged, without};
use hypervisor_abi::page_hash::{WORDS, page_hash};
use spin::Once;

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
    fn switch_tables(root: u64);
}

/// Tables of each kind for a few things far apart.
const TABLES: usize = 16;

/// What translation starts with. Level 2 maps blocks of 2 MiB: what is not in use is not mapped, for a CPU may read ahead in
/// all that is.
#[repr(C, align(4096))]
pub struct Early {
    /// The root, and others of levels 1 and 2 in the order in which they come into use.
    tables: [[u64; 512]; TABLES],
    /// How many of the others are in use.
    used: usize,
}

/// The memory of [`Early`].
#[repr(transparent)]
pub struct EarlyTables(UnsafeCell<Early>);

// SAFETY: only the first CPU uses it, before the others are started.
unsafe impl Sync for EarlyTables {}

pub static EARLY_TABLES: EarlyTables = EarlyTables(UnsafeCell::new(Early { tables: [[0; 512]; TABLES], used: 0 }));

/// The root of the final tables, for the CPUs that are started later.
pub static ROOT_TABLE: AtomicU64 = AtomicU64::new(0);

const VALID: u64 = 1 << 0;
const TABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 10;
/// Attribute 1, inner shareable.
const NORMAL_BLOCK: u64 = VALID | ACCESSED | 1 << 2 | 3 << 8;
/// Attribute 0, never executed.
const DEVICE_BLOCK: u64 = VALID | ACCESSED | 1 << 54;

impl Early {
    /// The level-2 slot for `address`, in tables that are put in place if there are none yet; nothing if there is no table
    /// left or the address has more than 48 bits.
    fn slot(&mut self, address: u64) -> Option<&mut u64> {
        if address >> 48 != 0 {
            return None;
        }
        let base = self.tables.as_ptr() as u64;
        let mut table = 0;
        for shift in [39, 30] {
            let entry = self.tables.get_mut(table)?.get_mut((address >> shift) as usize & 511)?;
            if *entry == 0 && self.used + 1 < TABLES {
                self.used += 1;
                *entry = (base + self.used as u64 * PAGE) | TABLE | VALID;
            }
            // An entry that is still empty leads to no table.
            table = (*entry & !(PAGE - 1)).checked_sub(base)? as usize / PAGE as usize;
        }
        self.tables.get_mut(table)?.get_mut((address >> 21) as usize & 511)
    }

    /// Maps the blocks around `range`. False if one is mapped in another way, or cannot be mapped.
    fn map(&mut self, range: PhysRange, attributes: u64) -> bool {
        let mut block = range.start() & !(BLOCK - 1);
        while block < range.end() {
            match self.slot(block) {
                Some(slot) if *slot == 0 || *slot == block | attributes => *slot = block | attributes,
                _ => return false,
            }
            block += BLOCK;
        }
        true
    }
}

/// Maps the image, and the device tree before anything else: where it is taken for RAM, nothing is taken for a device.
/// Called by boot.S with the MMU off: no atomics here, no panics.
pub extern "C" fn fill_early_tables(early: &mut Early, tree: u64) {
    early.map(image(), NORMAL_BLOCK);
    if tree != 0
        && let Some(header) = PhysRange::with_size(tree, 1)
    {
        early.map(header, NORMAL_BLOCK);
    }
}

/// Adds to the early map. False if a part is mapped in another way, or cannot be mapped.
fn early_map(range: PhysRange, attributes: u64) -> bool {
    // SAFETY: start-up is single-threaded, and nothing below calls this again. The hardware walker reads the tables, too,
    // which is why entries only ever become valid.
    let early = unsafe { &mut *EARLY_TABLES.0.get() };
    let mapped = early.map(range, attributes);
    // The entries are seen by this CPU's walks before what they map is accessed.
    registers::dsb_ish();
    registers::isb();
    mapped
}

/// Adds the blocks of 2 MiB around `range` to the early map, as memory. False if a part is mapped as a device, or cannot be
/// mapped.
pub fn early_map_memory(range: PhysRange) -> bool {
    early_map(range, NORMAL_BLOCK)
}

/// Adds the block of 2 MiB around a device's registers to the early map. False if it is mapped as memory.
pub fn early_map_device(address: u64) -> bool {
    PhysRange::with_size(address, 1).is_some_and(|range| early_map(range, DEVICE_BLOCK))
}

/// The memory that the guest gets no part of, once it is known.
static OWN: Once<PhysRange> = Once::new();

/// The `number`th range of the hypervisor's own memory, counted from 0.
pub fn own_range(number: u64) -> Option<PhysRange> {
    OWN.get().copied().filter(|_| number == 0)
}

/// Where the image begins.
pub fn image_start() -> u64 {
    // The address is all that is used of a linker symbol.
    (&raw const __image_start) as u64
}

/// The image, with its BSS and its heap.
pub fn image() -> PhysRange {
    range(image_start(), (&raw const __image_end) as u64)
}

/// All memory that the guest gets no part of.
#[derive(Clone, Copy)]
pub struct OwnMemory {
    /// Image, heap and pool: whole 2 MiB blocks, so that the guest's leaves stay large.
    pub range: PhysRange,
    /// What lies behind the image.
    pub pool: PhysRange,
}

impl OwnMemory {
    /// What belongs to the image where it lies.
    pub fn of_image(machine: &Machine, needs: &Needs) -> Self {
        let own = machine.own_memory(needs);
        Self { range: own, pool: range(needs.image.end(), own.end()) }
    }
}

const MEMORY: Attributes = Attributes::VALID
    .union(Attributes::ACCESSED)
    .union(Attributes::USER_RES1)
    .union(Attributes::INNER_SHAREABLE)
    .union(Attributes::ATTRIBUTE_INDEX_1);
const DATA: Attributes = MEMORY.union(Attributes::XN);
const CONSTANTS: Attributes = DATA.union(Attributes::READ_ONLY);
const TEXT: Attributes = MEMORY.union(Attributes::READ_ONLY);
const DEVICE: Attributes = Attributes::VALID
    .union(Attributes::ACCESSED)
    .union(Attributes::USER_RES1)
    .union(Attributes::ATTRIBUTE_INDEX_0)
    .union(Attributes::XN);

/// Builds the final map and changes over to it. `own_devices` are the registers of the management core's devices, the first of
/// which is there if there is such a core; `registers` are the guest's.
///
/// # Errors
///
/// A sentence, where the device tree puts a device into RAM or beyond 48 bits of address.
pub fn switch_to_own_map(
    machine: &Machine,
    own: &OwnMemory,
    own_devices: [Option<PhysRange>; 2],
    registers: &GuestRegisters,
) -> Result<(), Refusal> {
    let mut map = IdMap::new(0, El2);
    let mut add = |start: u64, end: u64, attributes| {
        // The crate that makes the tables takes no for an end: a table of level 1 for each 512 GiB, two more at each edge.
        let tables = (end.saturating_sub(1) >> 39) - (start >> 39) + 1 + 4;
        if tables.saturating_mul(PAGE) > heap::free_bytes() as u64 {
            return Err(Refusal(alloc::format!(
                "there is no memory for the hypervisor's own map of {start:#x}-{end:#x}: the device tree has more ranges of memory, or \
                 wider ones, than it can map"
            )));
        }
        let region = MemoryRegion::new(start as usize, end as usize);
        map.map_range(&region, attributes).map_err(|error| {
            Refusal(alloc::format!("the hypervisor cannot map {start:#x}-{end:#x} for itself: {error}"))
        })
    };

    let [text_end, rodata_end] = [(&raw const __text_end) as u64, (&raw const __rodata_end) as u64];
    add(image_start(), text_end, TEXT)?;
    add(text_end, rodata_end, CONSTANTS)?;

    // The rest of its own memory, and the guest's, for loading it.
    let guards = cpu::all().flat_map(|area| area.guard_pages()).map(|page| range(page as u64, page as u64 + PAGE));
    let image_constants = range(own.range.start(), rodata_end);
    let holes: Vec<PhysRange> = guards.chain([image_constants]).chain(machine.reserved.iter().copied()).collect();
    for data in without(&machine.ram, &holes).into_iter().filter_map(|range| range.shrunk_to(PAGE)) {
        add(data.start(), data.end(), DATA)?;
    }

    let uart = machine.uart.iter().map(|uart| uart.device.registers);
    let redistributors = match &machine.gic {
        Gic::V2(_) => &[][..],
        Gic::V3(gic) => &gic.redistributors,
    };
    // EL2 makes interrupts of mediated devices pending. A management core saves what the distributor and the clock have.
    let has_core = own_devices.iter().any(Option::is_some);
    let distributor = Some(machine.gic.distributor()).filter(|_| has_core || registers.mediated().next().is_some());
    let clock = machine.rtc.iter().filter(|_| has_core).map(|rtc| rtc.registers);
    let cpu_interface = match &machine.gic {
        Gic::V2(gic) => Some(gic.cpu_interface).filter(|_| has_core),
        Gic::V3(_) => None,
    };
    let mediated = registers.mediated().chain(distributor).chain(clock).chain(cpu_interface);
    let devices = uart
        .chain(redistributors.iter().copied())
        .chain(own_devices.into_iter().flatten())
        .chain(registers.forwarded())
        .chain(mediated);
    for device in merged(devices.filter_map(|range| range.grown_to(PAGE)).collect()) {
        if let Some(ram) = machine.ram.iter().find(|ram| ram.overlaps(device)) {
            return Err(Refusal(alloc::format!("the device tree has a device at {device} inside the RAM at {ram}")));
        }
        add(device.start(), device.end(), DEVICE)?;
    }

    let root = map.root_address().0 as u64;
    OWN.call_once(|| own.range);
    // In use from now on, for ever.
    core::mem::forget(map);
    ROOT_TABLE.store(root, Relaxed);
    // CPUs that are started later read it with their MMU off.
    registers::clean_to_memory((&raw const ROOT_TABLE).addr(), size_of_val(&ROOT_TABLE));
    // SAFETY: the tables map everything that is in use as it was, apart from permissions that are not used.
    unsafe { switch_tables(root) };
    Ok(())
}

/// A range whose ends are in order.
fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(start, end).unwrap_or(PhysRange::new(start, start).expect("an empty range is a range"))
}

/// A hash of what never changes once the guest runs: code, constants, and the tables that map EL2's memory.
pub fn integrity() -> u64 {
    let mut hash = 0;
    let constants = image_start() & !(PAGE - 1)..(&raw const __rodata_end) as u64;
    for page in constants.step_by(PAGE as usize) {
        add_page(&mut hash, page);
    }
    add_table(&mut hash, ROOT_TABLE.load(Relaxed), 0);
    hash
}

/// Adds a page of EL2's own to a hash, and returns its words.
fn add_page(hash: &mut u64, address: u64) -> &'static [u64; WORDS] {
    // SAFETY: a page of the image's constant part or of the tables in force: mapped, and nothing writes it any more.
    let page = unsafe { &*(address as *const [u64; WORDS]) };
    *hash = hash.rotate_left(1) ^ page_hash(page);
    page
}

/// Adds a translation table, and those below it.
fn add_table(hash: &mut u64, address: u64, level: u32) {
    const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
    for entry in add_page(hash, address).iter().filter(|entry| level < 3 && **entry & (TABLE | VALID) == TABLE | VALID)
    {
        add_table(hash, entry & ADDRESS, level + 1);
    }
}
