//! The SMC Calling Convention (DEN0028): versions, unknown functions, what a call keeps, and where it returns to.

use crate::calls::hypercall;
use crate::machine::conduit::call;
use crate::machine::exceptions::catch;
use crate::machine::report::{Outcome, Stop};
use crate::machine::{self, Conduit, cpu, probe, smp};
use crate::options;
use crate::suite::random::Random;
use hypervisor_abi::{REVISION, UID, function};
use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
};

core::arch::global_asm!(include_str!("smccc.S"), options(raw));

unsafe extern "C" {
    fn smccc_hvc(function: u64, results: u64) -> u64;
    fn smccc_smc(function: u64, results: u64) -> u64;
}

group!(
    "smccc",
    [
        version,
        arch_features,
        workarounds,
        vendor_uid,
        unknown_functions,
        hvc_keeps_registers,
        smc_keeps_registers,
        hvc_immediates,
        random_functions,
    ]
);

/// NOT_SUPPORTED, in all 64 bits or in the lower 32.
fn is_not_supported(x0: u64) -> bool {
    x0 == u64::MAX || x0 == 0xffff_ffff
}

/// What the conduits have to offer: under the hypervisor both, else the tree's.
fn conduits() -> &'static [Conduit] {
    if hypercall::present() {
        &[Conduit::Hvc, Conduit::Smc]
    } else if machine::get().conduit == Conduit::Hvc {
        &[Conduit::Hvc]
    } else {
        &[Conduit::Smc]
    }
}

fn version() -> Outcome {
    hypercall::required()?;
    for &conduit in conduits() {
        let version = call(conduit, SMCCC_VERSION, [0; 4])[0];
        check!(
            (0x1_0001..0x2_0000).contains(&version),
            "SMCCC_VERSION over {conduit:?}: expected 1.1 or later, seen {version:#x}"
        );
    }
    Ok(())
}

fn arch_features() -> Outcome {
    hypercall::required()?;
    for &conduit in conduits() {
        let of = |function: u32| call(conduit, SMCCC_ARCH_FEATURES, [u64::from(function), 0, 0, 0])[0];
        check_eq!(of(SMCCC_VERSION), 0, "ARCH_FEATURES of SMCCC_VERSION over {conduit:?}");
        check_eq!(of(SMCCC_ARCH_FEATURES), 0, "ARCH_FEATURES of itself over {conduit:?}");
        check!(
            is_not_supported(of(0x8000_00ff)),
            "ARCH_FEATURES of an unknown function over {conduit:?}: {:#x}",
            of(0x8000_00ff)
        );
    }
    Ok(())
}

fn workarounds() -> Outcome {
    hypercall::required()?;
    for function in [SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3] {
        let answer = call(machine::get().conduit, SMCCC_ARCH_FEATURES, [u64::from(function), 0, 0, 0])[0] as i32;
        // NOT_REQUIRED is -2, for WORKAROUND_2 only; 0 and 1 say that it may be called.
        check!((-2..=1).contains(&answer), "ARCH_FEATURES of {function:#x}: expected -2 to 1, seen {answer}");
        if answer >= 0 {
            // Returns nothing; that it returns is all there is to see.
            call(machine::get().conduit, function, [0; 4]);
        }
    }
    Ok(())
}

fn vendor_uid() -> Outcome {
    hypercall::required()?;
    for &conduit in conduits() {
        let uid = call(conduit, function::CALL_UID, [0; 4]).map(|word| word as u32);
        check_eq!(uid, UID, "the UID over {conduit:?}");
        let revision = call(conduit, function::REVISION, [0; 4]);
        check_eq!((revision[0] as u32, revision[1] as u32), REVISION, "the revision over {conduit:?}");
    }
    Ok(())
}

fn unknown_functions() -> Outcome {
    hypercall::required()?;
    // One or two of every owning entity that the hypervisor might forward or panic about (DEN0028, table 6-2), fast and
    // yielding, 32 and 64 bits.
    let functions = [
        0x8000_1234,
        0xc000_1234, // Arm architecture
        0x8100_0000,
        0xc100_0000, // CPU service
        0x8200_0000,
        0xc200_ffff, // SiP
        0x8300_0000,
        0xc300_0001, // OEM
        0x8400_0100,
        0xc400_1000, // standard secure: beyond PSCI
        0x8500_0000,
        0xc500_0020, // standard hypervisor: paravirtualised time and others
        0x8600_0fff,
        0xc600_0fff, // vendor-specific hypervisor
        0xb000_0000,
        0xf000_0000, // trusted applications
        0xb200_0000,
        0xbf00_0000, // trusted OS
        0x0000_0000,
        0x0100_0000,
        0x3200_0000,
        0x7fff_ffff, // yielding
        0xffff_ffff,
        0x8000_ffff,
    ];
    for &conduit in conduits() {
        for function in functions {
            let x0 = call(conduit, function, [1, 2, 3, 4])[0];
            check!(
                is_not_supported(x0),
                "{conduit:?} of the unknown function {function:#x}: expected -1, seen {x0:#x}"
            );
        }
    }
    Ok(())
}

fn keeps_registers(conduit: Conduit, function: u32, what: &str) -> Result<[u64; 40], Stop> {
    let mut seen = [0_u64; 40];
    let function_pointer = if conduit == Conduit::Hvc { smccc_hvc } else { smccc_smc };
    // SAFETY: the function writes 34 words of the array it gets; x18 and all callee-saved registers come back.
    unsafe { probe::must_work(function_pointer, u64::from(function), seen.as_mut_ptr() as u64, what) }?;
    // Written by assembly that the compiler does not see through.
    let seen = core::hint::black_box(seen);
    for register in 4..30 {
        check_eq!(seen[register], 0x1000 + register as u64, "{what}: x{register}");
    }
    check_eq!(seen[30], 0x1000 + 30 + 1, "{what}: x30, kept by the call and then counted up once");
    check_eq!(seen[33], seen[32], "{what}: SP");
    Ok(seen)
}

fn returns_right(conduit: Conduit) -> Outcome {
    hypercall::required()?;
    // Known and unknown ones: a hypervisor may take different ways out.
    for (function, name) in
        [(SMCCC_VERSION, "SMCCC_VERSION"), (0x8400_0000, "PSCI_VERSION"), (0x8600_0fff, "an unknown function")]
    {
        let seen = keeps_registers(conduit, function, name)?;
        if name == "an unknown function" {
            check!(is_not_supported(seen[0]), "{name}: expected -1 in x0, seen {:#x}", seen[0]);
            check_eq!(&seen[1..4], &[0x101, 0x202, 0x303], "{name}: x1 to x3");
        }
    }
    Ok(())
}

fn hvc_keeps_registers() -> Outcome {
    returns_right(Conduit::Hvc)
}

fn smc_keeps_registers() -> Outcome {
    returns_right(Conduit::Smc)
}

unsafe extern "C" fn hvc_with_immediate(_: u64, _: u64) -> u64 {
    let answer: u64;
    // SAFETY: SMCCC_VERSION with an immediate that the convention does not allow: an answer or an exception.
    unsafe {
        core::arch::asm!("hvc #0x123", inout("x0") 0x8000_0000_u64 => answer, out("x1") _, out("x2") _, out("x3") _)
    };
    answer
}

fn hvc_immediates() -> Outcome {
    hypercall::required()?;
    // DEN0028, 2.9: the immediate must be 0. A call with another one is none of the convention's, and not answered as one.
    // SAFETY: the function has no requirements.
    let result = unsafe { catch(hvc_with_immediate, 0, 0) };
    check!(
        result.is_ok_and(is_not_supported) || probe::exception(result).is_some_and(|seen| seen.is_undefined()),
        "HVC #0x123: expected -1 or an undefined instruction, seen {result:x?}"
    );
    Ok(())
}

/// Calls that would end or suspend the machine or a CPU, which random numbers stay away from: PSCI's range.
fn is_psci(function: u32) -> bool {
    function & 0x3f00_0000 == 0x0400_0000 && function & 0xffff < 0x40
}

fn call_at_random(stream: u64) -> u64 {
    let mut random = Random::new(options::get().seed, stream);
    let conduits = conduits();
    for _ in 0..2000 {
        let function = random.next() as u32 | if random.below(2) == 0 { 0x8000_0000 } else { 0 };
        let arguments = core::array::from_fn(|_| random.next());
        // The hypervisor's own calls may do things; those that this revision has take no address of ours.
        if !is_psci(function) {
            call(conduits[random.below(conduits.len() as u64) as usize], function, arguments);
        }
    }
    cpu::current().index() as u64
}

fn random_functions() -> Outcome {
    hypercall::required()?;
    for index in 1..smp::count() {
        smp::post(index, call_at_random, index as u64)?;
    }
    call_at_random(0);
    for index in 1..smp::count() {
        check_eq!(smp::wait(index, 15_000)?, index as u64, "cpu {index} after its calls");
    }
    Ok(())
}
