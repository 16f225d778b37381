//! The parts of the EL2 image.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

/// What [`reader_lock`] is made of; another crate puts a model checker's in its place.
mod sync {
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
}

pub mod cpu_id;
pub mod efi;
pub mod exit_counts;
pub mod granule;
pub mod guest_tree;
pub mod id_registers;
pub mod image;
pub mod injection;
pub mod late_cpu;
pub mod machine;
pub mod mmio;
pub mod not_frozen;
pub mod options;
pub mod policy;
pub mod power_state;
pub mod range;
pub mod reader_lock;
pub mod redistributor;
pub mod sentence;
pub mod symbol_table;
pub mod syndrome;
pub mod transmitter;
pub mod tree;
pub mod tree_check;
pub mod uart;
