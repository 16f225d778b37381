//! The public API, listed: `api.txt` is what users can rely on, and this test keeps it what the source says: items with
//! their derives, implementations with their bounds, and the auto traits of each type, as the compiler sees them.
//!
//! After a change that is meant: `UPDATE_API=1 cargo test -p stage2 --test api`, and a line in CHANGELOG.md.

mod auto_traits;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What a listed line begins with, visibility included.
const ITEMS: [&str; 13] = [
    "pub fn ",
    "pub const fn ",
    "pub unsafe fn ",
    "pub const unsafe fn ",
    "pub struct ",
    "pub enum ",
    "pub trait ",
    "pub unsafe trait ",
    "pub type ",
    "pub const ",
    "pub static ",
    "pub mod ",
    "pub use ",
];

/// The names of the types that `source` declares for everybody.
fn public_types(source: &str) -> impl Iterator<Item = &str> {
    let source = source.split("#[cfg(test)]\nmod").next().unwrap_or("");
    source.lines().map(str::trim).filter_map(|line| {
        let name = line.strip_prefix("pub struct ").or(line.strip_prefix("pub enum "))?;
        name.split(|c: char| !c.is_alphanumeric()).next()
    })
}

/// What a line tells of a type before it is declared, and users rely on.
fn is_listed_attribute(text: &str) -> bool {
    ["#[derive(", "#[non_exhaustive]", "#[repr(", "#[must_use ="].iter().any(|start| text.starts_with(start))
}

/// Whether the line begins an implementation for one of `types`.
fn is_implementation(text: &str, types: &BTreeSet<String>) -> bool {
    let Some(header) = text.strip_prefix("unsafe ").unwrap_or(text).strip_prefix("impl") else { return false };
    let of = header.rsplit_once(" for ").map_or_else(|| behind_parameters(header), |(_, of)| of);
    let name = of.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap_or("");
    types.contains(name)
}

/// What comes after the parameters in `<` and `>` that `header` may begin with.
fn behind_parameters(header: &str) -> &str {
    let mut depth = 0;
    let end = header.find(|c| {
        depth += i32::from(c == '<') - i32::from(c == '>');
        depth == 0
    });
    header[end.unwrap_or(0)..].trim_start_matches('>')
}

/// The declarations of one source file, in their order: items with their derives, fields, variants, the methods of traits,
/// and the headers of implementations for `types`.
fn declarations(source: &str, types: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut attributes = String::new();
    let mut lines = source.lines().peekable();
    // Inside of a `pub enum`, `pub trait` or the table of a macro that makes one: what is listed there has no `pub`.
    let mut inside = None;
    while let Some(line) = lines.next() {
        let text = line.trim();
        if text == "#[cfg(test)]" {
            break;
        }
        if text.starts_with("//") || text.starts_with("#[") {
            if is_listed_attribute(text) {
                let _ = write!(attributes, "{text} ");
            }
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        if inside.is_some_and(|(_, outer)| indent <= outer && text.starts_with('}')) {
            inside = None;
        }
        let field = text.starts_with("pub ") && text.contains(": ") && text.ends_with(',');
        let attributes = std::mem::take(&mut attributes);
        let listed = match inside {
            None if indent == 0 && is_implementation(text, types) => true,
            _ if ITEMS.iter().any(|item| text.starts_with(item)) || field => true,
            Some(("trait", outer)) => {
                indent == outer + 4
                    && (text.starts_with("fn ") || text.starts_with("unsafe fn ") || text.starts_with("const "))
            }
            Some((_, outer)) => indent == outer + 4 && text.starts_with(|c: char| c.is_ascii_uppercase()),
            None => false,
        };
        if text == "events! {" || text.starts_with("pub enum ") && text.ends_with('{') {
            inside = Some(("enum", indent));
        } else if text.contains("trait ") && text.starts_with("pub ") && text.ends_with('{') {
            inside = Some(("trait", indent));
        }
        if !listed {
            continue;
        }
        // A declaration goes on until its body or its end.
        let mut whole = attributes + text;
        let complete =
            |text: &str| text.ends_with(['{', ';', ',', '}']) && text.matches('(').count() == text.matches(')').count();
        while !complete(&whole) {
            let Some(next) = lines.next() else { break };
            let _ = write!(whole, " {}", next.trim());
        }
        found.push(whole.trim_end_matches(['{', ' ', ',', ';']).to_owned());
    }
    found
}

/// All files below `folder`, in the order of their paths.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

#[test]
fn the_api_is_what_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("src");
    let files = files_below(&source);
    let texts: Vec<String> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let types: BTreeSet<String> = texts.iter().flat_map(|text| public_types(text)).map(str::to_owned).collect();
    let mut listing = String::new();
    for (file, text) in files.iter().zip(&texts) {
        let name = file.strip_prefix(&source).unwrap().display();
        let found = declarations(text, &types);
        if !found.is_empty() {
            let _ = writeln!(listing, "[{name}]");
            found.iter().for_each(|line| {
                let _ = writeln!(listing, "{line}");
            });
        }
    }
    let _ = writeln!(listing, "[auto traits]\n{}", auto_traits::listing(&types));
    let path = root.join("api.txt");
    if std::env::var_os("UPDATE_API").is_some() {
        std::fs::write(&path, &listing).unwrap();
    }
    let recorded = std::fs::read_to_string(&path).unwrap();
    for (number, (now, before)) in listing.lines().zip(recorded.lines()).enumerate() {
        assert_eq!(
            now,
            before,
            "line {} of api.txt: is the change meant? Then UPDATE_API=1 cargo test -p stage2 --test api, and a line in \
             CHANGELOG.md",
            number + 1
        );
    }
    assert_eq!(listing.lines().count(), recorded.lines().count(), "something was added to or removed from the API");
}

#[test]
fn declarations_are_found() {
    let source = "\
/// Doc.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Thing {
    pub field: u64,
    private: u64,
}
pub(crate) fn hidden() {}
unsafe impl<A: Door> Other for Thing {}
impl<T: Visitor<Thing>> Door for Hidden<T> {}
impl Thing {
    #[must_use]
    pub const fn new(
        a: u64,
        b: u64,
    ) -> Self {
        let x = 1;
    }
}
pub enum Choice {
    /// Doc.
    One,
    Two { x: u64 },
}
pub unsafe trait Door {
    fn open(&self) -> bool;
    unsafe fn kick(&self) {
        todo()
    }
}
#[cfg(test)]
mod tests { pub fn not_me() {} }
";
    let expected = [
        "#[derive(Clone, Debug)] #[non_exhaustive] pub struct Thing",
        "pub field: u64",
        "unsafe impl<A: Door> Other for Thing {}",
        "impl Thing",
        "pub const fn new( a: u64, b: u64, ) -> Self",
        "pub enum Choice",
        "One",
        "Two { x: u64 }",
        "pub unsafe trait Door",
        "fn open(&self) -> bool",
        "unsafe fn kick(&self)",
    ];
    let types: BTreeSet<String> = public_types(source).map(str::to_owned).collect();
    assert!(types.iter().eq(["Choice", "Thing"]));
    assert_eq!(declarations(source, &types), expected);
}
