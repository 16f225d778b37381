//! Calls that the guest makes by HVC and SMC: the SMC Calling Convention (DEN0028), and who answers which range.

use crate::el2::base::{cpu, own_map};
use crate::el2::exits::frame::{Frame, Next, skip_instruction};
use crate::el2::exits::{psci, services};
use core::mem::offset_of;
use hypervisor::exit_counts::{Exit, ExitCounts};
use hypervisor_abi::{REVISION, UID, function, status};
use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
};
use smccc::{Smc, arch};
use spin::Once;

/// SMCCC 1.2: arguments and results in x0 to x17, everything that is no result is preserved.
const VERSION: u64 = 0x1_0002;

/// A handler of HVC, which goes straight to what is called often. ELR_EL2 is already behind the instruction.
///
/// It is written by hand since all calls go through it: a compiled function would keep a frame of its own, although it only goes on
/// to others.
macro_rules! hvc {
    ($(#[$comment:meta])* $name:ident, $services:path) => {
        $(#[$comment])*
        #[unsafe(naked)]
        // As near to the services' table as ADR reaches.
        #[unsafe(link_section = ".exits")]
        pub extern "C" fn $name(frame: &mut Frame, esr: u64) -> Next {
            core::arch::naked_asm!(
                "mrs x8, tpidr_el2",
                "ldr x9, [x8, {count}]",
                // The immediate: others than 0 are reserved.
                "tst w1, #0xffff",
                "add x9, x9, #1",
                "str x9, [x8, {count}]",
                "b.ne 3f",
                "ldr w8, [x0]",
                // Which service's number it is. What is added is the first one's negative: one MOV can load that.
                "mov w9, #{minus_first}",
                "add w9, w8, w9",
                "cmp w9, #{numbers}",
                "b.hs 2f",
                "adr x10, {services}",
                "ldr x10, [x10, w9, uxtw #3]",
                "br x10",
                "2:",
                "mov w9, #{version_id}",
                "cmp w8, w9",
                "b.ne 3f",
                "mov w8, #{version_low}",
                "movk w8, #{version_high}, lsl #16",
                "str x8, [x0]",
                "mov x0, xzr",
                "ret",
                // Too far away for a conditional branch.
                "3:",
                "b {call}",
                count = const offset_of!(cpu::PerCpu, exits) + ExitCounts::offset_of(Exit::Hvc),
                call = sym call,
                minus_first = const function::FEATURES.wrapping_neg(),
                numbers = const services::NUMBERS,
                services = sym $services,
                version_id = const SMCCC_VERSION,
                version_low = const VERSION & 0xffff,
                version_high = const VERSION >> 16,
            )
        }
    };
}

hvc!(hvc, services::SERVICES);
hvc!(
    /// The same, for CPUs with FEAT_LSE: its services are compiled for that.
    hvc_lse,
    services::LSE_SERVICES
);

/// SMC. It is trapped before it is executed, so ELR_EL2 is still at the instruction.
pub extern "C" fn smc(frame: &mut Frame, esr: u64) -> Next {
    cpu::this_cpu().exits.count(Exit::Smc);
    skip_instruction(esr);
    call(frame, esr)
}

/// Everything but the shortest call. x0 is the function, and then the result; other registers change only where the
/// function says so.
extern "C" fn call(frame: &mut Frame, esr: u64) -> Next {
    const OWNER: u32 = 0x3f << 24;
    const STANDARD_SECURE: u32 = 4 << 24;
    const ARCHITECTURE: u32 = 0;
    const VENDOR_HYPERVISOR: u32 = 6 << 24;
    let id = frame.x[0] as u32;
    let result = match (esr as u16, id & OWNER) {
        (0, ARCHITECTURE) => architecture(id, frame.x[1]),
        (0, STANDARD_SECURE) => psci::call(&frame.x),
        (0, VENDOR_HYPERVISOR) => match services::find(&services::SERVICES, id) {
            // SAFETY: they need no feature.
            Some(service) => return unsafe { service(frame) },
            None => vendor(id, &mut frame.x),
        },
        // An immediate other than 0 is reserved.
        _ => status::NOT_SUPPORTED,
    };
    frame.x[0] = result as u64;
    Next::RESUME
}

/// Arm Architecture Calls (DEN0028, 7).
fn architecture(id: u32, argument: u64) -> i64 {
    match id {
        SMCCC_VERSION => VERSION as i64,
        SMCCC_ARCH_FEATURES => match argument as u32 {
            SMCCC_VERSION | SMCCC_ARCH_FEATURES => status::SUCCESS,
            workaround @ (SMCCC_ARCH_WORKAROUND_1 | SMCCC_ARCH_WORKAROUND_2 | SMCCC_ARCH_WORKAROUND_3) => {
                firmware(SMCCC_ARCH_FEATURES, workaround.into())
            }
            _ => status::NOT_SUPPORTED,
        },
        SMCCC_ARCH_WORKAROUND_1 | SMCCC_ARCH_WORKAROUND_2 | SMCCC_ARCH_WORKAROUND_3 => firmware(id, argument),
        _ => status::NOT_SUPPORTED,
    }
}

/// Asks the firmware, which knows what this CPU suffers from and has the means against it.
fn firmware(id: u32, argument: u64) -> i64 {
    /// Whether the firmware has SMCCC 1.1 or later: only then may it be asked (DEN0028, appendix B).
    static HAS_SMCCC: Once<bool> = Once::new();
    let asked = HAS_SMCCC.call_once(|| {
        let has_version = smccc::psci::psci_features::<Smc>(SMCCC_VERSION).is_ok();
        has_version && arch::version::<Smc>().is_ok_and(|version| (version.major, version.minor) >= (1, 1))
    });
    if !asked {
        return status::NOT_SUPPORTED;
    }
    let [result, ..] = smccc::smc32(id, [argument as u32, 0, 0, 0, 0, 0, 0]);
    i64::from(result as i32)
}

/// The hypervisor's own calls, but for [`services`].
fn vendor(id: u32, x: &mut [u64; 19]) -> i64 {
    match id {
        // CALL_COUNT, CALL_UID, REVISION and OWN_MEMORY, and the services.
        function::CALL_COUNT => 4 + services::count(),
        function::CALL_UID => {
            let [first, rest @ ..] = UID.map(u64::from);
            x[1..4].copy_from_slice(&rest);
            first as i64
        }
        function::REVISION => {
            x[1] = REVISION.1.into();
            REVISION.0.into()
        }
        function::OWN_MEMORY => match own_map::own_range(x[1]) {
            Some(range) => {
                (x[1], x[2]) = (range.start(), range.size());
                status::SUCCESS
            }
            None => status::INVALID_PARAMETERS,
        },
        _ => status::NOT_SUPPORTED,
    }
}
