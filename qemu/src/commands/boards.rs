//! `cargo hv boards`: Linux under the hypervisor on each board that QEMU models, and by U-Boot.

use crate::boards::{BOARDS, Board, LEAST_QEMU, Ran};
use crate::cli::Boards;
use crate::ending::Status;
use crate::images::{self, Image};
use crate::progress::Step;
use crate::setup::emulator::Emulator;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Runs the command.
///
/// # Errors
/// If something can't be fetched or built. A board that fails is a [`Status::Failure`].
pub fn boards(workspace: &Workspace, options: &Boards) -> Result<Status> {
    let chosen = choose(&options.only)?;
    let newer = chosen.iter().any(|board| !board.is_in_any_qemu());
    let emulator = if newer {
        Emulator::newer(workspace, options.qemu.as_deref(), LEAST_QEMU)?
    } else {
        Emulator::find_or_install(options.qemu.as_deref())?
    };
    let image = images::build(workspace, Image::Hypervisor)?;
    let scratch = Scratch(workspace.folder("scratch")?.join(format!("boards-{}", std::process::id())));
    fs::create_dir_all(&scratch.0).with_context(|| format!("can't create {}", scratch.0.display()))?;

    let mut rows = vec![["board", "CPUs", "GIC", "UART", "loader", "tree", "result", "time"].map(String::from)];
    let mut failed = 0;
    for board in &chosen {
        let step = Step::begin(format!("Booting Linux on {}", board.name));
        let begin = Instant::now();
        let limit = Duration::from_secs(options.timeout);
        let ran = board.boot(workspace, &emulator, &image, &scratch.0, limit)?;
        let verdict = ran.judge(board);
        step.done(if verdict.is_ok() { "it printed on its UART, and powered off" } else { "failed" });
        if let Err(why) = &verdict {
            failed += 1;
            eprintln!("hv: {}: {why}. The end of its console:\n{}", board.name, ran.outcome.console.tail(20));
            if !ran.outcome.complaints.is_empty() {
                eprintln!("QEMU says: {}", ran.outcome.complaints);
            }
        }
        rows.push(row(board, &ran, verdict.is_ok(), begin.elapsed()));
    }
    print!("{}", table(&rows));
    println!("{} of {} booted, with QEMU {}", chosen.len() - failed, chosen.len(), emulator.version);
    Ok(if failed == 0 { Status::Success } else { Status::Failure })
}

fn choose(only: &[String]) -> Result<Vec<Board>> {
    for name in only {
        let names = BOARDS.map(|board| board.name).join(", ");
        ensure!(BOARDS.iter().any(|board| board.name == name), "there is no board `{name}`; there are {names}");
    }
    Ok(BOARDS.into_iter().filter(|board| only.is_empty() || only.iter().any(|name| name == board.name)).collect())
}

fn row(board: &Board, ran: &Ran, booted: bool, time: Duration) -> [String; 8] {
    let said =
        |word: fn(&crate::boards::Said) -> &String| ran.said.as_ref().map_or("-".into(), |said| word(said).clone());
    [
        board.name.into(),
        said(|said| &said.cpus),
        said(|said| &said.gic),
        said(|said| &said.console),
        board.loader().into(),
        board.tree().into(),
        if booted { "boots" } else { "fails" }.into(),
        format!("{:.1} s", time.as_secs_f64()),
    ]
}

/// Rows under each other, the first one as their heading.
fn table(rows: &[[String; 8]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let line = |row: &[String; 8]| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed is in the build folder and harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_that_does_not_exist_is_refused() {
        assert_eq!(choose(&[]).unwrap().len(), BOARDS.len());
        assert_eq!(choose(&["u-boot".into()]).unwrap()[0].name, "u-boot");
        assert!(choose(&["raspi".into()]).unwrap_err().to_string().contains("imx8mp-evk"));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cell: &str| [cell, "b", "", "", "", "", "", ""].map(String::from);
        assert_eq!(table(&[row("name"), row("x")]), "name  b\nx     b\n");
    }
}
