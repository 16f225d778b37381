//! The guest's memory: one stage-2 table, that maps what the guest is given to where it lies.

pub mod events;
pub mod gic;
pub mod revoke;
pub mod shape;
pub mod table_lock;
pub mod watch;

use crate::el2::base::cpu;
use crate::el2::base::cpu::this_cpu;
use crate::el2::base::frames::FRAMES;
use crate::el2::base::registers::{isb, read_register, write_register};
use crate::el2::boot::Refusal;
use crate::el2::boot::guest::Guest;
use crate::el2::exits::services::Logs;
use crate::el2::guest_memory::shape::Shape;
use crate::el2::guest_memory::table_lock::TableLock;

use crate::el2::{crash, manager};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use hypervisor::machine::{GuestRegisters, Machine};
use hypervisor::options::{Options, SizeChangeChoice};
use hypervisor::range::PhysRange;
use hypervisor_abi::events::{Barrier, Call, Invalidation, Record};
use stage2::aarch64::{El2, Identity, NonSecure, Regime};
use stage2::{
    Abort, Attributes, BbmLevel, Config, Counters, Dsb, Error, Features, Ipa, IpaRange, Maintenance, Outcome,
    PAGE_SIZE, PhysAddr, Scope, Slot, Stage2, TableMemory, Tlbi, Untranslated, Vmid,
};

/// The engine's doors to this machine.
#[derive(Debug)]
pub struct Platform;

// SAFETY: frames come from the pool, which nothing else uses; they are mapped at their physical addresses as Normal
// write-back inner-shareable memory, as VTCR_EL2 says for the walks.
unsafe impl TableMemory for Platform {
    #[inline(always)]
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        let allocate = || FRAMES.allocate(frames as u64, frames as u64);
        events::ordered(allocate, |first| first.map(|first| Record::allocate(first.0, frames)))
    }

    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        let free = || {
            for frame in 0..frames as u64 {
                // SAFETY: the caller's promise, frame by frame.
                unsafe { FRAMES.free(first.offset(frame * PAGE_SIZE)) };
            }
        };
        events::ordered(free, |()| Some(Record::free(first.0, frames)));
    }

    #[inline(always)]
    unsafe fn load(&self, slot: Slot) -> u64 {
        // SAFETY: the caller's promise; frames are identity mapped.
        events::load(|| unsafe { Identity::load(slot) }, |value| Record::load(slot.table.0, slot.index, value))
    }

    #[inline(always)]
    unsafe fn store(&self, slot: Slot, value: u64) {
        // SAFETY: the caller's promise; frames are identity mapped.
        let store = || unsafe { Identity::store(slot, value) };
        events::stored(store, |()| Some(Record::store(slot.table.0, slot.index, value)));
    }

    #[inline(always)]
    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: the caller's promise; frames are identity mapped.
        let exchange = || unsafe { Identity::compare_exchange(slot, old, new) };
        // One that changes nothing tells the oracle nothing.
        let changed = |done: &Result<(), u64>| done.is_ok() && old != new;
        events::stored(exchange, |done| changed(done).then(|| Record::exchange(slot.table.0, slot.index, old, new)))
    }

    #[inline(always)]
    unsafe fn fetch_clear(&self, slot: Slot, mask: u64) -> u64 {
        // SAFETY: the caller's promise; frames are identity mapped.
        let clear = || unsafe { Identity::fetch_clear(slot, mask) };
        let record = |old: &u64| Record::exchange(slot.table.0, slot.index, *old, old & !mask);
        events::stored(clear, |old| (old & mask != 0).then(|| record(old)))
    }

    #[inline(always)]
    unsafe fn clear_run<const SEE: bool>(&self, first: Slot, count: usize, mask: u64, lse: bool) -> u64 {
        if !events::is_kept() {
            // SAFETY: the caller's promise; frames are identity mapped.
            return unsafe { Identity::clear_run::<SEE>(first, count, mask, lse) };
        }
        // One by one, since each is an event.
        let slots = (first.index..first.index + count).map(|index| Slot { index, ..first });
        // SAFETY: the caller's promise.
        slots.fold(0, |seen, slot| seen | unsafe { self.fetch_clear(slot, mask) })
    }

    #[inline(always)]
    unsafe fn is_filled(&self, table: PhysAddr, first: u64, step: u64) -> bool {
        // SAFETY: the caller's promise; frames are identity mapped.
        unsafe { Identity::is_filled(table, first, step) }
    }

    #[inline(always)]
    unsafe fn fill(&self, table: PhysAddr, first: u64, step: u64) {
        // A closure that several callers have is not inlined.
        if !events::is_kept() {
            // SAFETY: the caller's promise; frames are identity mapped.
            return unsafe { Identity::fill(table, first, step) };
        }
        // SAFETY: the caller's promise; frames are identity mapped.
        let fill = || unsafe { Identity::fill(table, first, step) };
        events::stored(fill, |()| Some(Record::fill(table.0, first, step)));
    }
}

// SAFETY: the instructions do what is asked; there is one VMID, and VTTBR_EL2 has held it since before the first
// translation was used.
unsafe impl Maintenance for Platform {
    #[inline(always)]
    fn dsb(&self, barrier: Dsb) {
        let execute = || El2::<NonSecure>::dsb(barrier);
        events::ordered(execute, |()| {
            Some(Record::barrier(match barrier {
                Dsb::IshSt => Barrier::IshSt,
                Dsb::Ish => Barrier::Ish,
                Dsb::Nsh => Barrier::Nsh,
            }))
        });
    }

    #[inline(always)]
    fn isb(&self) {
        El2::<NonSecure>::isb();
        events::push(Record::isb);
    }

    #[inline(always)]
    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        if !events::is_kept() {
            // Not in a closure, which need not be inlined: the operation is a constant to most callers.
            return El2::<NonSecure>::tlbi(tlbi);
        }
        let execute = || El2::<NonSecure>::tlbi(tlbi);
        events::ordered(execute, |()| {
            let is_broadcast = |scope| scope == Scope::Broadcast;
            let invalidation = match tlbi {
                Tlbi::Ipa { ipa, scope } => Invalidation::Ipas2E1 { ipa: ipa.0, broadcast: is_broadcast(scope) },
                Tlbi::Range { base, scale, num } => Invalidation::Ripas2E1 { base: base.0, scale, num },
                Tlbi::VaLocal { va } => Invalidation::Vaae1 { va },
                Tlbi::VmallE1(scope) => Invalidation::VmallE1 { broadcast: is_broadcast(scope) },
                Tlbi::VmallS12E1(scope) => Invalidation::VmallS12E1 { broadcast: is_broadcast(scope) },
            };
            // Whatever the engine means, an invalidation is for the VMID that this CPU holds.
            let _ = vmid;
            Some(Record::tlbi(held_vmid(), invalidation))
        });
    }

    #[inline(always)]
    fn counters(&self) -> &Counters {
        &this_cpu().stage2
    }

    #[inline(always)]
    fn wait(&self) {
        // A CPU that has crashed may be the one that is waited for.
        crash::park_if_stopped();
        // YIELD first: an emulator that runs its CPUs in turn, as QEMU does when it counts instructions, goes over to the one
        // that is waited for.
        // SAFETY: a hint.
        unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
        core::hint::spin_loop();
    }
}

/// What the guest's accesses go through. Faults take the read side: they only change permissions and split leaves.
#[repr(C)]
pub struct GuestMemory {
    /// The engine's table. First, as every fault takes its address.
    pub table: TableLock,
    /// Whether the guest may call [`crate::el2::exits::services`].
    pub services: bool,
    /// What it has started by them.
    pub logs: Logs,
    vttbr: u64,
    vtcr: u64,
    /// The root that hardware walks from, and of how many tables it consists.
    pub root: (PhysAddr, usize),
    /// What is mapped as RAM, for good.
    ram: Vec<IpaRange>,
}

impl GuestMemory {
    /// The RAM of the guest's that `address` lies in.
    #[inline(always)]
    pub fn ram_at(&self, address: u64) -> Option<IpaRange> {
        self.ram.iter().copied().find(|ram| ram.contains(Ipa(address)))
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
    unsafe { this_cpu().guest_memory.load(Relaxed).as_ref() }
}

#[cold]
#[inline(never)]
fn note_guest_memory() -> Option<&'static GuestMemory> {
    // Acquire: what is behind it is there.
    let memory = GUEST_MEMORY.load(Acquire);
    this_cpu().guest_memory.store(memory, Relaxed);
    // SAFETY: null, or from `create`, which gives it away for good.
    unsafe { memory.as_ref() }
}

/// Makes the table: the guest's RAM, and those of its registers that can be mapped; nothing else.
///
/// # Errors
///
/// A sentence: a `bbm` that the CPUs cannot do, redistributors that cannot be given, a table that does not fit.
pub fn create(
    machine: &Machine,
    options: &Options,
    guest: &Guest,
    features: Features,
    registers: GuestRegisters,
) -> Result<(), Refusal> {
    let features = Features { bbm: size_change(options.bbm, features.bbm)?, ..features };
    let vmid = Vmid::new(1)?;
    // Without a management core or hypercalls nobody starts a log, and hardware need not look for leaves to mark.
    let hardware_dirty = manager::is_wanted(options) || options.hypercalls;
    warn_of_grants(&options.grant_dma);
    let forwarded: Vec<_> = registers.forwarded().collect();
    let devices = gic::guard(machine, registers)?;
    let ipa_bits = ipa_bits(guest.memory.iter().chain(&devices).chain(&forwarded), features.pa_bits);
    let config = Config { hardware_dirty, ipa_bits, ..Config::new(vmid, features) };
    events::prepare();
    let mut table = events::fallible(Call::New, None, || Stage2::new(Platform, config))?;
    let (vttbr, vtcr) = (table.vttbr(), table.vtcr());
    let root = (PhysAddr(vttbr & 0x0000_ffff_ffff_f000), table.geometry().root_tables());
    events::push(|| Record::attach(vmid.get(), ipa_bits, root.0.0));
    // TLBIs act on the VMID that VTTBR_EL2 holds; mapping may need some.
    set_registers(vttbr, vtcr);

    for &ram in &guest.memory {
        map(&mut table, ram, Attributes::RAM)?;
    }
    for &device in &devices {
        map(&mut table, device, Attributes::DEVICE)?;
    }

    log::info!("{}", Shape::of(&table));
    let mut ram = guest
        .memory
        .iter()
        .map(|ram| IpaRange::new(Ipa(ram.start()), Ipa(ram.end())))
        .collect::<Result<Vec<_>, _>>()?;
    // The largest is asked for most.
    ram.sort_unstable_by_key(|ram| core::cmp::Reverse(ram.bytes()));
    let memory = Box::new(GuestMemory {
        table: TableLock::new(table),
        services: options.hypercalls,
        logs: Logs::new(),
        vttbr,
        vtcr,
        root,
        ram,
    });
    // Release: who finds the pointer finds what is behind it.
    GUEST_MEMORY.store(Box::leak(memory), Release);
    Ok(())
}

/// Bits of IPA that reach everything that the guest is given, so that a walk has no more levels than it needs: up to 39 bits it
/// begins at level 1, with one table. What lies beyond faults like everything else that is not mapped.
fn ipa_bits<'a>(mapped: impl Iterator<Item = &'a PhysRange>, pa_bits: u8) -> u8 {
    const THREE_LEVELS: u8 = 39;
    let highest = mapped.map(|range| range.end().saturating_sub(1)).max().unwrap_or(0);
    let needed = (u64::BITS - highest.leading_zeros()) as u8;
    needed.max(THREE_LEVELS).min(pa_bits)
}

/// The way to change sizes that was asked for, if the weakest CPU can do it.
fn size_change(choice: SizeChangeChoice, weakest: BbmLevel) -> Result<BbmLevel, Refusal> {
    let needs = |level: BbmLevel, name: &str| {
        if weakest >= level {
            return Ok(level);
        }
        Err(Refusal(alloc::format!(
            "bbm={name} needs FEAT_BBM level {} on every CPU, and the weakest has level {}: use bbm=break or bbm=auto",
            level as u8,
            weakest as u8
        )))
    };
    match choice {
        SizeChangeChoice::Auto => Ok(weakest),
        SizeChangeChoice::BreakBeforeMake => Ok(BbmLevel::Level0),
        SizeChangeChoice::NoTranslation => needs(BbmLevel::Level1, "nt"),
        SizeChangeChoice::Direct => needs(BbmLevel::Level2, "direct").map(|level| weakest.max(level)),
    }
}

/// Says what it means that the guest is granted the virtio-mmio transports at these addresses.
fn warn_of_grants(granted: &[u64]) {
    for address in granted {
        log::warn!(
            "grant-dma={address:#x}: the guest can make this device read and write ALL memory, the hypervisor's too. \
             Stage 2 does not hold it back; nothing in this run is isolated any more"
        );
    }
}

fn map(table: &mut Stage2<Platform>, range: PhysRange, attributes: Attributes) -> Result<(), Error> {
    let ipas = IpaRange::new(Ipa(range.start()), Ipa(range.end()))?;
    events::fallible(Call::Map, Some(ipas), || table.map(ipas, PhysAddr(range.start()), attributes))
}

/// The VMID that the executing CPU walks and invalidates for: VTTBR_EL2, bits 63:48.
fn held_vmid() -> u16 {
    (read_register!("vttbr_el2") >> 48) as u16
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

/// The page that an abort is about, for the log of events.
#[inline(always)]
fn page_of(ipa: Ipa) -> Option<IpaRange> {
    IpaRange::from_size(ipa.align_down(PAGE_SIZE), PAGE_SIZE).ok()
}

/// Lets the first store to a tracked page through, and says whether the store at `va` to the page `ipa` was that. Waits for
/// nothing, and calls nothing: what may have to is left to [`fault`].
#[inline(always)]
pub fn first_write(ipa: Ipa, va: u64) -> bool {
    let Some(memory) = noted_memory() else { return false };
    events::make_room();
    let Some(table) = memory.table.try_read() else { return false };
    // SAFETY: this abort's, until it is answered.
    let history = unsafe { cpu::fault_history() };
    events::begin(Call::Fault, page_of(ipa));
    let done = table.first_write(ipa, va, history);
    events::end(true);
    done
}

/// [`first_write`] to a page that is still part of a block.
#[inline(always)]
pub fn first_write_to_block(ipa: Ipa, va: u64) -> bool {
    let Some(memory) = noted_memory() else { return false };
    events::make_room();
    let Some(table) = memory.table.try_read() else { return false };
    // SAFETY: this abort's, until it is answered.
    let history = unsafe { cpu::fault_history() };
    events::operation(Call::Fault, page_of(ipa), || table.first_write_to_block(ipa, va, history), |_| true)
}

/// The engine's answer to a stage-2 abort of the executing CPU.
pub fn fault(abort: &Abort) -> Outcome {
    let Some(memory) = guest_memory() else { return Outcome::Unmapped };
    events::make_room();
    let table = memory.table.read();
    // SAFETY: this abort's, until it is answered.
    let history = unsafe { cpu::fault_history() };
    let outcome = events::operation(Call::Fault, page_of(abort.ipa), || table.fault(abort, history), |_| true);
    drop(table);
    if outcome == Outcome::Stuck {
        stuck(abort);
    }
    outcome
}

/// The engine's answer to an abort of the executing CPU at an address that has no translation any more.
#[cold]
pub fn untranslated(va: u64, why: Untranslated) -> Outcome {
    let Some(memory) = guest_memory() else { return Outcome::Unmapped };
    events::make_room();
    let table = memory.table.read();
    // SAFETY: this abort's, until it is answered.
    let history = unsafe { cpu::fault_history() };
    let outcome = events::operation(Call::Fault, None, || table.untranslated(va, why, history), |_| true);
    drop(table);
    if outcome == Outcome::Stuck {
        log::debug!("guest: {va:#x} has no translation, again and again ({why:?}); it gets an external abort");
    }
    outcome
}

/// Waits at EL2 while the table is frozen. The pauses leave the lock to whoever is to thaw it.
#[cold]
pub fn wait_for_thaw() {
    const PAUSE: usize = 1000;
    while guest_memory().is_some_and(|memory| memory.table.read().is_frozen()) {
        crash::park_if_stopped();
        (0..PAUSE).for_each(|_| core::hint::spin_loop());
    }
}

#[cold]
fn stuck(abort: &Abort) {
    log::error!("stage 2: {abort:?} comes back although the tables allow it; the guest gets an external abort");
}

/// Whether `address` is RAM of the guest's.
pub fn is_ram(address: u64) -> bool {
    let leaf = guest_memory().and_then(|memory| memory.table.read().walk(Ipa(address)));
    leaf.is_some_and(|leaf| leaf.attributes.memory == stage2::MemoryType::Normal)
}
