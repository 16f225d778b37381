//! Calls everything.

use core::hint::black_box;
use core::sync::atomic::AtomicU64;
use stage2::platform::{Dsb, Slot, Tlbi};
use stage2::*;

/// What the link must not need.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    unsafe extern "C" {
        safe fn a_panic_is_reachable_from_stage2() -> !;
    }
    a_panic_is_reachable_from_stage2()
}

/// A platform that the compiler can't see through.
struct Opaque;

/// Something of type `T` that could be anything, never called with a `T` that is not valid for all bit patterns but for
/// the enums below, which the caller builds.
fn any() -> u64 {
    black_box(0)
}

// SAFETY: this is never executed.
unsafe impl TableMemory for Opaque {
    #[inline(never)]
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        black_box(frames != 0).then(|| PhysAddr(any()))
    }

    #[inline(never)]
    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        black_box((first, frames));
    }

    #[inline(never)]
    unsafe fn load(&self, slot: Slot) -> u64 {
        black_box(slot);
        any()
    }

    #[inline(never)]
    unsafe fn store(&self, slot: Slot, value: u64) {
        black_box((slot, value));
    }

    #[inline(never)]
    unsafe fn compare_exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        black_box((slot, old, new));
        if any() == 0 { Ok(()) } else { Err(any()) }
    }
}

// SAFETY: this is never executed.
unsafe impl Maintenance for Opaque {
    #[inline(never)]
    fn dsb(&self, barrier: Dsb) {
        black_box(barrier);
    }

    #[inline(never)]
    fn isb(&self) {}

    #[inline(never)]
    fn tlbi(&self, vmid: Vmid, tlbi: Tlbi) {
        black_box((vmid, tlbi));
    }

    fn counters(&self) -> &Counters {
        static COUNTERS: Counters = Counters::new();
        black_box(&COUNTERS)
    }
}

// SAFETY: this is never executed.
unsafe impl FrameAllocator for Opaque {
    #[inline(never)]
    fn allocate(&self, frames: usize) -> Option<PhysAddr> {
        black_box(frames != 0).then(|| PhysAddr(any()))
    }

    #[inline(never)]
    unsafe fn free(&self, first: PhysAddr, frames: usize) {
        black_box((first, frames));
    }

    #[inline(never)]
    fn offset(&self) -> u64 {
        any()
    }
}

/// [`Mapped`] is what most embedders have in place of [`Opaque`].
fn mapped() {
    let memory = Mapped::new(Opaque);
    let slot = Slot { table: PhysAddr(any()), index: any() as usize };
    black_box(TableMemory::allocate(&memory, any() as usize));
    // SAFETY (all): this is never executed.
    // SAFETY: see above.
    black_box(unsafe { memory.load(slot) });
    // SAFETY: see above.
    black_box(unsafe { memory.group_with::<true>(slot, any()) });
    // SAFETY: see above.
    black_box(unsafe { memory.group_with::<false>(slot, any()) });
    // SAFETY: see above.
    unsafe { memory.set_run(slot, any() as usize, any(), any() != 0) };
    // SAFETY: see above.
    unsafe { memory.store(slot, any()) };
    // SAFETY: see above.
    black_box(unsafe { memory.compare_exchange(slot, any(), any()) }).ok();
    // SAFETY: see above.
    black_box(unsafe { memory.fetch_clear(slot, any()) });
    // SAFETY: see above.
    black_box(unsafe { memory.clear_run::<true>(slot, any() as usize, any(), any() != 0) });
    // SAFETY: see above.
    black_box(unsafe { memory.clear_run::<false>(slot, any() as usize, any(), any() != 0) });
    // SAFETY: see above.
    black_box(unsafe { memory.is_filled(slot.table, any(), any()) });
    // SAFETY: see above.
    unsafe { memory.fill(slot.table, any(), any()) };
    // SAFETY: see above.
    unsafe { TableMemory::free(&memory, slot.table, any() as usize) };
}

fn range() -> Option<IpaRange> {
    match any() {
        0 => IpaRange::new(Ipa(any()), Ipa(any())).ok(),
        _ => IpaRange::from_size(Ipa(any()), any()).ok(),
    }
}

fn permissions() -> Permissions {
    Permissions { read: any() != 0, write: any() != 0, execute: black_box(Execute::Always) }
}

fn size() -> LeafSize {
    black_box(LeafSize::Page)
}

fn options() -> LogOptions {
    LogOptions { mechanism: black_box(Mechanism::WriteProtect), all_dirty: any() != 0 }
}

fn features() -> Features {
    let id = features::IdRegisters { midr: any(), isar0: any(), mmfr0: any(), mmfr1: any(), mmfr2: any() };
    let one = Features::from_id_registers(&id, black_box(features::ConflictAborts::Handled));
    one.weakest(one.with_pa_bits(any() as u8).with_vmid_bits(any() as u8))
}

fn tables<G: Granule>() -> Result<(), Error> {
    let config = Config::new(Vmid::new(any() as u16)?, features())
        .with_ipa_bits(any() as u8)
        .with_contiguous(any() != 0)
        .with_largest(size())
        .with_hardware_dirty(any() != 0)
        .with_fwb(any() != 0);
    let mut table = Stage2::<_, G>::with_granule(Opaque, config)?;
    black_box((table.vttbr(), table.vtcr(), table.bbm_level(), table.census(), table.is_frozen()));
    let range = range().ok_or(Error::TooManyLogs)?;
    let attributes = Attributes { memory: black_box(MemoryType::Normal), permissions: permissions() };
    black_box(table.map(range, PhysAddr(any()), attributes)).ok();
    black_box(table.protect(range, permissions())).ok();
    black_box(table.split(range, size())).ok();
    black_box(table.walk(Ipa(any())));
    table.leaves(range).for_each(|leaf| {
        black_box((leaf.range(), leaf));
    });
    let mut batch = table.batch();
    black_box(batch.protect(range, permissions())).ok();
    black_box(batch.split(range, size())).ok();
    batch.finish();
    faults(&table);
    black_box(table.freeze()).ok();
    table.thaw();
    logs(&mut table, range)?;
    black_box(table.unmap(range)).ok();
    black_box(table.collapse(range)).ok();
    black_box(table.split_all_for_good()).ok();
    black_box(table.admit(features())).ok();
    table.invalidate_all();
    // SAFETY: this is never executed.
    unsafe { table.release() };
    Ok(())
}

fn faults<G: Granule>(table: &Stage2<Opaque, G>) {
    let mut history = FaultHistory::new();
    if let Some(syndrome) = Syndrome::decode(any()) {
        black_box(syndrome.hpfar_is_valid());
        black_box(table.fault(&syndrome.at(fault::ipa_from_hpfar(any()), any()), &mut history));
    }
    if let Some(taken) = aarch64::read_abort(any()) {
        black_box(table.answer(&taken, &mut history));
    }
    black_box(features::IdRegisters::read());
    let why = if any() == 0 { Untranslated::Exception } else { Untranslated::Fault(any() as u8) };
    black_box(table.untranslated(any(), why, &mut history));
    black_box(table.first_write(Ipa(any()), any(), &mut history));
    black_box(table.first_write_to_block(Ipa(any()), any(), &mut history));
}

fn logs<G: Granule>(table: &mut Stage2<Opaque, G>, range: IpaRange) -> Result<(), Error> {
    static STORAGE: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
    let storage = black_box(&STORAGE[..]);
    let mut log = table.start_log(range, storage, options())?;
    let mut other = table.start_log(range, storage, options())?;
    let mut words = [0; 64];
    if let Some(mut set) = PageSet::new(black_box(log.layout()), black_box(&mut words[..])) {
        set.insert(Ipa(any()));
        set.insert_range(range);
        black_box((set.contains(Ipa(any())), set.contains_range(range), set.len(), set.is_empty(), set.bitmap()));
        set.for_each(|page| {
            black_box(page);
        });
        black_box(table.peek(&log, &mut set)).ok();
        black_box(table.clear(&mut log, &set)).ok();
        black_box(table.harvest(&mut other, &mut set)).ok();
        set.clear();
    }
    black_box(table.is_clean(&log));
    black_box(table.peek_into(&log, storage)).ok();
    black_box(table.harvest_into(&mut log, storage)).ok();
    black_box(table.clear_from(&mut log, storage)).ok();
    black_box((table.grants_writes(range), log.layout().page_words()));
    table.mark_written(range);
    black_box(table.stop_log_keeping_pages(other));
    black_box(table.stop_log_and_collapse(log));
    Ok(())
}

/// Where the linker starts from.
#[unsafe(no_mangle)]
extern "C" fn _start() {
    black_box(tables::<Granule4K>()).ok();
    // All that is different with others: tables of several frames, 52-bit addresses, walks from any level.
    black_box(tables::<Granule16KLpa2>()).ok();
    mapped();
}
