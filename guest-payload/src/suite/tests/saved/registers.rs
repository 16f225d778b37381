//! System registers, the interrupt controller's and the devices': each gets a value of its own before the save, where that does
//! no harm, and must have it after.

use super::ask::{required, wait_for_save};
use crate::machine::exceptions::{Caught, catch};
use crate::machine::report::Outcome;
use crate::machine::{self, GicRegisters};
use crate::machine::{cpu, gic, mmu, timer};

/// A system register.
struct Row {
    name: &'static str,
    read: Caught,
    write: Caught,
    /// What it gets; nothing where it keeps what it has.
    value: Option<u64>,
}

macro_rules! row {
    ($name:literal, $encoding:literal) => {
        row!($name, $encoding, None)
    };
    ($name:literal, $encoding:literal, $value:expr) => {{
        unsafe extern "C" fn read(_: u64, _: u64) -> u64 {
            read_sysreg!($encoding)
        }
        unsafe extern "C" fn write(value: u64, _: u64) -> u64 {
            // SAFETY: the values in the table below change nothing that this test or its CPU relies on meanwhile.
            unsafe { write_sysreg!($encoding, value) };
            0
        }
        Row { name: $name, read, write, value: $value }
    }};
}

/// Ten minutes, in units of what is left until the physical timer fires: the counter jumps, the time left does not.
unsafe extern "C" fn left(_: u64, _: u64) -> u64 {
    let left = read_sysreg!("CNTP_CVAL_EL0").wrapping_sub(timer::Timer::Physical.count());
    left / (timer::frequency() * 600)
}

unsafe extern "C" fn set_left(_: u64, _: u64) -> u64 {
    let fires = timer::Timer::Physical.count() + timer::frequency() * 3900;
    // SAFETY: the timer is off.
    unsafe { write_sysreg!("CNTP_CVAL_EL0", fires) };
    0
}

/// OSLSR_EL1.OSLK, which OSLAR_EL1 sets.
unsafe extern "C" fn lock(_: u64, _: u64) -> u64 {
    read_sysreg!("S2_0_C1_C1_4") & 2
}

unsafe extern "C" fn set_lock(value: u64, _: u64) -> u64 {
    // SAFETY: this test uses no debug exceptions.
    unsafe { write_sysreg!("S2_0_C1_C0_4", value >> 1) };
    0
}

/// Loads from where nothing is mapped.
unsafe extern "C" fn nothing(_: u64, _: u64) -> u64 {
    // SAFETY: the caller catches the exception.
    unsafe { (0x70_0000_0000 as *const u64).read_volatile() }
}

/// A number that fills a register.
const WORD: u64 = 0x1234_5678_9abc_def0;

static ROWS: [Row; 75] = [
    row!("CPACR_EL1", "S3_0_C1_C0_2", Some(3 << 20 | 3 << 16 | 3 << 24)),
    row!("SP_EL0", "S3_0_C4_C1_0"),
    row!("ELR_EL1", "S3_0_C4_C0_1", Some(WORD)),
    row!("SPSR_EL1", "S3_0_C4_C0_0", Some(0x6000_0005)),
    row!("ESR_EL1", "S3_0_C5_C2_0", Some(0x5600_0123)),
    row!("FAR_EL1", "S3_0_C6_C0_0", Some(WORD)),
    row!("AFSR0_EL1", "S3_0_C5_C1_0", Some(WORD)),
    row!("AFSR1_EL1", "S3_0_C5_C1_1", Some(WORD)),
    row!("VBAR_EL1", "S3_0_C12_C0_0"),
    row!("DISR_EL1", "S3_0_C12_C1_1", Some(0x8000_0000)),
    row!("PAR_EL1", "S3_0_C7_C4_0", Some(0x0000_1234_5000_0000)),
    row!("TPIDR_EL0", "S3_3_C13_C0_2", Some(WORD)),
    row!("TPIDRRO_EL0", "S3_3_C13_C0_3", Some(WORD)),
    row!("TPIDR_EL1", "S3_0_C13_C0_4"),
    row!("TPIDR2_EL0", "S3_3_C13_C0_5", Some(WORD)),
    row!("CONTEXTIDR_EL1", "S3_0_C13_C0_1", Some(0x1234_5678)),
    row!("SCXTNUM_EL0", "S3_3_C13_C0_7", Some(WORD)),
    row!("SCXTNUM_EL1", "S3_0_C13_C0_7", Some(WORD)),
    row!("CSSELR_EL1", "S3_2_C0_C0_0", Some(2)),
    row!("APIAKeyLo_EL1", "S3_0_C2_C1_0", Some(WORD)),
    row!("APIAKeyHi_EL1", "S3_0_C2_C1_1", Some(WORD + 1)),
    row!("APIBKeyLo_EL1", "S3_0_C2_C1_2", Some(WORD + 2)),
    row!("APIBKeyHi_EL1", "S3_0_C2_C1_3", Some(WORD + 3)),
    row!("APDAKeyLo_EL1", "S3_0_C2_C2_0", Some(WORD + 4)),
    row!("APDAKeyHi_EL1", "S3_0_C2_C2_1", Some(WORD + 5)),
    row!("APDBKeyLo_EL1", "S3_0_C2_C2_2", Some(WORD + 6)),
    row!("APDBKeyHi_EL1", "S3_0_C2_C2_3", Some(WORD + 7)),
    row!("APGAKeyLo_EL1", "S3_0_C2_C3_0", Some(WORD + 8)),
    row!("APGAKeyHi_EL1", "S3_0_C2_C3_1", Some(WORD + 9)),
    row!("ZCR_EL1", "S3_0_C1_C2_0", Some(3)),
    row!("SMCR_EL1", "S3_0_C1_C2_6", Some(3)),
    row!("SMPRI_EL1", "S3_0_C1_C2_4", Some(1)),
    // ZA has contents; streaming mode stays off.
    row!("SVCR", "S3_3_C4_C2_2", Some(2)),
    row!("FPCR", "S3_3_C4_C4_0", Some(1 << 24)),
    row!("FPSR", "S3_3_C4_C4_1", Some(0x1f)),
    row!("MDCCINT_EL1", "S2_0_C0_C2_0", Some(1 << 30)),
    row!("DBGCLAIM_EL1", "S2_0_C7_C8_6", Some(0x5a)),
    // TDCC.
    row!("MDSCR_EL1", "S2_0_C0_C2_2", Some(1 << 12)),
    Row { name: "OSLAR_EL1", read: lock, write: set_lock, value: Some(0) },
    row!("OSDLR_EL1", "S2_0_C1_C3_4"),
    row!("DBGBVR_EL1", "S2_0_C0_C0_4", Some(0x1234_5678)),
    row!("DBGBCR_EL1", "S2_0_C0_C0_5", Some(0x1e4)),
    row!("DBGWVR_EL1", "S2_0_C0_C0_6", Some(0x1234_5678)),
    row!("DBGWCR_EL1", "S2_0_C0_C0_7", Some(0xfe6)),
    row!("PMSELR_EL0", "S3_3_C9_C12_5", Some(1)),
    row!("PMCCNTR_EL0", "S3_3_C9_C13_0", Some(0x1234_5678)),
    row!("PMCCFILTR_EL0", "S3_3_C14_C15_7", Some(1 << 30)),
    row!("PMEVCNTR_EL0", "S3_3_C14_C8_0", Some(0x1234)),
    row!("PMEVTYPER_EL0", "S3_3_C14_C12_0", Some(0x11)),
    row!("PMUSERENR_EL0", "S3_3_C9_C14_0", Some(0xf)),
    row!("PMOVSSET_EL0", "S3_3_C9_C14_3", Some(1)),
    row!("PMCNTENSET_EL0", "S3_3_C9_C12_1", Some(1)),
    row!("PMINTENSET_EL1", "S3_0_C9_C14_1", Some(1)),
    // DP and LC; E stays 0, so that nothing counts.
    row!("PMCR_EL0", "S3_3_C9_C12_0", Some(0x60)),
    row!("CNTKCTL_EL1", "S3_0_C14_C1_0", Some(3)),
    row!("CNTV_CVAL_EL0", "S3_3_C14_C3_2", Some(WORD)),
    row!("CNTV_CTL_EL0", "S3_3_C14_C3_1", Some(3)),
    Row { name: "CNTP_CVAL_EL0", read: left, write: set_left, value: Some(0) },
    row!("CNTP_CTL_EL0", "S3_3_C14_C2_1", Some(2)),
    row!("ICC_SRE_EL1", "S3_0_C12_C12_5"),
    // EOImode.
    row!("ICC_CTLR_EL1", "S3_0_C12_C12_4", Some(2)),
    row!("ICC_PMR_EL1", "S3_0_C4_C6_0", Some(0xf0)),
    row!("ICC_BPR0_EL1", "S3_0_C12_C8_3", Some(5)),
    row!("ICC_BPR1_EL1", "S3_0_C12_C12_3", Some(6)),
    row!("ICC_AP0R0_EL1", "S3_0_C12_C8_4"),
    row!("ICC_AP1R0_EL1", "S3_0_C12_C9_0"),
    row!("ICC_IGRPEN0_EL1", "S3_0_C12_C12_6", Some(1)),
    row!("ICC_IGRPEN1_EL1", "S3_0_C12_C12_7"),
    row!("MAIR_EL1", "S3_0_C10_C2_0"),
    row!("AMAIR_EL1", "S3_0_C10_C3_0", Some(WORD)),
    row!("TTBR0_EL1", "S3_0_C2_C0_0"),
    // Nothing is looked up in it: all addresses are in the lower half.
    row!("TTBR1_EL1", "S3_0_C2_C0_1", Some(0x1234_5000)),
    row!("TCR_EL1", "S3_0_C2_C0_2"),
    row!("SCTLR_EL1", "S3_0_C1_C0_0"),
    row!("CNTFRQ_EL0", "S3_3_C14_C0_0"),
];

/// All system registers of CPU 0, interrupts masked: an exception would change some.
pub fn system() -> Outcome {
    required(1)?;
    // SAFETY: reading one that the CPU does not have is an exception, which is caught.
    let read = |row: &Row| unsafe { catch(row.read, 0, 0) }.ok();
    // SAFETY: what `row` says; one that cannot be written is an exception, which is caught.
    let write = |row: &Row, value| unsafe { catch(row.write, value, 0) }.is_ok();
    cpu::without_interrupts(|| {
        // Others are reached only when this, the first, lets them be.
        let cpacr = read(&ROWS[0]);
        ROWS[0].value.map(|value| write(&ROWS[0], value));
        cpu::isb();
        let original: [Option<u64>; ROWS.len()] = core::array::from_fn(|index| read(&ROWS[index]));
        let present = || ROWS.iter().zip(&original).filter_map(|(row, original)| Some((row, (*original)?)));
        // Twice: an exception has changed ELR_EL1 and its like for the first.
        for _ in 0..2 {
            for (row, value) in present().filter_map(|(row, _)| Some((row, row.value?))) {
                write(row, value);
                cpu::isb();
            }
        }
        let values = |row: &Row, there: &Option<u64>| there.and_then(|_| read(row));
        let before: [Option<u64>; ROWS.len()] = core::array::from_fn(|index| values(&ROWS[index], &original[index]));
        let saved = wait_for_save(|| {});
        let after: [Option<u64>; ROWS.len()] = core::array::from_fn(|index| values(&ROWS[index], &original[index]));
        for (row, original) in ROWS.iter().zip(&original).rev().filter(|(row, _)| row.value.is_some()) {
            original.map(|value| write(row, value));
        }
        cpacr.map(|value| write(&ROWS[0], value));
        cpu::isb();
        // An exception needs SP_EL1.
        // SAFETY: nothing is mapped there; the exception is caught.
        let caught = unsafe { catch(nothing, 0, 0) };
        check!(caught.is_err(), "a load from where nothing is mapped is no exception");
        saved?;
        for ((row, before), after) in ROWS.iter().zip(before).zip(after) {
            check!(before == after, "{}: {:#x} before, {:#x} after", row.name, before.unwrap_or(0), after.unwrap_or(0));
        }
        Ok(())
    })
}

/// A register in memory.
struct At(&'static str, u64);

impl At {
    fn read(&self) -> u32 {
        // SAFETY: `map` has mapped it; reading these registers does nothing.
        unsafe { (self.1 as *const u32).read_volatile() }
    }

    fn write(&self, value: u32) {
        // SAFETY: as above; the tests write what no interrupt and no output comes from.
        unsafe { (self.1 as *mut u32).write_volatile(value) }
    }
}

/// Writes the values, has the guest saved, compares all, and puts back what was there.
fn compare(registers: &[(At, Option<u32>)], mask: impl Fn(&str) -> u32) -> Outcome {
    let read = |index: usize| registers.get(index).map_or(0, |(at, _)| at.read() & mask(at.0));
    const MOST: usize = 24;
    let original: [u32; MOST] = core::array::from_fn(read);
    for (at, value) in registers {
        value.iter().for_each(|&value| at.write(value));
    }
    let before: [u32; MOST] = core::array::from_fn(read);
    let saved = wait_for_save(|| {});
    let after: [u32; MOST] = core::array::from_fn(read);
    for ((at, value), &original) in registers.iter().zip(&original).rev() {
        value.iter().for_each(|_| at.write(original));
    }
    saved?;
    for (index, (At(name, _), _)) in registers.iter().enumerate() {
        check!(before[index] == after[index], "{name}: {:#x} before, {:#x} after", before[index], after[index]);
    }
    Ok(())
}

/// The interrupt controller's registers for the shared interrupts 60 to 63, which no device of this machine's has, and for
/// SGIs that nobody sends.
pub fn interrupts() -> Outcome {
    required(1)?;
    match (&machine::get().gic, gic::redistributor(cpu::current())) {
        (GicRegisters::V3 { distributor, .. }, Some(redistributor)) => interrupts_v3(*distributor, redistributor),
        (GicRegisters::V2 { distributor, cpu_interface }, _) => interrupts_v2(*distributor, *cpu_interface),
        _ => skip!("no redistributor"),
    }
}

fn interrupts_v2(distributor: u64, cpu_interface: u64) -> Outcome {
    let gicd = |name, offset| At(name, distributor + offset);
    let gicc = |name, offset| At(name, cpu_interface + offset);
    let registers = [
        (gicd("GICD_CTLR", 0), None),
        (gicd("GICD_IGROUPR", 0x84), Some(0x7000_0000)),
        (gicd("GICD_ICFGR", 0xc0c), Some(0xaa00_0000)),
        (gicd("GICD_IPRIORITYR", 0x43c), Some(0x10_30_50_70)),
        (gicd("GICD_ITARGETSR", 0x83c), Some(0x01_01_01_01)),
        (gicd("GICD_ISENABLER", 0x104), Some(1 << 28)),
        (gicd("GICD_ISPENDR", 0x204), Some(1 << 29)),
        (gicd("GICD_ISACTIVER", 0x304), Some(1 << 30)),
        // SGI 14 in the other group, SGI 13 active, SGI 12 pending from CPU 0.
        (gicd("GICD_IGROUPR0", 0x80), Some(gicd("", 0x80).read() ^ 1 << 14)),
        (gicd("GICD_IPRIORITYR0", 0x40c), Some(0x80_40_20_60)),
        (gicd("GICD_ISENABLER0", 0x100), None),
        (gicd("GICD_ISACTIVER0", 0x300), Some(1 << 13)),
        (gicd("GICD_SPENDSGIR", 0xf2c), None),
        (gicc("GICC_PMR", 0x4), Some(0xe0)),
        (gicc("GICC_BPR", 0x8), Some(4)),
        (gicc("GICC_ABPR", 0x1c), Some(5)),
        (gicc("GICC_CTLR", 0), None),
    ];
    let clear = [(0x184, 0xf << 28), (0x284, 0xf << 28), (0x384, 0xf << 28), (0x380, 1 << 13), (0xf1c, 1)];
    // An SGI is always enabled: it is not to be taken.
    cpu::without_interrupts(|| {
        gic::send(12, cpu::current());
        let outcome = compare(&registers, |name| if name == "GICD_ISPENDR" { 0xf000_0000 } else { u32::MAX });
        clear.into_iter().for_each(|(offset, value)| gicd("", offset).write(value));
        outcome
    })
}

fn interrupts_v3(distributor: u64, redistributor: u64) -> Outcome {
    let gicd = |name, offset| At(name, distributor + offset);
    let sgi = |name, offset| At(name, redistributor + gic::gicr::SGI_FRAME + offset);
    let registers = [
        (gicd("GICD_CTLR", 0), None),
        (gicd("GICD_IGROUPR", 0x84), Some(0x7000_0000)),
        (gicd("GICD_ICFGR", 0xc0c), Some(0xaa00_0000)),
        (gicd("GICD_IPRIORITYR", 0x43c), Some(0x10_30_50_70)),
        (gicd("GICD_IROUTER", 0x6000 + 8 * 60), Some(1)),
        (gicd("GICD_ISENABLER", 0x104), Some(1 << 28)),
        (gicd("GICD_ISPENDR", 0x204), Some(1 << 29)),
        (gicd("GICD_ISACTIVER", 0x304), Some(1 << 30)),
        (At("GICR_WAKER", redistributor + gic::gicr::WAKER), None),
        (sgi("GICR_IGROUPR0", 0x80), Some(0xffff_7fff)),
        (sgi("GICR_ICFGR1", 0xc04), Some(0x8000_0000)),
        (sgi("GICR_IPRIORITYR", 0x40c), Some(0x80_40_20_60)),
        (sgi("GICR_ISENABLER0", 0x100), None),
        (sgi("GICR_ISPENDR0", 0x200), Some(1 << 15)),
        (sgi("GICR_ISACTIVER0", 0x300), Some(1 << 14)),
    ];
    // What set a bit does not clear it again: these do.
    let clear = [gicd("", 0x184), gicd("", 0x284), gicd("", 0x384), sgi("", 0x280), sgi("", 0x380)];
    let outcome = compare(&registers, |name| match name {
        // The other bits follow lines.
        "GICR_ISPENDR0" => 0xffff,
        "GICD_ISPENDR" => 0xf000_0000,
        _ => u32::MAX,
    });
    for (at, value) in clear.iter().zip([0xf000_0000, 0xf000_0000, 0xf000_0000, 0x8000, 0x4000]) {
        at.write(value);
    }
    outcome
}

/// The UART's and the clock's registers.
pub fn devices() -> Outcome {
    required(1)?;
    let machine = machine::get();
    let rtc = machine.tree.find_compatible(&["arm,pl031"]).and_then(|node| machine::registers(node, 0));
    let Some(rtc) = rtc else { skip!("no PL031") };
    mmu::map_device(rtc.start..rtc.start + 0x1000);
    let uart = |name, offset| At(name, machine.uart + offset);
    let registers = [
        (uart("UARTIBRD", 0x24), Some(13)),
        (uart("UARTFBRD", 0x28), Some(7)),
        (uart("UARTLCR_H", 0x2c), Some(0x70)),
        (uart("UARTIFLS", 0x34), Some(0x09)),
        (uart("UARTIMSC", 0x38), Some(0x50)),
        (uart("UARTCR", 0x30), Some(0xb01)),
        (uart("UARTDMACR", 0x48), None),
        (uart("UARTRIS", 0x3c), None),
        (At("RTCMR", rtc.start + 0x4), Some(0x7fff_1234)),
        (At("RTCIMSC", rtc.start + 0x10), Some(1)),
    ];
    // TXRIS, which whatever was printed before has set; the rest follows input.
    compare(&registers, |name| if name == "UARTRIS" { 1 << 5 } else { u32::MAX })
}
