//! Links each bare-metal image with its own script.

fn main() {
    println!("cargo::rerun-if-changed=../../linker/secure-partition-spm.ld");
    println!("cargo::rerun-if-changed=../../linker/secure-partition.ld");
    println!("cargo::rerun-if-env-changed=CARGO_CFG_TARGET_OS");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let manifest = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    for (image, script) in [("spm", "secure-partition-spm.ld"), ("partition", "secure-partition.ld")] {
        println!("cargo::rustc-link-arg-bin={image}=-T{manifest}/../../linker/{script}");
        println!("cargo::rustc-link-arg-bin={image}=--build-id=none");
        println!("cargo::rustc-link-arg-bin={image}=-zmax-page-size=4096");
        println!("cargo::rustc-link-arg-bin={image}=-znognustack");
    }
}
