//! How large the engine is where it is embedded: what `cargo hv secure-partition --size` has measured last.

use crate::code_size::CodeSize;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::path::Path;

/// Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes {
    /// The compiler that built it.
    pub compiler: String,
    /// Code of all that is called.
    pub text: u64,
    /// For each entry point of the engine: its short name, and the stack that a call of it takes; the deepest first.
    pub stack: Vec<(String, u64)>,
}

impl Sizes {
    /// Of a measurement.
    pub fn of(measured: &CodeSize, compiler: String) -> Self {
        let mut stack: Vec<(String, u64)> =
            measured.stack.iter().map(|(name, bytes)| (short(name).to_owned(), *bytes)).collect();
        stack.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        stack.dedup_by(|a, b| a.0 == b.0);
        Self { compiler, text: measured.text, stack }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it can't be read, or has no sizes.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} has no sizes", path.display()))
    }

    /// As JSON.
    ///
    /// # Errors
    /// None that can happen with numbers and names.
    pub fn json(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).context("can't write sizes as JSON")?;
        text.push(b'\n');
        Ok(text)
    }

    /// As a table for a document.
    pub fn table(&self) -> String {
        let mut text = String::from("| | bytes |\n| --- | ---: |\n");
        // Writing to a string can't fail.
        let _ = writeln!(text, "| code of all that the example uses | {} |", self.text);
        for (name, bytes) in &self.stack {
            let _ = writeln!(text, "| stack of a call of `{name}` | {bytes} |");
        }
        text + &format!("\nBuilt by {}.\n", self.compiler)
    }
}

/// The last part of a function's path, without type arguments.
fn short(name: &str) -> &str {
    let end = name.ends_with('>').then(|| name.rfind("::<")).flatten().unwrap_or(name.len());
    let path = name.get(..end).unwrap_or(name);
    path.rsplit("::").next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short() {
        for (name, expected) in [
            ("<stage2::table::Stage2<P>>::map", "map"),
            ("stage2::mapping::map::<impl stage2::table::Stage2<P>>::collapse", "collapse"),
            ("stage2::table::Stage2<P>::fault::<secure_partition::Frames>", "fault"),
            ("plain", "plain"),
        ] {
            assert_eq!(short(name), expected);
        }
    }

    #[test]
    fn the_deepest_call_comes_first() {
        let measured = CodeSize {
            text: 24_000,
            functions: Vec::new(),
            stack: vec![("a::new".into(), 384), ("a::map".into(), 1008), ("b::map".into(), 900)],
            indirect: Vec::new(),
        };
        let table = Sizes::of(&measured, "rustc 1".into()).table();
        assert!(table.contains("24000 |\n| stack of a call of `map` | 1008 |"), "{table}");
    }
}
