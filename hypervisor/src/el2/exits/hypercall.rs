//! Calls that the guest makes by HVC and SMC: the SMC Calling Convention (DEN0028), and who answers which range.

use crate::el2::base::{cpu, own_map};
use crate::el2::exits::frame::{Frame, Next, skip_instruction};
use crate::el2::exits::{psci, services};
use hypervisor::exit_counts::Exit;
use hypervisor_abi::{REVISION, UID, function, status};
use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
};
use smccc::{Smc, arch};
use spin::Once;

/// SMCCC 1.2: arguments and results in x0 to x17, everything that is no result is preserved.
const VERSION: u64 = 0x1_0002;

/// HVC. ELR_EL2 is already behind the instruction.
pub extern "C" fn hvc(frame: &mut Frame, esr: u64) -> Next {
    answer(frame, esr, &services::SERVICES)
}

/// The same, for CPUs with FEAT_LSE.
#[target_feature(enable = "lse")]
pub extern "C" fn hvc_lse(frame: &mut Frame, esr: u64) -> Next {
    answer(frame, esr, &services::LSE_SERVICES)
}

#[inline(always)]
fn answer(frame: &mut Frame, esr: u64, services: &services::Services) -> Next {
    cpu::this_cpu().exits.count(Exit::Hvc);
    if esr as u16 == 0 {
        let id = frame.x[0] as u32;
        if id == SMCCC_VERSION {
            frame.x[0] = VERSION;
            return Next::RESUME;
        }
        // Straight to what is called often.
        if let Some(service) = services::find(services, id) {
            // SAFETY: the caller is compiled for the same features.
            return unsafe { service(frame) };
        }
    }
    call(frame, esr)
}

/// SMC. It is trapped before it is executed, so ELR_EL2 is still at the instruction.
pub extern "C" fn smc(frame: &mut Frame, esr: u64) -> Next {
    cpu::this_cpu().exits.count(Exit::Smc);
    skip_instruction(esr);
    call(frame, esr)
}

/// Everything but the shortest call. x0 is the function, and then the result; other registers change only where the
/// function says so.
#[inline(never)]
fn call(frame: &mut Frame, esr: u64) -> Next {
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
