//! Asking the tool for a save.

use crate::calls::{hypercall, services};
use crate::machine::report::Outcome;
use crate::machine::{smp, timer};
use crate::options;
use hypervisor_abi::function;

/// How often the guest has gone on from a save, and been stopped.
fn counts() -> [u64; 2] {
    let [_, resumed, stopped, _] = services::hvc(function::RESUMED, [0; 3]);
    [resumed, stopped]
}

/// What the tests return early with.
pub fn required(cpus: usize) -> Outcome {
    if !options::get().saves {
        skip!("nobody saves this guest: the command line has no `saves`");
    }
    hypercall::required()?;
    if smp::count() < cpus {
        skip!("one CPU only");
    }
    Ok(())
}

/// Asks the tool for a save, and waits until the guest has gone on. Calls `meanwhile` again and again.
pub fn wait_for_save(mut meanwhile: impl FnMut()) -> Outcome {
    const LIMIT: u64 = 100_000;
    let before = counts();
    // The tool looks for this line.
    println!("payload: save me");
    let saved = timer::wait_until(LIMIT, || {
        meanwhile();
        counts() != before
    });
    if !saved {
        fail!("nobody has saved the guest in {} s", LIMIT / 1000);
    }
    Ok(())
}
