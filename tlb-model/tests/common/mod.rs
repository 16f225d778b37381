//! Tables made by hand.
#![allow(dead_code, reason = "each test file needs its own part")]

use std::collections::HashMap;
use tlb_model::{Access, Answer, Core, Kind, Level, Memory, Registers, Sizes};

pub const PAGE: u64 = 12;
pub const RUN_64K: u64 = 16;
pub const BLOCK_2M: u64 = 21;
pub const RUN_32M: u64 = 25;
pub const BLOCK_1G: u64 = 30;

/// Stage 2 maps an IPA so far up.
pub const OFFSET: u64 = 64 << 30;
/// Where guest tables lie, as IPAs, and where data lies: in another GiB.
pub const STAGE1_TABLES: u64 = 0x4000_0000;
pub const DATA: u64 = 0x8000_0000;
/// Where stage-2 tables lie.
const STAGE2_TABLES: u64 = 0x1_0000_0000;
pub const ASID: u16 = 5;

const NOT_GLOBAL: u64 = 1 << 11;
const CONTIGUOUS: u64 = 1 << 52;

/// Physical memory that holds tables.
pub struct World {
    words: HashMap<u64, u64>,
    stage1_tables: u64,
    stage2_tables: u64,
    pub registers: Registers,
}

impl Memory for World {
    fn read(&self, address: u64) -> Option<u64> {
        assert_eq!(address % 8, 0);
        Some(self.words.get(&address).copied().unwrap_or(0))
    }
}

impl World {
    /// Four levels of stage 1, three of stage 2, nothing mapped.
    pub fn new() -> Self {
        let registers = Registers {
            sctlr: 1,
            // 48 bits for both halves, of 4 KiB, ASIDs of 16 bits from TTBR0.
            tcr: 1 << 36 | 2 << 30 | 16 << 16 | 16,
            ttbr0: STAGE1_TABLES | u64::from(ASID) << 48,
            ttbr1: STAGE1_TABLES,
            hcr: 1,
            // 39 bits, from level 1.
            vtcr: 1 << 6 | 25,
            vttbr: 1 << 48 | STAGE2_TABLES,
        };
        let (stage1_tables, stage2_tables) = (STAGE1_TABLES + 4096, STAGE2_TABLES + 4096);
        Self { words: HashMap::new(), stage1_tables, stage2_tables, registers }
    }

    /// The same, with stage 2 of leaves of 1 << `shift` bytes for two GiB of tables and data.
    pub fn with_stage2(shift: u64) -> Self {
        let mut world = Self::new();
        (0..(2 << 30) >> shift).for_each(|leaf| world.map_stage2(STAGE1_TABLES + (leaf << shift), shift));
        world
    }

    /// Maps one leaf at stage 2; a run has all its entries.
    pub fn map_stage2(&mut self, ipa: u64, shift: u64) {
        let mut next = self.stage2_tables;
        self.map(STAGE2_TABLES, 1, ipa, ipa + OFFSET, shift, 0, |table| table, &mut next);
        self.stage2_tables = next;
    }

    /// Maps one leaf at stage 1, for the ASID alone or for all.
    pub fn map_stage1(&mut self, va: u64, ipa: u64, shift: u64, global: bool) {
        let mut next = self.stage1_tables;
        let bits = if global { 0 } else { NOT_GLOBAL };
        self.map(STAGE1_TABLES, 0, va, ipa, shift, bits, |table| table + OFFSET, &mut next);
        self.stage1_tables = next;
    }

    #[expect(clippy::too_many_arguments, reason = "both stages are written by one function")]
    fn map(
        &mut self,
        root: u64,
        first: u64,
        from: u64,
        to: u64,
        shift: u64,
        bits: u64,
        physical: fn(u64) -> u64,
        next: &mut u64,
    ) {
        let (level, entries) = match shift {
            PAGE => (3, 1),
            RUN_64K => (3, 16),
            BLOCK_2M => (2, 1),
            RUN_32M => (2, 16),
            BLOCK_1G => (1, 1),
            _ => panic!("no leaf has {shift} bits"),
        };
        assert!(from.trailing_zeros() as u64 >= shift && to.trailing_zeros() as u64 >= shift);
        let index = |level: u64, address: u64| (address >> (12 + 9 * (3 - level)) & 0x1ff) * 8;
        let mut table = root;
        for above in first..level {
            let entry = self.words.entry(physical(table) + index(above, from)).or_default();
            if *entry == 0 {
                *entry = *next | 3;
                *next += 4096;
            }
            assert_eq!(*entry & 3, 3, "a leaf is in the way");
            table = *entry & 0xffff_ffff_f000;
        }
        let bytes = 1 << (12 + 9 * (3 - level));
        for entry in 0..entries {
            let run = if entries > 1 { CONTIGUOUS } else { 0 };
            let kind = if level == 3 { 3 } else { 1 };
            let at = physical(table) + index(level, from + entry * bytes);
            self.words.insert(at, (to + entry * bytes) | bits | run | kind);
        }
    }

    /// A core that has the registers.
    pub fn core(&self, sizes: &str) -> Core {
        let sizes = if sizes.is_empty() { Sizes::default() } else { sizes.parse().unwrap() };
        let mut core = Core::new(sizes);
        core.set_registers(self.registers);
        core
    }

    /// A load at EL0, and the references that it cost.
    pub fn load(&self, core: &mut Core, va: u64) -> (Answer, u64) {
        let before = core.counts().references();
        let answer = core.access(Access { kind: Kind::Load, level: Level::El0, va }, self).unwrap();
        (answer, core.counts().references() - before)
    }

    /// The references of a load that must walk, and must come to where data lies.
    pub fn walk(&self, core: &mut Core, va: u64) -> u64 {
        match self.load(core, va) {
            (Answer::Walk(_), references) => references,
            other => panic!("{va:#x}: {other:?}"),
        }
    }
}
