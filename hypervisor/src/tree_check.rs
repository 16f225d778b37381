//! Checks a flattened device tree before anything reads it.
//!
//! The tree comes from outside, and the `fdt` crate that reads it later panics on a malformed one, and on the legal
//! `FDT_NOP` token. So the tree is checked here token by token, and copied on the way without its `FDT_NOP`s; only
//! the copy is ever read. The copy also keeps the answer stable when the guest is given the memory of the original.
//!
//! Source of every rule: Devicetree Specification, release 0.4, chapter 5 (Flattened Devicetree Format).

use alloc::vec::Vec;
use core::fmt;

#[cfg(test)]
mod tests;

/// The first word of every tree.
const MAGIC: u32 = 0xd00d_feed;
/// The version whose header has every field that is used here.
const VERSION: u32 = 17;
/// Bytes of a version 17 header.
const HEADER_SIZE: usize = 40;
/// The arm64 boot protocol's limit (Linux, `Documentation/arch/arm64/booting.rst`).
const MAX_TREE_SIZE: usize = 2 << 20;
/// What is copied of a tree has at most so many bytes. QEMU's have 8 KiB in 1 MiB of padding, the largest boards' not
/// 200 KiB; everything that is made from the tree stays within a few times this much of the EL2 heap.
const MAX_CONTENT_SIZE: usize = 256 << 10;
/// Nodes nest no deeper than this, twice the depth of the deepest trees seen; readers recurse, on an EL2 stack.
const MAX_DEPTH: usize = 16;
/// The most nodes; the largest of Debian's 1023 trees has 1112. What is kept for each node takes a tenth of the EL2 heap.
const MAX_NODES: usize = 4096;
/// The most bytes of a property; the largest in those trees has 3272. What is made of a property may be some times as large.
const MAX_PROPERTY_SIZE: usize = 16 << 10;
/// The specification says 31; trees in the field are a little longer. The limit keeps every look-up short.
const MAX_NAME_LEN: usize = 127;

const FDT_BEGIN_NODE: u32 = 1;
const FDT_END_NODE: u32 = 2;
const FDT_PROP: u32 = 3;
const FDT_NOP: u32 = 4;
const FDT_END: u32 = 9;

/// What is wrong with a device tree. Offsets are in bytes from the start of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// The first word is not a tree's.
    Magic {
        /// The word found.
        found: u32,
    },
    /// The tree is longer than the memory it lies in, or than the boot protocol allows, or shorter than its header.
    Size {
        /// The size that the header states.
        stated: usize,
        /// The bytes that are there.
        available: usize,
    },
    /// Its blocks have more bytes than there is room for.
    TooLarge {
        /// Bytes of all blocks.
        size: usize,
    },
    /// More nodes than there is room for.
    Nodes {
        /// Where the first that is too many starts.
        offset: usize,
    },
    /// A property that is larger than any has to be.
    PropertySize {
        /// Where it starts.
        offset: usize,
        /// Its bytes.
        size: usize,
    },
    /// Not version 17, nor compatible with it.
    Version {
        /// The version found.
        found: u32,
    },
    /// A block lies outside the tree, or is not aligned.
    Block {
        /// The block's name in the specification.
        name: &'static str,
        /// Where the header says it starts.
        offset: usize,
    },
    /// The memory reservation block has no terminating entry.
    Reservations,
    /// A word of the structure block is no token, or not one that may stand there.
    Token {
        /// Where.
        offset: usize,
        /// The word.
        token: u32,
    },
    /// The structure block ends in the middle of something.
    Ends {
        /// Where.
        offset: usize,
    },
    /// Nodes nest too deeply.
    Depth {
        /// Where the limit is passed.
        offset: usize,
    },
    /// A node's name is too long, or not printable ASCII, or the root's is not empty.
    NodeName {
        /// Where it starts.
        offset: usize,
    },
    /// A property's value runs past the end of the structure block.
    PropertyValue {
        /// Where the property starts.
        offset: usize,
    },
    /// A property's name lies outside the strings block, or is too long, or not printable ASCII.
    PropertyName {
        /// Where the property starts.
        offset: usize,
    },
}

/// Says what is wrong with "it"; the code that refuses a tree knows where it lies, and says that before.
impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Magic { found } => {
                write!(f, "it starts with {found:#010x}, not {MAGIC:#010x}; x0 must hold a device tree's address")
            }
            Self::Size { stated, available } => write!(
                f,
                "its header says {stated} bytes, but {HEADER_SIZE} to {MAX_TREE_SIZE} are allowed and {available} are \
                 there; pass the whole file"
            ),
            Self::TooLarge { size } => {
                write!(f, "its blocks have {size} bytes, but {MAX_CONTENT_SIZE} are allowed; leave some nodes out")
            }
            Self::Version { found } => {
                write!(f, "it has version {found}, not {VERSION}; make it anew with a current dtc")
            }
            Self::Block { name, offset } => write!(f, "its {name} block at {offset:#x} is misaligned or outside it"),
            Self::Reservations => f.write_str("its memory reservation block has no end"),
            Self::Token { offset, token } => write!(f, "at {offset:#x} stands {token:#x}, which may not stand there"),
            Self::Ends { offset } => write!(f, "it breaks off at {offset:#x}"),
            Self::Nodes { offset } => {
                write!(
                    f,
                    "at {offset:#x} it has more than the {MAX_NODES} nodes that there is room for; leave some out"
                )
            }
            Self::PropertySize { offset, size } => write!(
                f,
                "its property at {offset:#x} has {size} bytes, but {MAX_PROPERTY_SIZE} are allowed; shorten it"
            ),
            Self::Depth { offset } => write!(f, "at {offset:#x} its nodes nest deeper than {MAX_DEPTH}"),
            Self::NodeName { offset } => write!(f, "the node name at {offset:#x} is not a legal one"),
            Self::PropertyValue { offset } => write!(f, "the property at {offset:#x} is longer than what follows"),
            Self::PropertyName { offset } => write!(f, "the property at {offset:#x} has no legal name"),
        }
    }
}

impl core::error::Error for TreeError {}

/// The size in bytes of the tree that starts with these eight bytes.
///
/// A caller that has no more than an address reads these first, then knows how many bytes to hand to
/// [`CheckedTree::new`].
///
/// # Errors
///
/// [`TreeError::Magic`] and [`TreeError::Size`], as for a whole tree.
pub fn total_size(header: [u8; 8]) -> Result<usize, TreeError> {
    let found = word(&header, 0).unwrap_or(0);
    if found != MAGIC {
        return Err(TreeError::Magic { found });
    }
    let stated = word(&header, 4).unwrap_or(0) as usize;
    if !(HEADER_SIZE..=MAX_TREE_SIZE).contains(&stated) {
        return Err(TreeError::Size { stated, available: stated.min(MAX_TREE_SIZE) });
    }
    Ok(stated)
}

/// A copy of a device tree, known to be well-formed and without `FDT_NOP`.
pub struct CheckedTree {
    blob: Vec<u8>,
}

impl CheckedTree {
    /// Checks `bytes`, which may go on behind the tree, and copies the tree.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn new(bytes: &[u8]) -> Result<Self, TreeError> {
        let header = bytes.first_chunk().ok_or(TreeError::Size { stated: 0, available: bytes.len() })?;
        let stated = total_size(*header)?;
        let tree = bytes.get(..stated).ok_or(TreeError::Size { stated, available: bytes.len() })?;
        // `stated` is at least a header, so every field is there.
        let field = |index: usize| word(tree, index * 4).unwrap_or(0) as usize;

        let (version, last_compatible) = (field(5) as u32, field(6) as u32);
        if version < VERSION || last_compatible > VERSION {
            return Err(TreeError::Version { found: version });
        }
        let (structure_offset, strings_offset, reservations_offset) = (field(2), field(3), field(4));
        let structure = block(tree, structure_offset, field(9), 4, "structure")?;
        let strings = block(tree, strings_offset, field(8), 1, "strings")?;
        let reservations = reservations(tree, reservations_offset)?;
        let size = reservations.len() + structure.len() + strings.len();
        if size > MAX_CONTENT_SIZE {
            return Err(TreeError::TooLarge { size });
        }
        let structure = Structure { bytes: structure, origin: structure_offset, strings }.without_nops()?;

        Ok(Self { blob: assemble(reservations, &structure, strings, field(7) as u32) })
    }

    /// The copy's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.blob
    }

    /// The copy's blocks.
    pub(crate) fn blocks(&self) -> Blocks<'_> {
        let field = |index: usize| word(&self.blob, index * 4).unwrap_or(0) as usize;
        let block = |start: usize, end: usize| self.blob.get(start..end).unwrap_or_default();
        // As `assemble` lays them out.
        let (structure, strings) = (field(2), field(3));
        Blocks {
            reservations: block(HEADER_SIZE, structure),
            structure: block(structure, strings),
            strings: block(strings, self.blob.len()),
            boot_cpu: field(7) as u32,
        }
    }
}

/// The blocks of a [`CheckedTree`]: well-formed, and without `FDT_NOP`.
pub(crate) struct Blocks<'a> {
    /// The memory reservation block, its terminating entry included.
    pub reservations: &'a [u8],
    /// The structure block.
    pub structure: &'a [u8],
    /// The strings block.
    pub strings: &'a [u8],
    /// `boot_cpuid_phys`.
    pub boot_cpu: u32,
}

/// Puts the blocks behind a new header, in the order that the specification names: reservations, structure, strings.
pub(crate) fn assemble(reservations: &[u8], structure: &[u8], strings: &[u8], boot_cpu: u32) -> Vec<u8> {
    let structure_offset = HEADER_SIZE + reservations.len();
    let strings_offset = structure_offset + structure.len();
    let total = strings_offset + strings.len();
    // No block is longer than the whole tree was, and that is bounded: every number fits in 32 bits.
    let header = [
        MAGIC,
        total as u32,
        structure_offset as u32,
        strings_offset as u32,
        HEADER_SIZE as u32,
        VERSION,
        16, // the oldest version that version 17 is compatible with
        boot_cpu,
        strings.len() as u32,
        structure.len() as u32,
    ];
    let mut blob = Vec::with_capacity(total);
    blob.extend(header.iter().flat_map(|field| field.to_be_bytes()));
    blob.extend_from_slice(reservations);
    blob.extend_from_slice(structure);
    blob.extend_from_slice(strings);
    blob
}

/// The big-endian word at `offset`.
fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

/// The bytes of a block that the header describes.
fn block<'a>(
    tree: &'a [u8],
    offset: usize,
    size: usize,
    alignment: usize,
    name: &'static str,
) -> Result<&'a [u8], TreeError> {
    let outside = TreeError::Block { name, offset };
    if offset < HEADER_SIZE || !offset.is_multiple_of(alignment) {
        return Err(outside);
    }
    let end = offset.checked_add(size).ok_or(outside)?;
    tree.get(offset..end).ok_or(outside)
}

/// The memory reservation block, its terminating entry included.
fn reservations(tree: &[u8], offset: usize) -> Result<&[u8], TreeError> {
    const ENTRY: usize = 16;
    let outside = TreeError::Block { name: "memory reservation", offset };
    if offset < HEADER_SIZE || !offset.is_multiple_of(8) {
        return Err(outside);
    }
    let rest = tree.get(offset..).ok_or(outside)?;
    let entries = rest.chunks_exact(ENTRY).position(|entry| entry.iter().all(|&byte| byte == 0));
    entries.and_then(|count| rest.get(..(count + 1) * ENTRY)).ok_or(TreeError::Reservations)
}

/// Whether `name`, up to its terminating NUL, is one that can be read as text and compared in bounded time.
fn legal_name(name: &[u8]) -> bool {
    name.len() <= MAX_NAME_LEN && name.iter().all(u8::is_ascii_graphic)
}

/// The bytes up to the first NUL, which must be there within the limit for names.
fn name_at(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes.iter().take(MAX_NAME_LEN + 1).position(|&byte| byte == 0)?;
    bytes.get(..length).filter(|name| legal_name(name))
}

/// The structure block being read.
struct Structure<'a> {
    bytes: &'a [u8],
    /// Where it starts in the tree, for messages.
    origin: usize,
    strings: &'a [u8],
}

impl Structure<'_> {
    /// Checks the whole block and copies it without `FDT_NOP`.
    fn without_nops(&self) -> Result<Vec<u8>, TreeError> {
        let mut copy = Vec::with_capacity(self.bytes.len());
        let mut at = 0;
        let mut depth = 0_usize;
        // Properties come before subnodes (5.4.2): none may follow the end of a child.
        let mut properties_allowed = false;
        let mut root_seen = false;
        let mut nodes = 0;
        loop {
            let offset = self.origin + at;
            let token = word(self.bytes, at).ok_or(TreeError::Ends { offset })?;
            let misplaced = TreeError::Token { offset, token };
            let length = match token {
                FDT_NOP => {
                    at += 4;
                    continue;
                }
                FDT_BEGIN_NODE => {
                    if depth == 0 && root_seen {
                        return Err(misplaced);
                    }
                    if depth == MAX_DEPTH {
                        return Err(TreeError::Depth { offset });
                    }
                    if nodes == MAX_NODES {
                        return Err(TreeError::Nodes { offset });
                    }
                    nodes += 1;
                    let name = self.bytes.get(at + 4..).and_then(name_at);
                    // Only the root has an empty name, and it has no other.
                    let name = name.filter(|name| name.is_empty() == (depth == 0));
                    let name = name.ok_or(TreeError::NodeName { offset: offset + 4 })?;
                    root_seen = true;
                    depth += 1;
                    properties_allowed = true;
                    4 + (name.len() + 1).next_multiple_of(4)
                }
                FDT_PROP if properties_allowed => self.property_length(at)?,
                FDT_END_NODE if depth > 0 => {
                    depth -= 1;
                    properties_allowed = false;
                    4
                }
                FDT_END if depth == 0 && root_seen => 4,
                _ => return Err(misplaced),
            };
            let end = at + length;
            copy.extend_from_slice(self.bytes.get(at..end).ok_or(TreeError::Ends { offset })?);
            if token == FDT_END {
                return Ok(copy);
            }
            at = end;
        }
    }

    /// Checks the property that starts at `at` and says how many bytes it takes, padding included.
    fn property_length(&self, at: usize) -> Result<usize, TreeError> {
        let offset = self.origin + at;
        let length = word(self.bytes, at + 4).ok_or(TreeError::Ends { offset })? as usize;
        let name = word(self.bytes, at + 8).ok_or(TreeError::Ends { offset })? as usize;
        if length > self.bytes.len() {
            return Err(TreeError::PropertyValue { offset });
        }
        let name = self.strings.get(name..).and_then(name_at).filter(|name| !name.is_empty());
        name.ok_or(TreeError::PropertyName { offset })?;
        if length > MAX_PROPERTY_SIZE {
            return Err(TreeError::PropertySize { offset, size: length });
        }
        let total = 12 + length.next_multiple_of(4);
        if self.bytes.len() - at < total {
            return Err(TreeError::PropertyValue { offset });
        }
        Ok(total)
    }
}
