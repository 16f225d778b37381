//! System registers and instructions that a guest has none of: each is undefined to it, and it goes on.

use crate::machine::cpu::{self, MPIDR_AFFINITY};
use crate::machine::escape::Escape;
use crate::machine::exceptions::{Caught, catch};
use crate::machine::report::Outcome;
use crate::machine::{self, probe, smp};
use crate::options;
use crate::suite::random::Random;

core::arch::global_asm!(include_str!("registers.S"), options(raw));

group!(
    "registers",
    [
        higher_levels,
        unknown_registers,
        higher_instructions,
        identity,
        on_every_cpu,
        set_way_maintenance,
        el1_registers_keep,
        breakpoint_instruction,
        undefined_instruction,
        random_reads,
    ]
);

macro_rules! registers {
    ($table:ident: $($read:ident $write:ident)*) => {
        unsafe extern "C" {
            $(fn $read(a: u64, b: u64) -> u64; fn $write(a: u64, b: u64) -> u64;)*
        }
        const $table: &[(&str, Caught)] = &[$((stringify!($read), $read), (stringify!($write), $write)),*];
    };
}

registers! { HIGHER:
    read_HCR_EL2 write_HCR_EL2 read_VTTBR_EL2 write_VTTBR_EL2 read_VTCR_EL2 write_VTCR_EL2 read_SCTLR_EL2 write_SCTLR_EL2
    read_TTBR0_EL2 write_TTBR0_EL2 read_VBAR_EL2 write_VBAR_EL2 read_ELR_EL2 write_ELR_EL2 read_ESR_EL2 write_ESR_EL2
    read_HPFAR_EL2 write_HPFAR_EL2 read_TPIDR_EL2 write_TPIDR_EL2 read_CPTR_EL2 write_CPTR_EL2 read_MDCR_EL2 write_MDCR_EL2
    read_CNTHCTL_EL2 write_CNTHCTL_EL2 read_CNTVOFF_EL2 write_CNTVOFF_EL2 read_CNTHP_CTL_EL2 write_CNTHP_CTL_EL2
    read_ICH_HCR_EL2 write_ICH_HCR_EL2 read_VPIDR_EL2 write_VPIDR_EL2 read_VMPIDR_EL2 write_VMPIDR_EL2
    read_SCR_EL3 write_SCR_EL3 read_VBAR_EL3 write_VBAR_EL3
}

registers! { UNKNOWN:
    read_unallocated_1 write_unallocated_1 read_unallocated_2 write_unallocated_2 read_unallocated_3 write_unallocated_3
}

registers! { IMPLEMENTATION_DEFINED:
    read_implementation_defined_1 write_implementation_defined_1 read_implementation_defined_2 write_implementation_defined_2
    read_implementation_defined_3 write_implementation_defined_3
}

macro_rules! instructions {
    ($($name:ident)*) => {
        unsafe extern "C" {
            $(fn $name(a: u64, b: u64) -> u64;)*
        }
        const INSTRUCTIONS: &[(&str, Caught)] = &[$((stringify!($name), $name)),*];
    };
}

instructions! {
    execute_tlbi_el2 execute_tlbi_stage_2 execute_tlbi_all_el1 execute_tlbi_vmalls12e1 execute_at_el2
    execute_at_stage_1_and_2 execute_unallocated execute_unallocated_system
}

fn must_be_undefined(table: &[(&str, Caught)]) {
    for &(name, function) in table {
        // SAFETY: an access that works in spite of this writes 0, and is reported.
        unsafe { probe::must_be_undefined(function, name) };
    }
}

fn higher_levels() -> Outcome {
    must_be_undefined(HIGHER);
    Ok(())
}

fn unknown_registers() -> Outcome {
    must_be_undefined(UNKNOWN);
    // What a CPU has in its implementation-defined space is its own affair, but either it answers or it is undefined.
    for &(name, function) in IMPLEMENTATION_DEFINED {
        // SAFETY: as above.
        let result = unsafe { catch(function, 0, 0) };
        let fine = probe::exception(result).is_none_or(|seen| seen.is_undefined());
        check!(fine, "{name}: expected an answer or an undefined instruction, seen {result:x?}");
    }
    Ok(())
}

fn higher_instructions() -> Outcome {
    must_be_undefined(INSTRUCTIONS);
    Ok(())
}

fn undefined_everywhere(_: u64) -> u64 {
    must_be_undefined(HIGHER);
    must_be_undefined(UNKNOWN);
    must_be_undefined(INSTRUCTIONS);
    cpu::current().index() as u64
}

fn on_every_cpu() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for index in 1..smp::count() {
        check_eq!(smp::run(index, undefined_everywhere, 0)?, index as u64, "cpu {index} goes on");
    }
    Ok(())
}

fn identity() -> Outcome {
    for index in 1..smp::count() {
        let midr = smp::run(index, |_| read_sysreg!("MIDR_EL1"), 0)?;
        check!(midr != 0, "MIDR_EL1 of cpu {index} is 0");
        let mpidr = smp::run(index, |_| read_sysreg!("MPIDR_EL1"), 0)?;
        check_eq!(mpidr & MPIDR_AFFINITY, machine::get().mpidrs()[index], "the affinity in MPIDR_EL1 of cpu {index}");
        check_eq!(mpidr >> 31 & 1, 1, "MPIDR_EL1 bit 31 of cpu {index}, RES1");
    }
    let el0 = read_sysreg!("ID_AA64PFR0_EL1") & 0xf;
    check!((1..=2).contains(&el0), "ID_AA64PFR0_EL1.EL0: expected 1 or 2, seen {el0}");
    Ok(())
}

unsafe extern "C" fn by_set_and_way(_: u64, _: u64) -> u64 {
    // SAFETY: clean and invalidate one line of the first level: at most a line goes to memory.
    unsafe { core::arch::asm!("dc cisw, xzr", "dc csw, xzr", "dsb sy", options(nostack, preserves_flags)) };
    1
}

fn set_way_maintenance() -> Outcome {
    // A guest that boots with caches of its own does this; trapped or not, it works.
    // SAFETY: as above.
    unsafe { probe::must_work(by_set_and_way, 0, 0, "DC CISW, DC CSW") }?;
    Ok(())
}

unsafe extern "C" fn keep(value: u64, _: u64) -> u64 {
    let (contextidr, tpidr, tpidrro): (u64, u64, u64);
    // SAFETY: three registers that nothing of the payload depends on, and in between an ID register, which EL2 answers for.
    unsafe {
        core::arch::asm!(
            "msr CONTEXTIDR_EL1, {0:x}", "msr TPIDR_EL0, {0:x}", "msr TPIDRRO_EL0, {0:x}", "isb",
            "mrs {1}, ID_AA64PFR0_EL1", "mrs {1}, CONTEXTIDR_EL1", "mrs {2}, TPIDR_EL0", "mrs {3}, TPIDRRO_EL0",
            in(reg) value, out(reg) contextidr, out(reg) tpidr, out(reg) tpidrro, options(nostack, preserves_flags)
        );
    }
    u64::from(contextidr == value && tpidr == value && tpidrro == value)
}

fn el1_registers_keep() -> Outcome {
    // SAFETY: as `keep` says.
    let kept = unsafe { probe::must_work(keep, 0x1234_5678, 0, "CONTEXTIDR_EL1 and others") }?;
    check_eq!(kept, 1, "CONTEXTIDR_EL1, TPIDR_EL0 and TPIDRRO_EL0 keep what is written");
    Ok(())
}

unsafe extern "C" fn brk(_: u64, _: u64) -> u64 {
    // SAFETY: raises an exception, which the caller expects.
    unsafe { core::arch::asm!("brk #0x123", options(nostack, preserves_flags)) };
    0
}

fn breakpoint_instruction() -> Outcome {
    // SAFETY: as above.
    match unsafe { catch(brk, 0, 0) } {
        Err(Escape::Exception(seen)) => {
            check_eq!(seen.esr, crate::machine::escape::class::BRK << 26 | 1 << 25 | 0x123, "ESR_EL1 of BRK #0x123");
            Ok(())
        }
        other => fail!("BRK #0x123: expected a breakpoint exception, seen {other:x?}"),
    }
}

unsafe extern "C" fn udf(_: u64, _: u64) -> u64 {
    // SAFETY: raises an exception, which the caller expects.
    unsafe { core::arch::asm!("udf #0", options(nostack, preserves_flags)) };
    0
}

fn undefined_instruction() -> Outcome {
    for _ in 0..100 {
        // SAFETY: as above.
        unsafe { probe::must_be_undefined(udf, "UDF") };
    }
    Ok(())
}

/// `mrs x0, S3_0_C0_C0_0; ret`, into whose first word an encoding is put.
const MRS_X0: u32 = 0xd530_0000;
const RET: u32 = 0xd65f_03c0;

fn read_at_random(stream: u64) -> u64 {
    let mut random = Random::new(options::get().seed, stream);
    let Some(code) = crate::machine::memory::allocate_zeroed_page() else { return u64::MAX };
    let mut read = 0;
    for _ in 0..1000 {
        // Any op0 of 2 or 3, op1, CRn, CRm, op2: bits 19:5. ICC_IAR*, RNDR and counters have side effects that harm
        // nobody; the interrupt acknowledge registers do, so C12 is left out.
        let encoding = 1 << 19 | (random.next() as u32 & 0x7_ffe0);
        if encoding >> 12 & 0xf == 12 {
            continue;
        }
        // SAFETY: the test's own page; the maintenance makes the new instruction visible to fetches before the branch: the
        // store reaches the point of unification (DC CVAU, DSB), the stale line goes (IC IVAU, DSB), this CPU refetches.
        unsafe {
            core::arch::asm!(
                "stp {mrs:w}, {ret:w}, [{code}]", "dc cvau, {code}", "dsb ish", "ic ivau, {code}", "dsb ish", "isb",
                mrs = in(reg) MRS_X0 | encoding, ret = in(reg) RET, code = in(reg) code, options(nostack, preserves_flags)
            );
        }
        // SAFETY: a register read and a return.
        let result = unsafe { probe::EXECUTE.attempt(code, 0) };
        let fine = probe::exception(result).is_none_or(|seen| seen.is_undefined() || OWN_TRAPS.contains(&seen.class()));
        check!(fine, "mrs with encoding {encoding:#x}: expected a value or an undefined instruction, seen {result:x?}");
        read += u64::from(result.is_ok());
    }
    read
}

/// Exception classes of traps that EL1 sets for itself: SIMD&FP, SVE and SME registers by CPACR_EL1, others by SCTLR_EL1.
const OWN_TRAPS: [u64; 4] = [0x07, 0x18, 0x19, 0x1d];

fn random_reads() -> Outcome {
    for index in 1..smp::count() {
        smp::post(index, read_at_random, index as u64)?;
    }
    read_at_random(0);
    for index in 1..smp::count() {
        smp::wait(index, 15_000)?;
    }
    Ok(())
}
