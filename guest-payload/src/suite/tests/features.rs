//! Features of the CPU: what the ID registers promise works on every CPU, without an exception that nobody expects.
//!
//! A hypervisor that leaves a trap set or a state uninitialised, and does not hide the feature, fails here.

use crate::machine::escape::Escape;
use crate::machine::exceptions::{Caught, catch};
use crate::machine::report::Outcome;
use crate::machine::{memory, mmu, smp, timer};

core::arch::global_asm!(include_str!("features.S"), include_str!("features/system.S"), options(raw));

group!(
    "features",
    [
        id_registers,
        same_on_all_cpus,
        floating_point,
        simd,
        aes,
        sha256,
        crc32,
        sve,
        sme,
        pauth,
        pauth_generic,
        bti,
        mte_instructions,
        mte_memory,
        pmu,
        pmu_counters,
        rng,
        data_persistence,
        deep_persistence,
        speculation_barriers,
        prediction_restriction,
        dit,
        ssbs,
        pan,
        uao,
        tlbi_outer,
        tlbi_range,
        self_synchronized_counter,
        timed_wait,
        ras,
        amu,
        trace_filter,
        statistical_profiling,
        trace_buffer,
        branch_records,
        trace_unit,
        mpam,
        limited_ordering,
        context_numbers,
        tcr2,
        sctlr2,
        permission_indirection,
        permission_overlay,
        memory_operations,
        nmi,
        guarded_control_stack,
        load_store_64,
        breakpoint,
        watchpoint,
        breakpoint_registers,
        hardware_access_flag,
    ]
);

macro_rules! functions {
    ($($name:ident)*) => {
        unsafe extern "C" {
            $(fn $name(a: u64, b: u64) -> u64;)*
        }
    };
}

functions! {
    feature_floating_point feature_simd feature_aes feature_sha256 feature_crc32 feature_sve feature_sme feature_pauth
    feature_pauth_generic feature_bti feature_mte_instructions feature_mte_memory feature_pmu feature_pmu_counters
    feature_rng feature_data_persistence feature_deep_persistence feature_speculation_barriers
    feature_prediction_restriction feature_dit feature_ssbs feature_pan feature_uao feature_tlbi_outer feature_tlbi_range
    feature_self_synchronized_counter feature_timed_wait feature_ras feature_amu feature_trace_filter
    feature_statistical_profiling feature_trace_buffer feature_branch_records feature_trace_unit feature_mpam
    feature_limited_ordering feature_context_numbers feature_tcr2 feature_sctlr2 feature_permission_indirection
    feature_permission_overlay feature_memory_operations feature_nmi feature_guarded_control_stack feature_load_store_64
    feature_breakpoint feature_watchpoint feature_debug_off feature_breakpoint_registers feature_id_register
}

/// Number of an ID register, S3_0_C0_C(n / 8)_(n % 8).
type IdRegister = u64;

const PFR0: IdRegister = 4 * 8;
const PFR1: IdRegister = 4 * 8 + 1;
const DFR0: IdRegister = 5 * 8;
const ISAR0: IdRegister = 6 * 8;
const ISAR1: IdRegister = 6 * 8 + 1;
const ISAR2: IdRegister = 6 * 8 + 2;
const MMFR0: IdRegister = 7 * 8;
const MMFR1: IdRegister = 7 * 8 + 1;
const MMFR2: IdRegister = 7 * 8 + 2;
const MMFR3: IdRegister = 7 * 8 + 3;

/// Reads an ID register of the CPU that runs this. One that is an exception counts as 0 here; `id_registers` reports it.
fn id(register: IdRegister) -> u64 {
    // SAFETY: reading an ID register changes nothing.
    unsafe { catch(feature_id_register, register, 0) }.unwrap_or(0)
}

/// The four-bit field of an ID register whose lowest bit is `shift`.
fn field(register: IdRegister, shift: u32) -> u64 {
    id(register) >> shift & 0xf
}

/// A call to make on every CPU.
struct Request {
    function: Caught,
    a: u64,
    b: u64,
    what: &'static str,
    expected: Option<u64>,
}

fn answer(request: u64) -> u64 {
    // SAFETY: `everywhere` passes the address of a request that outlives the job.
    let request = unsafe { &*(request as *const Request) };
    let cpu = crate::machine::cpu::current().index();
    // SAFETY: the functions in `features.S` ask for nothing but the feature.
    match unsafe { catch(request.function, request.a, request.b) } {
        Ok(value) => {
            if let Some(expected) = request.expected {
                check_eq!(value, expected, "{} on cpu {cpu}", request.what);
            }
            value
        }
        Err(why) => {
            crate::machine::report::failure(format_args!(
                "{} on cpu {cpu}: expected it to work, seen {why}",
                request.what
            ));
            0
        }
    }
}

/// Uses a feature on every CPU, one after the other.
fn everywhere(what: &'static str, function: Caught, a: u64, b: u64, expected: Option<u64>) -> Outcome {
    let request = Request { function, a, b, what, expected };
    let address = core::ptr::from_ref(&request) as u64;
    answer(address);
    for index in 1..smp::count() {
        smp::run(index, answer, address)?;
    }
    Ok(())
}

/// A test that uses a feature if a field of an ID register is at least some value.
macro_rules! feature {
    ($name:ident, $function:ident, $register:ident [$shift:literal] >= $least:literal $(, arguments $a:expr, $b:expr)? $(, expect $expected:expr)?) => {
        fn $name() -> Outcome {
            // Signed fields have 0xf for "not implemented".
            if !($least..0xf).contains(&field($register, $shift)) {
                skip!("the ID registers do not promise it");
            }
            everywhere(stringify!($name), $function, feature!(@argument $($a)?), feature!(@argument $($b)?), feature!(@expected $($expected)?))
        }
    };
    (@argument) => { 0 };
    (@argument $value:expr) => { $value };
    (@expected) => { None };
    (@expected $value:expr) => { Some($value) };
}

feature!(floating_point, feature_floating_point, PFR0[16] >= 0, expect 3.75_f64.to_bits());
feature!(simd, feature_simd, PFR0[20] >= 0, expect 16 * 7);
feature!(aes, feature_aes, ISAR0[4] >= 1, expect 0x6363_6363_6363_6363);
feature!(sha256, feature_sha256, ISAR0[12] >= 1, expect 0);
feature!(crc32, feature_crc32, ISAR0[16] >= 1, expect 0x2dfd_1072);
feature!(bti, feature_bti, PFR1[0] >= 1, expect 1);
feature!(rng, feature_rng, ISAR0[60] >= 1, expect 1);
feature!(data_persistence, feature_data_persistence, ISAR1[0] >= 1, arguments own_page(), 0);
feature!(deep_persistence, feature_deep_persistence, ISAR1[0] >= 2, arguments own_page(), 0);
feature!(speculation_barriers, feature_speculation_barriers, ISAR1[36] >= 1);
feature!(prediction_restriction, feature_prediction_restriction, ISAR1[40] >= 1);
feature!(dit, feature_dit, PFR0[48] >= 1, expect 1 << 24);
feature!(ssbs, feature_ssbs, PFR1[4] >= 2, expect 1 << 12);
feature!(pan, feature_pan, MMFR1[20] >= 1, expect 1 << 22);
feature!(uao, feature_uao, MMFR2[4] >= 1, expect 1 << 23);
feature!(tlbi_outer, feature_tlbi_outer, ISAR0[56] >= 1);
feature!(tlbi_range, feature_tlbi_range, ISAR0[56] >= 2);
feature!(self_synchronized_counter, feature_self_synchronized_counter, MMFR0[60] >= 1);
feature!(ras, feature_ras, PFR0[28] >= 1);
feature!(amu, feature_amu, PFR0[44] >= 1);
feature!(trace_filter, feature_trace_filter, DFR0[40] >= 1);
feature!(statistical_profiling, feature_statistical_profiling, DFR0[32] >= 1);
feature!(trace_buffer, feature_trace_buffer, DFR0[44] >= 1);
feature!(branch_records, feature_branch_records, DFR0[52] >= 1);
feature!(trace_unit, feature_trace_unit, DFR0[4] >= 1);
feature!(mpam, feature_mpam, PFR0[40] >= 1);
feature!(limited_ordering, feature_limited_ordering, MMFR1[16] >= 1);
feature!(tcr2, feature_tcr2, MMFR3[0] >= 1);
feature!(sctlr2, feature_sctlr2, MMFR3[4] >= 1);
feature!(permission_indirection, feature_permission_indirection, MMFR3[8] >= 1);
feature!(permission_overlay, feature_permission_overlay, MMFR3[16] >= 1);
feature!(memory_operations, feature_memory_operations, ISAR2[16] >= 1, arguments own_page(), 0x5a, expect 0x5a5a_5a5a_5a5a_5a5a);
feature!(nmi, feature_nmi, PFR1[36] >= 1);
feature!(guarded_control_stack, feature_guarded_control_stack, PFR1[44] >= 1);
feature!(mte_instructions, feature_mte_instructions, PFR1[8] >= 1, expect 5);

/// A page of the test's own.
fn own_page() -> u64 {
    memory::allocate_zeroed_page().expect("a page")
}

fn id_registers() -> Outcome {
    for register in 0..64 {
        // The ID space of EL1: MIDR, MPIDR, REVIDR (0, 5, 6) and everything from CRm = 1 on; the rest of CRm = 0 is undefined.
        if register < 8 && ![0, 5, 6].contains(&register) {
            continue;
        }
        // SAFETY: reading an ID register changes nothing.
        let [first, second] = [0, 1].map(|_| unsafe { catch(feature_id_register, register, 0) });
        check!(first.is_ok(), "S3_0_C0_C{}_{}: expected a value, seen an exception", register / 8, register % 8);
        check!(
            first == second,
            "S3_0_C0_C{}_{} changes: first {first:x?}, then {second:x?}",
            register / 8,
            register % 8
        );
    }
    Ok(())
}

fn same_on_all_cpus() -> Outcome {
    for register in (8..64).chain([0]) {
        let mine = id(register);
        for index in 1..smp::count() {
            let other = smp::run(index, id, register)?;
            check_eq!(other, mine, "S3_0_C0_C{}_{} of cpu {index}, against cpu 0", register / 8, register % 8);
        }
    }
    Ok(())
}

fn sve() -> Outcome {
    if field(PFR0, 32) == 0 {
        skip!("the ID registers do not promise it");
    }
    // SAFETY: as in `answer`.
    let longest = unsafe { catch(feature_sve, 0xf, 0) }.unwrap_or(0);
    check!(
        longest >= 16 && longest.is_multiple_of(16),
        "the longest vector: expected a multiple of 16 bytes, seen {longest}"
    );
    // Every CPU has the same longest vector, and the shortest works everywhere.
    everywhere("the longest vector", feature_sve, 0xf, 0, Some(longest))?;
    everywhere("the shortest vector", feature_sve, 0, 0, Some(16))
}

fn sme() -> Outcome {
    if field(PFR1, 24) == 0 {
        skip!("the ID registers do not promise it");
    }
    // SAFETY: as in `answer`.
    let longest = unsafe { catch(feature_sme, 0xf, 0) }.unwrap_or(0);
    check!(
        longest >= 16 && longest.is_power_of_two(),
        "the longest streaming vector: expected a power of two, seen {longest}"
    );
    everywhere("the longest streaming vector", feature_sme, 0xf, 0, Some(longest))
}

fn pauth() -> Outcome {
    // Any of the three algorithms: APA and API in ISAR1, APA3 in ISAR2.
    if field(ISAR1, 4) == 0 && field(ISAR1, 8) == 0 && field(ISAR2, 12) == 0 {
        skip!("the ID registers do not promise it");
    }
    let address = own_page();
    everywhere("signing and authenticating an address", feature_pauth, address, 0x1234_5678, Some(address))
}

fn pauth_generic() -> Outcome {
    if field(ISAR1, 24) == 0 && field(ISAR1, 28) == 0 && field(ISAR2, 8) == 0 {
        skip!("the ID registers do not promise it");
    }
    // SAFETY: as in `answer`.
    let signature = unsafe { catch(feature_pauth_generic, 0x1111, 0x2222) }.unwrap_or(0);
    check!(
        signature & 0xffff_ffff == 0 && signature != 0,
        "PACGA: expected a signature in the upper half, seen {signature:#x}"
    );
    everywhere("PACGA, compared with cpu 0", feature_pauth_generic, 0x1111, 0x2222, Some(signature))
}

fn mte_memory() -> Outcome {
    if field(PFR1, 8) < 2 {
        skip!("the ID registers do not promise it");
    }
    let page = own_page();
    let tagged = mmu::alias(page..page + memory::PAGE, mmu::TAGGED_RW);
    everywhere("storing and loading an allocation tag", feature_mte_memory, tagged, 0, Some(5))
}

fn pmu() -> Outcome {
    if !(1..0xf).contains(&field(DFR0, 8)) {
        skip!("the ID registers do not promise it");
    }
    // SAFETY: as in `answer`.
    let cycles = unsafe { catch(feature_pmu, 0, 0) };
    check!(cycles.is_ok_and(|cycles| cycles > 0), "cycles of a thousand rounds: expected some, seen {cycles:x?}");
    everywhere("the cycle counter", feature_pmu, 0, 0, None)
}

fn pmu_counters() -> Outcome {
    if !(1..0xf).contains(&field(DFR0, 8)) {
        skip!("the ID registers do not promise it");
    }
    let promised = read_sysreg!("PMCR_EL0") >> 11 & 0x1f;
    everywhere("event counters that work", feature_pmu_counters, 0, 0, Some(promised))
}

fn context_numbers() -> Outcome {
    // CSV2 = 2, or CSV2 = 1 with the fractional field at 2.
    if field(PFR0, 56) < 2 && field(PFR1, 32) < 2 {
        skip!("the ID registers do not promise it");
    }
    everywhere("SCXTNUM_EL0 and EL1", feature_context_numbers, 0, 0, Some(0x55))
}

fn timed_wait() -> Outcome {
    if field(ISAR2, 0) < 2 {
        skip!("the ID registers do not promise it");
    }
    let until = timer::now() + timer::milliseconds(5);
    everywhere("WFIT", feature_timed_wait, until, 0, None)?;
    // It may end early, but only for a reason; none is pending here, so the time has passed.
    check!(timer::now() >= until, "WFIT ended before its time with nothing pending");
    Ok(())
}

fn load_store_64() -> Outcome {
    if field(ISAR1, 60) == 0 {
        skip!("the ID registers do not promise it");
    }
    // Which memory supports it is up to the machine: an abort is an answer, an undefined instruction is not.
    // SAFETY: reads a page of the test's own.
    let result = unsafe { catch(feature_load_store_64, own_page(), 0) };
    check!(
        !matches!(result, Err(Escape::Exception(seen)) if seen.is_undefined()),
        "LD64B: undefined, although promised"
    );
    Ok(())
}

/// Exception classes of debug events taken without a change of level.
const BREAKPOINT: u64 = 0x31;
const WATCHPOINT: u64 = 0x35;

fn debug_event(request: u64) -> u64 {
    let watch = request != 0;
    let function = if watch { feature_watchpoint } else { feature_breakpoint };
    // SAFETY: the functions set up a debug event on an instruction of their own, or on a store to the test's page.
    let result = unsafe { catch(function, request, 0) };
    // SAFETY: switches the events off.
    let off = unsafe { catch(feature_debug_off, 0, 0) };
    check!(off.is_ok(), "debug registers: expected them to work, seen {off:x?}");
    let class = if watch { WATCHPOINT } else { BREAKPOINT };
    match result {
        Err(Escape::Exception(seen)) if seen.class() == class => {
            check!(!watch || seen.far == request, "FAR: expected {request:#x}, seen {:#x}", seen.far);
        }
        Err(why) => {
            crate::machine::report::failure(format_args!("expected a debug exception of class {class:#x}, seen {why}"))
        }
        Ok(_) => {
            crate::machine::report::failure(format_args!("expected a debug exception of class {class:#x}, seen none"))
        }
    }
    0
}

fn debug_event_everywhere(request: u64) -> Outcome {
    debug_event(request);
    for index in 1..smp::count() {
        smp::run(index, debug_event, request)?;
    }
    Ok(())
}

fn breakpoint() -> Outcome {
    debug_event_everywhere(0)
}

fn watchpoint() -> Outcome {
    debug_event_everywhere(own_page())
}

fn breakpoint_registers() -> Outcome {
    let promised = field(DFR0, 12) + 1;
    everywhere(
        "the last value register, after all were written",
        feature_breakpoint_registers,
        0x1000,
        promised,
        Some(0x1000),
    )?;
    everywhere("the last value register, after all were cleared", feature_breakpoint_registers, 0, promised, Some(0))
}

/// Loads TCR_EL1 with a value that differs from the payload's in HA and HD only.
fn set_hardware_updates(tcr: u64) {
    // SAFETY: the two bits let the hardware write descriptors, all of which are the payload's own; the invalidation drops
    // what was cached under the old value.
    unsafe {
        core::arch::asm!("msr TCR_EL1, {}", "isb", "tlbi vmalle1", "dsb nsh", "isb", in(reg) tcr, options(nostack))
    };
}

fn hardware_access_flag() -> Outcome {
    let level = field(MMFR1, 0);
    if level == 0 {
        skip!("the ID registers do not promise it");
    }
    let page = own_page();
    let virtual_address = mmu::alias(page..page + memory::PAGE, mmu::NORMAL_RW);
    let entry = mmu::entry(virtual_address, 3);
    let leaf = mmu::page_descriptor(page, mmu::NORMAL_RW);
    let clean = if level >= 2 { mmu::bits::READ_ONLY | mmu::bits::DIRTY_MANAGEMENT } else { 0 };
    entry.store(leaf & !mmu::bits::ACCESSED | clean, core::sync::atomic::Ordering::Relaxed);
    mmu::invalidate_all();
    let before = read_sysreg!("TCR_EL1");
    let with_updates = before | 1 << 39 | if level >= 2 { 1 << 40 } else { 0 };
    set_hardware_updates(with_updates);
    // SAFETY: the test's own page.
    let result = unsafe { crate::machine::probe::WRITE64.attempt(virtual_address, 1) };
    let after = entry.load(core::sync::atomic::Ordering::Relaxed);
    set_hardware_updates(before);
    check!(result.is_ok(), "a store through a descriptor without access flag: expected it to work, seen {result:x?}");
    check_eq!(after & mmu::bits::ACCESSED, mmu::bits::ACCESSED, "the descriptor's access flag after the store");
    check_eq!(after & mmu::bits::READ_ONLY, 0, "the descriptor's read-only bit after the store");
    Ok(())
}
