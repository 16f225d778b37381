//! Whether the engine's interface keeps what its last published version promised.

use super::tally::{Tally, quiet};
use crate::progress::Step;
use crate::workspace::{Workspace, cargo};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

/// The tool, from crates.io.
const TOOL: &str = "cargo-semver-checks";
/// What stands before the version in the tag of a published engine.
const TAGS: &str = "stage2-v";

/// Compares the engine's interface with the one at its last tag. With no tag there is nothing to keep, and without the
/// tool, which `may_install` lets be compiled (minutes), nothing to compare with: both are said, and pass.
///
/// # Errors
/// If something that users have is gone or has another meaning while the version says that it has not.
pub fn semver(workspace: &Workspace, step: &Step, may_install: bool) -> Result<Tally> {
    let Some(tag) = last_tag(workspace)? else {
        step.print(&format!("hv: no tag {TAGS}… yet: no version to compare with"));
        return Ok(Tally::default());
    };
    let tool = match find_or_install(workspace, step, may_install) {
        Ok(tool) => tool,
        Err(error) => {
            step.print(&format!("hv: not compared with {tag}: {error:#}"));
            return Ok(Tally::default());
        }
    };
    let mut command = Command::new(tool);
    command.args(["semver-checks", "--package", "stage2", "--baseline-rev", &tag]);
    command.current_dir(workspace.root()).env("CARGO_TARGET_DIR", workspace.folder("semver")?);
    quiet(command, step)
}

/// The tag of the last published engine that this commit comes from.
fn last_tag(workspace: &Workspace) -> Result<Option<String>> {
    let matching = format!("{TAGS}*");
    let mut command = Command::new("git");
    command.args(["describe", "--tags", "--abbrev=0", "--match", &matching]).current_dir(workspace.root());
    let output = command.output().context("can't run git")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

/// The tool: the user's, or one of the build folder's own.
fn find_or_install(workspace: &Workspace, step: &Step, may_install: bool) -> Result<PathBuf> {
    if Command::new(TOOL).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(TOOL.into());
    }
    let root = workspace.folder("tools")?;
    let tool = root.join("bin").join(TOOL);
    if !tool.is_file() {
        ensure!(may_install, "there is no {TOOL}: `cargo install {TOOL}` or `cargo hv test --all semver` gets it");
        step.detail("installing cargo-semver-checks, some minutes");
        let mut command = Command::new(cargo());
        command.args(["install", TOOL, "--locked", "--root"]).arg(&root).current_dir(workspace.root());
        quiet(command, step)?;
    }
    Ok(tool)
}
