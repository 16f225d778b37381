//! What the plugin is told: `name=value`, as they stand behind `-plugin`.

use std::path::PathBuf;
use tlb_model::Sizes;

/// All of it.
#[derive(Debug, Default)]
pub struct Settings {
    /// The file that QEMU keeps RAM in.
    pub ram: PathBuf,
    /// The physical address of RAM.
    pub base: u64,
    /// Where records go.
    pub out: PathBuf,
    /// What the model's caches have.
    pub sizes: Sizes,
    /// Whether to count from the guest's first instruction on.
    pub boot: bool,
}

impl Settings {
    /// Reads the words.
    ///
    /// # Errors
    /// A word that says nothing, or one that is missing.
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut settings = Self::default();
        for word in words {
            let (name, value) = word.split_once('=').ok_or_else(|| format!("{word} has no value"))?;
            match name {
                "ram" => settings.ram = value.into(),
                "base" => settings.base = value.parse().map_err(|_| format!("{word}: no number"))?,
                "out" => settings.out = value.into(),
                // Commas end a word of QEMU's.
                "sizes" => settings.sizes = value.replace('/', ",").parse().map_err(|error| format!("{error}"))?,
                "boot" => settings.boot = value == "on",
                _ => return Err(format!("there is no {name}")),
            }
        }
        if settings.ram.as_os_str().is_empty() || settings.out.as_os_str().is_empty() {
            return Err("ram=FILE and out=FILE are needed".into());
        }
        Ok(settings)
    }
}
