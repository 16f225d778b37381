//! `cargo hv`.
fn main() {}
