//! Links only if no public function of `stage2` can reach a panic.
//!
//! Every public function is called here with arguments that the compiler knows nothing about, on a platform whose
//! functions are not there to look into. The panic handler calls a function that nobody defines: if a single call to it
//! survives optimisation, the linker names it and fails. Build it for `aarch64-unknown-none-softfloat` with the profile
//! `image`; on any other target there is nothing to see.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod every_function;

#[cfg(not(target_os = "none"))]
fn main() {
    println!("build this for aarch64-unknown-none-softfloat, with the profile `image`: linking is the test");
}
