//! Exits from the guest: one table from exception class to handler.

pub mod abort;
pub mod arguments;
pub mod frame;
pub mod hypercall;
pub mod inject;
pub mod psci;
pub mod services;
pub mod system_register;
pub mod test_services;

use crate::el2::base::{cpu, registers::write_register};
use crate::el2::crash;
use crate::el2::exits::frame::{Frame, Next, skip_instruction};
use core::arch::global_asm;
use core::mem::offset_of;
use hypervisor::exit_counts::Exit;

global_asm!(
    include_str!("vectors.S"),
    handlers = sym HANDLERS,
    lse_handlers = sym LSE_HANDLERS,
    frame_bytes = const size_of::<Frame>(),
    emergency_top = const cpu::CpuArea::EMERGENCY_TOP,
    crash_bytes = const size_of::<crash::CrashFrame>(),
    entered_at = const offset_of!(cpu::PerCpu, entered_at),
    el2_ticks = const offset_of!(cpu::PerCpu, el2_ticks),
    crash = sym crash::exception,
);

unsafe extern "C" {
    /// The vector table.
    pub fn vectors();
    /// The same, with handlers for FEAT_LSE.
    fn lse_vectors();
    /// The same as the first, adding up the time at EL2.
    fn timed_vectors();
    #[link_name = "enter_guest"]
    fn enter_guest_asm(context: u64, entry: u64, pstate: u64, stack_top: usize) -> !;
}

/// A handler gets what was saved, and ESR_EL2. It is called on CPUs that have the features that it is compiled for.
type Handler = unsafe extern "C" fn(&mut Frame, u64) -> Next;

/// From ESR_EL2.EC to its handler (D24.2.40). What cannot come to EL2 as it is set up, because nothing routes it here,
/// is answered like what comes from a feature that is hidden: as an undefined instruction.
static HANDLERS: [Handler; 64] = handlers(hypercall::hvc, abort::data);

/// The same, where the CPU has FEAT_LSE: the frequent ones are compiled for it, and each of their atomic operations is one
/// instruction, not a loop.
static LSE_HANDLERS: [Handler; 64] = handlers(hypercall::hvc_lse, abort::data_lse);

const fn handlers(hvc: Handler, data: Handler) -> [Handler; 64] {
    let mut handlers: [Handler; 64] = [undefined; 64];
    handlers[0x01] = wait;
    handlers[0x16] = hvc;
    handlers[0x17] = hypercall::smc;
    handlers[0x18] = system_register::access;
    handlers[0x20] = abort::instruction;
    handlers[0x24] = data;
    handlers
}

/// WFI, WFE and their kin with a time-out. None traps; should one, it has waited for no time at all.
extern "C" fn wait(_frame: &mut Frame, esr: u64) -> Next {
    cpu::this_cpu().exits.count(Exit::Wfx);
    skip_instruction(esr);
    Next::RESUME
}

/// Everything that the guest has no right to.
extern "C" fn undefined(_frame: &mut Frame, esr: u64) -> Next {
    cpu::this_cpu().exits.count(Exit::Other);
    inject::undefined(esr);
    Next::RESUME
}

/// Has the handlers use FEAT_LSE from the next exit on. The CPU has it.
pub fn use_lse_vectors() {
    write_register!("vbar_el2", lse_vectors as *const () as u64);
}

/// Counts the time at EL2 from the next exit on.
pub fn use_timed_vectors() {
    write_register!("vbar_el2", timed_vectors as *const () as u64);
}

/// Enters the guest at `entry` with `context` in x0 and all else 0: EL1 with its own stack pointer, everything masked.
pub fn enter_guest(entry: u64, context: u64) -> ! {
    /// PSTATE: EL1h, D, A, I and F set.
    const PSTATE: u64 = 0x3c5;
    // SAFETY: the stack is this CPU's, and whatever is on it is not returned to.
    unsafe { enter_guest_asm(context, entry, PSTATE, cpu::this_area().stack().end) }
}
