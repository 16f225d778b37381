//! The control registers of EL2 and the first state of EL1, on each CPU before it enters the guest.
//!
//! Source: Linux, Documentation/arch/arm64/booting.rst, section 4; the values are [`CpuId`]'s.

use crate::el2::base::registers::{isb, read_register, write_register};
use crate::el2::base::{cpu, refusal::Refusal, totals};
use crate::el2::{exits, guest_memory, saving};
use core::sync::atomic::Ordering::Relaxed;
use hypervisor::cpu_id::CpuId;
use hypervisor::machine::{Gic, Machine};
use stage2::Features;
use stage2::features::ConflictAborts;

/// Checks that the executing CPU can do what the machine needs, and notes what depends on the machine.
///
/// # Errors
///
/// A sentence that says what is missing.
pub fn check(machine: &Machine) -> Result<(), Refusal> {
    /// HCR_EL2.E2H.
    const E2H: u64 = 1 << 34;
    if read_register!("hcr_el2") & E2H != 0 {
        return Err(Refusal(
            "this CPU runs EL2 with HCR_EL2.E2H = 1 only, which the hypervisor does not support".into(),
        ));
    }
    let gic_v3 = matches!(machine.gic, Gic::V3(_));
    if gic_v3 && !cpu::read_id().has_gic_registers() {
        return Err(Refusal("the device tree has a GICv3, but the CPU has no GIC system registers".into()));
    }
    cpu::GIC_REGISTERS.store(gic_v3, Relaxed);
    Ok(())
}

/// Sets all of it. What each register does not mention is 0: nothing traps, nothing is enabled.
pub fn apply() {
    let this = cpu::this_cpu();
    let Some(id) = this.id.get() else { return };
    cpu::show_identity(id);

    // Before HCR_EL2.VM: a walk must never start from what these registers hold after reset.
    guest_memory::activate();
    write_register!("hcr_el2", id.hcr());
    write_register!("cptr_el2", id.cptr());
    write_register!("hstr_el2", 0);
    // PMCR_EL0.N: the number of event counters.
    let counters = if id.pmu_version().is_some() { read_register!("pmcr_el0") >> 11 & 0x1f } else { 0 };
    write_register!("mdcr_el2", id.mdcr(counters));
    // The guest reads both counters and sets both timers itself; physical and virtual time are the same, unless the guest was
    // saved and goes on here.
    const EL1PCTEN_EL1PCEN: u64 = 3;
    write_register!("cnthctl_el2", EL1PCTEN_EL1PCEN);
    write_register!("cntvoff_el2", saving::clock::offset());
    optional_features(id);
    gic(id);
    saving::note_cpu();

    // EL1 as after reset: MMU and caches off (the RES1 bits of Armv8.0), floating point trapped.
    write_register!("sctlr_el1", 0x30d0_0800);
    write_register!("cpacr_el1", 0);
    write_register!("cntkctl_el1", 0);
    if totals::counts_instructions() {
        exits::use_timed_vectors();
    } else if Features::from_id_registers(&id.stage2(), ConflictAborts::Handled).lse {
        exits::use_lse_vectors();
    }
    // Everything above holds before the guest is entered; the ERET would see to that, too.
    isb();
}

/// Registers that exist only with the feature they belong to.
fn optional_features(id: &CpuId) {
    // FP and SVE controls below are trapped by CPTR_EL2 until it is in force.
    isb();
    if id.has_hcrx() {
        write_register!(encoded HCRX_EL2, id.hcrx());
    }
    if id.has_sve() {
        // LEN: the longest vectors.
        write_register!(encoded ZCR_EL2, 0xf);
    }
    if id.has_sme() {
        // SMPRIMAP_EL2 is not in use (HCRX_EL2.SMPME = 0).
        write_register!(encoded SMCR_EL2, id.smcr());
    }
    if id.has_trace_filter() {
        write_register!(encoded TRFCR_EL2, 0);
    }
    if id.has_mpam() {
        // {TRAPMPAM0EL1, TRAPMPAM1EL1}: the guest's partition stays the one that reset chose.
        write_register!(encoded MPAM2_EL2, 3 << 48);
    }
    if id.has_fine_grained_traps() {
        write_register!(encoded HFGRTR_EL2, id.hfgrtr());
        write_register!(encoded HFGWTR_EL2, id.hfgrtr());
        write_register!(encoded HFGITR_EL2, 0);
        write_register!(encoded HDFGRTR_EL2, 0);
        write_register!(encoded HDFGWTR_EL2, 0);
        if id.has_activity_monitors() {
            write_register!(encoded HAFGRTR_EL2, 0);
        }
    }
    if id.has_fine_grained_traps2() {
        write_register!(encoded HDFGRTR2_EL2, 0);
        write_register!(encoded HDFGWTR2_EL2, 0);
        write_register!(encoded HFGRTR2_EL2, 0);
        write_register!(encoded HFGWTR2_EL2, 0);
        write_register!(encoded HFGITR2_EL2, 0);
    }
}

/// The GIC's CPU interface as the guest finds it.
fn gic(id: &CpuId) {
    /// SRE: system registers at EL2. Enable: EL1 may use them, too, and change ICC_SRE_EL1.
    const SRE_ENABLE: u64 = 1 << 0 | 1 << 3;
    if cpu::has_gic_registers() {
        write_register!(encoded ICC_SRE_EL2, SRE_ENABLE);
        // ICH_HCR_EL2 exists from here on.
        isb();
        write_register!(encoded ICH_HCR_EL2, 0);
    } else if id.has_gic_registers() {
        write_register!(encoded ICC_SRE_EL2, 0);
    }
}
