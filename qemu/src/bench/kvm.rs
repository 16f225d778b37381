//! KVM in the same QEMU: Debian's kernel at EL2, and the comparator (tests/kvm) as its first process.

use super::record::Record;
use crate::ending;
use crate::machine::Machine;
use crate::newc::Archive;
use crate::progress::Step;
use crate::run::{self, Flow};
use crate::setup::apt;
use crate::setup::emulator::Emulator;
use crate::size::Size;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The comparator's source, from the workspace's root.
const SOURCE: &str = "tests/kvm/comparator.c";
/// The cross compiler, its package, and the one with the C library.
const COMPILER: &str = "aarch64-linux-gnu-gcc";
const PACKAGES: [&str; 2] = ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];
/// Begins the comparator's own lines.
const PREFIX: &str = "comparator: ";

/// Measures KVM of `kernel`, an arm64 Image, anew.
///
/// # Errors
/// If something is missing, or the comparator fails; the sentence has its reason.
pub fn measure(workspace: &Workspace, emulator: &Emulator, kernel: &Path, timeout: Duration) -> Result<Record> {
    let mut machine = Machine::new(kernel);
    machine.icount = true;
    // Room for a GiB in huge pages, and one page of 1 GiB.
    machine.memory = Size::mib(4096);
    machine.append = "console=ttyAMA0 rdinit=/init nokaslr panic=-1 quiet loglevel=1 hugepagesz=1G hugepages=1".into();
    machine.initrd = Some(initramfs(workspace)?);
    let step = Step::begin("Measuring KVM (a minute or two)");
    let outcome = run::capture(emulator, &machine, timeout, |_, _| Flow::Continue)?;
    let lines = outcome.console.lines();
    let words: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix(PREFIX)).collect();
    let record = Record::of_lines(lines.iter().map(String::as_str)).with_context(|| {
        let status = ending::explain(ending::judge(&outcome), &outcome, timeout.as_secs());
        format!("{status}\nhv: KVM was not measured")
    })?;
    let Some(release) = words.iter().find_map(|word| word.strip_prefix("kernel ")) else {
        bail!("the comparator did not name its kernel");
    };
    step.done(&format!("Linux {release}"));
    for word in words.iter().filter(|word| !word.starts_with("kernel ")) {
        eprintln!("hv: KVM: {word}");
    }
    Ok(Record { subject: format!("Linux {release} at EL2 (VHE)"), qemu: emulator.version.clone(), ..record })
}

/// Builds the comparator, and an initramfs in which it is the first process.
fn initramfs(workspace: &Workspace) -> Result<PathBuf> {
    if apt::find_program(COMPILER).is_none() {
        apt::install(&PACKAGES).with_context(|| format!("the comparator's compiler ({COMPILER}) is missing"))?;
    }
    let folder = workspace.folder("images")?;
    let program = folder.join("comparator");
    let mut command = Command::new(COMPILER);
    command.args(["-std=gnu11", "-O2", "-static", "-pthread", "-Wall", "-Wextra", "-Werror", "-o"]);
    command.arg(&program).arg(workspace.root().join(SOURCE));
    apt::checked(&mut command)
        .with_context(|| format!("{SOURCE} does not build; it needs {}", PACKAGES.join(" and ")))?;
    let program =
        std::fs::read(&program).with_context(|| format!("can't read the comparator, {}", program.display()))?;
    let mut archive = Archive::new();
    // The kernel opens /dev/console for init before anything is mounted.
    archive.directory("dev").character_device("dev/console", 5, 1).file("init", 0o755, &program);
    let path = folder.join("kvm.cpio");
    crate::workspace::write_whole(&path, &archive.finish())?;
    Ok(path)
}
