//! Device trees of the tests' own: QEMU's, with one thing changed.

use crate::{Scratch, run};
use qemu::machine::Machine;
use std::ffi::OsString;

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

/// Adds a property to the only node of this name (Devicetree Specification 0.4, chapter 5). What follows the structure block
/// moves.
///
/// # Panics
/// If there is no such node, or more than one.
pub fn add_property(tree: &mut Vec<u8>, node: &str, name: &str, value: &[u8]) {
    const BEGIN_NODE: u32 = 1;
    const PROPERTY: u32 = 3;
    let word = |tree: &[u8], at: usize| u32::from_be_bytes(tree[at..at + 4].try_into().expect("four bytes")) as usize;
    let add = |tree: &mut Vec<u8>, field: usize, more: usize| {
        let sum = (word(tree, field) + more) as u32;
        tree[field..field + 4].copy_from_slice(&sum.to_be_bytes());
    };
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    // Header fields.
    let (total, structure, strings, strings_size, structure_size) = (4, 8, 12, 32, 36);
    assert!(word(tree, structure) < word(tree, strings), "the strings follow the structure");

    let begin = [&BEGIN_NODE.to_be_bytes()[..], &padded(&[node.as_bytes(), &[0]].concat())].concat();
    let places: Vec<usize> = (0..tree.len() - begin.len()).filter(|&at| tree[at..].starts_with(&begin)).collect();
    let [place] = places[..] else { panic!("{} nodes {node}", places.len()) };
    let name_at = word(tree, strings_size);
    let end = word(tree, strings) + name_at;
    let name = padded(&[name.as_bytes(), &[0]].concat());
    tree.splice(end..end, name.iter().copied());
    let property: Vec<u8> =
        [PROPERTY, value.len() as u32, name_at as u32].into_iter().flat_map(u32::to_be_bytes).collect();
    let property = [property, padded(value)].concat();
    let at = place + begin.len();
    tree.splice(at..at, property.iter().copied());
    add(tree, total, name.len() + property.len());
    add(tree, strings, property.len());
    add(tree, strings_size, name.len());
    add(tree, structure_size, property.len());
}
