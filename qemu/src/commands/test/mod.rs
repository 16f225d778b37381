//! `cargo hv test`: everything that CI checks, less between two changes (`--quick`), or more (`--all`).

mod changed;
mod checks;
mod semver;
mod tally;

use crate::cli::Test;
use crate::ending::Status;
use crate::progress::Step;
use crate::workspace::Workspace;
use anyhow::{Result, bail};
use checks::{CHECKS, Check, Task, Tier};
use std::process::Command;
use std::time::{Duration, Instant};
use tally::Tally;

/// A check that is to run, and which of its tests: those whose name contains this.
type Chosen<'a> = (&'static Check, Option<&'a str>);

/// Runs the command. The last line on standard output is `N passed, N failed`.
///
/// # Errors
/// If a name is no check's. A check that can't be run has failed.
pub fn test(workspace: &Workspace, options: &Test) -> Result<Status> {
    let tier = match (options.quick, options.all) {
        (true, _) => Tier::Quick,
        (_, true) => Tier::All,
        _ => Tier::Default,
    };
    let chosen = choose(tier, &options.names)?;
    if options.list {
        list(&chosen);
        return Ok(Status::Success);
    }
    let begun = Instant::now();
    let (mut tally, mut repeat, mut slow, mut ready) = (Tally::default(), Vec::new(), Vec::new(), true);
    for (check, filter) in chosen {
        if check.boots && !ready {
            // There is nothing to boot with, or nothing to be booted: the set-up has failed, and said why.
            continue;
        }
        let (result, took) = run(workspace, tier, check, filter);
        repeat.extend(commands(tier, check, filter, &result));
        if took.as_secs() > check.budget && tier == Tier::Default {
            slow.push(format!("{} took {} s of its {} s", check.name, took.as_secs(), check.budget));
        }
        ready &= check.name != "set-up" || result.failed == 0;
        tally.add(result);
    }
    for command in &repeat {
        eprintln!("hv: to repeat a failure: {command}");
    }
    if !slow.is_empty() {
        eprintln!("hv: over budget, on a host that is slow or busy, or because of new tests: {}", slow.join("; "));
    }
    if tally.ignored > 0 && options.names.is_empty() {
        eprintln!("hv: {} long tests were left out: `cargo hv test --all` runs them", tally.ignored);
    }
    let minutes = begun.elapsed().as_secs().div_ceil(60);
    eprintln!("hv: {minutes} min in all");
    if tier == Tier::All && options.names.is_empty() {
        let counts = format!("{} passed, {} failed", tally.passed, tally.failed);
        eprintln!("hv: for docs/testing.md: {} | {minutes} min | {counts}", date_and_commit(workspace));
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 { Status::Success } else { Status::Failure })
}

/// The checks of a tier, or those with these names: `CHECK`, or `CHECK::TEST`.
fn choose<'a>(tier: Tier, names: &'a [String]) -> Result<Vec<Chosen<'a>>> {
    if names.is_empty() {
        return Ok(CHECKS.iter().filter(|check| check.tiers.contains(&tier)).map(|check| (check, None)).collect());
    }
    let find = |name: &'a String| {
        let (first, filter) = match name.split_once("::") {
            Some((first, filter)) => (first, Some(filter)),
            None => (name.as_str(), None),
        };
        let Some(check) = CHECKS.iter().find(|check| check.name == first) else {
            bail!(
                "there is no check `{first}`: `cargo hv test --list --all` has their names; a test is CHECK::TEST, as host::{name}"
            );
        };
        if filter.is_some() && !check.has_tests {
            bail!("`{first}` has no tests that can be named: leave out what follows `{first}`");
        }
        Ok((check, filter.filter(|filter| !filter.is_empty())))
    };
    names.iter().map(find).collect()
}

/// Prints the checks' names.
fn list(chosen: &[Chosen<'_>]) {
    for (check, _) in chosen {
        let tests = if check.has_tests { format!("; one test: {}::NAME", check.name) } else { String::new() };
        println!("{:<18}{}{tests}", check.name, check.what);
    }
}

/// Runs one check, and says how it went and how long it took.
fn run(workspace: &Workspace, tier: Tier, check: &Check, filter: Option<&str>) -> (Tally, Duration) {
    let begun = Instant::now();
    let step = Step::begin(check.what);
    let result = match (check.run)(Task { workspace, tier, filter, step: &step }) {
        Ok(result) => {
            step.done(&format!("{} passed, {} failed", result.passed, result.failed));
            result
        }
        Err(error) => {
            drop(step);
            eprintln!("hv: {}: FAILED: {error:#}", check.what);
            Tally::failure()
        }
    };
    (result, begun.elapsed())
}

/// The commands that repeat what failed in a check: its tests or, if none of them is known, all that was asked for.
fn commands(tier: Tier, check: &Check, filter: Option<&str>, result: &Tally) -> Vec<String> {
    let all = if tier == Tier::All { "--all " } else { "" };
    let command = |name: &str| format!("cargo hv test {all}{name}");
    match result.names.as_slice() {
        _ if result.failed == 0 => Vec::new(),
        [] => vec![command(&filter.map_or(check.name.into(), |filter| format!("{}::{filter}", check.name)))],
        names => names.iter().map(|name| command(&format!("{}::{name}", check.name))).collect(),
    }
}

/// Today and the commit, as the table in the documentation has them.
fn date_and_commit(workspace: &Workspace) -> String {
    let said = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).current_dir(workspace.root()).output();
        output.map_or_else(|_| "?".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    format!("{} | {}", said("date", &["-u", "+%F"]), said("git", &["describe", "--always", "--dirty", "--exclude=*"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Result<Vec<(&'static str, Option<String>)>> {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let chosen = choose(Tier::Default, &names)?;
        Ok(chosen.into_iter().map(|(check, filter)| (check.name, filter.map(str::to_owned))).collect())
    }

    #[test]
    fn checks_and_tests_are_chosen_by_name() {
        assert_eq!(chosen(&["format", "host::a::b"]).unwrap(), [("format", None), ("host", Some("a::b".into()))]);
        for name in ["no-such-check", "format::x", "::", ""] {
            assert!(chosen(&[name]).is_err(), "{name}");
        }
        let usual = chosen(&[]).unwrap();
        assert!(usual.contains(&("system", None)) && !usual.contains(&("matrix", None)));
    }

    #[test]
    fn a_failure_has_a_command_that_repeats_it() {
        let names = ["host".to_owned()];
        let (check, _) = choose(Tier::Default, &names).unwrap()[0];
        let failed = Tally { names: vec!["a::b".into(), "c".into()], failed: 2, ..Tally::default() };
        assert_eq!(
            commands(Tier::Default, check, None, &failed),
            ["cargo hv test host::a::b", "cargo hv test host::c"]
        );
        assert_eq!(commands(Tier::All, check, None, &Tally::failure()), ["cargo hv test --all host"]);
        assert_eq!(commands(Tier::Default, check, Some("x"), &Tally::failure()), ["cargo hv test host::x"]);
        assert!(commands(Tier::All, check, None, &Tally::one()).is_empty());
    }
}
