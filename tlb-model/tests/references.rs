//! What walks cost, beside what was computed by hand.

mod common;

use common::*;
use tlb_model::{Access, Answer, Census, Kind, Level, Problem, census};

/// Without walk caches every descriptor of the textbook's grid is read: 4 × (n + 1) + n for n levels of stage 2.
#[test]
fn a_cold_walk_without_walk_caches_reads_the_whole_grid() {
    for (shift, expected) in [(PAGE, 19), (RUN_64K, 19), (BLOCK_2M, 14), (RUN_32M, 14), (BLOCK_1G, 9)] {
        let mut world = World::with_stage2(shift);
        world.map_stage1(0x1000, DATA, PAGE, false);
        let mut core = world.core("stage1=0,stage2=0");
        assert_eq!(world.load(&mut core, 0x1008), (Answer::Walk(DATA + OFFSET + 8), expected), "2^{shift}");
        let counts = core.counts();
        assert_eq!((counts.stage1_references[0], counts.stage2_references[0]), (4, expected - 4));
        assert_eq!(world.load(&mut core, 0x1ff8), (Answer::L1(DATA + OFFSET + 0xff8), 0));
    }
}

/// With them, by hand. Guest tables lie side by side, in one block; data in another GiB.
///
/// Pages: level 0 reads 3 + 1; levels 1, 2 and 3 lie in pages of the same level-3 table, so 1 + 1 each; data 3.
/// Blocks of 2 MiB: 2 + 1; then the block is known, so 1 each; data 2. Of 1 GiB: 1 + 1; 1 each; data 1.
/// The page beside it: the stage-1 cache has the level-3 table; of stage 2 a page's leaf is missing, or nothing.
#[test]
fn a_cold_walk_with_walk_caches_reads_what_it_has_not_read_before() {
    for (shift, first, second) in [(PAGE, 13, 2), (BLOCK_2M, 8, 1), (BLOCK_1G, 6, 1)] {
        let mut world = World::with_stage2(shift);
        world.map_stage1(0x1000, DATA, PAGE, false);
        world.map_stage1(0x2000, DATA + 0x1000, PAGE, false);
        let mut core = world.core("");
        assert_eq!((world.walk(&mut core, 0x1000), world.walk(&mut core, 0x2000)), (first, second), "2^{shift}");
    }
}

/// A leaf of a run is one entry of the stage-2 cache, as the leaf of a block is.
#[test]
fn a_run_is_read_once() {
    let mut world = World::with_stage2(RUN_64K);
    (0..17).for_each(|page| world.map_stage1(page << 12, DATA + (page << 12), PAGE, false));
    let mut core = world.core("");
    world.walk(&mut core, 0);
    assert!((1..16).all(|page| world.walk(&mut core, page << 12) == 1));
    assert_eq!(world.walk(&mut core, 16 << 12), 2);
}

#[test]
fn without_stage_2_a_walk_reads_a_descriptor_a_level() {
    let mut world = World::with_stage2(PAGE);
    world.map_stage1(0x1000, STAGE1_TABLES + (512 << 20), PAGE, false);
    // The guest's tables as stage 2 would have them are where they are without it, one offset further up.
    world.registers.hcr = 0;
    world.registers.ttbr0 += OFFSET;
    let mut core = world.core("stage1=0,stage2=0");
    let access = Access { kind: Kind::Load, level: Level::El0, va: 0x1000 };
    // The second table's address is an IPA, where nothing lies.
    let problem = core.access(access, &world);
    assert_eq!(problem, Err(Problem::Invalid { stage: 1, level: 1, address: 0x1000 }));
    assert_eq!((core.counts().references(), core.counts().failed), (2, 1));
}

#[test]
fn with_the_mmu_off_stage_2_alone_is_walked() {
    let mut world = World::with_stage2(BLOCK_2M);
    world.registers.sctlr = 0;
    let mut core = world.core("stage1=0,stage2=0");
    assert_eq!(world.load(&mut core, DATA), (Answer::Walk(DATA + OFFSET), 2));
    assert_eq!(world.load(&mut core, DATA + (2 << 20) - 8), (Answer::L1(DATA + OFFSET + (2 << 20) - 8), 0));
    world.registers.hcr = 0;
    let mut core = world.core("");
    assert_eq!(world.load(&mut core, 0x1234), (Answer::Walk(0x1234), 0));
    assert_eq!(world.load(&mut core, 0x2000), (Answer::Walk(0x2000), 0));
}

/// Eight descriptors share a line of 64 bytes.
#[test]
fn tables_are_touched_in_lines() {
    let mut world = World::with_stage2(BLOCK_1G);
    (0..16).for_each(|page| world.map_stage1(page << 12, DATA + (page << 12), PAGE, false));
    let mut core = world.core("");
    // Four of stage 1, and the root of stage 2, whose two leaves are in one line.
    world.walk(&mut core, 0);
    assert_eq!(core.counts().table_bytes(), 5 * 64);
    (1..8).for_each(|page| _ = world.walk(&mut core, page << 12));
    assert_eq!(core.counts().table_bytes(), 5 * 64);
    world.walk(&mut core, 8 << 12);
    assert_eq!(core.counts().table_bytes(), 6 * 64);
    core.start_counting();
    world.walk(&mut core, 9 << 12);
    assert_eq!((core.counts().table_bytes(), core.counts().references()), (64, 1));
}

#[test]
fn what_is_not_mapped_is_counted_and_not_cached() {
    let mut world = World::with_stage2(BLOCK_2M);
    let mut core = world.core("");
    let access = Access { kind: Kind::Store, level: Level::El1, va: 0x1000 };
    assert_eq!(core.access(access, &world), Err(Problem::Invalid { stage: 1, level: 0, address: 0x1000 }));
    world.map_stage1(0x1000, DATA, PAGE, true);
    assert_eq!(core.access(access, &world), Ok(Answer::Walk(DATA + OFFSET)));
    let counts = core.counts();
    assert_eq!((counts.walks, counts.failed, counts.stores), ([0, 2], 1, [0, 2]));
}

#[test]
fn a_census_counts_leaves_and_tables() {
    let mut world = World::new();
    world.map_stage2(0x4000_0000, BLOCK_1G);
    world.map_stage2(0x8000_0000, RUN_32M);
    world.map_stage2(0x8200_0000, BLOCK_2M);
    world.map_stage2(0x8220_0000, RUN_64K);
    world.map_stage2(0x8221_0000, PAGE);
    let mapped = [PAGE, RUN_64K, BLOCK_2M, RUN_32M, BLOCK_1G].map(|shift| (shift as u8, 1 << shift));
    assert_eq!(census(&world.registers, &world), Ok(Census { mapped: mapped.into(), table_bytes: 3 * 4096 }));
    world.registers.hcr = 0;
    assert_eq!(census(&world.registers, &world), Ok(Census::default()));
}
