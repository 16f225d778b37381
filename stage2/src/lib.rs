//! Stage-2 translation tables.
#![cfg_attr(not(test), no_std)]
