//! Links the bare-metal image with its own script, as a position-independent executable.

fn main() {
    println!("cargo::rerun-if-changed=../linker/payload.ld");
    println!("cargo::rerun-if-env-changed=CARGO_CFG_TARGET_OS");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let manifest = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo::rustc-link-arg-bins=-T{manifest}/../linker/payload.ld");
    // The target's code model is position-dependent in name only: code addresses are PC-relative, and the absolute
    // pointers in data become R_AARCH64_RELATIVE relocations, which boot.S applies. `notext` allows them in .rodata,
    // where such code keeps its tables of pointers.
    for argument in
        ["-pie", "--no-dynamic-linker", "-znotext", "-znognustack", "--build-id=none", "-zmax-page-size=4096"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
