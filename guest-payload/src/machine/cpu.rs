//! System registers, and what each CPU has for itself.

use crate::machine::escape::Recovery;
use core::arch::asm;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Most CPUs that the payload uses.
pub const MAX_CPUS: usize = 64;

/// Reads a system register by the assembler's name for it.
macro_rules! read_sysreg {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading a register changes no memory; a register that is not there is an exception that is caught
        // and reported.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags));
        }
        value
    }};
}

/// Writes a system register by the assembler's name for it. The use must be argued in a `SAFETY:` comment, since a
/// write can change how memory is seen.
macro_rules! write_sysreg {
    ($name:literal, $value:expr) => {
        core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) $value, options(nostack, preserves_flags))
    };
}

/// Waits until earlier changes of system registers hold for what follows.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) }
}

/// One CPU's own data. `TPIDR_EL1` points to it.
pub struct PerCpu {
    /// Index, counted from 0 in the order of the tree's CPU nodes, the boot CPU first.
    index: AtomicU64,
    /// Affinity fields of `MPIDR_EL1`.
    mpidr: AtomicU64,
    /// The innermost place to go on after an exception.
    pub recovery: AtomicPtr<Recovery>,
    /// How often each of the 32 private interrupts arrived.
    pub interrupts: [AtomicU64; 32],
    /// How often an interrupt arrived that is not private.
    pub other_interrupts: AtomicU64,
}

impl PerCpu {
    const fn new() -> Self {
        Self {
            index: AtomicU64::new(0),
            mpidr: AtomicU64::new(0),
            recovery: AtomicPtr::new(core::ptr::null_mut()),
            interrupts: [const { AtomicU64::new(0) }; 32],
            other_interrupts: AtomicU64::new(0),
        }
    }

    /// Index, counted from 0.
    pub fn index(&self) -> usize {
        self.index.load(Ordering::Relaxed) as usize
    }

    /// Affinity fields of `MPIDR_EL1`, as PSCI takes them.
    pub fn mpidr(&self) -> u64 {
        self.mpidr.load(Ordering::Relaxed)
    }

    /// How often the private interrupt `id` (0 to 31) arrived here.
    pub fn interrupt_count(&self, id: u32) -> u64 {
        self.interrupts[id as usize].load(Ordering::Relaxed)
    }
}

static CPUS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];

/// The affinity fields of `MPIDR_EL1`: Aff3 in bits 39:32, Aff2 to Aff0 in bits 23:0.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// The data of the CPU with this index.
pub fn cpu(index: usize) -> &'static PerCpu {
    &CPUS[index]
}

/// Notes which CPU has an index, before it is started.
pub fn assign(index: usize, mpidr: u64) {
    CPUS[index].index.store(index as u64, Ordering::Relaxed);
    CPUS[index].mpidr.store(mpidr, Ordering::Relaxed);
}

/// The data of the CPU that runs this.
pub fn current() -> &'static PerCpu {
    let pointer = read_sysreg!("TPIDR_EL1") as *const PerCpu;
    // SAFETY: set from a reference to one of `CPUS` before anything asks for it; no test writes it.
    unsafe { &*pointer }
}

fn set_current(cpu: &'static PerCpu) {
    // SAFETY: TPIDR_EL1 is a plain register that only this module uses.
    unsafe { write_sysreg!("TPIDR_EL1", core::ptr::from_ref(cpu) as u64) }
}

/// First thing on the boot CPU.
pub fn init_primary() {
    assign(0, read_sysreg!("MPIDR_EL1") & MPIDR_AFFINITY);
    set_current(&CPUS[0]);
}

/// First thing on another CPU.
pub fn init_secondary(cpu: &'static PerCpu) {
    cpu.recovery.store(core::ptr::null_mut(), Ordering::Relaxed);
    set_current(cpu);
}

/// Lets IRQ, FIQ, SError and debug exceptions through.
pub fn unmask_interrupts() {
    // SAFETY: the vectors and the interrupt controller are set up before this is called.
    unsafe { asm!("msr DAIFClr, #0xf", options(nostack, preserves_flags)) }
}

/// Runs `f` with interrupts masked, and restores the mask.
pub fn without_interrupts<R>(f: impl FnOnce() -> R) -> R {
    let daif = read_sysreg!("DAIF");
    // SAFETY: masking and restoring the mask.
    unsafe { asm!("msr DAIFSet, #0x3", options(nostack, preserves_flags)) };
    let result = f();
    // SAFETY: the value that was there before.
    unsafe { write_sysreg!("DAIF", daif) };
    result
}

/// In a loop that waits for another CPU. YIELD and not the ISB of `core::hint::spin_loop`: an emulator that runs its CPUs in
/// turn, as QEMU does when it counts instructions, goes over to the next one.
pub fn relax() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nostack, preserves_flags)) }
}

/// Waits for an interrupt, which may be masked.
pub fn wfi() {
    // SAFETY: the DSB completes earlier stores before the CPU may stop, so that what others wait for is visible; WFI
    // itself changes nothing.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) }
}
