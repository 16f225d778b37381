//! EL2's own walks of the guest's stage 1 (`AT`, on the fault path), through tables that change meanwhile, or that lie where
//! no table should: EL2 goes on, and the guest hears of it at once or tries again.

use crate::calls::services::{ALL, MIB, Since, area, leaf, page, protect, required, status_of, write};
use crate::machine::escape::Escape;
use crate::machine::memory::{self, PAGE};
use crate::machine::mmu::{self, NORMAL_RW};
use crate::machine::probe::{READ64, WRITE64};
use crate::machine::report::{Outcome, Stop};
use crate::machine::{self, GicRegisters, smp, timer};
use crate::options;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use hypervisor_abi::{function, permissions, status};
use stage2::Event;

group!("walks", [
    through_a_device_is_denied_at_once, table_in_a_device, table_where_nothing_answers, no_translation_for_ever,
    table_that_comes_and_goes: 60,
]);

/// ESR_EL2 of a store from EL1 that a page's permission refused.
const REFUSED_STORE: u64 = 0x9200_004f;

/// A device that is the guest's, in whose first page no table can be: in the distributor, where a descriptor would be there is
/// a reserved register, which reads as 0.
fn device() -> u64 {
    match machine::get().gic {
        GicRegisters::V2 { distributor, .. } | GicRegisters::V3 { distributor, .. } => distributor,
    }
}

/// Which entry of each table is used: in the distributor's first page, its offset is a reserved register's.
const INDEX: u64 = 6;

/// An address whose level-2 descriptor the test changes.
struct Window {
    address: u64,
    /// The level-2 descriptor, and what it is for the page to be found.
    slot: &'static AtomicU64,
    good: u64,
}

impl Window {
    /// A window to the page at `physical`.
    fn new(physical: u64) -> Self {
        let address = mmu::ALIAS + (44 << 39) + (INDEX << 30) + (INDEX << 21) + (INDEX << 12);
        mmu::map(address..address + PAGE, physical, NORMAL_RW);
        let slot = mmu::entry(address, 2);
        Self { address, slot, good: slot.load(Relaxed) }
    }

    /// Points the level-2 descriptor elsewhere, at once for everybody.
    fn aim(&self, table: u64) {
        self.slot.store(mmu::table_descriptor(table), Relaxed);
        mmu::invalidate_all();
    }
}

/// A window to a page that may not be written.
fn protected_window() -> Result<Window, Stop> {
    required()?;
    let at = area(2 * MIB, 2 * MIB)?.start + 9 * PAGE;
    write(at, 1);
    check_eq!(protect(&page(at), permissions::READ), status::SUCCESS, "write protection");
    Ok(Window::new(at))
}

fn inject(syndrome: u64, address: u64) -> i64 {
    status_of(function::INJECT_ABORT, [syndrome, address, 0])
}

fn through_a_device_is_denied_at_once() -> Outcome {
    let window = protected_window()?;
    window.aim(device());
    let since = Since::now([Event::FaultPermission, Event::FaultSpurious]);
    for access in [READ64, WRITE64] {
        // SAFETY: the page of the test's own, if any.
        let result = unsafe { access.attempt(window.address, 0) };
        let aborted =
            matches!(result, Err(Escape::Exception(seen)) if seen.is_external_abort() && seen.far == window.address);
        check!(aborted, "{} through a table in a device: expected an external abort, seen {result:x?}", access.name);
    }
    check_eq!(since.counts(), [2, 0], "faults, and spurious ones: each is answered at once");
    Ok(())
}

fn table_in_a_device() -> Outcome {
    let window = protected_window()?;
    let since = Since::now([Event::FaultPermission, Event::FaultNoTranslation, Event::TlbiVaLocal]);
    window.aim(device());
    check_eq!(inject(REFUSED_STORE, window.address), status::SUCCESS, "a store whose translation fails");
    check_eq!(since.counts(), [0, 1, 1], "faults that reach the engine; failed translations; invalidations");
    Ok(())
}

fn table_where_nothing_answers() -> Outcome {
    let window = protected_window()?;
    let Some(absent) = options::get().absent else { skip!("no absent= on the command line") };
    check!(leaf(absent).is_some_and(|leaf| leaf.allowed == ALL), "{absent:#x} is no RAM of the guest's");
    window.aim(absent);
    // As when another CPU changes the table between the guest's access and EL2's look: EL2 takes the external abort itself.
    let since = Since::now([Event::FaultNoTranslation]);
    let pattern = 0x1234_5678_9abc_d000;
    // SAFETY: nothing uses these registers now; EL2 has to keep them.
    unsafe {
        core::arch::asm!("msr PAR_EL1, {0}", "msr TPIDR_EL0, {0}", in(reg) pattern, options(nomem, nostack, preserves_flags))
    };
    for _ in 0..20 {
        let answer = inject(REFUSED_STORE, window.address);
        check_eq!(answer, status::SUCCESS, "a store whose translation takes an exception");
    }
    check_eq!(since.counts(), [20], "failed translations");
    check_eq!(read_sysreg!("PAR_EL1"), pattern, "PAR_EL1");
    Ok(())
}

fn no_translation_for_ever() -> Outcome {
    required()?;
    let nowhere = mmu::ALIAS + (5 << 40) + 3 * PAGE;
    let since =
        Since::now([Event::FaultNoTranslation, Event::TlbiVaLocal, Event::EscalateVmallE1, Event::EscalateVmallS12E1]);
    for step in [[1, 1, 0, 0], [2, 1, 1, 0], [3, 1, 1, 1], [4, 1, 1, 2]] {
        check_eq!(inject(REFUSED_STORE, nowhere), status::SUCCESS, "a store whose translation fails");
        check_eq!(since.counts(), step, "failed translations, and what is invalidated for each");
    }
    // The same one again and again can't be helped: the guest hears of it.
    let answered = (0..200).take_while(|_| inject(REFUSED_STORE, nowhere) == status::SUCCESS).count();
    check!((16..200).contains(&answered), "{answered} failures in a row were answered by another try");
    Ok(())
}

/// The race's addresses, and whether it goes on.
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static RUNNING: AtomicBool = AtomicBool::new(false);

/// Stores until the race is over. Returns how many stores were kept off.
fn store(_: u64) -> u64 {
    let address = ADDRESS.load(Relaxed);
    let mut aborts = 0;
    while RUNNING.load(Relaxed) {
        // SAFETY: the page behind the window is the test's own, and may not be written.
        match unsafe { WRITE64.attempt(address, 7) } {
            Err(Escape::Exception(seen)) if seen.vector == 0 && seen.far == address => aborts += 1,
            other => check!(false, "a store that may not be carried out: seen {other:x?}"),
        }
    }
    aborts
}

fn table_that_comes_and_goes() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let window = protected_window()?;
    let Some(empty) = memory::allocate_zeroed_page() else { fail!("no page is free") };
    let own = crate::calls::hypercall::own_memory().next().map_or(machine::RAM_BASE, |own| own.start);
    let hole = 0x0a00_0000;
    // What aborts on EL2's own walk too is most of what can go wrong.
    let absent = options::get().absent.unwrap_or(hole);
    let bad = [absent, absent, device(), hole, own, empty].map(mmu::table_descriptor);
    ADDRESS.store(window.address, Relaxed);
    RUNNING.store(true, Relaxed);
    smp::post(1, store, 0)?;
    let end = timer::now() + timer::milliseconds(options::get().storm * 1000);
    let mut rounds = 0;
    while timer::now() < end || rounds < 1000 {
        window.slot.store(bad[rounds % bad.len()], Relaxed);
        for _ in 0..rounds % 23 {
            core::hint::spin_loop();
        }
        window.slot.store(window.good, Relaxed);
        for _ in 0..rounds % 29 {
            core::hint::spin_loop();
        }
        rounds += 1;
    }
    RUNNING.store(false, Relaxed);
    let aborts = smp::wait(1, 10_000)?;
    check!(aborts > 100, "{aborts} stores were kept off while the table changed {rounds} times");
    check_eq!(protect(&page(page_behind(&window)), ALL), status::SUCCESS, "the page is open again");
    Ok(())
}

/// The page behind a window.
fn page_behind(window: &Window) -> u64 {
    mmu::entry(window.address, 3).load(Relaxed) & mmu::bits::ADDRESS
}
