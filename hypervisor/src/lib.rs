//! The parts of the EL2 image.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod guest_tree;
pub mod image;
pub mod machine;
pub mod options;
pub mod range;
pub mod tree;
pub mod tree_check;
