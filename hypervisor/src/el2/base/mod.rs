//! What every floor stands on: registers, console, memory of EL2's own, CPUs, and the firmware.

pub mod console;
pub mod cpu;
pub mod device;
pub mod dma;
pub mod firmware;
pub mod frames;
pub mod heap;
pub mod memory_log;
pub mod own_map;
pub mod refusal;
pub mod registers;
pub mod symbols;
pub mod totals;
