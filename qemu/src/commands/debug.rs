//! `cargo hv debug`: the machine waits for gdb, which knows the hypervisor's and the guest's names.

use crate::cli::Debug;
use crate::console::{Lines, text};
use crate::ending::Status;
use crate::gdb::{self, GDB, Symbols};
use crate::guest_kernel;
use crate::images::{self, Image};
use crate::initramfs;
use crate::machine::Machine;
use crate::run::{self, Flow, Stopper};
use crate::setup::guest::Guest;
use crate::setup::rust::TARGET;
use crate::temporary::Temporary;
use crate::workspace::{Workspace, write_whole};
use anyhow::Result;
use std::io::{IsTerminal, stdin};
use std::path::PathBuf;
use std::time::Duration;

/// As good as no limit: a user who debugs takes their time.
const FOR_EVER: Duration = Duration::from_secs(30 * 86_400);

/// Runs the command.
///
/// # Errors
/// If something can't be set up.
pub fn debug(workspace: &Workspace, options: &Debug) -> Result<Status> {
    if let Some(kernel) = &options.kernel {
        guest_kernel::check(kernel, false)?;
    }
    let mut machine = super::machine(&options.common)?;
    let emulator = super::emulator(&options.common)?;
    let guest = guest(workspace, options, &mut machine)?;
    machine.kernel = images::build(workspace, Image::Hypervisor)?;

    let socket = Temporary::new(std::env::temp_dir().join(format!("hv-debug-{}.sock", std::process::id())));
    gdb::wait_at(&mut machine, socket.path())?;
    let script = workspace.folder("debug")?.join("attach.gdb");
    let text_of_script = gdb::script(socket.path(), &elf(workspace, Image::Hypervisor)?, guest.as_ref())?;
    write_whole(&script, text_of_script.as_bytes())?;
    eprintln!("hv: QEMU waits before the first instruction. In another terminal ({GDB} is a Debian package):");
    eprintln!("hv:     {GDB} -x {}", script.display());
    eprintln!("hv: there `break NAME` and `continue`; `monitor quit` ends the machine. This is its console:");
    if stdin().is_terminal() {
        let log = workspace.folder("logs")?.join("debug.log");
        run::interact(&emulator, &machine, options.common.timeout, &Stopper::default(), &log)?;
        return Ok(Status::Success);
    }
    let mut lines = Lines::default();
    run::capture(&emulator, &machine, options.common.timeout.unwrap_or(FOR_EVER), |bytes, _| {
        lines.push(bytes, |line| println!("{}", text(line)));
        Flow::Continue
    })?;
    Ok(Status::Success)
}

/// Loads the guest, and says what gdb is to know of it.
fn guest(workspace: &Workspace, options: &Debug, machine: &mut Machine) -> Result<Option<Symbols>> {
    if options.payload {
        let payload = images::build(workspace, Image::Payload)?;
        machine.append += " hypercalls=on";
        machine.load_guest(&payload, None, &options.append)?;
        // It lies right where the loader puts it, and stays there.
        let offset = machine.modules.first().map_or(0, |module| module.address);
        return Ok(Some(Symbols { file: elf(workspace, Image::Payload)?, offset }));
    }
    let (kernel, initrd, init) = match &options.kernel {
        Some(kernel) => (kernel.clone(), options.initrd.clone(), ""),
        None => {
            let guest = Guest::get(workspace)?;
            let shell = workspace.folder("debug")?.join("shell.cpio");
            write_whole(&shell, &initramfs::archive(&guest.busybox, None)?)?;
            (guest.kernel, Some(shell), " rdinit=/hv/init")
        }
    };
    // Without KASLR the kernel's names are where its ELF file has them.
    let words = format!("console=ttyAMA0 nokaslr{init} {}", options.append);
    machine.load_guest(&kernel, initrd.as_deref(), words.trim_end())?;
    Ok(options.symbols.clone().map(|file| Symbols { file, offset: 0 }))
}

/// An image's ELF file, which has its names.
fn elf(workspace: &Workspace, image: Image) -> Result<PathBuf> {
    Ok(images::build_folder(workspace)?.join(TARGET).join(images::PROFILE).join(image.binary()))
}
