//! The state at entry, by the kernel's boot protocol (Documentation/arch/arm64/booting.rst).

use crate::calls::hypercall;
use crate::machine::report::Outcome;
use crate::machine::{self, boot, image, smp};

group!(
    "boot",
    [
        hypervisor,
        exception_level,
        argument_registers,
        interrupts_masked,
        mmu_off,
        image_placement,
        tree_placement,
        counter_frequency,
        secondary_state,
    ]
);

/// SCTLR_EL1 bits that must be clear at entry: MMU, data cache, big-endian.
const SCTLR_OFF: u64 = 1 | 1 << 2 | 1 << 25;

/// DAIF with all four masked.
const DAIF_ALL: u64 = 0x3c0;

/// CurrentEL of EL1.
const EL1: u64 = 1 << 2;

fn hypervisor() -> Outcome {
    hypercall::required()
}

fn exception_level() -> Outcome {
    check_eq!(boot::state().current_el, EL1, "CurrentEL");
    Ok(())
}

fn argument_registers() -> Outcome {
    let state = boot::state();
    check_eq!(state.registers[0], machine::get().tree_range.start, "x0, the device tree");
    for (index, &value) in state.registers.iter().enumerate().skip(1) {
        check_eq!(value, 0, "x{index}, reserved");
    }
    Ok(())
}

fn interrupts_masked() -> Outcome {
    check_eq!(boot::state().daif, DAIF_ALL, "DAIF");
    Ok(())
}

fn mmu_off() -> Outcome {
    check_eq!(boot::state().sctlr & SCTLR_OFF, 0, "SCTLR_EL1.{{M, C, EE}}");
    Ok(())
}

fn image_placement() -> Outcome {
    let image = image::parts();
    check_eq!(image.text.start % 0x20_0000, 0, "the image's offset from a 2 MiB boundary");
    let inside = machine::get().ram().iter().any(|ram| ram.start <= image.text.start && image.data.end <= ram.end);
    check!(
        inside,
        "the image, {:#x?} with its BSS, is not inside one range of memory",
        image.text.start..image.data.end
    );
    Ok(())
}

fn tree_placement() -> Outcome {
    let tree = &machine::get().tree_range;
    check_eq!(tree.start % 8, 0, "the tree's offset from an 8-byte boundary");
    check!(tree.end - tree.start <= 0x20_0000, "the tree is longer than 2 MiB: {} bytes", tree.end - tree.start);
    let inside = machine::get().ram().iter().any(|ram| ram.start <= tree.start && tree.end <= ram.end);
    check!(inside, "the tree, {tree:#x?}, is not inside one range of memory");
    let image = image::parts();
    let apart = tree.end <= image.text.start || image.data.end <= tree.start;
    check!(apart, "the tree, {tree:#x?}, overlaps the image, {:#x?}", image.text.start..image.data.end);
    Ok(())
}

fn counter_frequency() -> Outcome {
    let frequency = read_sysreg!("CNTFRQ_EL0");
    check!(frequency > 0, "CNTFRQ_EL0 is 0");
    for index in 1..smp::count() {
        check_eq!(smp::run(index, |_| read_sysreg!("CNTFRQ_EL0"), 0)?, frequency, "CNTFRQ_EL0 of cpu {index}");
    }
    Ok(())
}

fn secondary_state() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for index in 1..smp::count() {
        let state = smp::entry_state(index);
        check_eq!(state.current_el, EL1, "CurrentEL of cpu {index}");
        check_eq!(state.daif, DAIF_ALL, "DAIF of cpu {index}");
        check_eq!(state.sctlr & SCTLR_OFF, 0, "SCTLR_EL1.{{M, C, EE}} of cpu {index}");
    }
    Ok(())
}
