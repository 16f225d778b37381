//! `cargo hv report`: a recorded run as one page.

use crate::cli::Report;
use crate::ending::Status;
use crate::report;
use anyhow::Result;

/// Runs the command.
///
/// # Errors
/// If the folder holds no run, or the page can't be written.
pub fn report(options: &Report) -> Result<Status> {
    let path = report::write(&options.folder, options.out.as_deref())?;
    eprintln!("hv: {} is the page: open it in a browser", path.display());
    Ok(Status::Success)
}
