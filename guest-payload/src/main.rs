//! The EL1 test suite: a guest that tries everything and says what it saw.
//!
//! It is an arm64 Image that runs wherever it is loaded. Each check has a line of its own on the console, the last line
//! is `N passed, N failed` (with `, N skipped` where something was skipped), and the machine ends through PSCI
//! SYSTEM_OFF. `options.rs` has the words of its command line; with
//! `bench` or `strategy` among them it measures instead of testing.
#![no_std]
#![no_main]

#[macro_use]
mod machine;
mod bench;
mod calls;
mod options;
mod suite;

use core::panic::PanicInfo;
use machine::{boot, conduit, console, cpu, disk, exceptions, gic, memory, mmu, report, smp, timer};

/// The boot CPU arrives here on the boot tables, with the MMU and the caches on.
#[unsafe(no_mangle)]
extern "C" fn primary_main() -> ! {
    cpu::init_primary();
    let machine = machine::read_device_tree(boot::state().registers[0]);
    memory::init(machine);
    mmu::init(machine);
    console::init(machine);
    gic::init(machine);
    timer::init_cpu();
    cpu::unmask_interrupts();
    options::init(machine.bootargs);
    let options = options::get();
    if options.mediated {
        disk::init();
    }
    if let Some(strategy) = options.strategy {
        bench::strategy::run(strategy);
    } else if options.bench {
        bench::run();
    } else {
        suite::run();
    }
    conduit::system_off()
}

/// A secondary CPU arrives here on the final tables.
///
/// `current_el`, `daif` and `sctlr` are what the registers held at the entry that PSCI made.
#[unsafe(no_mangle)]
extern "C" fn secondary_main(cpu: &'static cpu::PerCpu, current_el: u64, daif: u64, sctlr: u64) -> ! {
    cpu::init_secondary(cpu);
    gic::init_cpu();
    timer::init_cpu();
    smp::arrive(smp::EntryState { current_el, daif, sctlr });
    cpu::unmask_interrupts();
    smp::serve()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    report::note(format_args!("panic: {info}"));
    exceptions::end_after_panic()
}
