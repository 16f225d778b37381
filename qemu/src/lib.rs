//! The host tool: sets up what is needed, builds the images, and runs them in QEMU.
//!
//! `cargo hv` is a thin shell around this library; system tests use it directly. To run a machine: find an
//! [`Emulator`](setup::emulator::Emulator), build the [images], describe a [`Machine`](machine::Machine), and
//! [`capture`](run::capture) its console.

pub mod bench;
pub mod cli;
pub mod code_size;
pub mod commands;
pub mod console;
pub mod devices;
pub mod disk;
pub mod ending;
pub mod events;
mod flatten;
pub mod guest_kernel;
pub mod images;
pub mod initramfs;
pub mod machine;
pub mod manager;
pub mod newc;
pub mod payload;
pub mod pe;
pub mod placement;
pub mod progress;
pub mod report;
pub mod run;
pub mod setup;
pub mod size;
mod symbols;
pub mod uefi;
pub mod workspace;
