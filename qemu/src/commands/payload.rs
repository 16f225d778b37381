//! `cargo hv payload`: the EL1 test suite under the hypervisor.

use crate::cli::{Log, Payload};
use crate::console::{self, Lines, PREFIX};
use crate::ending::{self, Status};
use crate::images::{self, Image};
use crate::run::{self, Flow};
use crate::size::Size;
use crate::workspace::Workspace;
use anyhow::Result;

/// Seconds that the suite may take, unless `--timeout` says otherwise.
const TIMEOUT: u64 = 300;

/// RAM, unless `--memory` says otherwise: enough for two leaves of 1 GiB side by side.
const MEMORY: Size = Size::mib(3072);

/// Runs the command.
///
/// # Errors
/// If something can't be set up.
pub fn payload(workspace: &Workspace, options: &Payload) -> Result<Status> {
    let (emulator, mut machine) = super::prepare(workspace, &options.common, Image::Hypervisor)?;
    let payload = images::build(workspace, Image::Payload)?;
    machine.memory = options.common.memory.unwrap_or(MEMORY);
    machine.append += " hypercalls=on";
    let bootargs = options.filter.as_ref().map_or_else(String::new, |filter| format!("filter={filter}"));
    machine.load_guest(&payload, None, &bootargs)?;

    let everything = options.common.log >= Log::Debug;
    let mut lines = Lines::default();
    let mut result = None;
    let outcome = run::capture(&emulator, &machine, options.common.timeout_or(TIMEOUT), |bytes, _| {
        lines.push(bytes, |line| {
            let line = console::text(line);
            if everything || !line.starts_with(PREFIX) {
                println!("{line}");
            }
            if !line.starts_with(PREFIX) && !line.trim().is_empty() {
                // Only the guest's last line is its result.
                result = console::passed_and_failed(&line);
            }
        });
        Flow::Continue
    })?;
    let status = match (ending::judge(&outcome), result) {
        (Status::Success, Some((passed, 0))) if passed > 0 => Status::Success,
        (Status::Success, Some(_)) => Status::Failure,
        (Status::Success, None) => Status::NoResult,
        (other, _) => other,
    };
    let text = ending::explain(status, &outcome, options.common.timeout_or(TIMEOUT).as_secs());
    if !text.is_empty() {
        eprintln!("{text}");
    }
    if result.is_some_and(|(passed, failed)| passed == 0 && failed == 0) {
        eprintln!("hv: no test ran; is there one whose name contains the filter?");
    }
    Ok(status)
}
