//! What begins neither with a service nor with a first write: an abort that the guest hears of, and a CPU that is turned on.

use super::area::{self, PAGE};
use super::measure::{self, Failure, print_calls};
use crate::machine::{conduit, cpu, memory, mmu, smp, timer};
use core::arch::{asm, global_asm};
use hypervisor_abi::function;
use smccc::psci;

/// How often each is measured.
const REPEATS: usize = 8;

global_asm!(
    ".section .text.bench_paths, \"ax\"",
    // What comes from EL1 on SP_EL0, the first of the four synchronous vectors. Nothing else is taken while these are in force.
    ".balign 2048",
    ".global bench_vectors",
    "bench_vectors:",
    "mrs x9, cntvct_el0",
    "msr elr_el1, x10",
    "eret",
    // Where PSCI starts a CPU, with the address of a doubleword in x0. It turns itself off again.
    ".global bench_cpu_entry",
    "bench_cpu_entry:",
    "mrs x9, cntvct_el0",
    "str x9, [x0]",
    // The reading is in memory before the CPU is off.
    "dsb sy",
    "movz w0, #{off_low}",
    "movk w0, #{off_high}, lsl #16",
    "hvc #0",
    "b .",
    off_low = const psci::PSCI_CPU_OFF & 0xffff,
    off_high = const psci::PSCI_CPU_OFF >> 16,
);

unsafe extern "C" {
    fn bench_cpu_entry();
}

/// A fetch from memory that nothing is mapped for, up to the first instruction of the guest's handler.
///
/// # Errors
///
/// If there is no such memory.
pub fn aborted_fetches() -> Result<(), Failure> {
    let own = area::call(function::OWN_MEMORY, [0; 3], "the hypervisor does not tell its memory")?.answer[1];
    let address = mmu::alias(own..own + PAGE, mmu::NORMAL_RWX);
    let mut samples = [0; REPEATS];
    for sample in &mut samples {
        // SAFETY: the hypervisor's own memory is not mapped for the guest.
        *sample = unsafe { aborted_fetch(address) };
    }
    mmu::clear_alias();
    print_calls("unmapped-fetch", &mut samples);
    Ok(())
}

/// Branches to `address`; the instructions up to the handler of the abort, the branch counted in.
///
/// # Safety
///
/// A fetch from `address` aborts. No interrupt is taken meanwhile.
#[inline(never)]
unsafe fn aborted_fetch(address: u64) -> u64 {
    let (before, after): (u64, u64);
    // SAFETY: the caller's promise: the only exception is the fetch's, and its vector returns to label 2 with nothing changed but x9,
    // ELR_EL1 and SPSR_EL1, which belong to nobody outside of a handler. The ISBs: the vectors are in force before the branch, and
    // the usual ones before what comes behind.
    unsafe {
        asm!(
            "mrs {usual}, vbar_el1",
            "adrp x9, bench_vectors",
            "add x9, x9, :lo12:bench_vectors",
            "msr vbar_el1, x9",
            "isb",
            "adr x10, 2f",
            "mrs {before}, cntvct_el0",
            "br {address}",
            "2:",
            "msr vbar_el1, {usual}",
            "isb",
            usual = out(reg) _,
            before = out(reg) before,
            address = in(reg) address,
            out("x9") after,
            out("x10") _,
            options(nostack)
        );
    }
    // The second reading is an instruction too.
    after - before - 1
}

const NO_CPU: Failure = "a CPU was not turned on or off";

/// CPU_ON, up to the first instruction of the CPU that it turns on. What the caller executes until then counts, too.
///
/// # Errors
///
/// If there is no other CPU.
pub fn cpu_on() -> Result<(), Failure> {
    let slot = memory::allocate(PAGE, PAGE).ok_or("the machine has too little memory")?;
    let target = cpu::cpu(1).mpidr();
    smp::stop(1).map_err(|_| NO_CPU)?;
    let mut samples = [0; REPEATS];
    for sample in &mut samples {
        wait_until_off(target)?;
        clean(slot);
        let entry = bench_cpu_entry as *const () as u64;
        let timed = measure::call(psci::PSCI_CPU_ON_64, [target, entry, slot]);
        if timed.answer[0] != 0 {
            return Err(NO_CPU);
        }
        wait_until_off(target)?;
        clean(slot);
        // SAFETY: memory that was taken above; the CPU that wrote it is off.
        let arrived = unsafe { (slot as *const u64).read_volatile() };
        *sample = arrived - timed.began - 1;
    }
    smp::restore().map_err(|_| NO_CPU)?;
    print_calls("cpu-on", &mut samples);
    Ok(())
}

/// Waits until a CPU is off, for the firmware as well, which it tells a little later than the hypervisor.
fn wait_until_off(target: u64) -> Result<(), Failure> {
    let is_off = || conduit::psci(psci::PSCI_AFFINITY_INFO_64, [target, 0, 0]) == smp::AFFINITY_OFF;
    if !timer::wait_until(5000, is_off) {
        return Err(NO_CPU);
    }
    (0..64).for_each(|_| cpu::relax());
    Ok(())
}

/// Writes the line at `address` to memory and drops it: a CPU whose caches are off writes it, or has.
fn clean(address: u64) {
    // SAFETY: cache maintenance on memory of the measurements'. The DSB: it is done before the CPU is started, or the line is read.
    unsafe { asm!("dc civac, {}", "dsb sy", in(reg) address, options(nostack, preserves_flags)) };
}
