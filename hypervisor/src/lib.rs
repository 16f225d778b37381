//! The parts of the EL2 image.
#![cfg_attr(not(test), no_std)]
