//! `cargo hv replay`: the oracle's judgement of a log of events.

use crate::ending::Status;
use crate::events;
use anyhow::Result;
use std::path::Path;

/// Runs the command.
///
/// # Errors
/// If the file is no log of events.
pub fn replay(file: &Path) -> Result<Status> {
    let judgement = events::judge(file)?;
    events::tell(&judgement);
    Ok(if judgement.is_good() { Status::Success } else { Status::Failure })
}
