//! What a guest does while it is saved and moved: a static program for arm64 Linux, without a library.
//!
//! It works until something is wrong, and says then what. For a host there is nothing in it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod checks;
#[cfg(target_os = "none")]
mod system;

/// Checks again and again. The stack has what the kernel says of the CPU.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
extern "C" fn program(stack: *const u64) -> ! {
    let wrong = checks::Checks::new(system::capabilities(stack)).run();
    system::print("save-worker: wrong: ");
    system::print(wrong);
    system::print("\n");
    system::exit(1)
}

/// A host's `main`, so that the workspace builds whole.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a guest's program: the tests of saves build it for aarch64-unknown-none-softfloat and run it");
}
