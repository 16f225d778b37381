//! Files in QEMU's arguments.

use anyhow::{Context, Result, ensure};
use std::path::Path;

/// A comma ends an option's value in QEMU's syntax; two are a comma in it.
pub fn double_commas(text: &str) -> String {
    text.replace(',', ",,")
}

/// A file's size.
///
/// # Errors
/// If there is no such file; the error names it.
pub fn file_size(path: &Path) -> Result<u64> {
    let data = std::fs::metadata(path).with_context(|| format!("can't find the file {}", path.display()))?;
    ensure!(data.is_file(), "{} is not a file", path.display());
    Ok(data.len())
}
