//! What is undone at a run's end, also when a signal ends it: files and folders of its own, and what it has done to the
//! terminal.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What is to be removed.
static ALL: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// What else is to be undone.
static UNDO: Mutex<Vec<fn()>> = Mutex::new(Vec::new());

/// Has `undo` called where the process is about to end and nothing is dropped any more. It may be called when there is nothing
/// to undo.
pub fn undo_at_the_end(undo: fn()) {
    UNDO.lock().unwrap_or_else(PoisonError::into_inner).push(undo);
}

/// A file or a folder that is removed with this value. It need not be there yet.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Temporary {
    /// For this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        ALL.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        remove(&self.0);
        ALL.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Removes all of them, and undoes the rest, where the process is about to end and nothing is dropped any more.
pub fn remove_all() {
    UNDO.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|undo| undo());
    ALL.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|path| remove(path));
}

fn remove(path: &Path) {
    // What can't be removed is in the build folder, and the next run doesn't mind it.
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

/// Removes what runs that are no more have left in a folder: files called `PREFIXPID...SUFFIX`, their process's number in
/// hexadecimal, eight digits.
pub fn sweep(folder: &Path, prefix: &str, suffix: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix(prefix).filter(|rest| rest.ends_with(suffix)).and_then(|rest| rest.get(..8));
        let pid =
            number.and_then(|digits| i32::from_str_radix(digits, 16).ok()).and_then(rustix::process::Pid::from_raw);
        if pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)) {
            remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_gone() {
        let path = std::env::temp_dir().join(format!("hv-temporary-{}", std::process::id()));
        let file = Temporary::new(&path);
        std::fs::write(file.path(), b"x").unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn only_dead_runs_files_are_swept() {
        let folder = std::env::temp_dir().join(format!("hv-sweep-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        // Linux numbers processes up to 2^22.
        let (dead, alive) = (format!("run-{:08x}0.cpio", 0x7fff_fff0), format!("run-{:08x}0.cpio", std::process::id()));
        for name in [&dead, &alive, "run-x.cpio", "shell.cpio"] {
            std::fs::write(folder.join(name), b"").unwrap();
        }
        sweep(&folder, "run-", ".cpio");
        let left: BTreeSet<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, BTreeSet::from([alive, "run-x.cpio".to_owned(), "shell.cpio".to_owned()]));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
