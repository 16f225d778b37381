//! `cargo hv doctor`: what is there and what is missing.

use crate::ending::Status;
use crate::setup::emulator::Emulator;
use crate::setup::guest::Guest;
use crate::setup::rust::{TARGET, Toolchain};
use crate::setup::{Finding, apt};
use crate::temporary::Temporary;
use crate::workspace::Workspace;
use anyhow::Context;
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
        ("Build folder".to_owned(), writable(workspace)),
        (format!("Rust for {TARGET}"), Toolchain::examine()),
        ("QEMU".to_owned(), Emulator::examine(qemu)),
        ("Guest Linux".to_owned(), guest),
    ];
    println!("checkout {}, build folder {}", workspace.root().display(), workspace.target().display());
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

/// Whether all that is built and fetched has a place.
fn writable(workspace: &Workspace) -> Finding {
    let written = workspace.folder("doctor").and_then(|folder| {
        let probe = Temporary::new(&folder);
        std::fs::write(folder.join("probe"), b"written").context("can't write a file there")?;
        drop(probe);
        Ok(())
    });
    let target = workspace.target().display();
    match written {
        Ok(()) => Finding::Found(format!("{target} can be written to")),
        Err(error) => Finding::Missing(format!(
            "{target} can't be written to ({error:#}); change its owner or its rights, or set CARGO_TARGET_DIR to a folder \
             of yours"
        )),
    }
}
