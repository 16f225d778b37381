//! Which packages have changed: those that a quick run lints.

use crate::workspace::{Workspace, cargo};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's packages with files that differ from the last commit or, if none does, that the last commit changed.
///
/// # Errors
/// If Cargo or Git can't be asked.
pub fn packages(workspace: &Workspace) -> Result<BTreeSet<String>> {
    let mut files = git(workspace, &["diff", "--name-only", "--no-renames", "HEAD"])?;
    files.extend(git(workspace, &["ls-files", "--others", "--exclude-standard"])?);
    if files.is_empty() {
        files = git(workspace, &["diff-tree", "-r", "-m", "--first-parent", "--no-commit-id", "--name-only", "HEAD"])?;
    }
    Ok(owners(&folders(workspace)?, &files))
}

/// What Git prints, line by line.
fn git(workspace: &Workspace, words: &[&str]) -> Result<Vec<PathBuf>> {
    let output = Command::new("git").args(words).current_dir(workspace.root()).output().context("can't run git")?;
    ensure!(output.status.success(), "git {} failed: {}", words[0], String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect())
}

/// The workspace's packages and their folders, relative to its root.
fn folders(workspace: &Workspace) -> Result<Vec<(String, PathBuf)>> {
    let output = Command::new(cargo())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(workspace.root())
        .output()
        .context("can't run cargo")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("can't read cargo metadata's answer")?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let folder = |package: &serde_json::Value| {
        let manifest = Path::new(package["manifest_path"].as_str()?);
        let folder = manifest.parent()?.strip_prefix(workspace.root()).ok()?;
        Some((package["name"].as_str()?.to_owned(), folder.to_owned()))
    };
    Ok(packages.iter().filter_map(folder).collect())
}

/// The packages that these files belong to: of folders one inside the other, the inner one's.
fn owners(folders: &[(String, PathBuf)], files: &[PathBuf]) -> BTreeSet<String> {
    let owner = |file: &PathBuf| {
        let around = folders.iter().filter(|(_, folder)| file.starts_with(folder));
        around.max_by_key(|(_, folder)| folder.components().count()).map(|(name, _)| name.clone())
    };
    files.iter().filter_map(owner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_belongs_to_the_innermost_package_around_it() {
        let folders = [("outer", "a"), ("inner", "a/b"), ("other", "ab")]
            .map(|(name, folder)| (name.to_owned(), PathBuf::from(folder)));
        let owners = |file: &str| owners(&folders, &[file.into()]).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(owners("a/src/lib.rs"), "outer");
        assert_eq!(owners("a/b/src/lib.rs"), "inner");
        assert_eq!(owners("ab/c"), "other");
        assert_eq!(owners("README.md"), "");
    }
}
