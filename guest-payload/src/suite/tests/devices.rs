//! Devices that can write memory behind stage 2, or that are the hypervisor's own: out of reach, wherever QEMU's `virt`
//! machine has them; and what is guarded of those that the guest has.

use crate::calls::{hypercall, services};
use crate::machine::escape::{Escape, class};
use crate::machine::memory::{self, PAGE};
use crate::machine::probe::{self, EXECUTE, READ8, READ16, READ32, READ64, WRITE8, WRITE16, WRITE32, WRITE64};
use crate::machine::report::Outcome;
use crate::machine::{self, GicRegisters, cpu, gic, mmu, smp};
use crate::options;
use hypervisor_abi::function;

group!(
    "devices",
    [
        fw_cfg,
        virtio_mmio,
        pci_config,
        pci_config_high,
        pci_memory,
        pci_ports,
        pci_memory_high,
        flash,
        platform_bus,
        smmu,
        gicv2_msi,
        gicv2_hypervisor_interface,
        gicv3_its,
        gicv3_its_tables,
        lpis_hidden,
        lpi_enable_ignored,
        lpi_tables_ignored,
        lpi_other_registers,
        lpi_pair_access,
        redistributor_widths,
        uart_widths,
        uart_execute,
        registers_without_a_device,
    ]
);

fn required() -> Outcome {
    if options::get().aim.is_none() { hypercall::required() } else { Ok(()) }
}

/// Tries to read and write the first words of pages of a device that must not answer.
fn must_not_answer(what: &str, pages: &[u64]) -> Outcome {
    required()?;
    for &page in pages {
        let address = mmu::alias(page..page + PAGE, mmu::DEVICE);
        for offset in [0, 8, 16] {
            for access in [READ8, READ16, READ32, READ64, WRITE8, WRITE16, WRITE32, WRITE64] {
                // SAFETY: no register at these offsets makes a device write the payload's memory by one store of zero.
                unsafe { access.must_abort(address + offset, 0, what) };
            }
        }
    }
    Ok(())
}

fn fw_cfg() -> Outcome {
    must_not_answer("fw_cfg", &[0x0902_0000])
}

fn virtio_mmio() -> Outcome {
    must_not_answer("virtio-mmio", &[0x0a00_0000, 0x0a00_1000, 0x0a00_2000, 0x0a00_3000])
}

fn pci_config() -> Outcome {
    must_not_answer("PCI configuration space", &[0x3f00_0000, 0x3f00_8000, 0x3fff_f000])
}

fn pci_config_high() -> Outcome {
    must_not_answer("high PCI configuration space", &[0x40_1000_0000, 0x40_1000_8000])
}

fn pci_memory() -> Outcome {
    must_not_answer("PCI memory", &[0x1000_0000, 0x2000_0000, 0x3efe_f000])
}

fn pci_ports() -> Outcome {
    must_not_answer("PCI ports", &[0x3eff_0000, 0x3eff_f000])
}

fn pci_memory_high() -> Outcome {
    must_not_answer("high PCI memory", &[0x80_0000_0000])
}

fn flash() -> Outcome {
    must_not_answer("flash", &[0, 0x0400_0000, 0x07ff_f000])
}

fn platform_bus() -> Outcome {
    must_not_answer("the platform bus", &[0x0c00_0000, 0x0dff_f000])
}

fn smmu() -> Outcome {
    must_not_answer("the SMMU", &[0x0905_0000, 0x0906_0000])
}

fn gicv2_msi() -> Outcome {
    must_not_answer("GICv2m", &[0x0802_0000])
}

fn gicv2_hypervisor_interface() -> Outcome {
    must_not_answer("GICH", &[0x0803_0000])?;
    must_not_answer("GICV", &[0x0804_0000, 0x0804_1000])
}

fn gicv3_its() -> Outcome {
    if matches!(machine::get().gic, GicRegisters::V2 { .. }) {
        skip!("GICv2");
    }
    must_not_answer("the ITS", &[0x0808_0000, 0x0809_0000])
}

/// What an attack does with an ITS: GITS_BASER0 aimed at the hypervisor, then commands that write entries of that table
/// (Arm IHI 0069, 5.3.11 and 12.19). Every access has to abort; where one does not the attack goes on, to show what comes of it.
fn gicv3_its_tables() -> Outcome {
    /// Registers of an ITS.
    const CTLR: u64 = 0x0;
    const CBASER: u64 = 0x80;
    const CWRITER: u64 = 0x88;
    const BASER0: u64 = 0x100;
    const VALID: u64 = 1 << 63;
    /// The command that writes a device's entry.
    const MAPD: u64 = 0x08;
    const COMMANDS: u64 = 16;

    hypercall::required()?;
    services::required()?;
    if matches!(machine::get().gic, GicRegisters::V2 { .. }) {
        skip!("GICv2");
    }
    let own = hypercall::own_memory().next().map_or(machine::RAM_BASE, |range| range.start);
    let Some(queue) = memory::allocate_zeroed_page() else { fail!("no memory for a queue of commands") };
    for command in 0..COMMANDS {
        let at = queue + command * 32;
        services::write(at, MAPD | command << 32);
        services::write(at + 16, VALID | queue);
    }
    let integrity = || services::hvc(function::INTEGRITY, [0; 3])[1];
    let before = integrity();
    let its = mmu::alias(0x0808_0000..0x0808_1000, mmu::DEVICE);
    for (access, register, value) in [
        (WRITE64, BASER0, VALID | own),
        (WRITE64, CBASER, VALID | queue),
        (WRITE32, CTLR, 1),
        (WRITE64, CWRITER, COMMANDS * 32),
        (WRITE32, CTLR, 0),
        (WRITE64, BASER0, 0),
    ] {
        // SAFETY: if the hypervisor lets it through, the ITS writes the hypervisor's memory, which is nothing of Rust's here.
        unsafe { access.must_abort(its + register, value, "the ITS") };
    }
    check_eq!(integrity(), before, "the hypervisor's memory after the attack");
    Ok(())
}

/// Reads a redistributor register that must answer. Reports an exception, and counts it as 0.
fn read(access: probe::Probe, address: u64, what: &str) -> u64 {
    // SAFETY: registers of a redistributor; reading them is harmless.
    match unsafe { access.attempt(address, 0) } {
        Ok(value) => value,
        Err(why) => {
            crate::machine::report::failure(format_args!("{} of {what} at {address:#x}: {why}", access.name));
            0
        }
    }
}

/// Writes a redistributor register that must take it or ignore it.
fn write(access: probe::Probe, address: u64, value: u64, what: &str) {
    // SAFETY: without EnableLPIs, which is what is tested, no redistributor register makes it touch memory; the tables
    // that the tests name are pages that nobody uses.
    if let Err(why) = unsafe { access.attempt(address, value) } {
        crate::machine::report::failure(format_args!("{} of {what} at {address:#x}: {why}", access.name));
    }
}

/// Calls `f` with each CPU's index and redistributor.
fn for_each_redistributor(f: impl Fn(usize, u64)) -> Outcome {
    required()?;
    if matches!(machine::get().gic, GicRegisters::V2 { .. }) {
        skip!("GICv2");
    }
    for index in 0..smp::count() {
        match gic::redistributor(cpu::cpu(index)) {
            Some(frame) => f(index, frame),
            None => fail!("no redistributor for cpu {index}"),
        }
    }
    Ok(())
}

fn lpis_hidden() -> Outcome {
    for_each_redistributor(|index, frame| {
        check_eq!(read(READ64, frame + gic::gicr::TYPER, "GICR_TYPER") & 1, 0, "GICR_TYPER.PLPIS of cpu {index}");
        check_eq!(
            read(READ32, frame + gic::gicr::TYPER, "GICR_TYPER") & 1,
            0,
            "GICR_TYPER.PLPIS of cpu {index}, as a word"
        );
        // Its upper word is the affinity, which the guest needs.
        let affinity = read(READ32, frame + gic::gicr::TYPER + 4, "GICR_TYPER");
        let mpidr = cpu::cpu(index).mpidr();
        check_eq!(affinity, mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff, "GICR_TYPER.Affinity_Value of cpu {index}");
    })
}

fn lpi_enable_ignored() -> Outcome {
    for_each_redistributor(|index, frame| {
        write(WRITE32, frame + gic::gicr::CTLR, 1, "GICR_CTLR");
        check_eq!(
            read(READ32, frame + gic::gicr::CTLR, "GICR_CTLR") & 1,
            0,
            "GICR_CTLR.EnableLPIs of cpu {index} after writing 1"
        );
    })
}

fn lpi_tables_ignored() -> Outcome {
    // Aimed at the hypervisor's memory, as an attacker would: the tables start there, 16 bits of INTID, valid bits set.
    let aim = options::get()
        .aim
        .clone()
        .or_else(|| hypercall::own_memory().next())
        .map_or(machine::RAM_BASE, |range| range.start);
    for_each_redistributor(|index, frame| {
        for (offset, name) in [(gic::gicr::PROPBASER, "GICR_PROPBASER"), (gic::gicr::PENDBASER, "GICR_PENDBASER")] {
            write(WRITE64, frame + offset, aim | 0x78f, name);
            check_eq!(read(READ64, frame + offset, name), 0, "{name} of cpu {index} after a 64-bit write");
            write(WRITE32, frame + offset, aim | 0x78f, name);
            write(WRITE32, frame + offset + 4, 0xffff_ffff, name);
            check_eq!(read(READ32, frame + offset, name), 0, "{name}[31:0] of cpu {index} after 32-bit writes");
            check_eq!(read(READ32, frame + offset + 4, name), 0, "{name}[63:32] of cpu {index} after 32-bit writes");
        }
    })
}

fn lpi_other_registers() -> Outcome {
    for_each_redistributor(|index, frame| {
        // GICR_SETLPIR, CLRLPIR, INVLPIR, INVALLR: without LPIs, writes are ignored (IHI 0069, 12.11).
        for offset in [0x40, 0x48, 0xa0, 0xb0] {
            write(WRITE64, frame + offset, 8192, "an LPI register");
        }
        // GICR_PIDR2.ArchRev says GICv3 or v4; QEMU's frame has it at 0xffe8.
        let revision = read(READ32, frame + 0xffe8, "GICR_PIDR2") >> 4 & 0xf;
        check!((3..=4).contains(&revision), "GICR_PIDR2.ArchRev of cpu {index}: expected 3 or 4, seen {revision}");
        check_eq!(
            read(READ32, frame + gic::gicr::WAKER, "GICR_WAKER") & 6,
            0,
            "GICR_WAKER of cpu {index}, which is awake"
        );
    })
}

fn lpi_pair_access() -> Outcome {
    // Instructions without a syndrome: a guarded register can't be emulated for them. The table stays out of reach
    // whatever becomes of the access, and the guest goes on.
    for_each_redistributor(|index, frame| {
        for access in
            probe::DATA_ACCESSES.iter().filter(|access| access.name.contains("pair") || access.name.contains("post"))
        {
            // SAFETY: as in `write`.
            let result = unsafe { access.attempt(frame + gic::gicr::PROPBASER, 0x4020_078f) };
            let seen = probe::exception(result);
            check!(
                seen.is_none_or(|seen| seen.is_external_abort()),
                "{} of GICR_PROPBASER of cpu {index}: expected nothing or an external abort, seen {seen:x?}",
                access.name
            );
        }
        check_eq!(
            read(READ64, frame + gic::gicr::PROPBASER, "GICR_PROPBASER"),
            0,
            "GICR_PROPBASER of cpu {index} after that"
        );
    })
}

fn redistributor_widths() -> Outcome {
    for_each_redistributor(|index, frame| {
        // Priorities are byte-accessible (IHI 0069, 12.1.3). SGI 15 is nobody's.
        let priority = frame + gic::gicr::SGI_FRAME + 0x400 + 15;
        let before = read(READ8, priority, "GICR_IPRIORITYR");
        write(WRITE8, priority, 0x40, "GICR_IPRIORITYR");
        check_eq!(read(READ8, priority, "GICR_IPRIORITYR"), 0x40, "the priority of SGI 15 of cpu {index}");
        check_eq!(read(READ32, priority - 3, "GICR_IPRIORITYR") >> 24, 0x40, "the same, in its word");
        write(WRITE8, priority, before, "GICR_IPRIORITYR");
    })
}

fn uart_widths() -> Outcome {
    // UARTPeriphID0 to 3 of a PL011: part number 0x011, designer Arm (0x41).
    let uart = machine::get().uart;
    let id = |index: u64| read(READ32, uart + 0xfe0 + 4 * index, "a UART ID register") & 0xff;
    check_eq!(id(0), 0x11, "UARTPeriphID0");
    check_eq!(id(1), 0x10, "UARTPeriphID1");
    for access in [READ8, READ16, READ32] {
        check_eq!(read(access, uart + 0xfe0, "UARTPeriphID0") & 0xff, 0x11, "UARTPeriphID0 by {}", access.name);
    }
    Ok(())
}

fn uart_execute() -> Outcome {
    required()?;
    let uart = machine::get().uart;
    let address = mmu::alias(uart..uart + PAGE, mmu::NORMAL_RWX);
    // SAFETY: whatever the device answers to a fetch, it is no code that does anything before it faults.
    let result = unsafe { EXECUTE.attempt(address + 0xfe0, 0) };
    // Not just any exception: what a device answers to a fetch would be an undefined instruction, too.
    check!(
        probe::exception(result).is_some_and(|seen| seen.class() == class::INSTRUCTION_ABORT),
        "executing the UART: expected an abort of the fetch, seen {result:x?}"
    );
    Ok(())
}

/// Registers of the guest's that EL2 guards and where nothing answers (`absent=`): EL2 takes the external abort of each access,
/// and hands it on with the guest's registers as they were: SP_EL0 among them, which is the payload's stack.
fn registers_without_a_device() -> Outcome {
    services::required()?;
    let Some(absent) = options::get().absent.filter(|&at| services::leaf(at).is_none()) else {
        skip!("no absent= on the command line that is not mapped")
    };
    let address = mmu::alias(absent..absent + PAGE, mmu::DEVICE);
    for access in [READ8, READ16, READ32, WRITE8, WRITE16, WRITE32] {
        for offset in [0, 8] {
            // SAFETY: there is no register.
            let seen = unsafe { access.attempt(address + offset, 0) };
            let right = matches!(seen, Err(Escape::Exception(seen)) if seen.vector == 0
                && seen.class() == class::DATA_ABORT && seen.is_external_abort()
                && seen.far == address + offset && seen.elr == access.instruction());
            check!(right, "{} where nothing answers: expected its external abort, seen {seen:x?}", access.name);
        }
    }
    Ok(())
}
