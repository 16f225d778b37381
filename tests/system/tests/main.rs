//! All tests that boot machines, in one program: each of its own would be linked for itself, and machines of two files could
//! not run side by side.

mod bare;
mod boards;
mod crash;
mod debug;
mod disk;
mod documents;
mod foreign;
mod granules;
mod kvm_unit_tests;
mod linux;
mod manager;
mod mediation;
mod memory;
mod migrate;
mod oracle;
mod payload;
mod quickstart;
mod refusals;
mod registers;
mod save;
mod saved;
mod terminal;
mod tool;
mod uefi;
