//! Bytes become a hostile guest, its device and a management core, as in the property test (`virtio-mediation/tests/world`).
#![no_main]

#[path = "../../../virtio-mediation/tests/world/mod.rs"]
mod world;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| world::hostile::run(bytes));
