//! Files of the image, written whatever was there before.

use anyhow::{Context, Result};
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Writes a file of the image with its folder, whatever it was before.
///
/// # Errors
/// If that fails.
pub fn write_file(root: &Path, path: &str, mode: u32, text: &str) -> Result<()> {
    let file = fresh(root, path)?;
    fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
    fs::set_permissions(&file, Permissions::from_mode(mode))
        .with_context(|| format!("can't change the mode of {}", file.display()))
}

/// A path in the image at which nothing is, in a folder that is there. What was there may have been a link out of the image.
///
/// # Errors
/// If what is there can't be removed, or the folder can't be made.
pub fn fresh(root: &Path, path: &str) -> Result<PathBuf> {
    let file = root.join(path);
    let folder = file.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    let removed = match fs::remove_file(&file) {
        // base-files has folders where its script makes links; in a new system they are empty.
        Err(error) if error.kind() == ErrorKind::IsADirectory => fs::remove_dir(&file),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    };
    removed.with_context(|| format!("can't replace {}", file.display()))?;
    Ok(file)
}
