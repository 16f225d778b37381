//! The other CPUs: started through PSCI, each serving a mailbox with one function at a time.

use crate::machine::escape::Escape;
use crate::machine::mmu::{self, MmuRegisters};
use crate::machine::report::Stop;
use crate::machine::{boot, conduit, cpu, exceptions, gic, memory, timer, tree};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use smccc::psci;

/// Bytes of a CPU's stack, and of its stack for exceptions.
const STACK: u64 = 0x1_0000;
const EXCEPTION_STACK: u64 = 0x4000;

/// A function that a CPU can be asked to run.
pub type Job = fn(u64) -> u64;

/// The CPU is off.
const OFF: u32 = 0;
/// The CPU waits for a job.
const IDLE: u32 = 1;
/// A job is posted.
const POSTED: u32 = 2;
/// The job runs.
const RUNNING: u32 = 3;
/// The job is done; the result is there.
const DONE: u32 = 4;

/// What a CPU is asked to run, and what became of it.
struct Mailbox {
    state: AtomicU32,
    job: AtomicPtr<()>,
    argument: AtomicU64,
    result: UnsafeCell<Result<u64, Escape>>,
    entry: UnsafeCell<EntryState>,
    boot: UnsafeCell<SecondaryBoot>,
}

// SAFETY: `result` and `entry` are written by the mailbox's CPU before a release store of `state` and read after an
// acquire load; `boot` is written while the CPU is off.
unsafe impl Sync for Mailbox {}

/// The registers at the entry that PSCI made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// `CurrentEL`.
    pub current_el: u64,
    /// `DAIF`.
    pub daif: u64,
    /// `SCTLR_EL1`.
    pub sctlr: u64,
}

/// What a CPU needs before it can use memory as the others do; `boot.S` reads it by offset, with the MMU off.
#[repr(C, align(64))]
struct SecondaryBoot {
    mmu: MmuRegisters,
    stack_top: u64,
    exception_stack_top: u64,
    cpu: *const cpu::PerCpu,
}

impl Mailbox {
    /// Of a CPU that is off.
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(OFF),
            job: AtomicPtr::new(core::ptr::null_mut()),
            argument: AtomicU64::new(0),
            result: UnsafeCell::new(Ok(0)),
            entry: UnsafeCell::new(EntryState { current_el: 0, daif: 0, sctlr: 0 }),
            boot: UnsafeCell::new(SecondaryBoot {
                mmu: MmuRegisters::ZERO,
                stack_top: 0,
                exception_stack_top: 0,
                cpu: core::ptr::null(),
            }),
        }
    }

    fn state(&self) -> u32 {
        self.state.load(Ordering::Acquire)
    }
}

/// Each CPU's mailbox, by its index.
static MAILBOXES: [Mailbox; cpu::MAX_CPUS] = [const { Mailbox::new() }; cpu::MAX_CPUS];

fn mailbox(index: usize) -> &'static Mailbox {
    &MAILBOXES[index]
}

/// Notes the CPUs of the tree and gives them stacks.
pub fn init() {
    for (index, &mpidr) in tree::get().mpidrs().iter().enumerate().skip(1) {
        cpu::assign(index, mpidr);
        let stack = memory::allocate(STACK, memory::PAGE).expect("memory for a stack");
        let exception_stack = memory::allocate(EXCEPTION_STACK, memory::PAGE).expect("memory for a stack");
        let boot = SecondaryBoot {
            mmu: mmu::registers(),
            stack_top: stack + STACK,
            exception_stack_top: exception_stack + EXCEPTION_STACK,
            cpu: cpu::cpu(index),
        };
        // SAFETY: the CPU is off and nobody else refers to this.
        unsafe { mailbox(index).boot.get().write(boot) };
    }
}

/// How many CPUs the tree has.
pub fn count() -> usize {
    tree::get().mpidrs().len()
}

/// Address of what CPU `index` gets in x0, cleaned to the point of coherency.
pub fn context(index: usize) -> u64 {
    let context = mailbox(index).boot.get() as u64;
    // SAFETY: cache maintenance on memory of our own (one line of 64 bytes, or a part of a longer one). The DSB: it is in
    // memory before the CPU that reads it with its caches off is started.
    unsafe { asm!("dc civac, {}", "dsb sy", in(reg) context, options(nostack, preserves_flags)) };
    context
}

/// Calls CPU_ON for CPU `index` and waits until it has arrived.
///
/// # Errors
///
/// The PSCI status, or 0 if the CPU did not arrive within five seconds.
pub fn start(index: usize) -> Result<(), i64> {
    let cpu = cpu::cpu(index);
    let mailbox = mailbox(index);
    mailbox.state.store(OFF, Ordering::Relaxed);
    let status = conduit::psci(psci::PSCI_CPU_ON_64, [cpu.mpidr(), boot::secondary_entry_address(), context(index)]);
    if status != 0 {
        return Err(status);
    }
    if timer::wait_until(5000, || mailbox.state() == IDLE) { Ok(()) } else { Err(0) }
}

/// Whether CPU `index` has arrived and waits for a job.
pub fn is_idle(index: usize) -> bool {
    mailbox(index).state() == IDLE
}

/// The registers that CPU `index` last arrived with.
pub fn entry_state(index: usize) -> EntryState {
    // SAFETY: written before the state became IDLE, which `start` waited for.
    unsafe { *mailbox(index).entry.get() }
}

/// The CPU that runs this has arrived.
pub fn arrive(entry: EntryState) {
    let mailbox = mailbox(cpu::current().index());
    // SAFETY: only this CPU writes it, and others read it after the store below.
    unsafe { *mailbox.entry.get() = entry };
    mailbox.state.store(IDLE, Ordering::Release);
}

unsafe extern "C" fn run_job(job: u64, argument: u64) -> u64 {
    // SAFETY: `post` put a `Job` there.
    let job = unsafe { core::mem::transmute::<u64, Job>(job) };
    job(argument)
}

/// Serves the mailbox of the CPU that runs this.
pub fn serve() -> ! {
    let mailbox = mailbox(cpu::current().index());
    loop {
        // Interrupts are masked, so that one that comes after the look ends the WFI instead of being lost before it.
        cpu::without_interrupts(|| {
            if mailbox.state() != POSTED {
                cpu::wfi();
            }
        });
        if mailbox.state.compare_exchange(POSTED, RUNNING, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            let job = mailbox.job.load(Ordering::Relaxed) as u64;
            let argument = mailbox.argument.load(Ordering::Relaxed);
            // SAFETY: `run_job` gets what it asks for; jobs keep the rules of `catch`.
            let result = unsafe { exceptions::catch(run_job, job, argument) };
            // SAFETY: only this CPU writes it, and others read it after the store below.
            unsafe { *mailbox.result.get() = result };
            mailbox.state.store(DONE, Ordering::Release);
        }
    }
}

/// Asks CPU `index`, which waits, to run `job(argument)`.
///
/// # Errors
///
/// If the CPU is not waiting for a job; the report says so.
pub fn post(index: usize, job: Job, argument: u64) -> Result<(), Stop> {
    let cpu = cpu::cpu(index);
    let mailbox = mailbox(index);
    if mailbox.state() != IDLE {
        fail!("cpu {index} is not waiting for work (state {})", mailbox.state());
    }
    mailbox.job.store(job as *mut (), Ordering::Relaxed);
    mailbox.argument.store(argument, Ordering::Relaxed);
    mailbox.state.store(POSTED, Ordering::Release);
    gic::send(gic::WAKE_SGI, cpu);
    Ok(())
}

/// Waits for what was posted to CPU `index`.
///
/// # Errors
///
/// If the job ended with an exception or took longer than so many milliseconds; the report says which.
pub fn wait(index: usize, limit: u64) -> Result<u64, Stop> {
    let mailbox = mailbox(index);
    if !timer::wait_until(limit, || mailbox.state() == DONE) {
        fail!("cpu {index} did not finish within {limit} ms (state {})", mailbox.state());
    }
    // SAFETY: written before the state became DONE.
    let result = unsafe { *mailbox.result.get() };
    mailbox.state.store(IDLE, Ordering::Relaxed);
    match result {
        Ok(value) => Ok(value),
        Err(why) => fail!("cpu {index}: {why}"),
    }
}

/// Runs `job(argument)` on CPU `index` and waits for it, at most ten seconds.
///
/// # Errors
///
/// As [`post`] and [`wait`].
pub fn run(index: usize, job: Job, argument: u64) -> Result<u64, Stop> {
    post(index, job, argument)?;
    wait(index, 10_000)
}

fn cpu_off(_: u64) -> u64 {
    conduit::psci(psci::PSCI_CPU_OFF, [0; 3]) as u64
}

/// Makes CPU `index` call CPU_OFF. The caller does not wait until it is off.
///
/// # Errors
///
/// As [`post`].
pub fn stop(index: usize) -> Result<(), Stop> {
    post(index, cpu_off, 0)
}

/// After a test: ends what other CPUs still run, and starts those that are off. Returns the first CPU that can't be
/// brought back.
pub fn restore() -> Result<(), usize> {
    for index in 1..count() {
        let mailbox = mailbox(index);
        let affinity = conduit::psci(psci::PSCI_AFFINITY_INFO_64, [cpu::cpu(index).mpidr(), 0, 0]);
        if affinity == AFFINITY_OFF {
            start(index).map_err(|_| index)?;
            continue;
        }
        if mailbox.state() != IDLE {
            // More than once, since the first may come before a job that was just posted has begun.
            let mut attempts = 0;
            while !timer::wait_until(200, || matches!(mailbox.state(), IDLE | DONE)) {
                attempts += 1;
                if attempts > 10 {
                    return Err(index);
                }
                gic::send(gic::ABANDON_SGI, cpu::cpu(index));
            }
            mailbox.state.store(IDLE, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// AFFINITY_INFO's answers (DEN0022, 5.7).
pub const AFFINITY_ON: i64 = 0;
/// The CPU is off.
pub const AFFINITY_OFF: i64 = 1;
