//! What an attacker does: one attack a function.

use super::targets::{AREA, AREA_BYTES, CODE, WINDOWS};
use crate::calls::hypercall;
use crate::calls::services::{MIB, RET, write_code};
use crate::machine::conduit::{call, psci};
use crate::machine::escape::Escape;
use crate::machine::exceptions::{self, Caught};
use crate::machine::memory::PAGE;
use crate::machine::mmu::{self, Attributes, DEVICE, NORMAL_RWX};
use crate::machine::probe::{DATA_ACCESSES, EXECUTE, READ64, WRITE32, WRITE64};
use crate::machine::timer::{self, Timer};
use crate::machine::{self, Conduit, GicRegisters, cpu, gic, smp};
use crate::suite::random::Random;
use core::sync::atomic::{AtomicU64, Ordering::*};
use hypervisor_abi::function;
use smccc::psci::{PSCI_AFFINITY_INFO_64, PSCI_CPU_ON_64, PSCI_CPU_SUSPEND_64, PSCI_FEATURES};

pub fn pick<T: Copy>(random: &mut Random, choices: &[T]) -> T {
    choices[random.below(choices.len() as u64) as usize]
}

/// The hypervisor's memory: first address and the first one behind it.
fn own() -> (u64, u64) {
    hypercall::own_memory().next().map_or((machine::RAM_BASE, machine::RAM_BASE), |own| (own.start, own.end))
}

/// An address that may be worth trying; none that would do harm to the payload itself.
fn address(random: &mut Random) -> u64 {
    let area = AREA.load(Relaxed);
    let (start, end) = own();
    match random.below(12) {
        0..4 => area + random.below(AREA_BYTES / 2 / PAGE) * PAGE,
        4 => area + random.below(AREA_BYTES / 2),
        5 => start + random.below((end - start).max(1)),
        6 => start,
        7 => end - PAGE,
        8 => pick(random, &[0, 1, u64::MAX, !0xfff, 1 << 47, 1 << 52, 1 << 63, 0x0a00_3000]),
        9 => 1 << (40 + random.below(24)),
        10 => start.wrapping_sub(8),
        _ => random.next() | 1 << 45,
    }
}

/// A length, such that a range from an address of the area's on either ends in there or wraps.
fn length(random: &mut Random) -> u64 {
    let few = [0, 1, 7, 8, PAGE, 3 * PAGE, 16 * PAGE, MIB, 2 * MIB, AREA_BYTES / 2];
    match random.below(4) {
        0 => pick(random, &[u64::MAX, !0xfff, 1 << 52, 1 << 63, u64::MAX / 2]),
        _ => pick(random, &few),
    }
}

pub fn hypercall(random: &mut Random) {
    let services = [
        function::CALL_COUNT,
        function::CALL_UID,
        function::REVISION,
        function::OWN_MEMORY,
        function::FEATURES,
        function::COUNTER,
        function::INJECT_ABORT,
        function::LEAF,
        function::REFUSE_FRAMES,
        function::PROTECT,
        function::SPLIT,
        function::COLLAPSE,
        function::LOG_START,
        function::LOG_HARVEST,
        function::LOG_PEEK,
        function::LOG_CLEAR,
        function::LOG_STOP,
        function::WATCH,
        function::WATCH_REARM,
        function::WATCH_TAKE,
    ];
    let id = match random.below(4) {
        0 => {
            let base = pick(random, &[0x8000_0000, 0xc600_0000, 0x8600_ff00, 0xc200_0000, 0xc500_0000, 0x4600_0000]);
            // Remapping is left out: it takes memory away for as long as it lasts, also what another CPU works with.
            Some(base + random.below(64) as u32).filter(|id| *id != function::REMAP).unwrap_or(base)
        }
        // PSCI has calls that do end the machine.
        1 => Some(random.next() as u32).filter(|id| id >> 24 & 0x3f != 4).unwrap_or(0),
        _ => pick(random, &services),
    };
    // A handle or a small number is as likely as an address.
    let small = random.below(8);
    let first = if random.below(3) == 0 { small } else { address(random) };
    let (second, third) = match id {
        function::LOG_HARVEST | function::LOG_PEEK | function::LOG_CLEAR => (address(random), length(random)),
        function::INJECT_ABORT => (address(random), address(random)),
        _ => (length(random), pick(random, &[0, 1, 2, 3, 4, 5, 7, 8, 0x100, 0x101, u64::MAX])),
    };
    let first = match id {
        function::INJECT_ABORT => pick(random, &[0x9200_0000, 0x8200_0000, 0x5600_0000]) | random.below(1 << 10),
        // Forgotten by the end of the test, but no more than a few.
        function::REFUSE_FRAMES => random.below(4),
        _ => first,
    };
    let second = if id == function::REFUSE_FRAMES { random.below(4) } else { second };
    let conduit = pick(random, &[Conduit::Hvc, Conduit::Smc]);
    let fourth = if id == function::INJECT_ABORT { random.below(2) } else { random.next() };
    call(conduit, id, [first, second, third, fourth]);
}

pub fn psci_call(random: &mut Random) {
    // CPU_SUSPEND, CPU_OFF, SYSTEM_OFF, SYSTEM_RESET and their kin do what they say, to this CPU or to all.
    const HONEST: [u32; 9] = [0x01, 0x02, 0x08, 0x09, 0x0b, 0x0c, 0x0e, 0x12, 0x15];
    let mpidr = pick(random, machine::get().mpidrs());
    let targets = [mpidr, mpidr | 1 << 31, mpidr + 0x100_0000, 1 << 32, u64::MAX, random.next()];
    match random.below(4) {
        0 => {
            // All are on, or do not exist; an entry in the area is one that could be used.
            let (target, entry) = (pick(random, &targets), address(random));
            psci(PSCI_CPU_ON_64, [target, entry, random.next()]);
        }
        1 => {
            psci(PSCI_AFFINITY_INFO_64, [pick(random, &targets), random.below(6), 0]);
        }
        2 => {
            psci(PSCI_FEATURES, [random.next(), random.next(), 0]);
        }
        _ => {
            let number = random.below(0x40) as u32;
            if !HONEST.contains(&number) && number != 3 {
                let width = pick(random, &[0x8400_0000, 0xc400_0000]);
                psci(width | number, [random.next(), address(random), random.next()]);
            }
        }
    }
}

/// Executes one instruction with `value` in x0, and whatever becomes of it.
fn execute(instruction: u32, value: u64) -> Result<u64, Escape> {
    let code = CODE[cpu::current().index()].load(Relaxed);
    write_code(code, &[instruction, RET]);
    // SAFETY: the page is this CPU's own, and holds the instruction and a return. The attack that chose the
    // instruction answers for it.
    let function = unsafe { core::mem::transmute::<u64, Caught>(code) };
    // SAFETY: it takes no stack, and holds nothing.
    unsafe { exceptions::catch(function, value, 0) }
}

/// The operands of a system instruction or register.
const fn operands(op1: u64, n: u64, m: u64, op2: u64) -> u32 {
    (op1 << 16 | n << 12 | m << 8 | op2 << 5) as u32
}

const READ_REGISTER: u32 = 0xd530_0000;
const WRITE_REGISTER: u32 = 0xd510_0000;
const SYSTEM: u32 = 0xd508_0000;
/// op0 is 3, not 2.
const NOT_DEBUG: u32 = 1 << 19;

/// EL1's own registers that the payload has no use for, and what they are called.
const EL1: [(u32, &str); 12] = [
    (operands(0, 4, 0, 1), "ELR_EL1"),
    (operands(0, 5, 1, 0), "AFSR0_EL1"),
    (operands(0, 5, 1, 1), "AFSR1_EL1"),
    (operands(0, 5, 2, 0), "ESR_EL1"),
    (operands(0, 6, 0, 0), "FAR_EL1"),
    (operands(0, 7, 4, 0), "PAR_EL1"),
    (operands(0, 10, 3, 0), "AMAIR_EL1"),
    (operands(0, 13, 0, 1), "CONTEXTIDR_EL1"),
    (operands(0, 14, 1, 0), "CNTKCTL_EL1"),
    (operands(2, 0, 0, 0), "CSSELR_EL1"),
    (operands(3, 13, 0, 2), "TPIDR_EL0"),
    (operands(3, 13, 0, 3), "TPIDRRO_EL0"),
];

pub fn register(random: &mut Random) {
    if random.below(4) == 0 {
        let (register, name) = pick(random, &EL1);
        let result = execute(WRITE_REGISTER | NOT_DEBUG | register, random.next());
        check!(result.is_ok(), "writing {name}: expected nothing to happen, seen {result:x?}");
        return;
    }
    let (n, m, op2) = (random.below(16), random.below(16), random.below(8));
    if random.below(2) == 0 {
        let (op1, debug) = (random.below(8), random.below(8) == 0);
        // Reading ICC_IAR0_EL1 and ICC_IAR1_EL1 takes an interrupt.
        if n == 12 && matches!(m, 8 | 12) {
            return;
        }
        let _ = execute(READ_REGISTER | if debug { 0 } else { NOT_DEBUG } | operands(op1, n, m, op2), 0);
        return;
    }
    // EL2's, EL3's and the implementation's own. Most of EL1's would do harm to the payload.
    let op1 = pick(random, &[4, 5, 6, 7]);
    let (op1, n) = if random.below(4) == 0 { (random.below(8), pick(random, &[11, 15])) } else { (op1, n) };
    let result = execute(WRITE_REGISTER | NOT_DEBUG | operands(op1, n, m, op2), random.next());
    // EL1 has none of these. With VHE, EL2's names for EL1's registers are op1 = 5.
    let undefined = matches!(result, Err(Escape::Exception(seen)) if seen.is_undefined());
    check!(
        undefined || !matches!(op1, 4..=6) || matches!(n, 11 | 15),
        "writing S3_{op1}_C{n}_C{m}_{op2}: expected an undefined instruction, seen {result:x?}"
    );
}

pub fn instruction(random: &mut Random) {
    let (m, op2) = (random.below(16), random.below(8));
    // DC ZVA stores: what is mapped at these addresses is nobody's, if anything is.
    let value = match random.below(3) {
        0 => AREA.load(Relaxed) + random.below(AREA_BYTES),
        1 => random.next() | 1 << 45,
        _ => own().0 + random.below(0x10_0000),
    };
    let (op1, n) = match random.below(3) {
        // TLB maintenance and translation of EL2, and what EL3 has.
        0 => (pick(random, &[4, 5, 6, 7]), pick(random, &[7, 8, 9])),
        // EL1's own TLB maintenance does no harm.
        1 => (0, pick(random, &[8, 9])),
        // AT of EL1; maintenance of lines in memory that is not the guest's.
        _ => pick(random, &[(0, 7), (3, 7)]),
    };
    // DC IVAC, ISW, CSW, CISW drop or clean lines of the payload's own; of these only AT (CRm 8, 9) is tried.
    if (op1, n) == (0, 7) && !matches!(m, 8 | 9) {
        return;
    }
    let _ = execute(SYSTEM | operands(op1, n, m, op2), value);
}

/// Whether the guest has nothing at a physical address, by the tree.
fn is_nobody_s(at: u64) -> bool {
    let machine = machine::get();
    // The UART's, the clock's and the GIC's pages on QEMU's `virt` machine.
    let devices = [0x0800_0000..0x0804_0000, 0x080a_0000..0x0a00_0000, 0x40_0000_0000..0x41_0000_0000];
    !machine.ram().iter().any(|ram| ram.contains(&at)) && !devices.iter().any(|device| device.contains(&at))
}

pub fn access(random: &mut Random) {
    let index = cpu::current().index();
    let (start, end) = own();
    let physical = match random.below(3) {
        0 => start + random.below(end - start),
        1 => random.below(1 << 31),
        _ => random.below(1 << 40),
    } / PAGE
        * PAGE;
    if !is_nobody_s(physical) {
        return;
    }
    let attributes = pick(random, &[NORMAL_RWX, DEVICE]);
    // SAFETY: `prepare` has stored the address of this CPU's own entry, which lives as long as the test.
    let slot = unsafe { &*(WINDOWS[index].load(Relaxed) as *const AtomicU64) };
    let address = window(index);
    slot.store(mmu::page_descriptor(physical, Attributes(attributes.0)), Relaxed);
    // SAFETY: the entry was invalid, and is again below, each time before anything else uses the address: the DSBs make it
    // visible to the walker, and complete the invalidation.
    unsafe { core::arch::asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
    let kind = pick(random, &DATA_ACCESSES);
    let has_atomics = read_sysreg!("ID_AA64ISAR0_EL1") >> 20 & 0xf >= 2;
    let possible = (has_atomics || !kind.needs_atomics) && (attributes == NORMAL_RWX || kind.name != "DC ZVA");
    let kind = if possible { kind } else { READ64 };
    let kind = if attributes == NORMAL_RWX && random.below(8) == 0 { EXECUTE } else { kind };
    // SAFETY: nothing of the payload's is at the address.
    unsafe {
        kind.must_abort(address + random.below(64) * 64, random.next(), "what is not the guest's, in the window")
    };
    slot.store(0, Relaxed);
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("dsb ishst", "tlbi vaae1is, {}", "dsb ish", "isb", in(reg) address >> 12, options(nostack, preserves_flags))
    };
}

pub fn window(index: usize) -> u64 {
    mmu::ALIAS + (1 << 46) + ((index as u64) << 21)
}

pub fn distributor() -> u64 {
    match machine::get().gic {
        GicRegisters::V2 { distributor, .. } | GicRegisters::V3 { distributor, .. } => distributor,
    }
}

/// Interrupts of devices, 32 a register, whose state the test may change: nobody waits for one.
pub const LINES: u64 = 6;

pub fn controller(random: &mut Random) {
    let line = 1 + random.below(LINES);
    // Enable, disable, pending, not pending, active, not active; priorities, targets or routes, edge or level.
    let offset = match random.below(8) {
        0..4 => pick(random, &[0x100, 0x180, 0x200, 0x280, 0x300, 0x380]) + line * 4,
        4 => 0x400 + line * 32 + random.below(8) * 4,
        5 => 0xc00 + line * 8,
        _ => {
            if let Some(frame) = gic::redistributor(cpu::cpu(random.below(smp::count() as u64) as usize)) {
                // LPI tables and commands, with the hypervisor's memory as their aim; EnableLPIs.
                let register = pick(random, &[0x40, 0x48, 0x70, 0x78, 0xa0, 0xb0]);
                let value = own().0 | random.below(PAGE);
                for access in [WRITE32, WRITE64] {
                    // SAFETY: without EnableLPIs, which the hypervisor keeps clear, no such register touches memory.
                    let _ = unsafe { access.attempt(frame + register, value) };
                }
                // SAFETY: as above.
                let _ = unsafe { WRITE32.attempt(frame, 1) };
            }
            return;
        }
    };
    // SAFETY: a register of the distributor for interrupts that no device of the payload's raises.
    let _ = unsafe { WRITE32.attempt(distributor() + offset, random.next()) };
}

pub fn wait(random: &mut Random) {
    // Masked: an interrupt that comes before the wait ends it all the same, since nobody has handled it.
    cpu::without_interrupts(|| {
        Timer::Physical.start(Timer::Physical.count() + timer::frequency() / 20_000);
        match random.below(4) {
            0 => cpu::wfi(),
            1 => {
                psci(PSCI_CPU_SUSPEND_64, [0, address(random), random.next()]);
            }
            2 => {
                // A power-down state whose entry is no memory of the guest's: refused, or taken for a standby.
                psci(PSCI_CPU_SUSPEND_64, [1 << 16, own().0, 0]);
            }
            _ => {
                // SAFETY: an event is sent first, so the wait is over at once.
                unsafe { core::arch::asm!("sev", "wfe", "sev", "wfe", options(nostack, preserves_flags)) };
            }
        }
    });
}
