//! The file that a machine is saved in, and that it moves through.
//!
//! A file is a series of records, each of which begins on a block of 4 KiB: one block with the [`Header`], then the payload in
//! whole blocks. Numbers are little-endian. The records, in this order:
//!
//! 1. [`Kind::Tool`]: what the host tool needs to start such a machine again; always as long as [`TOOL_BLOCKS`], for it is
//!    written last.
//! 2. [`Kind::Machine`]: [`Fact`]s, which must be the same where the machine is to go on.
//! 3. [`Kind::Pages`], any number: pages of the guest's memory. The header's [`Run`]s say which; pages that are zero are
//!    named there, and not in the payload. A page that comes again takes the place of what came before.
//! 4. [`Kind::State`], any number: [`items`] with the state of CPUs and devices.
//! 5. [`Kind::End`]: an [`End`].
//!
//! Every header has a checksum of itself and one of its payload, so that a file that is cut off, damaged or foreign is found
//! to be so before anything is made of it. The checksums are no defence against someone who means to deceive: a file is
//! trusted as far as its owner is, and what it says is still checked wherever it could reach beyond the guest.

mod error;
mod fact;
mod header;
mod item;
mod kind;
mod order;
mod run;
mod whole;

pub use error::{Damage, Error};
pub use fact::{CPU_REGISTERS, Difference, Fact, Field, facts, first_difference, version_word};
pub use header::Header;
pub use item::{ITEM_HEADER, Items, items, push_item};
pub use kind::Kind;
pub use order::Order;
pub use run::{MAX_RUNS, Ram, Run, runs};
pub use whole::{Contents, check};

use crate::page_hash::{WORDS, page_hash};

/// "Unbroken": what each record begins with.
pub const MAGIC: u64 = u64::from_le_bytes(*b"Unbroken");
/// The format that this describes. A file of another one is refused.
pub const FORMAT: u32 = 1;
/// Bytes of a block, which is a page.
pub const BLOCK_BYTES: u64 = 4096;
/// A block.
pub type Block = [u64; WORDS];
/// Blocks of the tool's record behind its header.
pub const TOOL_BLOCKS: u64 = 16;
/// The block where the second record begins: what the hypervisor writes and reads.
pub const FIRST: u64 = 1 + TOOL_BLOCKS;
/// The most blocks that a record of pages has behind its header.
pub const MAX_PAGES: u64 = 512;
/// The most blocks that another record has behind its header.
pub const MAX_BLOCKS: u64 = 64;

/// A number that says whether a series of blocks has changed. Of one block it misses no change that [`page_hash`] does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    /// Of no block.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds the next block.
    pub fn add(&mut self, block: &Block) {
        self.add_hash(page_hash(block));
    }

    /// Adds the next block by its [`page_hash`].
    pub const fn add_hash(&mut self, hash: u64) {
        // A bijection of what was and of the block's hash; blocks that change places change it, too.
        self.0 = (self.0.rotate_left(5) ^ hash).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// The payload of [`Kind::End`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Records, this one and the tool's included.
    pub records: u64,
    /// The [`Checksum`] of all pages of the guest's memory, in the order of their addresses.
    pub hash: u64,
}

impl End {
    /// Bytes of the payload.
    pub const BYTES: u64 = 16;

    /// The payload.
    #[must_use]
    pub fn block(self) -> Block {
        let mut block = [0; WORDS];
        [block[0], block[1]] = [self.records, self.hash];
        block
    }

    /// What a payload says.
    #[must_use]
    pub const fn of(block: &Block) -> Self {
        Self { records: block[0], hash: block[1] }
    }
}

#[cfg(test)]
mod tests;
