//! What gdb is told, so that addresses of a machine that waits for it have names.

use crate::machine::Machine;
use crate::placement::RAM_BASE;
use anyhow::{Context, Result, ensure};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The debugger; its Debian package has the same name.
pub const GDB: &str = "gdb-multiarch";
/// Where QEMU loads the hypervisor: behind 2 MiB that it keeps for its own boot code.
const LOADED: u64 = RAM_BASE + (2 << 20);

/// A program of the guest's whose names gdb is to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbols {
    /// Its ELF file.
    pub file: PathBuf,
    /// How far from its linked addresses it runs.
    pub offset: u64,
}

/// The gdb script that attaches to the machine behind `socket`, with the names of the hypervisor's ELF file and the guest's.
///
/// The hypervisor moves once, by `enter_image(tree, image)`: there gdb learns its names a second time, at the address in x1, and
/// each breakpoint by name gets its second place. (QEMU keeps breakpoints beside the memory, so the copy has none in it.)
///
/// # Errors
/// If a path can't be written in a script.
pub fn script(socket: &Path, hypervisor: &Path, guest: Option<&Symbols>) -> Result<String> {
    let hypervisor = quoted(hypervisor)?;
    let mut text = String::from("set pagination off\nset confirm off\nset architecture aarch64\n");
    // Writing to a string can't fail.
    let _ = writeln!(text, "add-symbol-file {hypervisor} -o {LOADED:#x}");
    if let Some(Symbols { file, offset }) = guest {
        let _ = writeln!(text, "add-symbol-file {} -o {offset:#x}", quoted(file)?);
    }
    // Here gdb takes the rest of the line as it is.
    let _ = writeln!(text, "target remote {}", plain(socket)?);
    let _ = writeln!(text, "tbreak enter_image\ncommands\nsilent\nadd-symbol-file {hypervisor} -o $x1\ncontinue\nend");
    Ok(text)
}

/// A path as gdb's commands take it.
fn quoted(path: &Path) -> Result<String> {
    Ok(format!("\"{}\"", plain(path)?))
}

fn plain(path: &Path) -> Result<&str> {
    let text = path.to_str().with_context(|| format!("{} is not valid UTF-8", path.display()))?;
    ensure!(!text.contains(['"', '\\', '\n']), "gdb can't be told of a path with quotes or backslashes in it: {text}");
    Ok(text)
}

/// Has QEMU wait, before the first instruction, for a gdb at `socket`: one of the file system and not of the network, so that
/// only this user can connect to it.
///
/// # Errors
/// If the path is none that QEMU takes.
pub fn wait_at(machine: &mut Machine, socket: &Path) -> Result<()> {
    let path = socket.to_str().with_context(|| format!("{} is not valid UTF-8", socket.display()))?;
    ensure!(path.len() < 108, "the path of a socket has at most 107 bytes, and {path} has {}", path.len());
    let chardev = format!("socket,id=gdb,path={},server=on,wait=off", path.replace(',', ",,"));
    machine.extra.extend(["-S", "-chardev", &chardev, "-gdb", "chardev:gdb"].map(Into::into));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gdb_is_told_where_things_lie() {
        let guest = Symbols { file: "/b/vm linux".into(), offset: 0x4800_0000 };
        let text = script(Path::new("/tmp/s"), Path::new("/b/unbroken"), Some(&guest)).unwrap();
        let has = |line: &str| text.lines().any(|other| other == line);
        assert!(has("add-symbol-file \"/b/unbroken\" -o 0x40200000") && has("target remote /tmp/s"), "{text}");
        assert!(has("add-symbol-file \"/b/vm linux\" -o 0x48000000"), "{text}");
    }

    #[test]
    fn paths_that_gdb_would_misread_are_refused() {
        for path in ["/tmp/a\"b", "/tmp/a\\b", "/tmp/a\nshell rm"] {
            assert!(script(Path::new(path), Path::new("/b"), None).is_err(), "{path}");
        }
        let mut machine = Machine::new("/none");
        assert!(wait_at(&mut machine, Path::new(&format!("/tmp/{}", "x".repeat(200)))).is_err());
        wait_at(&mut machine, Path::new("/tmp/a,b")).unwrap();
        assert!(machine.extra.iter().any(|word| word.to_string_lossy().contains("path=/tmp/a,,b,server=on")));
    }
}
