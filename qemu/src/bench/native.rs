//! The engine's memory work on the host (tests/native): runs the benchmarks, and makes a table of what criterion stored.

use crate::workspace::{Workspace, cargo};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

const PACKAGE: &str = "native-bench";
/// Times everything, and beside it peer crates.
const ENGINE: &str = "engine";
/// Fails if a ratio is missed.
const LIMITS: &str = "limits";

/// What the peer crates have no function for, so that no row of theirs is missing by oversight.
const PEERS_CAN_NOT: &str = "\
What the peers can't do, and so have no row for:
  aarch64-paging        split a block while a CPU uses the table (only before it is activated); collapse pages to a
                        block (compact_subtables frees empty tables); keep a dirty log; change a table from two threads
  page_table_multiarch  split a block at all (a smaller mapping inside one is an error: it was unmapped and mapped
                        again, invalid in between); collapse; keep a dirty log; change a table from two threads
page_table_multiarch is timed with the host architecture's entries: four levels, of as many entries of as many bytes.";

/// Times in nanoseconds by group: the functions' names, in the order in which they ran.
type Groups = BTreeMap<String, Vec<Timing>>;

/// One function's median.
#[derive(Debug, Clone, PartialEq)]
struct Timing {
    name: String,
    nanoseconds: f64,
    when: SystemTime,
}

/// Checks the limits; without `quick`, also times everything and prints the table. Says whether all limits hold.
///
/// # Errors
/// If the benchmarks don't build or don't run to their end.
pub fn run(workspace: &Workspace, quick: bool) -> Result<bool> {
    let begin = SystemTime::now();
    if !quick {
        let status = bench(workspace, ENGINE).stdout(Stdio::null()).status().context("can't run cargo")?;
        ensure!(status.success(), "the benchmarks of {PACKAGE} did not run to their end ({status})");
        let groups = read(&workspace.target().join("criterion"), begin)?;
        ensure!(!groups.is_empty(), "criterion stored no result");
        print!("{}", table(&groups));
        println!("{PEERS_CAN_NOT}\n");
    }
    let output =
        bench(workspace, LIMITS).stderr(Stdio::inherit()).stdin(Stdio::null()).output().context("can't run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    ensure!(text.contains(" passed, "), "the limits of {PACKAGE} were not checked ({})", output.status);
    Ok(output.status.success())
}

fn bench(workspace: &Workspace, name: &str) -> Command {
    let mut command = Command::new(cargo());
    command.args(["bench", "--quiet", "--package", PACKAGE, "--bench", name]).current_dir(workspace.root());
    command.env("CARGO_TARGET_DIR", workspace.target());
    command
}

/// Reads what criterion has stored since `begin`: GROUP/FUNCTION/new/{benchmark,estimates}.json.
fn read(folder: &Path, begin: SystemTime) -> Result<Groups> {
    let mut groups = Groups::new();
    let list = |folder: &Path| -> Result<Vec<_>> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("can't read {}", folder.display()))?;
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
    };
    let json = |path: &Path| -> Result<serde_json::Value> {
        let text = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
    };
    for function in list(folder)?.iter().map(|group| list(group)).collect::<Result<Vec<_>>>()?.concat() {
        let path = function.join("new/estimates.json");
        let Ok(when) = std::fs::metadata(&path).and_then(|data| data.modified()) else { continue };
        if when < begin {
            // Of an earlier run; the benchmark may not exist any more.
            continue;
        }
        let about = json(&function.join("new/benchmark.json"))?;
        let text = |key: &str| about[key].as_str().map(str::to_owned);
        let group = text("group_id").with_context(|| format!("{} names no group", function.display()))?;
        let name = text("function_id").or_else(|| text("value_str")).unwrap_or_default();
        let nanoseconds = json(&path)?["median"]["point_estimate"]
            .as_f64()
            .with_context(|| format!("{} has no median", path.display()))?;
        groups.entry(group).or_default().push(Timing { name, nanoseconds, when });
    }
    groups.values_mut().for_each(|timings| timings.sort_by_key(|timing| timing.when));
    Ok(groups)
}

/// The table: each group's first function is what the others are compared with.
fn table(groups: &Groups) -> String {
    let mut text = String::from("Times on this host, medians; the speed is relative to each group's first row.\n");
    for (group, timings) in groups {
        // Writing to a string can't fail.
        let _ = writeln!(text, "\n{group}");
        let first = timings.first().map_or(f64::NAN, |timing| timing.nanoseconds);
        for timing in timings {
            let _ = writeln!(
                text,
                "  {:44} {:>12} {:>9.3} x",
                timing.name,
                time(timing.nanoseconds),
                first / timing.nanoseconds
            );
        }
    }
    text.push('\n');
    text
}

/// A time with a unit that fits.
fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        time if time < 1e3 => format!("{time:.1} ns"),
        time if time < 1e6 => format!("{:.1} us", time / 1e3),
        time => format!("{:.2} ms", time / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    #[test]
    fn what_criterion_stored_is_read() {
        let folder = std::env::temp_dir().join(format!("hv-native-{}", std::process::id()));
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let store = |path: &str, about: &str, median: &str, seconds: u64| {
            let path = folder.join(path).join("new");
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("benchmark.json"), about).unwrap();
            let estimates = path.join("estimates.json");
            fs::write(&estimates, format!(r#"{{"median":{{"point_estimate":{median}}}}}"#)).unwrap();
            let file = fs::File::options().write(true).open(estimates).unwrap();
            file.set_modified(begin + Duration::from_secs(seconds)).unwrap();
        };
        store("split/memset", r#"{"group_id":"split","function_id":"memset","value_str":null}"#, "1000.0", 1);
        store("growth/64 GiB", r#"{"group_id":"growth","function_id":null,"value_str":"64 GiB"}"#, "2.5e6", 0);
        fs::create_dir_all(folder.join("split/report")).unwrap();
        store("split/engine", r#"{"group_id":"split","function_id":"engine"}"#, "1600.0", 2);
        let groups = read(&folder, begin).unwrap();
        let later = read(&folder, begin + Duration::from_secs(2)).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let names: Vec<&str> = groups["split"].iter().map(|timing| timing.name.as_str()).collect();
        assert_eq!(names, ["memset", "engine"]);
        assert_eq!((groups.len(), later.len(), later["split"].len()), (2, 1, 1));
        let text = table(&groups);
        let line = |name: &str| text.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
        assert!(line("engine").ends_with("1.6 us     0.625 x"), "{text}");
        assert!(line("64 GiB").contains("2.50 ms"), "{text}");
    }
}
