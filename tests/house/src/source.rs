//! Source files: of the workspace, or invented.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Texts by their paths, which are relative to the workspace and have `/` between folders.
pub type Sources = BTreeMap<String, String>;

/// All files below `root/folder` whose names end in one of `extensions`. A folder that is not there has none.
///
/// # Errors
/// If a folder or a file can't be read.
pub fn read(root: &Path, folder: &str, extensions: &[&str]) -> io::Result<Sources> {
    let mut sources = Sources::new();
    let path = root.join(folder);
    if !path.is_dir() {
        return Ok(sources);
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            sources.extend(read(root, &name, extensions)?);
        } else if name.rsplit_once('.').is_some_and(|(_, extension)| extensions.contains(&extension)) {
            sources.insert(name, std::fs::read_to_string(entry.path())?);
        }
    }
    Ok(sources)
}
