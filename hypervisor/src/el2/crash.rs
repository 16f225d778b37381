//! EL2's own end: what happened, where, and how it came there; then the machine is turned off.

use crate::el2::base::firmware::{self, End};
use crate::el2::base::{console::print_without_lock, cpu, registers::read_register, symbols::Address};
use crate::el2::guest_memory::revoke;
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::Ordering;
use hypervisor::options::Crash;
use hypervisor::syndrome;

/// What vectors.S saves of an exception from EL2.
#[repr(C)]
pub struct CrashFrame {
    x: [u64; 31],
    sp: u64,
    elr: u64,
    spsr: u64,
    esr: u64,
    far: u64,
}

const _: () = assert!(size_of::<CrashFrame>() == 288, "vectors.S knows the offsets");

/// An exception that EL2 itself has caused, or one that nothing routes here. `vector` is its number in the table.
pub extern "C" fn exception(frame: &CrashFrame, vector: u64) -> ! {
    begin();
    let kind = ["synchronous exception", "IRQ", "FIQ", "SError"][vector as usize % 4];
    let from = ["EL2 with SP_EL0", "EL2", "the guest", "an AArch32 program of the guest"][vector as usize / 4 % 4];
    let what = if vector.is_multiple_of(4) { syndrome::describe(frame.esr) } else { "" };
    print_without_lock(format_args!("panic: {kind} from {from}: {what}"));
    print_without_lock(format_args!("  at {}", Address(frame.elr)));
    print_without_lock(format_args!(
        "  ESR_EL2 {:#018x}  FAR_EL2 {:#018x}  SPSR_EL2 {:#010x}  SP {:#018x}",
        frame.esr, frame.far, frame.spsr, frame.sp
    ));
    if cpu::this_area().guard_pages().iter().any(|&page| frame.far as usize / 4096 == page / 4096) {
        print_without_lock(format_args!("  FAR_EL2 lies in the guard page below a stack: the stack is full"));
    }
    for first in (0..frame.x.len()).step_by(4) {
        print_without_lock(format_args!(" {}", Row { registers: &frame.x, first }));
    }
    backtrace(frame.elr, frame.x[29] as usize);
    end()
}

/// A Rust panic.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    match info.location() {
        Some(location) => print_without_lock(format_args!("panic: {} at {location}", info.message())),
        None => print_without_lock(format_args!("panic: {}", info.message())),
    }
    print_without_lock(format_args!(
        "  last exit: ESR_EL2 {:#018x}  ELR_EL2 {:#018x}  SPSR_EL2 {:#010x}  FAR_EL2 {:#018x}  HPFAR_EL2 {:#018x}",
        read_register!("esr_el2"),
        read_register!("elr_el2"),
        read_register!("spsr_el2"),
        read_register!("far_el2"),
        read_register!("hpfar_el2")
    ));
    let frame_pointer: usize;
    // SAFETY: reading a register.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) frame_pointer, options(nomem, nostack, preserves_flags)) };
    backtrace(panic as *const () as u64, frame_pointer);
    end()
}

/// Four registers side by side.
struct Row<'a> {
    registers: &'a [u64; 31],
    first: usize,
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.registers
            .iter()
            .enumerate()
            .skip(self.first)
            .take(4)
            .try_for_each(|(n, value)| write!(f, " x{n:<2} {value:#018x}"))
    }
}

/// Stops the other CPUs; a second crash on this one ends everything at once, and a third, which the console may be the
/// reason for, without a word.
fn begin() {
    match cpu::this_cpu().crashes.fetch_add(1, Ordering::Relaxed) {
        0 => {}
        1 => {
            print_without_lock(format_args!("panic: a crash while reporting a crash"));
            end();
        }
        _ => firmware::stop(End::Panic),
    }
    if firmware::stop_all() {
        // Another CPU reports its crash already, and turns the machine off.
        firmware::park();
    }
    revoke::revoke();
}

fn end() -> ! {
    revoke::revoke_again();
    print_without_lock(format_args!("end: {}", End::Panic.name()));
    firmware::stop(End::Panic)
}

/// Prints who called whom, innermost first, by the frame records that x29 chains (AAPCS64, 6.4.6).
fn backtrace(pc: u64, frame_pointer: usize) {
    const DEEPEST: usize = 48;
    print_without_lock(format_args!("backtrace:"));
    print_without_lock(format_args!("  #0 {}", Address(pc)));
    let area = cpu::this_area();
    let (stack, emergency) = (area.stack(), area.emergency_stack());
    let is_record = |at: usize| {
        at.is_multiple_of(8) && [&stack, &emergency].into_iter().any(|stack| stack.start <= at && at + 16 <= stack.end)
    };
    let mut record = frame_pointer;
    for depth in 1..DEEPEST {
        if !is_record(record) {
            return;
        }
        // SAFETY: the record lies in this CPU's stack, which is mapped; any 16 bytes there may be read.
        let [next, return_address] = unsafe { core::ptr::read(record as *const [u64; 2]) };
        if return_address == 0 {
            return;
        }
        // The call is the instruction before.
        print_without_lock(format_args!("  #{depth} {}", Address(return_address - 4)));
        if next as usize <= record {
            return;
        }
        record = next as usize;
    }
    print_without_lock(format_args!("  ... more than {DEEPEST} calls deep"));
}

/// Crashes, for tests of what is above: `crash=` on the command line.
pub fn on_purpose(kind: Crash) {
    match kind {
        Crash::Panic => panic!("crash=panic on the command line"),
        Crash::Abort => {
            // Within 48 bits, but far from everything.
            let unmapped = (1u64 << 48) - 4096;
            // SAFETY: not at all: nothing is mapped there, and the abort that follows is what was asked for.
            unsafe { core::ptr::read_volatile(unmapped as *const u64) };
        }
        Crash::Overflow => {
            core::hint::black_box(recurse(0));
        }
    }
}

/// Fills the stack.
#[expect(unconditional_recursion, reason = "running out of stack is what it is for")]
fn recurse(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 64]);
    recurse(depth + 1) + core::hint::black_box(frame)[0]
}
