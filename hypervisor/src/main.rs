//! The EL2 image `unbroken`. For a host there is nothing in it: see the library for what a host can test.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod el2;

/// A host's `main`, so that the workspace builds whole.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is the EL2 image: build it for aarch64-unknown-none-softfloat, or let `cargo hv linux` do it");
}
