//! The machine as the payload drives it: its CPUs, memory, tables, devices and exceptions, and the report of a test.

#[macro_use]
pub mod console;
#[macro_use]
pub mod cpu;
#[macro_use]
pub mod report;
pub mod boot;
pub mod conduit;
pub mod disk;
pub mod escape;
pub mod exceptions;
pub mod gic;
pub mod image;
pub mod memory;
mod mmio;
pub mod mmu;
pub mod probe;
pub mod smp;
pub mod timer;
mod tree;

pub use tree::{Conduit, GicRegisters, RAM_BASE, get, read_device_tree, registers};
