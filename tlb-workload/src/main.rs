//! What a guest does while its TLBs are modelled: a static program for arm64 Linux, without a library.
//!
//! Each part is a window (`marker`): some of the work first, so that the TLBs hold what they would, then what is counted.
//! All of it is the same in every run. For a host there is nothing in it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod cipher;
#[cfg(target_os = "none")]
mod hash_table;
#[cfg(target_os = "none")]
mod marker;
#[cfg(target_os = "none")]
mod sequential;
#[cfg(target_os = "none")]
mod system;

/// The parts, by their windows' numbers; 0 is the boot, which ends where the program begins.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
extern "C" fn program() -> ! {
    marker::close();
    let parts: [fn() -> Result<(), i64>; 4] = [
        || hash_table::run(1, system::HugePages::Wanted),
        || hash_table::run(2, system::HugePages::Unwanted),
        || cipher::run(3),
        || sequential::run(4),
    ];
    for part in parts {
        if let Err(error) = part() {
            system::print("tlb-workload: a system call failed\n");
            system::exit(i32::try_from(-error).unwrap_or(1));
        }
    }
    system::print("tlb-workload: done\n");
    system::exit(0)
}

/// A host's `main`, so that the workspace builds whole.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "this is a guest's program: `cargo hv bench --tlb` builds it for aarch64-unknown-none-softfloat and runs it"
    );
}
