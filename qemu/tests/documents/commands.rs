//! Commands of documents: each is understood, and each is in a list that says which test runs it, or why none does.

use super::{documents, markdown, root};
use clap::Parser;
use qemu::cli::Cli;
use std::collections::BTreeSet;

/// The list: `COMMAND => FILE::TEST`, or `COMMAND => not: REASON`.
const LIST: &str = include_str!("commands.txt");
/// Stands in a command for what the reader is to put there; such a command is not parsed.
const PLACEHOLDERS: [&str; 4] = ["…", "...", "FILE", "TEST"];

/// A line of the list.
#[derive(Debug)]
struct Entry<'a> {
    command: &'a str,
    how: &'a str,
}

fn list() -> Vec<Entry<'static>> {
    let lines = LIST.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &'static str| {
        let (command, how) = line.split_once(" => ").unwrap_or_else(|| panic!("`{line}` has no =>"));
        Entry { command: command.trim(), how: how.trim() }
    };
    lines.map(entry).collect()
}

/// The commands of all documents, each with one that has it.
fn commands() -> Vec<(String, String)> {
    let read = |path: String| {
        let text = std::fs::read_to_string(root().join(&path)).expect("a document can be read");
        markdown::read(&text).commands.into_iter().map(move |command| (command, path.clone())).collect::<Vec<_>>()
    };
    documents().into_iter().flat_map(read).collect()
}

#[test]
fn every_command_is_in_the_list() {
    let listed: BTreeSet<&str> = list().iter().map(|entry| entry.command).collect();
    let commands = commands();
    let missing: Vec<String> = commands
        .iter()
        .filter(|(command, _)| !listed.contains(command.as_str()))
        .map(|(command, path)| format!("{path}: `{command}` is not in qemu/tests/documents/commands.txt"))
        .collect();
    assert!(missing.is_empty(), "\n{}\n", missing.join("\n"));
    let used: BTreeSet<&str> = commands.iter().map(|(command, _)| command.as_str()).collect();
    let left: Vec<&&str> = listed.iter().filter(|command| !used.contains(**command)).collect();
    assert!(left.is_empty(), "no document has these commands of the list any more: {left:#?}");
    assert_eq!(listed.len(), list().len(), "a command is in the list twice");
}

#[test]
fn every_command_is_understood() {
    for (command, path) in commands() {
        let Some(words) = command.strip_prefix("cargo hv").filter(|words| words.is_empty() || words.starts_with(' '))
        else {
            continue;
        };
        if PLACEHOLDERS.iter().any(|placeholder| words.contains(placeholder)) || words.contains("$") {
            continue;
        }
        let words = shlex::split(words).unwrap_or_else(|| panic!("{path}: `{command}` has an open quote"));
        if let Err(error) = Cli::try_parse_from(std::iter::once("hv".to_owned()).chain(words)) {
            let told = [clap::error::ErrorKind::DisplayHelp, clap::error::ErrorKind::DisplayVersion];
            let whole = !error.use_stderr() && told.contains(&error.kind());
            // A command that is only named, as `cargo hv`, has nothing to say what to do.
            let named = command == "cargo hv";
            assert!(whole || named, "{path}: `{command}` is not understood: {error}");
        }
    }
}

#[test]
fn the_tests_that_the_list_names_are_there() {
    for Entry { command, how } in list() {
        if let Some(reason) = how.strip_prefix("not: ") {
            assert!(reason.len() > 10, "`{command}`: say why no test runs it");
            continue;
        }
        let (file, test) = how.rsplit_once("::").unwrap_or_else(|| panic!("`{how}` is no FILE::TEST"));
        let path = root().join(file);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|_| panic!("`{command}`: there is no {file}"));
        // A check of `cargo hv test` has a name, a test a function.
        let there = text.contains(&format!("fn {test}(")) || text.contains(&format!("(\"{test}\", "));
        assert!(there, "`{command}`: {file} has no test {test}");
    }
}
