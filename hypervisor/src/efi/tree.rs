//! The device tree that the image is entered with: firmware's, with what firmware's memory map says, and with the guest's
//! files where the image loaded them itself.
//!
//! The memory map is what counts under UEFI: it has what firmware took for itself, the tree has what the board's maker
//! soldered. So memory nodes go and one comes instead; what firmware keeps is added to the memory reservation block, for a
//! `/reserved-memory` that may be there already has cells and ranges of its own. Everything else stays.

use super::EfiError;
use super::memory_map::Memory;
use crate::range::PhysRange;
use crate::tree::{Node, Tree, cell_counts};
use crate::tree_check::{self, Blocks, CheckedTree};
use alloc::vec::Vec;

/// What the image loaded by itself, for it was started without a boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded<'a> {
    /// The hypervisor's options.
    pub options: &'a str,
    /// The guest's kernel.
    pub kernel: PhysRange,
    /// The kernel's arguments.
    pub arguments: &'a str,
    /// The guest's initramfs.
    pub initrd: Option<PhysRange>,
}

/// Whether a boot loader has put modules into the tree.
pub fn has_modules(tree: &Tree<'_>) -> bool {
    // "multiboot,module", "xen,multiboot-module" from older boot loaders, or what Xen's names say alone.
    const NAMES: [&[u8]; 2] = [b"multiboot", b"xen,linux-"];
    let said = |part: &[u8]| NAMES.iter().any(|name| part.starts_with(name));
    let is_module = |node: Node<'_, '_>| {
        let names = node.property("compatible").unwrap_or_default();
        (0..names.len()).any(|at| said(&names[at..]))
    };
    let has = |parent: Node<'_, '_>| parent.children().any(is_module);
    let chosen = tree.root().and_then(|root| root.child("chosen"));
    chosen.is_some_and(|chosen| has(chosen) || chosen.child("modules").is_some_and(has))
}

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;

/// Properties of `/chosen` that are written anew where the image loaded the guest.
const LOADED: [&[u8]; 5] = [b"#address-cells", b"#size-cells", b"bootargs", b"xen,xen-bootargs", b"xen,dom0-bootargs"];

/// Writes the tree.
///
/// # Errors
///
/// [`EfiError::NoTree`], [`EfiError::RootCells`].
pub fn write(tree: &CheckedTree, memory: &Memory, loaded: Option<&Loaded<'_>>) -> Result<Vec<u8>, EfiError> {
    let open = Tree::open(tree);
    let root = open.root().filter(|root| root.child("cpus").is_some()).ok_or(EfiError::NoTree)?;
    let ram = memory_reg(&memory.ram, cell_counts(root, (2, 1)))?;

    let blocks = tree.blocks();
    let mut writer = Writer { structure: Vec::new(), strings: blocks.strings.to_vec() };
    let mut tokens = Tokens { blocks: &blocks, at: 0 };
    let (mut depth, mut chosen, mut chosen_seen) = (0, false, false);
    // Where the child of the root that is being copied begins, and whether it is memory.
    let (mut child_at, mut is_memory) = (0, false);
    while let Some((token, raw)) = tokens.next() {
        match token {
            Token::Begin(name) => {
                depth += 1;
                if depth == 2 {
                    (child_at, is_memory) = (writer.structure.len(), false);
                    chosen = !chosen_seen && name.split(|&byte| byte == b'@').next() == Some(b"chosen");
                    chosen_seen |= chosen;
                }
                writer.raw(raw);
                if let Some(loaded) = loaded.filter(|_| chosen && depth == 2) {
                    writer.loaded_properties(loaded);
                }
            }
            Token::Property(name, value) => {
                let kind = value.split(|&byte| byte == 0).next();
                is_memory |= depth == 2 && name == b"device_type" && kind == Some(b"memory");
                if !(chosen && depth == 2 && loaded.is_some() && LOADED.contains(&name)) {
                    writer.raw(raw);
                }
            }
            Token::EndNode => {
                if let Some(loaded) = loaded.filter(|_| chosen && depth == 2) {
                    writer.loaded_modules(loaded);
                }
                if depth == 1 {
                    if let Some(loaded) = loaded.filter(|_| !chosen_seen) {
                        writer.begin("chosen");
                        writer.loaded_properties(loaded);
                        writer.loaded_modules(loaded);
                        writer.word(END_NODE);
                    }
                    writer.memory(&memory.ram, &ram);
                }
                writer.raw(raw);
                if depth == 2 && is_memory {
                    writer.structure.truncate(child_at);
                }
                depth -= 1;
            }
            Token::End => writer.structure.extend_from_slice(raw),
        }
    }
    let reservations = reservations(blocks.reservations, &memory.kept);
    Ok(tree_check::assemble(&reservations, &writer.structure, &writer.strings, blocks.boot_cpu))
}

/// The `reg` of a memory node below a root with these cell counts.
fn memory_reg(ram: &[PhysRange], (address_cells, size_cells): (usize, usize)) -> Result<Vec<u8>, EfiError> {
    // One cell holds sizes below 4 GiB: more is written as several entries.
    let largest = if size_cells == 1 { 1 << 31 } else { u64::MAX };
    let mut reg = Vec::new();
    for range in ram {
        let mut start = range.start();
        while start < range.end() {
            let size = largest.min(range.end() - start);
            for (number, cells) in [(start, address_cells), (size, size_cells)] {
                if cells == 0 || (cells == 1 && number > u64::from(u32::MAX)) {
                    return Err(EfiError::RootCells { address: start });
                }
                for cell in (0..cells).rev() {
                    let word = if cell < 2 { (number >> (32 * cell)) as u32 } else { 0 };
                    reg.extend_from_slice(&word.to_be_bytes());
                }
            }
            start += size;
        }
    }
    Ok(reg)
}

/// The memory reservation block with these ranges added.
fn reservations(block: &[u8], kept: &[PhysRange]) -> Vec<u8> {
    // The last entry of the block, all zeros, ends it.
    let mut entries = block[..block.len().saturating_sub(16)].to_vec();
    let kept = kept.iter().map(|range| [range.start(), range.size()]);
    for word in kept.chain([[0, 0]]).flatten() {
        entries.extend_from_slice(&word.to_be_bytes());
    }
    entries
}

/// A token of a structure block.
enum Token<'a> {
    Begin(&'a [u8]),
    Property(&'a [u8], &'a [u8]),
    EndNode,
    End,
}

/// The tokens of a checked tree's structure block, each with its bytes.
struct Tokens<'a> {
    blocks: &'a Blocks<'a>,
    at: usize,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Option<(Token<'a>, &'a [u8])> {
        let rest = self.blocks.structure.get(self.at..)?;
        let word = |at: usize| rest.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word));
        let text = |bytes: &'a [u8]| bytes.split(|&byte| byte == 0).next();
        let (token, length) = match word(0)? {
            BEGIN_NODE => {
                let name = text(rest.get(4..)?)?;
                (Token::Begin(name), 4 + (name.len() + 1).next_multiple_of(4))
            }
            PROPERTY => {
                let length = word(4)? as usize;
                let name = text(self.blocks.strings.get(word(8)? as usize..)?)?;
                (Token::Property(name, rest.get(12..12 + length)?), 12 + length.next_multiple_of(4))
            }
            END_NODE => (Token::EndNode, 4),
            _ => (Token::End, 4),
        };
        self.at += length;
        Some((token, rest.get(..length)?))
    }
}

/// The structure and strings blocks that are being written.
struct Writer {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Writer {
    /// Adds bytes, and zeros up to the next word.
    #[inline(never)]
    fn raw(&mut self, bytes: &[u8]) {
        self.structure.extend_from_slice(bytes);
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
    }

    fn word(&mut self, word: u32) {
        self.raw(&word.to_be_bytes());
    }

    fn begin(&mut self, name: &str) {
        self.word(BEGIN_NODE);
        self.raw(&[name.as_bytes(), b"\0"].concat());
    }

    #[inline(never)]
    fn property(&mut self, name: &str, value: &[u8]) {
        self.word(PROPERTY);
        // Lengths and offsets fit: a tree has at most a few hundred KiB, a command line 64 KiB.
        self.word(value.len() as u32);
        self.word(self.strings.len() as u32);
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        self.raw(value);
    }

    fn string(&mut self, name: &str, value: &str) {
        self.property(name, &[value.as_bytes(), b"\0"].concat());
    }

    /// A memory node with this `reg`.
    fn memory(&mut self, ram: &[PhysRange], reg: &[u8]) {
        self.begin(&alloc::format!("memory@{:x}", ram.first().map_or(0, |range| range.start())));
        self.string("device_type", "memory");
        self.property("reg", reg);
        self.word(END_NODE);
    }

    /// What `/chosen` says where the image loaded the guest.
    fn loaded_properties(&mut self, loaded: &Loaded<'_>) {
        self.property("#address-cells", &2_u32.to_be_bytes());
        self.property("#size-cells", &2_u32.to_be_bytes());
        self.string("bootargs", loaded.options);
    }

    /// The modules, as boot loaders for Xen write them.
    fn loaded_modules(&mut self, loaded: &Loaded<'_>) {
        let kernel = ("kernel", loaded.kernel, Some(loaded.arguments));
        let initrd = loaded.initrd.map(|initrd| ("ramdisk", initrd, None));
        for (kind, range, arguments) in core::iter::once(kernel).chain(initrd) {
            self.begin(&alloc::format!("module@{:x}", range.start()));
            self.string("compatible", &alloc::format!("multiboot,{kind}\0multiboot,module"));
            self.property("reg", &[range.start(), range.size()].map(u64::to_be_bytes).concat());
            if let Some(arguments) = arguments {
                self.string("bootargs", arguments);
            }
            self.word(END_NODE);
        }
    }
}
