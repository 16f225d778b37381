//! `cargo hv quickstart`: the engine in the smallest program at EL2 that runs a guest (examples/quickstart).

use crate::console::{Lines, text};
use crate::ending::{self, Status};
use crate::images;
use crate::machine::Machine;
use crate::run::{self, Flow, Stop};
use crate::setup::emulator::Emulator;
use crate::size::Size;
use crate::workspace::Workspace;
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

/// Seconds; it takes one.
const TIMEOUT: u64 = 60;

/// The machine that it runs on: this program in the first GiB, its guest in the second.
#[must_use]
pub fn machine(image: &Path, cpu: &str) -> Machine {
    Machine { cpu: cpu.into(), memory: Size::mib(2048), ..Machine::new(image) }
}

/// Runs the command.
///
/// # Errors
/// If something can't be set up or built.
pub fn quickstart(workspace: &Workspace, cpu: &str) -> Result<Status> {
    let image = images::quickstart(workspace)?;
    let emulator = Emulator::find_or_install(std::env::var_os("HV_QEMU").as_deref().map(Path::new))?;
    emulator.check_cpu(cpu)?;
    let mut lines = Lines::default();
    let outcome = run::capture(&emulator, &machine(&image, cpu), Duration::from_secs(TIMEOUT), |bytes, _| {
        lines.push(bytes, |line| println!("{}", text(line)));
        Flow::Continue
    })?;
    let end = outcome.console.lines().iter().rev().find_map(|line| line.strip_prefix("end: ").map(str::to_owned));
    let status = match (outcome.stop, end.as_deref()) {
        (Stop::Exited(status), Some("passed")) if status.success() => Status::Success,
        (_, Some(_)) => Status::Failure,
        (Stop::TimedOut, _) => Status::Timeout,
        (Stop::Exited(status), _) if !status.success() => Status::Emulator,
        _ => Status::NoResult,
    };
    if !matches!(status, Status::Success | Status::Failure) {
        eprintln!("{}", ending::explain(status, &outcome, TIMEOUT));
    }
    Ok(status)
}
