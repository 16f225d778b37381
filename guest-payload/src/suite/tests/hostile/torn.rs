//! Stage-1 tables that are torn while others use them: the first CPU keeps turning the descriptors on the way to a few pages to
//! devices, holes, protected pages, EL2's memory and back; the others load, store, fetch, and use atomics and maintenance there.

use super::attacks::pick;
use crate::calls::hypercall;
use crate::calls::services::{ALL, RET, protect, write_code};
use crate::machine::escape::{Escape, class};
use crate::machine::memory::PAGE;
use crate::machine::mmu::{self, NORMAL_RWX};
use crate::machine::probe::{DATA_ACCESSES, EXECUTE, HARMLESS, MAY_WRITE, Probe};
use crate::machine::report::Stop;
use crate::machine::{self, GicRegisters, cpu, smp};
use crate::options;
use crate::suite::random::Random;
use core::sync::atomic::{AtomicU64, Ordering::*};
use hypervisor_abi::permissions;

/// Pages that are reached through tables of their own.
const PAGES: usize = 4;

/// Levels of descriptors on the way to a page, from the root's.
const LEVELS: usize = 4;

/// Which entry of each table below the root is used. In the first page of QEMU's distributors, its offset is a reserved
/// register's, which reads as 0: no descriptor that leads anywhere.
const INDEX: u64 = 6;

/// Where each descriptor lies, and what it is for the page to be found.
static SLOTS: [[AtomicU64; LEVELS]; PAGES] = [const { [const { AtomicU64::new(0) }; LEVELS] }; PAGES];
static GOOD: [[AtomicU64; LEVELS]; PAGES] = [const { [const { AtomicU64::new(0) }; LEVELS] }; PAGES];

/// The first of the pages, and behind them two that are no tables: one that the guest may not write, one that it may not read.
static FIRST: AtomicU64 = AtomicU64::new(0);

fn address(page: usize) -> u64 {
    mmu::ALIAS + ((48 + page as u64) << 39) + (INDEX << 30) + (INDEX << 21) + (INDEX << 12)
}

/// Makes the tables for pages from `first` on, which nothing else uses.
pub fn prepare(first: u64) -> Result<(), Stop> {
    FIRST.store(first, Relaxed);
    for page in 0..PAGES {
        let (at, physical) = (address(page), first + page as u64 * PAGE);
        write_code(physical, &[RET]);
        mmu::map(at..at + PAGE, physical, NORMAL_RWX);
        for level in 0..LEVELS {
            let slot = mmu::entry(at, level as u32);
            SLOTS[page][level].store(core::ptr::from_ref(slot) as u64, Relaxed);
            GOOD[page][level].store(slot.load(Relaxed), Relaxed);
        }
    }
    let behind = first + PAGES as u64 * PAGE;
    // The first page is never open: stores to it are what EL2 walks the tables for.
    let closed = [(first, permissions::READ | permissions::EXECUTE), (behind, permissions::READ), (behind + PAGE, 0)];
    for (page, allowed) in closed {
        if page != first {
            crate::calls::services::write(page, 0);
        }
        check_eq!(protect(&(page..page + PAGE), allowed), 0, "protection of {page:#x}");
    }
    Ok(())
}

/// Makes all descriptors lead to their pages again.
pub fn mend() {
    for (slots, good) in SLOTS.iter().zip(&GOOD) {
        for (slot, good) in slots.iter().zip(good) {
            set(slot.load(Relaxed), good.load(Relaxed));
        }
    }
    mmu::invalidate_all();
}

fn set(slot: u64, descriptor: u64) {
    // SAFETY: `prepare` has stored the addresses of entries, which live as long as the test.
    unsafe { &*(slot as *const AtomicU64) }.store(descriptor, Relaxed);
}

pub fn attack(random: &mut Random) {
    let tears = if smp::count() == 1 { random.below(2) == 0 } else { cpu::current().index() == 0 };
    if tears { tear(random) } else { access(random) }
}

/// Turns one descriptor elsewhere, or back. Mostly without the invalidation that the architecture asks for.
fn tear(random: &mut Random) {
    let first = FIRST.load(Relaxed);
    // As those that use the pages choose.
    let page = if random.below(2) == 0 { 0 } else { random.below(PAGES as u64) as usize };
    if page != 0 && random.below(16) == 0 {
        // Whether a page may be written changes as well.
        let allowed = pick(random, &[ALL, permissions::READ, permissions::READ | permissions::EXECUTE]);
        let at = first + page as u64 * PAGE;
        protect(&(at..at + PAGE), allowed);
        return;
    }
    let level = random.below(LEVELS as u64) as usize;
    let (slot, good) = (SLOTS[page][level].load(Relaxed), GOOD[page][level].load(Relaxed));
    let own = hypercall::own_memory().next().map_or(machine::RAM_BASE, |own| own.start);
    let behind = first + PAGES as u64 * PAGE;
    let elsewhere = match machine::get().gic {
        GicRegisters::V2 { distributor, cpu_interface } => [distributor, cpu_interface],
        GicRegisters::V3 { distributor, redistributors, .. } => [distributor, redistributors],
    };
    // Where nothing answers, EL2's own walk takes an external abort.
    let absent = options::get().absent.unwrap_or(elsewhere[1]);
    let bad = [
        elsewhere[0],
        elsewhere[1],
        absent,
        absent,
        // Nobody's, protected, EL2's, and beyond all memory.
        0x0a00_0000,
        behind,
        behind + PAGE,
        own,
        1 << 45,
    ];
    let descriptor = match random.below(8) {
        0 => 0,
        1 => good & !mmu::bits::TABLE_OR_PAGE,
        // The page itself stays the test's own: what is stored there harms nobody.
        _ if level == 3 => {
            good ^ pick(random, &[0, mmu::bits::READ_ONLY, mmu::bits::ACCESSED, mmu::bits::NEVER_EXECUTE_EL1])
        }
        _ => mmu::table_descriptor(pick(random, &bad)),
    };
    // Again and again: what EL2 walks must change between the guest's access and EL2's look.
    for _ in 0..random.below(100) {
        for now in [descriptor, good] {
            set(slot, now);
            for _ in 0..random.below(25) {
                core::hint::spin_loop();
            }
        }
    }
    set(slot, good);
    match random.below(4) {
        0 => mmu::invalidate_all(),
        1 => {
            // SAFETY: invalidating entries takes nothing away from what the tables say.
            unsafe { core::arch::asm!("dsb ishst", "tlbi vaae1is, {}", "dsb ish", "isb", in(reg) address(page) >> 12) }
        }
        _ => {}
    }
}

/// Uses a page through its tables, whatever these are at the moment.
fn access(random: &mut Random) {
    let at = address(if random.below(2) == 0 { 0 } else { random.below(PAGES as u64) as usize });
    let has_atomics = read_sysreg!("ID_AA64ISAR0_EL1") >> 20 & 0xf >= 2;
    // Code is at the page's start, data in its second half.
    let (kind, at): (Probe, u64) = match random.below(8) {
        0 => (EXECUTE, at),
        1 => (pick(random, &HARMLESS), at + random.below(PAGE / 64) * 64),
        2 => (pick(random, &MAY_WRITE), at + PAGE / 2),
        _ => (pick(random, &DATA_ACCESSES), at + PAGE / 2 + random.below(PAGE / 256) * 64),
    };
    if kind.needs_atomics && !has_atomics {
        return;
    }
    // SAFETY: whatever the tables say, the address leads to a page of the test's own or nowhere.
    match unsafe { kind.attempt(at, random.next()) } {
        Ok(_) => {}
        Err(Escape::Exception(seen)) => {
            let aborted = seen.vector == 0 && matches!(seen.class(), class::DATA_ABORT | class::INSTRUCTION_ABORT);
            check!(aborted, "{} through torn tables: expected an abort, if anything; seen {seen}", kind.name);
        }
        Err(why) => crate::machine::report::failure(format_args!("{} through torn tables: {why}", kind.name)),
    }
}
