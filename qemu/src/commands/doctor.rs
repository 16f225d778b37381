//! `cargo hv doctor`: what is there and what is missing.

use crate::ending::Status;
use crate::setup::emulator::Emulator;
use crate::setup::guest::Guest;
use crate::setup::rust::{TARGET, Toolchain};
use crate::setup::{Finding, apt};
use crate::workspace::Workspace;
use std::path::Path;

/// Runs the command. The status is a failure if something is missing that the tool can't get by itself.
pub fn doctor(workspace: &Workspace, qemu: Option<&Path>) -> Status {
    let guest = match Guest::cached(workspace) {
        Some(guest) => Finding::Found(format!("{} and busybox", guest.kernel.display())),
        None if apt::is_available() => {
            Finding::WillGet("a kernel and busybox for arm64 (about 40 MB), unpacked below target/hv".into())
        }
        None => Finding::Missing("no apt-get to fetch one with; pass --kernel and --initrd".into()),
    };
    let findings = [
        (format!("Rust for {TARGET}"), Toolchain::examine()),
        ("QEMU".to_owned(), Emulator::examine(qemu)),
        ("Guest Linux".to_owned(), guest),
    ];
    println!("workspace {}, build folder {}", workspace.root().display(), workspace.target().display());
    let mut status = Status::Success;
    for (what, finding) in findings {
        match finding {
            Finding::Found(text) => println!("found    {what}: {text}"),
            Finding::WillGet(text) => println!("will get {what}: {text}"),
            Finding::Missing(text) => {
                println!("MISSING  {what}: {text}");
                status = Status::Failure;
            }
        }
    }
    status
}
