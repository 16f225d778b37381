//! A Rust that compiles for the images' target, in the order of what disturbs the user's machine least.

use super::{Finding, apt};
use crate::progress::Step;
use crate::workspace::{Workspace, cargo};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Both images' target: EL2 must not touch the guest's vector registers.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";
/// Debian's second Rust toolchain, recent even in an older release; its source is where build-std looks for it.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const DEBIAN_CLIPPY: &str = "rust-web-clippy";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_CLIPPY_PROGRAM: &str = "/usr/bin/cargo-clippy";
/// The oldest compiler that builds the workspace (`rust-version` in Cargo.toml).
const OLDEST: (u32, u32) = (1, 88);

/// A compiler together with the library that it links for [`TARGET`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    kind: Kind,
    linker: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The active toolchain has the target's library.
    Installed,
    /// The active toolchain has the library's source.
    BuildStd,
    /// Debian's toolchain in /usr/bin, which brings the source.
    Debian,
}

impl Toolchain {
    /// Finds one, or gets what is missing.
    ///
    /// # Errors
    /// If there is none and the tool may not install any; the sentence says what to install.
    pub fn find_or_install(workspace: &Workspace) -> Result<Self> {
        if let Some(toolchain) = Self::find() {
            return Ok(toolchain);
        }
        let _lock = workspace.lock("rust")?;
        if may_use_rustup() {
            let step = Step::begin(format!("Adding {TARGET} through rustup (about 40 MB)"));
            match apt::checked(Command::new("rustup").args(["target", "add", TARGET]).current_dir(workspace.root())) {
                Ok(_) => step.done("added"),
                Err(error) => {
                    drop(step);
                    eprintln!("hv: {error:#}");
                }
            }
        } else if may_use_debian() {
            let mut packages = DEBIAN_PACKAGES.to_vec();
            if rust_lld().is_none() && apt::find_program("ld.lld").is_none() {
                packages.push("lld");
            }
            apt::install(&packages)?;
        }
        Self::find().map_or_else(|| bail!(advice()), Ok)
    }

    /// What there is, for `doctor`.
    pub fn examine() -> Finding {
        match Self::find() {
            Some(toolchain) => Finding::Found(toolchain.to_string()),
            None if may_use_rustup() => Finding::WillGet(format!("rustup target add {TARGET}")),
            None if may_use_debian() => Finding::WillGet(format!("apt-get install {}", DEBIAN_PACKAGES.join(" "))),
            None => Finding::Missing(advice()),
        }
    }

    fn find() -> Option<Self> {
        let linker = || rust_lld().or_else(|| apt::find_program("ld.lld"));
        if let Some(sysroot) = sysroot("rustc") {
            if has_core(&sysroot.join("lib/rustlib").join(TARGET).join("lib")) {
                return Some(Self { kind: Kind::Installed, linker: linker() });
            }
            if has_source(&sysroot) && linker().is_some() {
                return Some(Self { kind: Kind::BuildStd, linker: linker() });
            }
        }
        let debian = Path::new(DEBIAN_CARGO).is_file()
            && version(DEBIAN_RUSTC).is_some_and(|version| version >= OLDEST)
            && sysroot(DEBIAN_RUSTC).is_some_and(|sysroot| has_source(&sysroot));
        (debian && linker().is_some()).then(|| Self { kind: Kind::Debian, linker: linker() })
    }

    /// A Cargo command (`build`, `clippy`) for [`TARGET`].
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = match self.kind {
            Kind::Installed | Kind::BuildStd => Command::new(cargo()),
            Kind::Debian => {
                // Cargo would look for other subcommands in rustup's folder first, so clippy is called by its full name.
                let program = if subcommand == "clippy" { DEBIAN_CLIPPY_PROGRAM } else { DEBIAN_CARGO };
                let mut command = Command::new(program);
                // What the calling Cargo set for its own compiler would mislead this one.
                for name in ["LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTDOC"] {
                    command.env_remove(name);
                }
                command.env("RUSTC", DEBIAN_RUSTC).env("CARGO", DEBIAN_CARGO);
                command
            }
        };
        command.arg(subcommand).args(["--target", TARGET]);
        if let Some(linker) = &self.linker {
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER", linker);
        }
        if self.kind != Kind::Installed {
            command
                .env("RUSTC_BOOTSTRAP", "1")
                .args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]);
        }
        command
    }

    /// The compiler's name and version: another one makes other instructions.
    ///
    /// # Errors
    /// If it can't be run.
    pub fn compiler(&self) -> Result<String> {
        let mut command = match self.kind {
            Kind::Installed | Kind::BuildStd => Command::new("rustc"),
            Kind::Debian => {
                let mut command = Command::new(DEBIAN_RUSTC);
                command.env_remove("LD_LIBRARY_PATH");
                command
            }
        };
        let text = apt::checked(command.arg("--version"))?;
        Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    }

    /// Makes sure that [`cargo`](Self::cargo) knows `clippy`.
    ///
    /// # Errors
    /// If it does not, and it can't be installed.
    pub fn ensure_clippy(&self) -> Result<()> {
        if self.kind == Kind::Debian && !Path::new(DEBIAN_CLIPPY_PROGRAM).is_file() {
            apt::install(&[DEBIAN_CLIPPY])?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Toolchain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            Kind::Installed => write!(f, "the active toolchain has it"),
            Kind::BuildStd => write!(f, "built from the active toolchain's rust-src"),
            Kind::Debian => write!(f, "built from Debian's rust-web-src by /usr/bin/rustc"),
        }
    }
}

/// The folder that a compiler's libraries are in.
fn sysroot(rustc: &str) -> Option<PathBuf> {
    let mut command = Command::new(rustc);
    if rustc != "rustc" {
        command.env_remove("LD_LIBRARY_PATH");
    }
    let path = apt::checked(command.args(["--print", "sysroot"])).ok()?;
    Some(PathBuf::from(path.trim_end()))
}

/// A compiler's version, as (1, 96).
fn version(rustc: &str) -> Option<(u32, u32)> {
    parse_version(&apt::checked(Command::new(rustc).arg("--version").env_remove("LD_LIBRARY_PATH")).ok()?)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.strip_prefix("rustc ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn has_core(folder: &Path) -> bool {
    std::fs::read_dir(folder)
        .is_ok_and(|files| files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
}

fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
}

/// The linker that comes with the active toolchain.
fn rust_lld() -> Option<PathBuf> {
    let hosts = std::fs::read_dir(sysroot("rustc")?.join("lib/rustlib")).ok()?;
    hosts.flatten().map(|host| host.path().join("bin/rust-lld")).find(|path| path.is_file())
}

/// Whether rustup is there and its user lets it download.
fn may_use_rustup() -> bool {
    std::env::var_os("RUSTUP_AUTO_INSTALL").is_none_or(|value| value != "0") && apt::find_program("rustup").is_some()
}

fn may_use_debian() -> bool {
    apt::is_available() && apt::root_prefix().is_some() && apt::may_have(DEBIAN_PACKAGES[0])
}

fn advice() -> String {
    format!(
        "there is no Rust library for {TARGET}. Do one of these:\n  rustup target add {TARGET}\n  \
         rustup component add rust-src\n  apt-get install {} lld   (Debian 12 and later, Ubuntu)",
        DEBIAN_PACKAGES.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"), Some((1, 96)));
        assert_eq!(parse_version("rustc 1.63.0"), Some((1, 63)));
        assert_eq!(parse_version("clang 14"), None);
    }
}
