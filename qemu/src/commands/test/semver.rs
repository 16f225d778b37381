//! Whether the engine's interface keeps what its last published version promised.

use super::checks::Task;
use super::tally::{Tally, quiet};
use crate::workspace::cargo;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// The tool, from crates.io.
const TOOL: &str = "cargo-semver-checks";
/// What stands before the version in the tag of a published engine.
const TAGS: &str = "stage2-v";

/// Compares the engine's interface with the one at its last tag. With no tag there is nothing to keep, and without the
/// tool (it is compiled the first time, which takes minutes) nothing to compare with: both are said, and pass.
///
/// # Errors
/// If something that users have is gone or has another meaning while the version says that it has not.
pub fn semver(task: Task<'_>) -> Result<Tally> {
    let Some(tag) = last_tag(task)? else {
        task.step.print(&format!("hv: no tag {TAGS}… yet: no version to compare with"));
        return Ok(Tally::default());
    };
    let tool = match find_or_install(task) {
        Ok(tool) => tool,
        Err(error) => {
            task.step.print(&format!("hv: {TOOL} can't be had: {error:#}"));
            return Ok(Tally::default());
        }
    };
    let mut command = Command::new(tool);
    command.args(["semver-checks", "--package", "stage2", "--baseline-rev", &tag]);
    command.current_dir(task.workspace.root()).env("CARGO_TARGET_DIR", task.workspace.folder("semver")?);
    quiet(command, task.step)
}

/// The tag of the last published engine that this commit comes from.
fn last_tag(task: Task<'_>) -> Result<Option<String>> {
    let matching = format!("{TAGS}*");
    let mut command = Command::new("git");
    command.args(["describe", "--tags", "--abbrev=0", "--match", &matching]).current_dir(task.workspace.root());
    let output = command.output().context("can't run git")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

/// The tool: the user's, or one of the build folder's own.
fn find_or_install(task: Task<'_>) -> Result<PathBuf> {
    if Command::new(TOOL).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(TOOL.into());
    }
    let root = task.workspace.folder("tools")?;
    let tool = root.join("bin").join(TOOL);
    if !tool.is_file() {
        task.step.detail("installing cargo-semver-checks, some minutes");
        let mut command = Command::new(cargo());
        command.args(["install", TOOL, "--locked", "--root"]).arg(&root).current_dir(task.workspace.root());
        quiet(command, task.step)?;
    }
    Ok(tool)
}
