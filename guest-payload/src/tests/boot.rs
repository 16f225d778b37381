//! The state at entry, by the kernel's boot protocol (Documentation/arch/arm64/booting.rst).

use crate::boot;
use crate::hypercall;
use crate::machine;
use crate::report::Outcome;
use crate::smp;

group!("boot", [hypervisor, exception_level, registers]);

fn hypervisor() -> Outcome {
    hypercall::required()
}

fn exception_level() -> Outcome {
    check_eq!(boot::state().current_el, 1 << 2, "CurrentEL of the boot CPU");
    for index in 1..smp::count() {
        check_eq!(smp::entry_state(index).current_el, 1 << 2, "CurrentEL of cpu {index}");
    }
    Ok(())
}

fn registers() -> Outcome {
    let state = boot::state();
    check_eq!(state.registers[0], machine::get().tree_range.start, "x0, the device tree");
    for (index, &value) in state.registers.iter().enumerate().skip(1) {
        check_eq!(value, 0, "x{index}, reserved");
    }
    Ok(())
}
