//! System register accesses that trap: ID registers, and what the guest must not have.

use crate::el2::base::{cpu, registers::read_register};
use crate::el2::exits::frame::{Frame, Next, Registers, skip_instruction};
use crate::el2::exits::inject;
use hypervisor::exit_counts::Exit;
use hypervisor::id_registers;
use stage2::Errata;

/// The exception class's handler.
pub extern "C" fn access(_frame: &mut Frame, _esr: u64) -> Next {
    cpu::this_cpu().exits.count(Exit::SystemRegister);
    Next::with_all_registers(emulate)
}

/// ISS of a trapped MSR, MRS or system instruction (D24.2.40).
struct Access {
    register: u32,
    is_read: bool,
    /// op0, op1, CRn, CRm, op2.
    encoding: (u8, u8, u8, u8, u8),
}

impl Access {
    fn from_syndrome(esr: u64) -> Self {
        let bits = |low: u32, mask: u64| (esr >> low & mask) as u8;
        Self {
            register: bits(5, 31) as u32,
            is_read: esr & 1 != 0,
            encoding: (bits(20, 3), bits(14, 7), bits(10, 15), bits(1, 15), bits(17, 7)),
        }
    }
}

extern "C" fn emulate(registers: &mut Registers) {
    let esr = read_register!("esr_el2");
    let access = Access::from_syndrome(esr);
    match access.encoding {
        // ID group 3 (HCR_EL2.TID3), the reserved ones included.
        (3, 0, 0, crm @ 1..=7, op2) if access.is_read => {
            let hide_sme = Errata::of(read_register!("midr_el1")).hide_sme;
            let raw = read_id(crm, op2);
            let raw = if hide_sme { id_registers::without_sme(crm, op2, raw) } else { raw };
            let value = id_registers::guest_view(crm, op2, raw, cpu::has_gic_registers());
            registers.set(access.register, value);
        }
        // ACTLR_EL1 (HCR_EL2.TACR): nothing to control.
        (3, 0, 1, 0, 1) => {
            if access.is_read {
                registers.set(access.register, 0);
            }
        }
        _ => return inject::undefined(esr),
    }
    skip_instruction(esr);
}

/// Reads the ID register with `crm` (1 to 7) and `op2` of this CPU; reserved ones read as 0 (D24.1.3).
fn read_id(crm: u8, op2: u8) -> u64 {
    macro_rules! read {
        ($($crm:literal)*) => {
            match (crm, op2) {
                $(
                    ($crm, 0) => read_register!(concat!("S3_0_C0_C", $crm, "_0")),
                    ($crm, 1) => read_register!(concat!("S3_0_C0_C", $crm, "_1")),
                    ($crm, 2) => read_register!(concat!("S3_0_C0_C", $crm, "_2")),
                    ($crm, 3) => read_register!(concat!("S3_0_C0_C", $crm, "_3")),
                    ($crm, 4) => read_register!(concat!("S3_0_C0_C", $crm, "_4")),
                    ($crm, 5) => read_register!(concat!("S3_0_C0_C", $crm, "_5")),
                    ($crm, 6) => read_register!(concat!("S3_0_C0_C", $crm, "_6")),
                    ($crm, 7) => read_register!(concat!("S3_0_C0_C", $crm, "_7")),
                )*
                _ => 0,
            }
        };
    }
    read!(1 2 3 4 5 6 7)
}
