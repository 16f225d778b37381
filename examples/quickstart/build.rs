//! Links the bare-metal image with its own script.

fn main() {
    println!("cargo::rerun-if-changed=quickstart.ld");
    println!("cargo::rerun-if-env-changed=CARGO_CFG_TARGET_OS");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo::rustc-link-arg-bins=-T{folder}/quickstart.ld");
        println!("cargo::rustc-link-arg-bins=--build-id=none");
    }
}
