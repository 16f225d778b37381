//! Links the bare-metal image with its own script, as a position-independent executable.

fn main() {
    println!("cargo::rerun-if-changed=../linker/payload.ld");
    println!("cargo::rerun-if-env-changed=CARGO_CFG_TARGET_OS");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let manifest = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo::rustc-link-arg-bins=-T{manifest}/../linker/payload.ld");
    // Absolute pointers in data become R_AARCH64_RELATIVE relocations, which boot.S applies. `notext` allows them in
    // .rodata, where a `core` that was compiled for a fixed address (the one rustup installs) keeps its tables of
    // pointers; its code is PC-relative all the same.
    for argument in
        ["-pie", "--no-dynamic-linker", "-znotext", "-znognustack", "--build-id=none", "-zmax-page-size=4096"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
