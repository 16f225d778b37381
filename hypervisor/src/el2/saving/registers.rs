//! The system registers that a guest's CPU has state in: one table, from which they are saved, restored, and left out in
//! tests.
//!
//! It has all that EL1 and EL0 can write and read back under [`hypervisor::cpu_id`]'s controls. Not here, and why: the
//! general-purpose and vector registers, which are [`cpu`](super::cpu)'s; what traps or is hidden (trace, SPE, AMU, LORegions,
//! MPAM, ACTLR_EL1, FEAT_TCR2 and later); what MTE has, since a machine with tags is refused; AArch32 state that EL1 cannot
//! reach (DACR32_EL2 and its kin); OSECCR_EL1 and OSDTR*, which belong to an external debugger; ERRSELR_EL1, which selects
//! among records that are the machine's.

use crate::el2::base::device;
use crate::el2::base::registers::{isb, read_register, write_register};
use crate::el2::saving::clock;
use hypervisor::cpu_id::CpuId;

/// Where a register exists.
#[derive(Clone, Copy)]
pub enum Where {
    /// On every CPU.
    Always,
    /// With FEAT_PMUv3.
    Pmu,
    /// With so many event counters and one more.
    EventCounter(u64),
    /// With FEAT_PAuth for addresses.
    AddressAuth,
    /// With FEAT_PAuth for generic data.
    GenericAuth,
    /// With FEAT_CSV2_2.
    SoftwareContext,
    /// With FEAT_SVE.
    Sve,
    /// With FEAT_SME.
    Sme,
    /// Where the guest's GIC is used through system registers.
    Gic,
    /// There, where it has so many registers for active priorities and one more.
    ActivePriorities(u64),
    /// With FEAT_RAS.
    Ras,
    /// With FEAT_DoubleLock.
    DoubleLock,
    /// With so many breakpoints and one more.
    Breakpoint(u64),
    /// With so many watchpoints and one more.
    Watchpoint(u64),
}

/// What the executing CPU has.
pub struct Has {
    id: CpuId,
    gic: bool,
    event_counters: u64,
    active_priorities: u64,
}

impl Has {
    /// Of the executing CPU, whose ID registers are `id`.
    pub fn of_this_cpu(id: CpuId, gic: bool) -> Self {
        // PMCR_EL0.N.
        let event_counters = if id.pmu_version().is_some() { read_register!("pmcr_el0") >> 11 & 0x1f } else { 0 };
        // ICC_CTLR_EL1.PRIbits: with 5 bits of priority there are 32 groups in one register, with 6 in two, with 7 in four.
        let priority_bits = if gic { (read_register!("S3_0_C12_C12_4") >> 8 & 7) + 1 } else { 0 };
        let active_priorities = if gic { 1 << priority_bits.saturating_sub(5) } else { 0 };
        Self { id, gic, event_counters, active_priorities }
    }

    fn has(&self, place: Where) -> bool {
        match place {
            Where::Always => true,
            Where::Pmu => self.id.pmu_version().is_some(),
            Where::EventCounter(number) => number < self.event_counters,
            Where::AddressAuth => self.id.has_address_authentication(),
            Where::GenericAuth => self.id.has_generic_authentication(),
            Where::SoftwareContext => self.id.has_software_context(),
            Where::Sve => self.id.has_sve(),
            Where::Sme => self.id.has_sme(),
            Where::Gic => self.gic,
            Where::ActivePriorities(number) => number < self.active_priorities,
            Where::Ras => self.id.has_ras(),
            Where::DoubleLock => self.id.has_double_lock(),
            Where::Breakpoint(number) => number < self.id.breakpoints(),
            Where::Watchpoint(number) => number < self.id.watchpoints(),
        }
    }
}

/// One register.
pub struct Row {
    /// As the Arm ARM has it; of a numbered one without its number.
    pub name: &'static str,
    place: Where,
    read: fn() -> u64,
    /// From what it may hold on a CPU that has just been turned on.
    write: fn(u64),
}

macro_rules! row {
    ($name:literal, $encoding:expr, $place:expr) => {
        Row {
            name: $name,
            place: $place,
            read: || read_register!($encoding),
            write: |value| write_register!($encoding, value),
        }
    };
    // One address sets bits and shows them, another clears them.
    ($name:literal, $set:literal, clear $clear:literal, $place:expr) => {
        Row {
            name: $name,
            place: $place,
            read: || read_register!($set),
            write: |value| {
                write_register!($clear, u64::MAX);
                write_register!($set, value);
            },
        }
    };
}

/// Breakpoints and watchpoints: values first, then control.
macro_rules! debug_rows {
    ($($n:literal)*) => {
        [$(
            row!("DBGBVR_EL1", concat!("S2_0_C0_C", $n, "_4"), Where::Breakpoint($n)),
            row!("DBGBCR_EL1", concat!("S2_0_C0_C", $n, "_5"), Where::Breakpoint($n)),
            row!("DBGWVR_EL1", concat!("S2_0_C0_C", $n, "_6"), Where::Watchpoint($n)),
            row!("DBGWCR_EL1", concat!("S2_0_C0_C", $n, "_7"), Where::Watchpoint($n)),
        )*]
    };
}

/// Event counters and what they count: number, and how CRm and op2 say it.
macro_rules! counter_rows {
    ($($n:literal $c:literal $t:literal $op2:literal)*) => {
        [$(
            row!("PMEVCNTR_EL0", concat!("S3_3_C14_C", $c, "_", $op2), Where::EventCounter($n)),
            row!("PMEVTYPER_EL0", concat!("S3_3_C14_C", $t, "_", $op2), Where::EventCounter($n)),
        )*]
    };
}

static DEBUG: [Row; 64] = debug_rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);

#[rustfmt::skip]
static COUNTERS: [Row; 62] = counter_rows!(
    0 8 12 0  1 8 12 1  2 8 12 2  3 8 12 3  4 8 12 4  5 8 12 5  6 8 12 6  7 8 12 7
    8 9 13 0  9 9 13 1  10 9 13 2  11 9 13 3  12 9 13 4  13 9 13 5  14 9 13 6  15 9 13 7
    16 10 14 0  17 10 14 1  18 10 14 2  19 10 14 3  20 10 14 4  21 10 14 5  22 10 14 6  23 10 14 7
    24 11 15 0  25 11 15 1  26 11 15 2  27 11 15 3  28 11 15 4  29 11 15 5  30 11 15 6
);

use Where::{ActivePriorities, AddressAuth, Always, DoubleLock, GenericAuth, Gic, Pmu, Ras, Sme, SoftwareContext, Sve};

/// All but those, in the order in which they are restored: what enables something comes behind what it enables.
static ROWS: [Row; 75] = [
    // Exceptions and stack pointers.
    row!("SP_EL0", "S3_0_C4_C1_0", Always),
    row!("SP_EL1", "S3_4_C4_C1_0", Always),
    row!("ELR_EL1", "S3_0_C4_C0_1", Always),
    row!("SPSR_EL1", "S3_0_C4_C0_0", Always),
    row!("ESR_EL1", "S3_0_C5_C2_0", Always),
    row!("FAR_EL1", "S3_0_C6_C0_0", Always),
    row!("AFSR0_EL1", "S3_0_C5_C1_0", Always),
    row!("AFSR1_EL1", "S3_0_C5_C1_1", Always),
    row!("VBAR_EL1", "S3_0_C12_C0_0", Always),
    row!("DISR_EL1", "S3_0_C12_C1_1", Ras),
    row!("PAR_EL1", "S3_0_C7_C4_0", Always),
    // Threads.
    row!("TPIDR_EL0", "S3_3_C13_C0_2", Always),
    row!("TPIDRRO_EL0", "S3_3_C13_C0_3", Always),
    row!("TPIDR_EL1", "S3_0_C13_C0_4", Always),
    row!("TPIDR2_EL0", "S3_3_C13_C0_5", Sme),
    row!("CONTEXTIDR_EL1", "S3_0_C13_C0_1", Always),
    row!("SCXTNUM_EL0", "S3_3_C13_C0_7", SoftwareContext),
    row!("SCXTNUM_EL1", "S3_0_C13_C0_7", SoftwareContext),
    row!("CSSELR_EL1", "S3_2_C0_C0_0", Always),
    // Pointer authentication.
    row!("APIAKeyLo_EL1", "S3_0_C2_C1_0", AddressAuth),
    row!("APIAKeyHi_EL1", "S3_0_C2_C1_1", AddressAuth),
    row!("APIBKeyLo_EL1", "S3_0_C2_C1_2", AddressAuth),
    row!("APIBKeyHi_EL1", "S3_0_C2_C1_3", AddressAuth),
    row!("APDAKeyLo_EL1", "S3_0_C2_C2_0", AddressAuth),
    row!("APDAKeyHi_EL1", "S3_0_C2_C2_1", AddressAuth),
    row!("APDBKeyLo_EL1", "S3_0_C2_C2_2", AddressAuth),
    row!("APDBKeyHi_EL1", "S3_0_C2_C2_3", AddressAuth),
    row!("APGAKeyLo_EL1", "S3_0_C2_C3_0", GenericAuth),
    row!("APGAKeyHi_EL1", "S3_0_C2_C3_1", GenericAuth),
    // Floating point and vectors. Their own registers come later: SVCR would zero them.
    row!("CPACR_EL1", "S3_0_C1_C0_2", Always),
    row!("ZCR_EL1", "S3_0_C1_C2_0", Sve),
    row!("SMCR_EL1", "S3_0_C1_C2_6", Sme),
    row!("SMPRI_EL1", "S3_0_C1_C2_4", Sme),
    row!("SVCR", "S3_3_C4_C2_2", Sme),
    row!("FPCR", "S3_3_C4_C4_0", Always),
    row!("FPSR", "S3_3_C4_C4_1", Always),
    // Debug.
    row!("MDCCINT_EL1", "S2_0_C0_C2_0", Always),
    Row {
        name: "DBGCLAIM_EL1",
        place: Always,
        read: || device::load_claim().unwrap_or(0),
        write: |value| {
            let _ = device::store_claim(value);
        },
    },
    row!("MDSCR_EL1", "S2_0_C0_C2_2", Always),
    // OSLSR_EL1.OSLK is bit 1, OSLAR_EL1.OSLK bit 0.
    Row {
        name: "OSLAR_EL1",
        place: Always,
        read: || read_register!("S2_0_C1_C1_4") >> 1 & 1,
        write: |value| write_register!("S2_0_C1_C0_4", value),
    },
    row!("OSDLR_EL1", "S2_0_C1_C3_4", DoubleLock),
    // Performance monitors.
    row!("PMSELR_EL0", "S3_3_C9_C12_5", Pmu),
    row!("PMCCNTR_EL0", "S3_3_C9_C13_0", Pmu),
    row!("PMCCFILTR_EL0", "S3_3_C14_C15_7", Pmu),
    row!("PMUSERENR_EL0", "S3_3_C9_C14_0", Pmu),
    row!("PMOVSSET_EL0", "S3_3_C9_C14_3", clear "S3_3_C9_C12_3", Pmu),
    row!("PMCNTENSET_EL0", "S3_3_C9_C12_1", clear "S3_3_C9_C12_2", Pmu),
    row!("PMINTENSET_EL1", "S3_0_C9_C14_1", clear "S3_0_C9_C14_2", Pmu),
    row!("PMCR_EL0", "S3_3_C9_C12_0", Pmu),
    // Timers. The physical one is moved by as much as the physical counter has jumped.
    row!("CNTKCTL_EL1", "S3_0_C14_C1_0", Always),
    row!("CNTV_CVAL_EL0", "S3_3_C14_C3_2", Always),
    row!("CNTV_CTL_EL0", "S3_3_C14_C3_1", Always),
    Row {
        name: "CNTP_CVAL_EL0",
        place: Always,
        read: || read_register!("S3_3_C14_C2_2"),
        write: |value| write_register!("S3_3_C14_C2_2", value.wrapping_add(clock::jump())),
    },
    row!("CNTP_CTL_EL0", "S3_3_C14_C2_1", Always),
    // The GIC's CPU interface.
    row!("ICC_SRE_EL1", "S3_0_C12_C12_5", Gic),
    row!("ICC_CTLR_EL1", "S3_0_C12_C12_4", Gic),
    row!("ICC_PMR_EL1", "S3_0_C4_C6_0", Gic),
    row!("ICC_BPR0_EL1", "S3_0_C12_C8_3", Gic),
    row!("ICC_BPR1_EL1", "S3_0_C12_C12_3", Gic),
    row!("ICC_AP0R0_EL1", "S3_0_C12_C8_4", ActivePriorities(0)),
    row!("ICC_AP0R1_EL1", "S3_0_C12_C8_5", ActivePriorities(1)),
    row!("ICC_AP0R2_EL1", "S3_0_C12_C8_6", ActivePriorities(2)),
    row!("ICC_AP0R3_EL1", "S3_0_C12_C8_7", ActivePriorities(3)),
    row!("ICC_AP1R0_EL1", "S3_0_C12_C9_0", ActivePriorities(0)),
    row!("ICC_AP1R1_EL1", "S3_0_C12_C9_1", ActivePriorities(1)),
    row!("ICC_AP1R2_EL1", "S3_0_C12_C9_2", ActivePriorities(2)),
    row!("ICC_AP1R3_EL1", "S3_0_C12_C9_3", ActivePriorities(3)),
    row!("ICC_IGRPEN0_EL1", "S3_0_C12_C12_6", Gic),
    row!("ICC_IGRPEN1_EL1", "S3_0_C12_C12_7", Gic),
    // Stage 1; that it is on comes last.
    row!("MAIR_EL1", "S3_0_C10_C2_0", Always),
    row!("AMAIR_EL1", "S3_0_C10_C3_0", Always),
    row!("TTBR0_EL1", "S3_0_C2_C0_0", Always),
    row!("TTBR1_EL1", "S3_0_C2_C0_1", Always),
    row!("TCR_EL1", "S3_0_C2_C0_2", Always),
    row!("SCTLR_EL1", "S3_0_C1_C0_0", Always),
];

/// How many there are.
pub const COUNT: usize = DEBUG.len() + COUNTERS.len() + ROWS.len();

fn rows() -> impl Iterator<Item = &'static Row> {
    DEBUG.iter().chain(&COUNTERS).chain(&ROWS)
}

/// What `values` have of the register `name`; 0 where there is none.
pub fn value(values: &[u64; COUNT], name: &str) -> u64 {
    rows().zip(values).find(|(row, _)| row.name == name).map_or(0, |(_, &value)| value)
}

/// Reads all; 0 for those that the CPU does not have.
pub fn save(has: &Has, values: &mut [u64; COUNT]) {
    for (row, value) in rows().zip(values) {
        *value = if has.has(row.place) { (row.read)() } else { 0 };
    }
}

/// Writes all that the CPU has, but for those named `left_out`, which a test wants to miss.
pub fn restore(has: &Has, values: &[u64; COUNT], left_out: impl Fn(&str) -> bool) {
    for (row, &value) in rows().zip(values) {
        if has.has(row.place) && !left_out(row.name) {
            (row.write)(value);
            // Some are reached, or keep what is written, only once others hold (ICC_SRE_EL1, PMSELR_EL0).
            isb();
        }
    }
}
