//! The stage2 engine in the smallest program at EL2 that runs a guest: maps it, protects a page while the guest stores to
//! it, answers the abort, and prints what that took. The crate's documentation (module `embedding`) walks through it.
#![no_std]
#![no_main]

mod machine;

use crate::machine::{Machine, say, stop};
use core::arch::{asm, global_asm};
use stage2::aarch64::{self, NonSecure, Regime};
use stage2::features::{ConflictAborts, IdRegisters};
use stage2::*;

global_asm!(include_str!("boot.S"));

/// The guest's memory as the guest sees it; and where it is.
const RAM: IpaRange = match IpaRange::from_size(Ipa(0x4000_0000), 1 << 30) {
    Ok(range) => range,
    Err(_) => panic!("a GiB is a range"),
};
const RAM_IS_AT: PhysAddr = PhysAddr(0x8000_0000);
/// The page that the guest stores to.
const PAGE: IpaRange = match IpaRange::from_size(Ipa(0x4012_3000), PAGE_SIZE) {
    Ok(range) => range,
    Err(_) => panic!("a page is a range"),
};

/// The guest's registers, as boot.S loads and saves them.
#[repr(C)]
struct Vcpu {
    x: [u64; 31],
    pc: u64,
    pstate: u64,
}

unsafe extern "C" {
    /// Runs the guest until it is stopped.
    fn run_guest(vcpu: *mut Vcpu);
    static guest_start: u8;
    static guest_end: u8;
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    match program() {
        Ok(()) => stop("passed"),
        Err(error) => {
            say!("the engine refuses: {error}");
            stop("failed")
        }
    }
}

fn program() -> Result<(), Error> {
    // What the CPUs can do. With several, `Features::weakest` of all of them.
    let features = Features::from_id_registers(&IdRegisters::read(), ConflictAborts::Handled);
    say!("EL2: {features:?}");

    // The table: one GiB of RAM, as one leaf.
    let config = Config::new(Vmid::new(1)?, features).with_ipa_bits(features.pa_bits.min(40));
    let mut table = Stage2::new(Mapped::new(Machine), config)?;
    table.map(RAM, RAM_IS_AT, Attributes::RAM)?;
    say!("{}", table.dump());

    // The registers that hardware walks by.
    // Nothing that another program left behind may be found under the VMID.
    aarch64::invalidate_all_vmids();
    // SAFETY: the value is the table's below, and no guest runs yet.
    unsafe { aarch64::set_control(table.vtcr()) };
    // SAFETY: the table lives as long as the guest runs; entering the guest synchronises the registers.
    unsafe { NonSecure::set_table(table.vttbr()) };
    set_up_guest();

    let mut vcpu = load_guest();
    let mut history = FaultHistory::new();
    let mut denied = 0;
    loop {
        // SAFETY: the registers are this function's; the guest reaches its own memory and nothing else.
        unsafe { run_guest(&mut vcpu) };
        let esr = machine::esr();
        match (esr >> 26, esr & 0xffff) {
            (machine::HVC, 1) => {
                // The page is taken from the guest, while the table is in use: its GiB is split around it.
                table.protect(PAGE, Permissions::READ_EXECUTE)?;
                say!("{} stores; now the page is read-only:", vcpu.x[1]);
                say!("{}", table.dump());
            }
            (machine::HVC, _) => break,
            _ => {
                let Some(taken) = aarch64::read_abort(esr) else { stop("the guest did something unexpected") };
                match table.answer(&taken, &mut history) {
                    // Back to the same instruction.
                    Outcome::Retry => {}
                    Outcome::Denied => {
                        // Here a device would be emulated, or the guest given an abort. This guest gets its page back.
                        denied += 1;
                        say!("the guest was stopped: {taken:?}");
                        table.protect(PAGE, Permissions::ALL)?;
                    }
                    Outcome::Unmapped | Outcome::Frozen | Outcome::Stuck => stop("the guest went astray"),
                }
            }
        }
    }
    // All is as it was: the pages become one leaf again.
    table.collapse(RAM)?;
    say!("{} stores, {denied} denied; one leaf again:", vcpu.x[1]);
    say!("{}", table.dump());
    for event in Event::ALL.iter().filter(|event| machine::COUNTERS.get(**event) != 0) {
        say!("{} {}", event.name(), machine::COUNTERS.get(*event));
    }
    Ok(())
}

/// HCR_EL2 and its like: the guest is at AArch64 EL1, under stage 2.
fn set_up_guest() {
    const VM: u64 = 1 << 0;
    const SWIO: u64 = 1 << 1;
    /// EL2 does not walk the guest's tables through devices, whose answers could be exceptions at EL2.
    const PTW: u64 = 1 << 2;
    /// The guest has no stage 1: its memory is Normal all the same.
    const DC: u64 = 1 << 12;
    const RW: u64 = 1 << 31;
    // SAFETY: these registers are about EL1 and EL0, where nothing runs yet.
    unsafe {
        asm!(
            "msr hcr_el2, {hcr}",
            "msr sctlr_el1, {sctlr}",
            "isb",
            hcr = in(reg) VM | SWIO | PTW | DC | RW,
            sctlr = in(reg) 0x30d0_0800_u64,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies the guest to the start of its memory. It begins there, at EL1, with the page's address in x0.
fn load_guest() -> Vcpu {
    const EL1H_MASKED: u64 = 0x3c5;
    let (from, to) = (&raw const guest_start, RAM_IS_AT.0 as *mut u8);
    // SAFETY: the linker script puts both symbols around the guest.
    let bytes = unsafe { (&raw const guest_end).offset_from_unsigned(from) };
    // SAFETY: the guest's bytes are there, and nothing else is at its memory.
    unsafe { to.copy_from_nonoverlapping(from, bytes) };
    // What the guest fetches is what was written. It fits a cache line.
    // SAFETY: cache maintenance of memory that EL2 maps.
    unsafe { asm!("dc cvau, {}", "dsb ish", "ic ialluis", "dsb ish", "isb", in(reg) to, options(nostack)) };
    let mut x = [0; 31];
    x[0] = PAGE.start().0;
    Vcpu { x, pc: RAM.start().0, pstate: EL1H_MASKED }
}
