//! A recorded run as one page of HTML: nothing outside of the file is needed to read it.

mod cells;
mod page;
mod plot;
mod read;

use crate::workspace::write_whole;
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The page's name in the run's folder.
pub const FILE: &str = "report.html";

/// Makes the page of the run in `folder`, there or at `out`, and returns its path.
///
/// # Errors
/// If the folder holds no run that can be read, or the page can't be written.
pub fn write(folder: &Path, out: Option<&Path>) -> Result<PathBuf> {
    let run = read::run(folder)?;
    let path = out.map_or_else(|| folder.join(FILE), Path::to_owned);
    write_whole(&path, page::page(&run).into_string().as_bytes())?;
    Ok(path)
}

#[cfg(test)]
mod tests;
