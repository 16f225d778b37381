//! The block that a record begins with.
//!
//! | Word | Meaning |
//! | --- | --- |
//! | 0 | [`MAGIC`] |
//! | 1 | [`FORMAT`] in bits 31:0, the [`Kind`] in bits 63:32 |
//! | 2 | the record's number, counted from 0 |
//! | 3 | blocks of payload |
//! | 4 | bytes of the payload that count; the rest of its last block is zero |
//! | 5 | [`Checksum`](super::Checksum) of the payload |
//! | 6 | how many runs follow; 0 unless the kind is [`Kind::Pages`] |
//! | 7 | [`page_hash`] of this block with 0 in this word |
//! | 8 to 511 | [`Run`]s, in the order of their addresses, none over another; zero behind them |

use super::run::{HEADER_WORDS, MAX_RUNS, Run, runs};
use super::{BLOCK_BYTES, Block, Damage, FORMAT, Kind, MAGIC};
use crate::page_hash::{WORDS, page_hash};

/// The word with the checksum of the header.
const CHECKSUM: usize = 7;

/// A header, but for its runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the record has.
    pub kind: Kind,
    /// Its number.
    pub number: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// The payload's checksum.
    pub checksum: u64,
}

impl Header {
    /// Blocks of payload.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.bytes.div_ceil(BLOCK_BYTES)
    }

    /// The block. What does not fit into it, or can't be, is refused by [`Header::decode`], not here.
    #[must_use]
    pub fn encode(&self, runs: &[Run]) -> Block {
        let mut block = [0; WORDS];
        let words = [
            MAGIC,
            u64::from(FORMAT) | (self.kind as u64) << 32,
            self.number,
            self.blocks(),
            self.bytes,
            self.checksum,
            runs.len() as u64,
        ];
        let words = words.into_iter().chain([0]).chain(runs.iter().map(|run| run.word()));
        block.iter_mut().zip(words).for_each(|(slot, word)| *slot = word);
        block[CHECKSUM] = page_hash(&block);
        block
    }

    /// What a block says.
    ///
    /// # Errors
    ///
    /// What is wrong with it. Where this is a header, its [`runs`] are in order, apart from each other, not empty, and as
    /// many pages as the payload has blocks.
    pub fn decode(block: &Block) -> Result<Self, Damage> {
        let [magic, format, number, blocks, bytes, checksum, count, own, ..] = *block;
        if magic != MAGIC {
            return Err(Damage::Foreign);
        }
        if format as u32 != FORMAT {
            return Err(Damage::Format(format as u32));
        }
        let mut plain = *block;
        plain[CHECKSUM] = 0;
        if page_hash(&plain) != own {
            return Err(Damage::Header);
        }
        let kind = Kind::of(format >> 32).ok_or(Damage::Impossible)?;
        let header = Self { kind, number, bytes, checksum };
        let runs_fit = match kind {
            Kind::Pages => count > 0 && count <= MAX_RUNS as u64 && is_in_order(block, blocks),
            _ => count == 0,
        };
        let used = HEADER_WORDS.saturating_add(count as usize);
        let nothing_else = block.iter().skip(used).all(|&word| word == 0);
        let whole = kind != Kind::Pages || bytes.is_multiple_of(BLOCK_BYTES);
        let sizes_fit = blocks == header.blocks() && blocks <= kind.most_blocks() && whole;
        if runs_fit && nothing_else && sizes_fit { Ok(header) } else { Err(Damage::Impossible) }
    }
}

/// Whether the runs come one behind the other, and are as many pages as there are blocks.
fn is_in_order(block: &Block, blocks: u64) -> bool {
    let (mut end, mut pages, mut in_order) = (0, 0, true);
    for run in runs(block) {
        in_order &= run.count > 0 && run.page >= end;
        end = run.page + run.count;
        pages += run.in_payload();
    }
    in_order && pages == blocks
}
