//! Walks in two dimensions, with a walk cache for each stage.

use crate::lru::Lru;
use crate::memory::{Memory, Problem};
use crate::registers::{Registers, Root};
use crate::sizes::Sizes;

/// Bits of a descriptor (Arm ARM, D8.3).
const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const NOT_GLOBAL: u64 = 1 << 11;
const CONTIGUOUS: u64 = 1 << 52;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// log2 of the entries in a contiguous run.
const RUN_SHIFT: u8 = 4;

/// log2 of the sizes that the stage-2 walk cache is searched for: what lies deepest in the tables first.
const STAGE2_SHIFTS: [u8; 7] = [12, 16, 21, 25, 30, 34, 39];

/// log2 of the bytes that an entry of a level maps.
pub const fn level_shift(level: u8) -> u8 {
    12 + 9 * (3 - level)
}

/// What a descriptor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Descriptor {
    /// It is not valid, or is reserved.
    Invalid,
    /// The next level's table.
    Table(u64),
    /// A block or a page, and log2 of its bytes; a run counts as one.
    Leaf(Leaf),
}

/// A leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Its first address at the other side.
    pub output: u64,
    /// log2 of its bytes.
    pub shift: u8,
    /// Whether it is for one ASID.
    pub not_global: bool,
}

/// Reads a descriptor of a level.
pub fn descriptor(raw: u64, level: u8) -> Descriptor {
    if raw & VALID == 0 {
        return Descriptor::Invalid;
    }
    match (raw & TABLE_OR_PAGE != 0, level) {
        (true, 0..=2) => Descriptor::Table(raw & ADDRESS),
        // Blocks there are at levels 1 and 2, with 48 bits.
        (false, 0 | 3) => Descriptor::Invalid,
        _ => {
            let shift = level_shift(level) + if raw & CONTIGUOUS != 0 { RUN_SHIFT } else { 0 };
            let output = raw & ADDRESS & (u64::MAX << shift);
            Descriptor::Leaf(Leaf { output, shift, not_global: raw & NOT_GLOBAL != 0 })
        }
    }
}

/// What a walk cache knows: the entry for `address` of a level is a table, or (of stage 2) a leaf.
#[derive(Debug, Clone, Copy)]
struct Cached<T> {
    first: u64,
    shift: u8,
    asid: u16,
    what: T,
}

impl<T> Cached<T> {
    fn is_for(&self, address: u64, shift: u8, asid: u16) -> bool {
        self.shift == shift && self.asid == asid && (address ^ self.first) >> shift == 0
    }

    fn overlaps(&self, start: u64, last: u64) -> bool {
        self.first <= last && self.first | ((1 << self.shift) - 1) >= start
    }
}

/// What is cached of stage 2.
#[derive(Debug, Clone, Copy)]
enum Stage2 {
    Table(u64),
    Leaf(u64),
}

/// What a walk comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The combined entry's first physical address.
    pub pa: u64,
    /// log2 of its bytes: the smaller leaf's.
    pub shift: u8,
    /// Whether it is for one ASID.
    pub not_global: bool,
}

/// What a walk has read.
#[derive(Debug, Clone, Default)]
pub struct Reads {
    /// Descriptors of stage 1 and of stage 2.
    pub by_stage: [u64; 2],
    /// All their physical addresses, in order.
    pub addresses: Vec<u64>,
}

/// A PE's walker.
#[derive(Debug, Clone)]
pub struct Walker {
    /// Tables, by virtual address. Like every table descriptor they are not global.
    stage1: Lru<Cached<u64>>,
    /// Tables and leaves, by IPA.
    stage2: Lru<Cached<Stage2>>,
    /// What the last walk has read.
    pub reads: Reads,
}

impl Walker {
    pub fn new(sizes: Sizes) -> Self {
        Self { stage1: Lru::new(sizes.stage1), stage2: Lru::new(sizes.stage2), reads: Reads::default() }
    }

    /// Translates an address (without its tag) by both stages.
    pub fn walk(&mut self, registers: &Registers, memory: &impl Memory, va: u64) -> Result<Translation, Problem> {
        self.reads.by_stage = [0; 2];
        self.reads.addresses.clear();
        let (ipa, stage1_shift, not_global) = if registers.has_stage1() {
            let leaf = self.walk_stage1(registers, memory, va)?;
            (leaf.output | (va & ((1 << leaf.shift) - 1)), leaf.shift, leaf.not_global)
        } else {
            (va, u8::MAX, false)
        };
        let (pa, stage2_shift) = self.walk_stage2(registers, memory, ipa)?;
        // Without either stage nothing says how far a translation holds: a page.
        let shift = match stage1_shift.min(stage2_shift) {
            u8::MAX => 12,
            shift => shift,
        };
        Ok(Translation { pa: pa & (u64::MAX << shift), shift, not_global })
    }

    fn walk_stage1(&mut self, registers: &Registers, memory: &impl Memory, va: u64) -> Result<Leaf, Problem> {
        let asid = registers.asid();
        let root = registers.stage1_root(va)?;
        let mut found = (root.table, root.level);
        for level in (root.level..3).rev() {
            let shift = level_shift(level);
            if let Some(cached) = self.stage1.find(va >> shift, |cached| cached.is_for(va, shift, asid)) {
                found = (cached.what, level + 1);
                break;
            }
        }
        let (mut table, mut level) = found;
        loop {
            let shift = level_shift(level);
            let (address, _) = self.walk_stage2(registers, memory, table + index(root, level, va) * 8)?;
            let raw = self.read(memory, address, 1)?;
            match descriptor(raw, level) {
                Descriptor::Invalid => return Err(Problem::Invalid { stage: 1, level, address: va }),
                Descriptor::Leaf(leaf) => return Ok(leaf),
                Descriptor::Table(next) => {
                    let first = va & (u64::MAX << shift);
                    self.stage1.insert(va >> shift, Cached { first, shift, asid, what: next });
                    (table, level) = (next, level + 1);
                }
            }
        }
    }

    /// The physical address of `ipa`, and log2 of the leaf's bytes.
    fn walk_stage2(&mut self, registers: &Registers, memory: &impl Memory, ipa: u64) -> Result<(u64, u8), Problem> {
        if !registers.has_stage2() {
            return Ok((ipa, u8::MAX));
        }
        let root = registers.stage2_root()?;
        let mut found = (root.table, root.level);
        for shift in STAGE2_SHIFTS {
            let cached = self.stage2.find(ipa >> shift, |cached| cached.is_for(ipa, shift, 0));
            match cached.map(|cached| cached.what) {
                Some(Stage2::Leaf(output)) => return Ok((output | (ipa & ((1 << shift) - 1)), shift)),
                Some(Stage2::Table(table)) => {
                    found = (table, 4 - (shift - 12) / 9);
                    break;
                }
                None => {}
            }
        }
        let (mut table, mut level) = found;
        loop {
            let raw = self.read(memory, table + index(root, level, ipa) * 8, 2)?;
            let (shift, what, leaf) = match descriptor(raw, level) {
                Descriptor::Invalid => return Err(Problem::Invalid { stage: 2, level, address: ipa }),
                Descriptor::Table(next) => (level_shift(level), Stage2::Table(next), None),
                Descriptor::Leaf(leaf) => (leaf.shift, Stage2::Leaf(leaf.output), Some(leaf)),
            };
            let first = ipa & (u64::MAX << shift);
            self.stage2.insert(ipa >> shift, Cached { first, shift, asid: 0, what });
            match (leaf, what) {
                (Some(leaf), _) => return Ok((leaf.output | (ipa & ((1 << shift) - 1)), shift)),
                (None, Stage2::Table(next) | Stage2::Leaf(next)) => (table, level) = (next, level + 1),
            }
        }
    }

    fn read(&mut self, memory: &impl Memory, address: u64, stage: u8) -> Result<u64, Problem> {
        if let Some(count) = self.reads.by_stage.get_mut(usize::from(stage) - 1) {
            *count += 1;
        }
        self.reads.addresses.push(address);
        memory.read(address).ok_or(Problem::Unreadable { address })
    }

    /// Forgets all of both stages.
    pub fn forget_all(&mut self) {
        self.stage1.retain(|_| false);
        self.stage2.retain(|_| false);
    }

    /// Forgets stage-1 tables: all, or those that `asid` and the addresses from `start` to `last` pick.
    pub fn forget_stage1(&mut self, asid: Option<u16>, start: u64, last: u64) {
        self.stage1.retain(|cached| !(asid.is_none_or(|asid| cached.asid == asid) && cached.overlaps(start, last)));
    }

    /// Forgets stage-2 leaves of IPAs from `start` to `last`; unless `leaves_only`, tables too.
    pub fn forget_stage2(&mut self, start: u64, last: u64, leaves_only: bool) {
        self.stage2.retain(|cached| {
            let is_kept_kind = leaves_only && matches!(cached.what, Stage2::Table(_));
            is_kept_kind || !cached.overlaps(start, last)
        });
    }
}

/// The index of an address's entry in a table of a level. The root may be several tables side by side.
fn index(root: Root, level: u8, address: u64) -> u64 {
    let whole = (address & ((1 << root.bits) - 1)) >> level_shift(level);
    if level == root.level { whole } else { whole & 0x1ff }
}
