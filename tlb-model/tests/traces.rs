//! Traces made by hand: who hits, who misses, and what invalidations take away.

mod common;

use common::*;
use tlb_model::{Access, Answer, ENTRY_SIZES, Invalidation, Kind, Level, Registers, Sizes};

/// Pages of data, one behind the other, from VA 0.
fn pages(count: u64) -> World {
    let mut world = World::with_stage2(BLOCK_2M);
    (0..count).for_each(|page| world.map_stage1(page << 12, DATA + (page << 12), PAGE, false));
    world
}

#[test]
fn the_first_level_keeps_48_pages() {
    let world = pages(49);
    let mut core = world.core("");
    (0..48).for_each(|page| _ = world.walk(&mut core, page << 12));
    assert!((0..48).all(|page| world.load(&mut core, page << 12) == (Answer::L1(DATA + OFFSET + (page << 12)), 0)));
    world.walk(&mut core, 48 << 12);
    assert_eq!(world.load(&mut core, 0).0, Answer::L2(DATA + OFFSET));
    let counts = core.counts();
    assert_eq!((counts.loads, counts.l1_misses, counts.walks), ([98, 0], [50, 0], [49, 0]));
}

#[test]
fn the_second_level_keeps_five_pages_of_a_set() {
    // 256 sets: pages that are 256 apart share one.
    let world = pages(5 * 256 + 2);
    let mut core = world.core("l1=0");
    (0..=5).for_each(|way| _ = world.walk(&mut core, (way * 256) << 12));
    world.walk(&mut core, 1 << 12);
    assert!((1..=5).all(|way| matches!(world.load(&mut core, (way * 256) << 12).0, Answer::L2(_))));
    world.walk(&mut core, 0);
    // The page of way 1 was used least recently.
    world.walk(&mut core, 256 << 12);
}

#[test]
fn fetches_have_a_first_level_of_their_own() {
    let world = pages(1);
    let mut core = world.core("");
    world.walk(&mut core, 0);
    let fetch = Access { kind: Kind::Fetch, level: Level::El0, va: 0 };
    assert_eq!(core.access(fetch, &world), Ok(Answer::L2(DATA + OFFSET)));
    assert_eq!(core.access(fetch, &world), Ok(Answer::L1(DATA + OFFSET)));
}

/// A combined entry has the smaller leaf's size, whichever stage has it.
#[test]
fn the_smaller_leaf_decides() {
    let all = [PAGE, RUN_64K, BLOCK_2M, RUN_32M, BLOCK_1G];
    for (stage1, stage2) in all.into_iter().flat_map(|one| all.map(|two| (one, two))) {
        let mut world = World::with_stage2(stage2);
        let size = 1 << stage1.min(stage2);
        let va = 1 << 30;
        world.map_stage1(va, DATA, stage1, false);
        let mut core = world.core("");
        world.walk(&mut core, va + size - 8);
        let made = core.counts().entries.map(|count| count == 1);
        assert_eq!(made, ENTRY_SIZES.map(|shift| 1 << shift == size));
        assert_eq!(world.load(&mut core, va).0, Answer::L1(DATA + OFFSET), "2^{stage1}, 2^{stage2}");
        if size < 1 << stage1 {
            assert_eq!(
                world.load(&mut core, va + size).0,
                Answer::Walk(DATA + OFFSET + size),
                "2^{stage1}, 2^{stage2}"
            );
        }
    }
}

#[test]
fn what_is_not_global_is_for_one_asid() {
    let mut world = pages(1);
    world.map_stage1(0x1000, DATA + 0x1000, PAGE, true);
    let mut core = world.core("");
    (0..2).for_each(|page| _ = world.walk(&mut core, page << 12));
    let other = Registers { ttbr0: world.registers.ttbr0 ^ 1 << 48, ..world.registers };
    core.set_registers(other);
    assert!(matches!(world.load(&mut core, 0x1000).0, Answer::L1(_)));
    // The other ASID's tables are not taken from the walk cache either: four levels are read.
    assert_eq!(world.walk(&mut core, 0), 4);
    core.set_registers(world.registers);
    assert!(matches!(world.load(&mut core, 0).0, Answer::L1(_)));
}

/// What was translated with the MMU off is no translation once it is on: early boot code leaves such entries behind.
#[test]
fn a_stage_that_is_turned_on_or_off_leaves_nothing_behind() {
    let world = pages(1);
    let off = Registers { sctlr: 0, ..world.registers };
    let mut core = world.core("");
    core.set_registers(off);
    world.walk(&mut core, DATA);
    core.set_registers(world.registers);
    let access = Access { kind: Kind::Load, level: Level::El0, va: DATA };
    assert!(core.access(access, &world).is_err());
    world.walk(&mut core, 0);
    core.set_registers(Registers { hcr: 0, ..off });
    assert_eq!(world.load(&mut core, 0).0, Answer::Walk(0));
}

#[test]
fn a_tag_is_no_part_of_an_address() {
    let world = pages(1);
    let mut core = world.core("");
    world.walk(&mut core, 0);
    assert_eq!(world.load(&mut core, 0x4200_0000_0000_0010).0, Answer::L1(DATA + OFFSET + 0x10));
}

/// After each kind: who still hits, and what the next walk of page 0 costs.
#[test]
fn invalidations_take_away_what_they_name() {
    let mut world = pages(2);
    world.map_stage1(0x2000, DATA + 0x2000, PAGE, true);
    let addresses =
        |start: u64, asid, leaves_only| Invalidation::Addresses { start, last: start + 0xfff, asid, leaves_only };
    let ipas = |start, leaves_only| Invalidation::Ipas { start, last: start + 0xfff, leaves_only };
    let (own, other) = (Some(ASID), Some(ASID + 1));
    // What hits of page 0, page 1 and the global page 2; and the references of a walk of page 0 once no TLB has it.
    let cases = [
        (Invalidation::All, [false; 3], 8),
        // Stage 2 is still known: four levels of stage 1.
        (Invalidation::Stage1, [false; 3], 4),
        (Invalidation::Asid(ASID), [false, false, true], 4),
        (Invalidation::Asid(ASID + 1), [true; 3], 1),
        (addresses(0, own, true), [false, true, true], 1),
        (addresses(0, own, false), [false, true, true], 4),
        (addresses(0x1000, None, false), [true, false, true], 4),
        (addresses(0, other, false), [true; 3], 1),
        (addresses(0x2000, other, true), [true, true, false], 1),
        (addresses(1 << 40, None, false), [true; 3], 1),
        // Of stage 2, data's leaf is read again; or the level-1 table as well, which data has a block of.
        (ipas(DATA, true), [true; 3], 2),
        (ipas(DATA, false), [true; 3], 3),
        // The guest's level-3 table lies in this block.
        (ipas(STAGE1_TABLES, true), [true; 3], 2),
    ];
    for (what, hits, references) in cases {
        let mut core = world.core("");
        (0..3).for_each(|page| _ = world.walk(&mut core, page << 12));
        core.invalidate(what);
        let mut probe = core.clone();
        let found = [0, 1, 2].map(|page| matches!(world.load(&mut probe, page << 12).0, Answer::L1(_)));
        assert_eq!(found, hits, "{what:?}");
        // Page 0 leaves the TLBs, and nothing else does.
        core.invalidate(addresses(0, own, true));
        assert_eq!(world.walk(&mut core, 0), references, "{what:?}");
    }
}

/// A part of an entry is enough to take it away.
#[test]
fn a_page_takes_a_block_away() {
    let mut world = World::with_stage2(BLOCK_2M);
    world.map_stage1(1 << 30, DATA, BLOCK_2M, false);
    let mut core = world.core("");
    world.walk(&mut core, 1 << 30);
    let start = (1 << 30) + 0x5000;
    core.invalidate(Invalidation::Addresses { start, last: start + 0xfff, asid: Some(ASID), leaves_only: true });
    world.walk(&mut core, 1 << 30);
}

/// Whatever is cached where, an answer is what the tables say.
#[test]
fn answers_do_not_depend_on_sizes() {
    let sizes =
        ["", "l1=4,l2=16x2,stage1=8x2,stage2=8x2", "l1=0,l2=0,stage1=0,stage2=0", "l1=1,l2=1,stage1=1,stage2=1"];
    assert!(sizes.iter().skip(1).all(|text| text.parse::<Sizes>().is_ok()));
    let mut world = World::new();
    (0..512).for_each(|leaf| world.map_stage2(STAGE1_TABLES + (leaf << BLOCK_2M), BLOCK_2M));
    (0..16).for_each(|leaf| world.map_stage2(DATA + (leaf << BLOCK_2M), BLOCK_2M));
    (0..16).for_each(|page| world.map_stage2(DATA + (32 << 20) + (page << PAGE), PAGE));
    world.map_stage2(DATA + (32 << 20) + (64 << 10), RUN_64K);
    let at = |offset: u64| (1 << 30) + offset;
    (0..16).for_each(|leaf| world.map_stage1(at(leaf << BLOCK_2M), DATA + (leaf << BLOCK_2M), BLOCK_2M, leaf % 2 == 0));
    (0..32).for_each(|page| {
        world.map_stage1(at((32 << 20) + (page << PAGE)), DATA + (32 << 20) + (page << PAGE), PAGE, false)
    });
    let mut cores = sizes.map(|sizes| world.core(sizes));
    let mut chance = 1u64;
    for _ in 0..20_000 {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let offset = ((chance >> 20) % ((32 << 20) + (128 << 10))) & !7;
        for (core, sizes) in cores.iter_mut().zip(sizes) {
            let (Answer::L1(pa) | Answer::L2(pa) | Answer::Walk(pa)) = world.load(core, at(offset)).0;
            assert_eq!(pa, DATA + OFFSET + offset, "{sizes}");
        }
    }
}
