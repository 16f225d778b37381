//! Links the EL2 image; does nothing for the host.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let package = env::var("CARGO_MANIFEST_DIR").expect("cargo names the package's folder");
    let script = Path::new(&package).join("../linker/hypervisor.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    // Position independent: every address that the linker leaves to load time becomes an R_AARCH64_RELATIVE entry, which
    // boot.S applies.
    for argument in ["-pie", "--no-dynamic-linker", "-znotext", "-zmax-page-size=4096", "--no-eh-frame-hdr"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
