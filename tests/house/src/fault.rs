//! What is wrong, and where.

use std::fmt;

/// A sentence about a line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file, relative to the workspace.
    pub file: String,
    /// Its line, from 1 on.
    pub line: usize,
    /// What is wrong there.
    pub sentence: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.sentence)
    }
}
