//! The secure-partition manager: EL3 stub, S-EL2, two partitions on two CPUs.
#![no_std]
#![no_main]

mod baseline;
mod console;
mod context;
mod cpu;
mod machine;
mod options;
mod platform;
mod report;
mod runner;
mod semihosting;
mod shared;

use crate::console::say;
use crate::runner::Runner;
use crate::shared::{FEATURES, MOVED, Spm};
use core::arch::global_asm;
use core::sync::atomic::{AtomicUsize, Ordering};
use secure_partition::Partition;
use secure_partition::layout::CPUS;
use secure_partition::work::Order;
use spin::Once;

global_asm!(include_str!("boot.S"));

static SPM: Once<Spm> = Once::new();
static READY: AtomicUsize = AtomicUsize::new(0);
static GO: AtomicUsize = AtomicUsize::new(0);
static FINISHED: AtomicUsize = AtomicUsize::new(0);

/// Where every CPU comes from boot.S, with the MMU on and a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn main(cpu: usize) -> ! {
    cpu::set_up();
    FEATURES[cpu].call_once(cpu::features);
    let spm = if cpu == 0 { SPM.call_once(Spm::new) } else { SPM.wait() };
    spm.load_control();
    let mut runner = Runner::new(spm, cpu);
    READY.fetch_add(1, Ordering::AcqRel);
    if cpu != 0 {
        wait_for(&GO, 1);
        drive(&mut runner, spm, cpu);
        FINISHED.fetch_add(1, Ordering::AcqRel);
        loop {
            core::hint::spin_loop();
        }
    }
    wait_for(&READY, CPUS);
    let refused = runner::judge(Partition::First, runner.order(Partition::First, Order::TryRefusals));
    if let Some([trials, ..]) = refused {
        say!("{trials} requests refused as they must be");
    }
    GO.store(1, Ordering::Release);
    drive(&mut runner, spm, cpu);
    FINISHED.fetch_add(1, Ordering::AcqRel);
    wait_for(&FINISHED, CPUS);
    let passed = report::print(spm) && refused.is_some();
    say!("end: {}", if passed { "passed" } else { "failed" });
    semihosting::exit(u8::from(!passed));
}

/// Each CPU has another partition move its memory; the other one's context on the same CPU receives it.
fn drive(runner: &mut Runner, spm: &Spm, cpu: usize) {
    let partition = Partition::ALL[cpu % Partition::ALL.len()];
    let moves = spm.options.moves / CPUS as u64;
    let order = Order::Drive { moves, seed: spm.options.seed.wrapping_add(cpu as u64) };
    match runner::judge(partition, runner.order(partition, order)) {
        Some(counts) => {
            for (total, count) in MOVED.iter().zip(counts) {
                total.fetch_add(count, Ordering::AcqRel);
            }
        }
        None => report::fail(),
    }
}

fn wait_for(counter: &AtomicUsize, value: usize) {
    while counter.load(Ordering::Acquire) < value {
        core::hint::spin_loop();
    }
}

/// An exception of the SPM's own, which is a fault of the SPM's.
#[unsafe(no_mangle)]
extern "C" fn own_exception(vector: u64) -> ! {
    let [esr, elr, far] = cpu::syndrome();
    panic!("exception {vector} in the SPM: ESR_EL2 {esr:#x}, ELR_EL2 {elr:#x}, FAR_EL2 {far:#x}");
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("panic on CPU {}: {info}", cpu::index());
    say!("end: failed");
    semihosting::exit(2);
}
