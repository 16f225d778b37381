//! `cargo hv trees`: what the hypervisor makes of boards' device trees.
//!
//! A tree as the kernel's package has it is not complete: the boot loader adds RAM and modules. This does so, too.

use crate::cli::Trees;
use crate::ending::Status;
use crate::progress::Step;
use crate::setup::guest::board_trees;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use hypervisor::machine::{GuestRegisters, Interrupt, Machine, MachineError, Uart};
use hypervisor::tree::edit::Branch;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// RAM for trees that have none: most boards have some there, and no device tree of Debian's has registers.
const RAM: u64 = 0x80_0000_0000;
const RAM_BYTES: u64 = 1 << 30;

/// What came of one tree.
#[derive(Debug)]
pub struct Read {
    /// Its file, below the folder that was named.
    pub name: String,
    /// What the hypervisor reads, or why it refuses.
    pub result: Result<Machine, String>,
}

/// Runs the command.
///
/// # Errors
/// If there is nothing to read, or the trees can't be fetched.
pub fn trees(workspace: &Workspace, options: &Trees) -> Result<Status> {
    let path = options.path.clone().map_or_else(|| board_trees(workspace), Ok)?;
    let mut step = Step::begin("Reading device trees");
    let read = read_all(&path)?;
    step.clear();
    for Read { name, result } in &read {
        match result {
            _ if options.summary => {}
            Ok(machine) => println!("{name}: read, {}", interrupts(machine)),
            Err(why) => println!("{name}: refused: {why}"),
        }
    }
    print!("{}", summary(&read));
    if !options.check_interrupts {
        return Ok(Status::Success);
    }
    let listed = listed();
    let wrong = differences(&listed, &read);
    wrong.iter().for_each(|line| println!("{line}"));
    println!("{} of {} boards have the interrupts that docs/boards.md lists", listed.len() - wrong.len(), listed.len());
    Ok(if wrong.is_empty() { Status::Success } else { Status::Failure })
}

/// A board's interrupts as docs/boards.md has them, which another program has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The tree's file.
    pub name: String,
    /// The timer's interrupts by the GIC's numbers, the UART's, and where that lies: as [`trees`] prints them.
    pub interrupts: String,
}

/// The boards in docs/boards.md.
pub fn listed() -> Vec<Listed> {
    let rows = include_str!("../../../docs/boards.md").lines().filter(|line| line.contains(".dtb` |"));
    let listed = rows.filter_map(|row| {
        let mut cells = row.trim_matches(['|', ' ']).split(" | ");
        let (name, timer, uart, address) = (cells.next()?, cells.next()?, cells.next()?, cells.next()?);
        let interrupts = format!("timer {timer}, UART {uart} at {address}");
        Some(Listed { name: name.trim_matches('`').into(), interrupts })
    });
    listed.collect()
}

/// A line for each of these boards that was read otherwise, or not at all.
pub fn differences(listed: &[Listed], read: &[Read]) -> Vec<String> {
    let difference = |Listed { name, interrupts: wanted }: &Listed| {
        let found = match read.iter().find(|read| read.name == *name).map(|read| &read.result) {
            Some(Ok(machine)) => interrupts(machine),
            Some(Err(why)) => format!("refused: {why}"),
            None => "not there".into(),
        };
        (found != *wanted).then(|| format!("{name}: {found}, but docs/boards.md says {wanted}"))
    };
    listed.iter().filter_map(difference).collect()
}

/// Reads the tree at `path`, or every one below it.
///
/// # Errors
/// If there is none, or a file can't be read.
pub fn read_all(path: &Path) -> Result<Vec<Read>> {
    let files = if path.is_dir() { trees_below(path)? } else { vec![path.to_path_buf()] };
    if files.is_empty() {
        bail!("{} has no device trees: no file below it ends in .dtb", path.display());
    }
    let read = |file: PathBuf| {
        let bytes = fs::read(&file).with_context(|| format!("can't read {}", file.display()))?;
        let name = file.strip_prefix(path).ok().filter(|rest| rest.file_name().is_some()).unwrap_or(&file);
        Ok(Read { name: name.display().to_string(), result: read_one(&bytes) })
    };
    files.into_iter().map(read).collect()
}

fn trees_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "dtb") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Reads one tree as the hypervisor does when it is started with it.
///
/// # Errors
/// What the hypervisor says.
pub fn read_one(bytes: &[u8]) -> Result<Machine, String> {
    let mut tree = Branch::read(bytes).map_err(|error| error.to_string())?;
    complete(&mut tree);
    let checked = hypervisor::tree_check::CheckedTree::new(&tree.bytes()).map_err(|error| error.to_string())?;
    let machine = Machine::read(&checked).map_err(|error: MachineError| error.to_string())?;
    // Where nothing else may be in the pages that the guest is given.
    GuestRegisters::new(&machine, &[]).map_err(|error| error.to_string())?;
    Ok(machine)
}

/// Adds what the boot loader adds: RAM, and a kernel for the guest.
fn complete(tree: &mut Branch) {
    let cells = |tree: &Branch, name, default| tree.cells(name).first().copied().unwrap_or(default);
    let (address, size) = (cells(tree, "#address-cells", 2), cells(tree, "#size-cells", 1));
    let number = |value: u64, cells: u32| {
        let parts = [0, 0, (value >> 32) as u32, value as u32];
        parts[parts.len() - cells.clamp(1, 4) as usize..].to_vec()
    };
    // With one cell for addresses there is nothing above 4 GiB.
    let base = if address < 2 { 0x8000_0000 } else { RAM };
    let reg = |start, bytes| [number(start, address), number(bytes, size)].concat();
    let is_memory = |node: &Branch| node.property("device_type") == Some(b"memory\0");
    // What a tree says of memory the boot loader replaces: it is empty, or that of some board or other.
    tree.children.retain(|node| !is_memory(node));
    let mut memory = Branch::new(&format!("memory@{base:x}"));
    memory.set("device_type", *b"memory\0").set_cells("reg", &reg(base, RAM_BYTES));
    tree.add(memory);
    if !tree.children.iter().any(|node| node.name == "chosen") {
        tree.add(Branch::new("chosen"));
    }
    let chosen = tree.at("chosen");
    chosen.set_cells("#address-cells", &[address]).set_cells("#size-cells", &[size]);
    let mut kernel = Branch::new("module@kernel");
    kernel
        .set("compatible", *b"multiboot,kernel\0multiboot,module\0")
        .set_cells("reg", &reg(base + (16 << 20), 1 << 20));
    chosen.add(kernel);
}

/// The interrupts that a board's guest needs, by the GIC's numbers.
fn interrupts(machine: &Machine) -> String {
    let list = |interrupts: &[Interrupt]| {
        let numbers: Vec<String> = interrupts.iter().map(|interrupt| interrupt.intid().to_string()).collect();
        numbers.join(" ")
    };
    let uart = match &machine.uart {
        None => "none".into(),
        Some(Uart { device, .. }) => match device.interrupt {
            Some(interrupt) => format!("{} at {:#x}", interrupt.intid(), device.registers.start()),
            None => format!("no interrupt at {:#x}", device.registers.start()),
        },
    };
    format!("timer {}, UART {uart}", list(&machine.timer.interrupts))
}

/// How many were read, and how many refused for which reason, whatever node it was at.
fn summary(read: &[Read]) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for why in read.iter().filter_map(|read| read.result.as_ref().err()) {
        *reasons.entry(kind_of(why)).or_default() += 1;
    }
    let refused: usize = reasons.values().sum();
    let mut text = format!("{} trees: {} read, {refused} refused\n", read.len(), read.len() - refused);
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (reason, count) in reasons {
        let _ = writeln!(text, "{count:6}  {reason}");
    }
    text
}

/// A reason without paths and numbers, so that equal kinds are counted together.
fn kind_of(why: &str) -> String {
    let word = |word: &str| match word {
        word if word.starts_with('/') => "...".to_string(),
        word if word.contains("'s/") => format!("{}'s ...", word.split("'s/").next().unwrap_or_default()),
        word if word.starts_with("0x") => "...".to_string(),
        word => word.to_string(),
    };
    why.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_kinds_of_refusals_are_counted_together() {
        let refused = |why: &str| Read { name: String::new(), result: Err(why.into()) };
        let read = [refused("the device tree's /soc/a@1 lacks x"), refused("the device tree's /soc/b@2 lacks x")];
        assert_eq!(summary(&read), "2 trees: 0 read, 2 refused\n     2  the device tree's ... lacks x\n");
    }

    #[test]
    fn boards_are_listed_with_their_interrupts() {
        let listed = listed();
        assert!(listed.len() >= 30, "{} boards", listed.len());
        let board = listed.iter().find(|board| board.name == "xilinx/zynqmp-zcu102-rev1.0.dtb").unwrap();
        assert_eq!(board.interrupts, "timer 29 30 27 26, UART 53 at 0xff000000");
        let read = Read { name: board.name.clone(), result: Err("no PSCI".into()) };
        let wrong = differences(&listed, &[read]);
        assert_eq!(wrong.len(), listed.len());
        assert!(wrong.iter().any(|line| line.contains("zcu102") && line.contains("refused: no PSCI")), "{wrong:?}");
    }

    #[test]
    fn what_is_no_tree_is_refused_in_words() {
        assert!(read_one(b"nothing").unwrap_err().contains("bytes"));
    }
}
