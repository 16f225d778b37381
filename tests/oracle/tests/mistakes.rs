//! Mistakes that other hypervisors have made, as traces: the bad one is rejected for the right reason and no other, the good
//! one is accepted, and a check that is switched off lets a bad one through.

mod common;

use common::traces::*;
use common::{GIB, range};
use stage2::descriptor::bits;
use stage2::geometry::ENTRIES;
use stage2::{BbmLevel, Descriptor, Dsb, Level, PhysAddr, Slot};
use stage2_oracle::{Action, Checks, Form, Model, OperationKind, Setup, Trace, Verdict, record};

/// All of them.
fn mistakes() -> Vec<Mistake> {
    use BbmLevel::{Level0, Level1, Level2};
    use OperationKind::{Clear, Collapse, Fault, Harvest, Map, Protect, Split, Start, Unmap};
    use Verdict::{
        Contract, Dirty, EarlyMake, Freed, Invalidation, Progress, Size, Stale, Translation, Unfilled, Window,
    };
    let mistake = |number, level, found_by, trace| Mistake { number, ..mistake(level, found_by, trace) };
    vec![
        // Valid over valid, another output.
        mistake(1, Level2, &[Translation, EarlyMake], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Map, pages(3, 3));
            if !bad {
                t.store(PAGES, 3, 0).invalidate(Form::Ipa(BASE + 0x3000));
            }
            t.store_leaf(PAGES, 3, Level::L3, OTHER, rw()).invalidate(Form::Ipa(BASE + 0x3000)).end();
        }),
        // Collapse after dirty logging: no invalidation, and the table is forgotten.
        mistake(2, Level0, &[Size, EarlyMake, Contract], |t, bad| {
            mapped_pages(t, ro());
            t.begin(Collapse, one_block());
            if bad {
                t.store(BLOCKS, 0, block(rw())).dsb(Dsb::IshSt);
            } else {
                t.store(BLOCKS, 0, bits::BUSY).invalidate(everything());
                t.store(BLOCKS, 0, block(rw())).dsb(Dsb::IshSt).free(PAGES);
            }
            t.end();
        }),
        // An invalidation of 1 GiB for a range of 8.
        mistake(3, Level2, &[Stale, Invalidation], |t, bad| {
            let leaf = |n: u64, attributes| Descriptor::leaf(Level::L1, PhysAddr(n * GIB), attributes).0;
            t.root(ROOT, 36).begin(Map, range(0, 8 * GIB));
            (0..8).for_each(|n| _ = t.store(ROOT, n as usize, leaf(n, rw())));
            t.dsb(Dsb::IshSt).end().begin(Protect, range(0, 8 * GIB));
            (0..8).for_each(|n| _ = t.exchange(ROOT, n as usize, leaf(n, rw()), leaf(n, ro())));
            t.invalidate(Form::Range { base: 0, scale: 3, num: if bad { 3 } else { 31 }, granule: 12, unit: 12 }).end();
        }),
        // A level hint where a table goes.
        mistake(4, Level2, &[Freed, Invalidation], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Collapse, one_block()).store(BLOCKS, 0, block(rw())).dsb(Dsb::IshSt);
            if bad {
                t.tlbi_at(everything(), Level::L3);
            } else {
                t.tlbi(everything());
            }
            t.dsb(Dsb::Ish).tlbi(Form::VmallE1).dsb(Dsb::Ish).free(PAGES).end();
        }),
        // The table is freed before the invalidation.
        mistake(5, Level2, &[Freed], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Collapse, one_block()).store(BLOCKS, 0, block(rw()));
            if bad {
                t.free(PAGES).invalidate(everything());
            } else {
                t.invalidate(everything()).free(PAGES);
            }
            t.end();
        }),
        // A range whose base is no multiple of the granule.
        mistake(6, Level2, &[Invalidation], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Protect, pages(1, 2));
            (1..3).for_each(|n| _ = t.exchange(PAGES, n as usize, page(n, rw()), page(n, ro())));
            let base = BASE + 0x1000 + if bad { 0x800 } else { 0 };
            t.invalidate(Form::Range { base, scale: 0, num: 1, granule: 12, unit: 12 }).end();
        }),
        // Software walks into a table that it has just freed.
        mistake(7, Level2, &[Freed], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Unmap, one_block()).store(BLOCKS, 0, 0).invalidate(everything());
            let load = Action::Load { slot: Slot { table: PAGES, index: 0 }, value: 0 };
            if bad {
                t.free(PAGES).act(load);
            } else {
                t.act(load).free(PAGES);
            }
            t.end();
        }),
        // A table's frame is leaked.
        mistake(7, Level2, &[Contract], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Unmap, one_block()).store(BLOCKS, 0, 0).invalidate(everything());
            if !bad {
                t.free(PAGES);
            }
            t.end();
        }),
        // The same entry broken and written again.
        mistake(8, Level0, &[Window], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Map, pages(3, 3));
            if bad {
                t.store(PAGES, 3, 0).invalidate(Form::Ipa(BASE + 0x3000)).store(PAGES, 3, page(3, rw()));
            }
            t.dsb(Dsb::IshSt).end();
        }),
        // A table published before its entries are ordered.
        mistake(9, Level2, &[Unfilled], |t, bad| {
            mapped_block(t);
            t.begin(Split, one_block()).allocate(PAGES).fill_leaves(PAGES, Level::L3, BASE, rw());
            if !bad {
                t.dsb(Dsb::IshSt);
            }
            t.exchange(BLOCKS, 0, block(rw()), Descriptor::table(PAGES).0).dsb(Dsb::IshSt).end();
        }),
        // Memory runs out after the break.
        mistake(10, Level0, &[Window], |t, bad| {
            mapped_block(t);
            t.begin(Split, one_block());
            if bad {
                t.exchange(BLOCKS, 0, block(rw()), bits::BUSY).invalidate(everything());
                t.exchange(BLOCKS, 0, bits::BUSY, 0).dsb(Dsb::IshSt);
            }
            t.fail();
        }),
        // A live block silently made a table.
        mistake(11, Level0, &[Size, EarlyMake], |t, bad| {
            mapped_block(t);
            if bad {
                split(t);
            } else {
                t.begin(Split, one_block()).allocate(PAGES).fill_leaves(PAGES, Level::L3, BASE, rw());
                t.exchange(BLOCKS, 0, block(rw()), bits::BUSY).invalidate(everything());
                t.store_table(BLOCKS, 0, PAGES).dsb(Dsb::IshSt).end();
            }
        }),
        // The invalidation of another regime.
        mistake(12, Level2, &[Stale], |t, bad| {
            mapped_block(t);
            t.begin(Protect, one_block()).exchange(BLOCKS, 0, block(rw()), block(ro()));
            t.invalidate(if bad { Form::OtherRegime } else { Form::Ipa(BASE) }).end();
        }),
        // A run that is not all there, because an edge was compared with the wrong size.
        mistake(13, Level0, &[Size], |t, bad| {
            no_pages(t);
            t.begin(Map, pages(16, 31));
            for n in 16..32 {
                let run = if bad && n == 31 { 0 } else { bits::CONTIGUOUS };
                t.store(PAGES, n as usize, page(n, rw() | run));
            }
            t.dsb(Dsb::IshSt).end();
        }),
        // Everything between the first and the last page is protected.
        mistake(14, Level2, &[Contract], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Clear, pages(0, 63)).pages(pages(2, 2)).pages(pages(5, 5));
            let wanted = |n: &u64| bad || *n == 2 || *n == 5;
            (2..6).filter(wanted).for_each(|n| _ = t.exchange(PAGES, n as usize, page(n, rw()), page(n, ro())));
            t.invalidate(Form::Range { base: BASE + 0x2000, scale: 0, num: 1, granule: 12, unit: 12 }).end();
        }),
        // A fault opens the whole block, and one page is reported.
        mistake(15, Level2, &[Dirty], |t, bad| {
            mapped_block(t);
            t.begin(Start, one_block()).exchange(BLOCKS, 0, block(rw()), block(ro())).invalidate(Form::Ipa(BASE)).end();
            t.begin(Fault, pages(3, 3)).exchange(BLOCKS, 0, block(ro()), block(rw())).dsb(Dsb::IshSt).end();
            t.begin(Harvest, one_block()).exchange(BLOCKS, 0, block(rw()), block(ro())).invalidate(Form::Ipa(BASE));
            t.pages(if bad { pages(3, 3) } else { one_block() }).end();
        }),
        // A VMID for a new table while entries of the old one are still held.
        mistake(16, Level2, &[Stale], |t, bad| {
            mapped_block(t);
            t.act(Action::Detach { vmid: 1 });
            if !bad {
                t.dsb(Dsb::IshSt).tlbi(Form::VmallS12E1).dsb(Dsb::Ish);
            }
            t.root(PhysAddr(0x1000_8000), 36);
        }),
        // Marked first, then made writable: a harvest comes between.
        mistake(18, Level2, &[Dirty], |t, bad| {
            mapped_pages(t, ro());
            t.begin(Start, one_block()).end();
            let fault =
                |t: &mut Trace| _ = t.on(1).exchange(PAGES, 3, page(3, ro()), page(3, rw())).dsb(Dsb::IshSt).end();
            t.on(1).begin(Fault, pages(3, 3));
            if !bad {
                fault(t);
            }
            t.on(0).begin(Harvest, one_block()).pages(pages(3, 3));
            if !bad {
                t.exchange(PAGES, 3, page(3, rw()), page(3, ro())).invalidate(Form::Ipa(BASE + 0x3000));
            }
            t.end();
            if bad {
                fault(t);
            }
            t.on(0).begin(Harvest, one_block()).end();
        }),
        // At level 1, a block made a table without nT.
        mistake(0, Level1, &[EarlyMake], |t, bad| {
            mapped_block(t);
            if bad {
                split(t);
            } else {
                t.begin(Split, one_block()).allocate(PAGES).fill_leaves(PAGES, Level::L3, BASE, rw());
                t.exchange(BLOCKS, 0, block(rw()), block(rw()) | bits::NT).invalidate(Form::Ipa(BASE));
                t.store_table(BLOCKS, 0, PAGES).invalidate(Form::Ipa(BASE)).end();
            }
        }),
        // Members of one run that lead to different places.
        mistake(0, Level2, &[Translation], |t, bad| {
            no_pages(t);
            t.begin(Map, pages(16, 31));
            for n in 16..32 {
                let output = if bad && n == 20 { OTHER } else { BASE + n * 4096 };
                t.store_leaf(PAGES, n as usize, Level::L3, output, rw() | bits::CONTIGUOUS);
            }
            t.dsb(Dsb::IshSt).end();
        }),
        // At level 2, a break that nothing asks for.
        mistake(0, Level2, &[Window], |t, bad| {
            mapped_block(t);
            t.begin(Split, one_block()).allocate(PAGES).fill_leaves(PAGES, Level::L3, BASE, rw()).dsb(Dsb::IshSt);
            if bad {
                t.exchange(BLOCKS, 0, block(rw()), bits::BUSY).invalidate(everything());
                t.store_table(BLOCKS, 0, PAGES).dsb(Dsb::IshSt).end();
            } else {
                t.exchange(BLOCKS, 0, block(rw()), Descriptor::table(PAGES).0).dsb(Dsb::IshSt).end();
            }
        }),
        // A combined entry made anew from the stage-2 entry, between the two invalidations.
        mistake(0, Level2, &[Stale], |t, bad| {
            mapped_block(t);
            t.begin(Protect, one_block()).exchange(BLOCKS, 0, block(rw()), block(ro()));
            t.dsb(Dsb::IshSt).tlbi(Form::Ipa(BASE));
            if !bad {
                t.dsb(Dsb::Ish);
            }
            t.tlbi(Form::VmallE1).dsb(Dsb::Ish).end();
        }),
        // A page is opened, and the guest's VA invalidated no more than stage 2 is.
        mistake(0, Level2, &[Progress], |t, bad| {
            mapped_pages(t, ro());
            write(t, VA);
            t.begin(Fault, pages(3, 3)).exchange(PAGES, 3, page(3, ro()), page(3, rw()));
            invalidate_local(t, 3, (!bad).then_some(VA));
            t.end();
            write(t, VA);
        }),
        // R_RTBRL: a block that hardware marks is split as it is.
        Mistake {
            number: 0,
            level: Level2,
            hardware_dirty: true,
            found_by: &[Dirty],
            trace: |t, bad| {
                mapped_block(t);
                let clean = block(ro() | bits::DBM);
                let held = block(ro() | bits::BUSY);
                t.begin(Start, one_block()).exchange(BLOCKS, 0, block(rw()), clean).invalidate(Form::Ipa(BASE)).end();
                t.begin(Split, one_block()).allocate(PAGES);
                if bad {
                    t.fill_leaves(PAGES, Level::L3, BASE, ro() | bits::DBM).dsb(Dsb::IshSt);
                    t.exchange(BLOCKS, 0, clean, Descriptor::table(PAGES).0).dsb(Dsb::IshSt).end();
                    return;
                }
                t.fill_leaves(PAGES, Level::L3, BASE, ro() | bits::BUSY).dsb(Dsb::IshSt);
                t.exchange(BLOCKS, 0, clean, held).invalidate(Form::Ipa(BASE));
                t.exchange(BLOCKS, 0, held, Descriptor::table(PAGES).0).dsb(Dsb::IshSt);
                (0..ENTRIES).for_each(|n| _ = t.store(PAGES, n, page(n as u64, ro() | bits::DBM)));
                t.invalidate(everything()).end();
            },
        },
    ]
}

#[test]
fn bad_traces_are_rejected_for_the_right_reason_and_good_ones_accepted() {
    assert_judged(&mistakes());
}

#[test]
fn every_check_that_is_switched_off_lets_one_through() {
    for verdict in Verdict::ALL {
        let alone = mistakes().into_iter().find(|mistake| mistake.found_by == [verdict]);
        let mistake = alone.unwrap_or_else(|| panic!("no mistake that only {verdict:?} finds"));
        assert!(judge(&mistake, true, Checks::ALL.without(verdict)).is_clean(), "{verdict:?}");
    }
}

#[test]
fn a_log_that_is_damaged_is_refused() {
    let mut trace = Trace::new(1);
    mapped_block(&mut trace);
    let good: Vec<u8> = trace.events().iter().flat_map(record::encode).collect();
    assert_eq!(record::decode(&good[..good.len() - 1]).map_err(|e| e.index), Err(trace.events().len() - 1));
    for kind in [0, 19, 255] {
        let mut bad = good.clone();
        bad[2 * record::RECORD] = kind;
        let error = record::decode(&bad).expect_err("no such kind");
        assert_eq!(error.index, 2);
        assert!(error.to_string().contains("byte 0x40"), "{error}");
    }
    // A log with an event missing does not fit.
    let model = Model::new(Setup::new(BbmLevel::Level2));
    split(&mut trace);
    let hole: Vec<_> = trace.events().iter().filter(|e| !matches!(e.action, Action::Store { .. })).copied().collect();
    assert!(model.replay(&hole).is_err());
}
