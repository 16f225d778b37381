//! The host tool: sets up what is needed, builds the images, and runs them in QEMU.
//!
//! `cargo hv` is a thin shell around this library; system tests use it directly. To run a machine: find an
//! [`Emulator`](setup::emulator::Emulator), build the [images], describe a [`Machine`](machine::Machine), and
//! [`capture`](run::capture) its console.

/// These take the place of the standard library's in all of this crate: those panic where nobody reads any more.
macro_rules! println {
    () => { $crate::output::write(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::output::write(format_args!("{}\n", format_args!($($arg)*))) };
}
macro_rules! print {
    ($($arg:tt)*) => { $crate::output::write(format_args!($($arg)*)) };
}
macro_rules! eprintln {
    ($($arg:tt)*) => { $crate::output::complain(format_args!("{}\n", format_args!($($arg)*))) };
}
macro_rules! eprint {
    ($($arg:tt)*) => { $crate::output::complain(format_args!($($arg)*)) };
}

pub mod added;
pub mod bench;
pub mod boards;
pub mod cli;
pub mod code_size;
pub mod commands;
pub mod console;
pub mod devices;
pub mod disk;
pub mod ending;
pub mod events;
pub mod feed;
mod flatten;
pub mod gdb;
pub mod guest_kernel;
pub mod images;
pub mod initramfs;
pub mod interrupt;
pub mod kallsyms;
pub mod live;
pub mod machine;
pub mod manager;
pub mod newc;
pub mod output;
pub mod payload;
pub mod pe;
pub mod placement;
pub mod progress;
pub mod report;
pub mod run;
pub mod saved;
pub mod setup;
pub mod size;
pub mod status_line;
mod symbols;
pub mod temporary;
pub mod uefi;
pub mod workspace;
