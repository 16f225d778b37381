//! The guest's memory: one stage-2 table, that maps what the guest is given to where it lies.

pub mod create;
pub mod events;
pub mod fault;
pub mod gic;
pub mod guest_logs;
pub mod operations;
pub mod platform;
pub mod revoke;
pub mod shape;
pub mod table_lock;
pub mod watch;

use crate::el2::base::cpu::this_cpu;
use crate::el2::base::registers::{isb, write_register};
use crate::el2::guest_memory::{guest_logs::Logs, table_lock::TableLock};
use alloc::vec::Vec;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use stage2::aarch64::{El2, NonSecure, Regime};
use stage2::{Dsb, Ipa, IpaRange, PhysAddr, Scope, Tlbi};

/// What the guest's accesses go through. Faults take the read side: they only change permissions and split leaves.
#[repr(C)]
pub struct GuestMemory {
    /// The engine's table. First, as every fault takes its address.
    pub table: TableLock,
    /// Whether the guest may call the services (`hypercalls=on`).
    pub services: bool,
    /// What it has started by them.
    pub logs: Logs,
    vttbr: u64,
    vtcr: u64,
    /// The root that hardware walks from, and of how many frames it consists.
    pub root: (PhysAddr, u64),
    /// What is mapped as RAM, for good.
    ram: Vec<IpaRange>,
}

impl GuestMemory {
    /// The RAM of the guest's that `address` lies in.
    #[inline(always)]
    pub fn ram_at(&self, address: u64) -> Option<IpaRange> {
        self.ram.iter().copied().find(|ram| ram.contains(Ipa(address)))
    }

    /// Bytes of all of it.
    pub fn ram_bytes(&self) -> u64 {
        self.ram.iter().map(|ram| ram.bytes()).sum()
    }

    /// Whether all of `range` is RAM of the guest's.
    #[inline(always)]
    pub fn is_ram_range(&self, range: IpaRange) -> bool {
        self.ram.iter().any(|ram| ram.covers(range))
    }
}

/// Set once. Each CPU notes it where every fault finds it at once.
static GUEST_MEMORY: AtomicPtr<GuestMemory> = AtomicPtr::new(core::ptr::null_mut());

/// The guest's memory, once there is any.
#[inline(always)]
pub fn guest_memory() -> Option<&'static GuestMemory> {
    let noted = noted_memory();
    if noted.is_some() { noted } else { note_guest_memory() }
}

/// The guest's memory, if this CPU has noted it.
#[inline(always)]
fn noted_memory() -> Option<&'static GuestMemory> {
    // Relaxed: this CPU has stored it, after it had acquired what is behind it.
    // SAFETY: null, or from `create`, which gives it away for good.
    unsafe { this_cpu().guest_memory.load(Relaxed).cast::<GuestMemory>().as_ref() }
}

#[cold]
#[inline(never)]
fn note_guest_memory() -> Option<&'static GuestMemory> {
    // Acquire: what is behind it is there.
    let memory = GUEST_MEMORY.load(Acquire);
    this_cpu().guest_memory.store(memory.cast(), Relaxed);
    // SAFETY: null, or from `create`, which gives it away for good.
    unsafe { memory.as_ref() }
}

fn set_registers(vttbr: u64, vtcr: u64) {
    write_register!("vtcr_el2", vtcr);
    // SAFETY: the table is never released.
    unsafe { NonSecure::set_table(vttbr) };
    // The registers hold for what is translated, or invalidated, from here on.
    isb();
}

/// Puts the table into force on the executing CPU, whose TLB may hold anything of the VMID.
pub fn activate() {
    let Some(memory) = guest_memory() else { return };
    set_registers(memory.vttbr, memory.vtcr);
    El2::<NonSecure>::tlbi(Tlbi::VmallS12E1(Scope::Local));
    // The invalidation is complete before the guest is entered.
    El2::<NonSecure>::dsb(Dsb::Nsh);
}

/// The guest's table, once there is one.
pub fn table() -> Option<&'static TableLock> {
    guest_memory().map(|memory| &memory.table)
}

/// Whether `address` is RAM of the guest's.
pub fn is_ram(address: u64) -> bool {
    let leaf = guest_memory().and_then(|memory| memory.table.read().walk(Ipa(address)));
    leaf.is_some_and(|leaf| leaf.attributes.memory == stage2::MemoryType::Normal)
}
