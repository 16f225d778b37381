//! Documents are true: their links lead somewhere, and their commands are understood and tried.

mod commands;
mod links;
mod markdown;

use std::path::{Path, PathBuf};

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All documents that are part of the workspace: their paths from its root.
fn documents() -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(folder) = todo.pop() {
        for entry in root().join(&folder).read_dir().expect("the workspace can be read").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = folder.join(&name);
            if entry.path().is_dir() {
                // What is built, and what git keeps, is not the workspace's.
                if name != "target" && !name.starts_with('.') {
                    todo.push(path);
                }
            } else if name.ends_with(".md") {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    assert!(found.iter().any(|path| path == "README.md") && found.len() > 8, "{found:?}");
    found
}
