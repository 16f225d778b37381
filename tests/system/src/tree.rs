//! Device trees of the tests' own: QEMU's, with one thing changed.

use crate::{Scratch, bytes, hypervisor, run};
use qemu::machine::{Machine, Module};
use qemu::run::Outcome;
use std::ffi::OsString;
use std::path::Path;

/// The device tree that QEMU makes for a machine.
///
/// # Panics
/// If QEMU writes none.
pub fn tree_of(scratch: &Scratch, machine: &Machine) -> Vec<u8> {
    let path = scratch.path("tree.dtb");
    let mut machine = machine.clone();
    machine.extra.extend(["-machine".into(), OsString::from(format!("dumpdtb={}", path.display()))]);
    run(&machine);
    std::fs::read(path).expect("QEMU writes the device tree")
}

/// Where the tests put a device tree of their own.
pub const TREE: u64 = bytes::RAM + (512 << 20);

/// Starts the hypervisor on `machine`, whose modules lie where they did, with a device tree of the test's own, which QEMU
/// does not change.
///
/// # Panics
/// If QEMU can't be run.
pub fn run_with_tree(scratch: &Scratch, machine: Machine, tree: &[u8]) -> Outcome {
    run_with_tree_at(scratch, machine, tree, TREE)
}

/// The same with the tree at `address`.
///
/// # Panics
/// If QEMU can't be run.
pub fn run_with_tree_at(scratch: &Scratch, mut machine: Machine, tree: &[u8], address: u64) -> Outcome {
    let load = |file: &Path, address: u64| {
        ["-device".into(), OsString::from(format!("loader,file={},addr={address:#x},force-raw=on", file.display()))]
    };
    for Module { address, file, .. } in std::mem::take(&mut machine.modules) {
        machine.extra.extend(load(&file, address));
    }
    machine.extra.extend(load(&scratch.file("own.dtb", tree), address));
    machine.extra.extend(load(hypervisor(), bytes::HYPERVISOR));
    machine.kernel = scratch.file("starter", &bytes::starter(address));
    run(&machine)
}

/// Replaces the only occurrence of some bytes.
///
/// # Panics
/// If there is none, or more than one.
pub fn replace(tree: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> = (0..=tree.len() - from.len()).filter(|&at| tree[at..].starts_with(from)).collect();
    let [place] = places[..] else { panic!("{} occurrences", places.len()) };
    tree[place..place + to.len()].copy_from_slice(to);
}

/// A range in a `reg`, with two cells for each number.
pub fn reg(address: u64, size: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_be_bytes());
    bytes[8..].copy_from_slice(&size.to_be_bytes());
    bytes
}

/// Cuts off what lies behind the strings block: QEMU leaves much room there, and makes more for a tree that it is given.
pub fn pack(tree: &mut Vec<u8>) {
    let word = |at: usize| u32::from_be_bytes(tree[at..at + 4].try_into().expect("four bytes"));
    let (strings, strings_size) = (word(12), word(32));
    let size = strings + strings_size;
    tree.truncate(size as usize);
    tree[4..8].copy_from_slice(&size.to_be_bytes());
}

// Tokens of the structure block (Devicetree Specification 0.4, 5.4.1).
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;
// Fields of the header (5.2): their offsets.
const TOTAL: usize = 4;
const STRUCTURE: usize = 8;
const STRINGS: usize = 12;
const STRINGS_SIZE: usize = 32;
const STRUCTURE_SIZE: usize = 36;

fn word(tree: &[u8], at: usize) -> usize {
    u32::from_be_bytes(tree[at..at + 4].try_into().expect("four bytes")) as usize
}

fn add(tree: &mut [u8], field: usize, more: usize) {
    let sum = (word(tree, field) + more) as u32;
    tree[field..field + 4].copy_from_slice(&sum.to_be_bytes());
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The token and the name that a node begins with.
fn beginning(node: &str) -> Vec<u8> {
    padded([&BEGIN_NODE.to_be_bytes()[..], node.as_bytes(), &[0]].concat())
}

/// Puts more into the structure block. What follows it moves.
fn insert(tree: &mut Vec<u8>, at: usize, more: &[u8]) {
    assert!(word(tree, STRUCTURE) < word(tree, STRINGS), "the strings follow the structure");
    tree.splice(at..at, more.iter().copied());
    for field in [TOTAL, STRINGS, STRUCTURE_SIZE] {
        add(tree, field, more.len());
    }
}

/// Adds a property to the only node of this name.
///
/// # Panics
/// If there is no such node, or more than one.
pub fn add_property(tree: &mut Vec<u8>, node: &str, name: &str, value: &[u8]) {
    let begin = beginning(node);
    let places: Vec<usize> = (0..tree.len() - begin.len()).filter(|&at| tree[at..].starts_with(&begin)).collect();
    let [place] = places[..] else { panic!("{} nodes {node}", places.len()) };
    let name_at = word(tree, STRINGS_SIZE);
    let end = word(tree, STRINGS) + name_at;
    let name = padded([name.as_bytes(), &[0]].concat());
    tree.splice(end..end, name.iter().copied());
    add(tree, TOTAL, name.len());
    add(tree, STRINGS_SIZE, name.len());
    let property = [PROPERTY, value.len() as u32, name_at as u32].map(u32::to_be_bytes).concat();
    insert(tree, place + begin.len(), &[property, padded(value.to_vec())].concat());
}

/// Adds a node without properties, as the root's last.
///
/// # Panics
/// If the tree does not end as trees do.
pub fn add_node(tree: &mut Vec<u8>, node: &str) {
    let end = [END_NODE, END].map(u32::to_be_bytes).concat();
    let at = word(tree, STRUCTURE) + word(tree, STRUCTURE_SIZE) - end.len();
    assert!(tree[at..].starts_with(&end), "the structure ends with the root's end");
    insert(tree, at, &[beginning(node), END_NODE.to_be_bytes().to_vec()].concat());
}
