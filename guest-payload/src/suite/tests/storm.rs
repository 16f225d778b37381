//! Everything at once, for a set time: one CPU splits, protects, logs and collapses; all of them read, write, execute,
//! take interrupts and change their own stage-1 maps in the same memory; and every value is checked against a shadow.

use crate::calls::services::{
    ALL, Log, MIB, RET, Since, area, bbm_level, collapse, hvc, modes, move_to_x0, protect, read, required, split,
    write, write_code,
};
use crate::machine::cpu::{self, MAX_CPUS};
use crate::machine::memory::{self, PAGE};
use crate::machine::mmu::{self, NORMAL_RW};
use crate::machine::report::{Outcome, Stop};
use crate::machine::timer::{self, Timer};
use crate::machine::{self, exceptions, smp};
use crate::options;
use crate::suite::random::Random;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use hypervisor_abi::{function, log, permissions, status};
use stage2::Event;

group!("storm", [everything: 60]);

/// The parts of the area: what is written and logged, what is executed, what is only read.
const DATA: u64 = 2 * MIB;
const CODE: u64 = 2 * MIB;
const CONSTANTS: u64 = 2 * MIB;

/// Each CPU writes the words whose number has its own remainder, so that it knows what they hold.
const LANES: u64 = 16;

static START: AtomicU64 = AtomicU64::new(0);
static SHADOW: AtomicU64 = AtomicU64::new(0);
static RUNNING: AtomicBool = AtomicBool::new(false);

/// How far each CPU has come. The storm goes on until all have come so far, on however busy a host.
static STEPS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
const LEAST_STEPS: u64 = 4096;
const LEAST_CHANGES: u64 = 60;

/// Each CPU's stage-1 entry for a page that it maps elsewhere again and again.
static WINDOWS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn window(index: usize) -> u64 {
    mmu::ALIAS + (1 << 46) + ((index as u64) << 21)
}

fn pattern(at: u64) -> u64 {
    at.wrapping_mul(0xd134_2543_de82_ef95) | 1
}

unsafe extern "C" fn execute(address: u64, _: u64) -> u64 {
    // SAFETY: `everything` has put code there that returns a number.
    let code = unsafe { core::mem::transmute::<u64, extern "C" fn() -> u64>(address) };
    code()
}

/// Maps the calling CPU's window to the page at `target`.
fn map_window(index: usize, target: u64) -> u64 {
    // SAFETY: `everything` has stored the address of this CPU's own entry, which lives as long as the test.
    let slot = unsafe { &*(WINDOWS[index].load(Relaxed) as *const AtomicU64) };
    let address = window(index);
    slot.store(0, Relaxed);
    // SAFETY: break-before-make of a page that only this CPU uses: the entry is invalid before the invalidation (DSB
    // ISHST), and that is complete (DSB ISH) before the new one is written.
    unsafe {
        core::arch::asm!("dsb ishst", "tlbi vaae1is, {}", "dsb ish", "isb", in(reg) address >> 12, options(nostack, preserves_flags))
    };
    slot.store(mmu::page_descriptor(target, NORMAL_RW), Relaxed);
    // SAFETY: barriers: the entry is visible to the walker before the next access.
    unsafe { core::arch::asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
    address
}

/// One access of whatever kind. Returns what was wrong: the address, what was expected and what was seen.
fn step(index: usize, random: &mut Random) -> Option<[u64; 3]> {
    let start = START.load(Relaxed);
    let wrong = |at: u64, expected: u64, seen: u64| (expected != seen).then_some([at, expected, seen]);
    let own_word = random.below(DATA / 8 / LANES) * LANES + index as u64 % LANES;
    let (at, shadow) = (start + own_word * 8, SHADOW.load(Relaxed) + own_word * 8);
    match random.below(16) {
        0..6 => {
            let value = random.next();
            write(shadow, value);
            write(at, value);
            None
        }
        6..10 => wrong(at, read(shadow), read(at)),
        10..12 => {
            let at = start + DATA + CODE + random.below(CONSTANTS / PAGE) * PAGE;
            wrong(at, pattern(at), read(at))
        }
        12..14 => {
            let at = start + DATA + random.below(CODE / PAGE) * PAGE;
            // SAFETY: as `execute` says.
            let seen = unsafe { exceptions::catch(execute, at, 0) };
            wrong(at, (at / PAGE) & 0xffff, seen.unwrap_or(u64::MAX))
        }
        14 => {
            let through = map_window(index, at / PAGE * PAGE) + at % PAGE;
            let before = wrong(through, read(shadow), read(through));
            let value = random.next();
            write(shadow, value);
            write(through, value);
            before.or(wrong(at, value, read(at)))
        }
        _ => {
            // SAFETY: an invalidation takes no rights away from what the tables say.
            unsafe {
                core::arch::asm!("dsb ishst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags))
            };
            None
        }
    }
}

/// What was wrong first, on each CPU.
static WRONG: [[AtomicU64; 3]; MAX_CPUS] = [const { [const { AtomicU64::new(0) }; 3] }; MAX_CPUS];

/// Goes on until told to stop. Returns how many timer interrupts arrived meanwhile.
fn worker(stream: u64) -> u64 {
    let index = cpu::current().index();
    let mut random = Random::new(options::get().seed, 0x5707_0000 + stream);
    let before = cpu::current().interrupt_count(machine::get().virtual_timer);
    let mut steps = 0;
    while RUNNING.load(Acquire) {
        if steps % 256 == 0 {
            Timer::Virtual.start(timer::now() + timer::milliseconds(1) / 2);
        }
        steps += 1;
        STEPS[index].store(steps, Relaxed);
        if let Some(wrong) = step(index, &mut random) {
            WRONG[index].iter().zip(wrong).for_each(|(slot, value)| slot.store(value, Relaxed));
            break;
        }
    }
    Timer::Virtual.stop();
    cpu::current().interrupt_count(machine::get().virtual_timer) - before
}

/// A copy of the data that is kept up to date by nothing but the dirty log.
struct Mirror {
    log: Log,
    mode: u64,
    range: Range<u64>,
    copy: u64,
}

impl Mirror {
    /// Copies the pages that are set in the log's bitmap and that the hypervisor has made clean.
    fn copy(&self) {
        for at in self.range.clone().step_by(PAGE as usize).filter(|&at| self.log.has(at)) {
            let to = self.copy + (at - self.range.start);
            for offset in (0..PAGE).step_by(8) {
                write(to + offset, read(at + offset));
            }
        }
    }

    fn harvest(&self) -> Result<(), Stop> {
        self.log.harvest()?;
        self.copy();
        Ok(())
    }

    /// Makes some of the dirty pages clean, and copies those.
    fn clear(&self, random: &mut Random) -> Result<(), Stop> {
        self.log.peek()?;
        for word in self.log.bitmap() {
            word.store(word.load(Relaxed) & random.next(), Relaxed);
        }
        check_eq!(self.log.clear(), status::SUCCESS, "clear");
        self.copy();
        Ok(())
    }

    /// Ends the log and starts another, for which all pages are dirty at first.
    fn restart(self) -> Result<Self, Stop> {
        check_eq!(self.log.stop(), status::SUCCESS, "stop");
        let log = Log::must_start(&self.range, self.mode | log::ALL_DIRTY)?;
        Ok(Self { log, ..self })
    }
}

/// Pages from a random one on, within a range.
fn some_pages(range: &Range<u64>, random: &mut Random) -> Range<u64> {
    let pages = (range.end - range.start) / PAGE;
    let first = random.below(pages);
    // Short ranges are as likely as long ones.
    let most = 1 + random.below(pages);
    let count = 1 + random.below(most.min(pages - first));
    range.start + first * PAGE..range.start + (first + count) * PAGE
}

/// One change of the tables.
fn change(area: &Range<u64>, mirror: Mirror, random: &mut Random) -> Result<Mirror, Stop> {
    let code_and_constants = area.start + DATA..area.end;
    let code = area.start + DATA..area.start + DATA + CODE;
    let constants = code.end..area.end;
    let answer = match random.below(12) {
        0..3 => split(&some_pages(area, random), random.below(5)),
        3..5 => collapse(&some_pages(area, random)),
        5 => protect(&some_pages(&code, random), permissions::EXECUTE | permissions::READ),
        6 => protect(&some_pages(&constants, random), permissions::READ),
        7 => protect(&some_pages(&code_and_constants, random), ALL),
        8 => {
            mirror.clear(random)?;
            status::SUCCESS
        }
        9 if random.below(4) == 0 => return mirror.restart(),
        _ => {
            mirror.harvest()?;
            status::SUCCESS
        }
    };
    check_eq!(answer, status::SUCCESS, "a change of the tables");
    Ok(mirror)
}

fn everything() -> Outcome {
    required()?;
    let count = modes()?.count() as u64;
    for (name, mode) in modes()? {
        let mark = memory::mark();
        storm(name, mode, options::get().storm * 1000 / count)?;
        mmu::clear_alias();
        memory::release_to(&mark);
    }
    Ok(())
}

/// Fills the area's parts, and sets everything up that the workers share.
fn prepare(area: &Range<u64>, data: &Range<u64>, shadow: u64) {
    for offset in (0..DATA).step_by(8) {
        write(shadow + offset, read(data.start + offset));
    }
    for at in (data.end..data.end + CODE).step_by(PAGE as usize) {
        write_code(at, &[move_to_x0((at / PAGE) as u16), RET]);
    }
    (data.end + CODE..area.end).step_by(PAGE as usize).for_each(|at| write(at, pattern(at)));
    for index in 0..smp::count() {
        let slot = mmu::entry(window(index), 3);
        WINDOWS[index].store(core::ptr::from_ref(slot) as u64, Relaxed);
        WRONG[index].iter().for_each(|value| value.store(0, Relaxed));
    }
    START.store(area.start, Relaxed);
    SHADOW.store(shadow, Relaxed);
    STEPS.iter().for_each(|steps| steps.store(0, Relaxed));
}

/// Compares the data with what each CPU has noted of its own words, and with the copy that the dirty log kept up to date.
fn compare(name: &str, data: &Range<u64>, shadow: u64, copy: u64) -> Outcome {
    for offset in (0..DATA).step_by(8) {
        let (seen, copied) = (read(data.start + offset), read(copy + offset));
        if seen != copied {
            fail!("{name}: {:#x} holds {seen:#x}, the copy by the dirty log {copied:#x}", data.start + offset);
        }
        let lane = offset / 8 % LANES;
        if lane < smp::count() as u64 && seen != read(shadow + offset) {
            fail!("{name}: {:#x} holds {seen:#x}, its shadow {:#x}", data.start + offset, read(shadow + offset));
        }
    }
    Ok(())
}

fn storm(name: &str, mode: u64, milliseconds: u64) -> Outcome {
    let area = area(DATA + CODE + CONSTANTS, 2 * MIB)?;
    let (Some(shadow), Some(copy)) = (memory::allocate(DATA, PAGE), memory::allocate(DATA, PAGE)) else {
        skip!("the machine has too little memory");
    };
    let data = area.start..area.start + DATA;
    prepare(&area, &data, shadow);
    let since = Since::now([
        Event::InvalidWindow,
        Event::FaultConflict,
        Event::FaultTranslation,
        Event::PrecisionLost,
        Event::Split2M,
        Event::Collapse2M,
    ]);
    let log = Log::must_start(&data, mode | log::ALL_DIRTY)?;
    let mut mirror = Mirror { log, mode, range: data.clone(), copy };
    RUNNING.store(true, Release);
    let workers = 1..smp::count().min(LANES as usize);
    for index in workers.clone() {
        smp::post(index, worker, index as u64)?;
    }
    let mut random = Random::new(options::get().seed, mode);
    check_eq!(split(&area, hypervisor_abi::leaf::PAGE), status::SUCCESS, "{name}: split");
    let end = timer::now() + timer::milliseconds(milliseconds);
    let mut changes = 0;
    let result = loop {
        let others_ready = || {
            let done = |index: usize| STEPS[index].load(Relaxed) >= LEAST_STEPS || WRONG[index][0].load(Relaxed) != 0;
            workers.clone().all(done)
        };
        if timer::now() > end && changes >= LEAST_CHANGES && others_ready() {
            break Ok(mirror);
        }
        match change(&area, mirror, &mut random) {
            Ok(next) => mirror = next,
            Err(stop) => break Err(stop),
        }
        changes += 1;
        let wrong = (0..30).find_map(|_| step(0, &mut random));
        if let Some([at, expected, seen]) = wrong {
            crate::machine::report::failure(format_args!(
                "{name}: cpu 0 at {at:#x}: expected {expected:#x}, seen {seen:#x}"
            ));
            break Err(Stop::Failed);
        }
    };
    RUNNING.store(false, Release);
    for index in workers.clone() {
        let interrupts = smp::wait(index, 20_000)?;
        let [at, expected, seen] = [0, 1, 2].map(|part: usize| WRONG[index][part].load(Relaxed));
        check!(at == 0, "{name}: cpu {index} at {at:#x}: expected {expected:#x}, seen {seen:#x}");
        check!(at != 0 || interrupts > 0, "{name}: no timer interrupt arrived on cpu {index}");
    }
    let mirror = result?;
    mirror.harvest()?;
    check_eq!(mirror.log.stop(), status::SUCCESS, "{name}: stop");
    check_eq!(protect(&area, ALL), status::SUCCESS, "{name}: allow everything");
    compare(name, &data, shadow, copy)?;
    let [windows, conflicts, translation, lost, splits, collapses] = since.counts();
    check!(splits > 0 && collapses > 0, "{name}: {changes} changes, {splits} splits, {collapses} collapses");
    check_eq!([conflicts, lost], [0, 0], "{name}: conflict aborts, and precision lost");
    if bbm_level() >= 2 {
        check_eq!([windows, translation], [0, 0], "{name}: invalid windows, and translation faults");
    }
    check_eq!(hvc(function::FEATURES, [0; 3])[0], 0, "{name}: the hypervisor's answer in the end");
    Ok(())
}
