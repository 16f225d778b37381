//! What the oracle excuses, and how far: next to each good trace that an exception is for, one that goes a step
//! further. The oracle of commit cc8e26f accepted all of the bad ones but two: of the right that is taken from a marked
//! entry it rejected the good one as well, and of the entry that another operation has left it saw verdict 4 only.

mod common;

use common::traces::*;
use stage2::descriptor::bits;
use stage2::{BbmLevel, Descriptor, Dsb, Level, Scope};
use stage2_oracle::{Action, Form, Invalidation, Operation, OperationKind, Trace, Verdict};

/// Nothing is granted but reading.
fn denied() -> u64 {
    ro() & !bits::WRITE_GRANTED
}

/// What hardware may mark, and has not.
fn clean() -> u64 {
    ro() | bits::DBM
}

/// Unmapped, and no PE holds it any more.
fn unmap_page(t: &mut Trace, n: u64) {
    t.store(PAGES, n as usize, 0).invalidate(page_form(n));
}

fn page_form(n: u64) -> Form {
    Form::Ipa(BASE + n * 4096)
}

/// One page's permissions change, and no PE holds the old ones.
fn change_page(t: &mut Trace, n: u64, old: u64, new: u64) {
    t.exchange(PAGES, n as usize, page(n, old), page(n, new)).invalidate(page_form(n));
}

fn hardware(mistake: Mistake) -> Mistake {
    Mistake { hardware_dirty: true, ..mistake }
}

#[test]
fn mappings_go_and_lead_elsewhere_where_they_were_asked_to() {
    use BbmLevel::{Level0, Level2};
    use OperationKind::{Map, Protect, Unmap};
    assert_judged(&[
        // An unmapping takes the next page along.
        mistake(Level2, &[Verdict::Contract], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Unmap, pages(3, 3));
            unmap_page(t, 3);
            if bad {
                unmap_page(t, 4);
            }
            t.end();
        }),
        // A page that hardware may mark goes by a plain store, though it is not asked for.
        hardware(mistake(Level2, &[Verdict::Dirty, Verdict::Contract], |t, bad| {
            mapped_pages(t, clean());
            t.begin(Unmap, pages(3, 3));
            unmap_page(t, if bad { 4 } else { 3 });
            t.end();
        })),
        // Properly broken, and made anew to lead elsewhere: by a change of permissions.
        mistake(Level0, &[Verdict::Contract], |t, bad| {
            mapped_pages(t, rw());
            t.begin(if bad { Protect } else { Map }, pages(3, 3));
            t.exchange(PAGES, 3, page(3, rw()), bits::BUSY).invalidate(page_form(3));
            t.store_leaf(PAGES, 3, Level::L3, OTHER, rw()).dsb(Dsb::IshSt).end();
        }),
        // A mapping with other permissions breaks the page behind its range, too.
        mistake(Level2, &[Verdict::Window], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Map, pages(3, 3));
            for n in 3..if bad { 5 } else { 4 } {
                unmap_page(t, n);
                t.store(PAGES, n as usize, page(n, denied()));
            }
            t.dsb(Dsb::IshSt).end();
        }),
        // Mapped alike, in pages, and broken to become a block.
        mistake(Level2, &[Verdict::Window], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Map, one_block());
            if bad {
                t.store(BLOCKS, 0, 0).invalidate(everything());
            }
            t.store(BLOCKS, 0, block(rw())).invalidate(everything()).free(PAGES).end();
        }),
        // Without FEAT_BBM windows are counted only; for permissions there is none (R_GPPYH).
        mistake(Level0, &[Verdict::Window], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Protect, pages(3, 3));
            if bad {
                t.exchange(PAGES, 3, page(3, rw()), bits::BUSY).invalidate(page_form(3));
                t.store(PAGES, 3, page(3, denied())).dsb(Dsb::IshSt);
            } else {
                change_page(t, 3, rw(), denied());
            }
            t.end();
        }),
    ]);
}

#[test]
fn nothing_changes_but_in_a_call_of_the_engine() {
    assert_judged(&[mistake(BbmLevel::Level2, &[Verdict::Contract], |t, bad| {
        mapped_pages(t, rw());
        if !bad {
            t.begin(OperationKind::Unmap, pages(3, 3));
        }
        unmap_page(t, 3);
        if !bad {
            t.end();
        }
    })]);
}

#[test]
fn permissions_change_where_they_were_asked_to() {
    use BbmLevel::Level2;
    use OperationKind::{Batch, Collapse, Fault, Harvest, Protect};
    assert_judged(&[
        // A batch takes a right and gives it back: asked for twice, or once.
        mistake(Level2, &[Verdict::Window], |t, bad| {
            mapped_pages(t, rw());
            t.act(Action::Begin(Operation::whole(Batch))).pages(pages(3, 3));
            t.exchange(PAGES, 3, page(3, rw()), page(3, denied()));
            if !bad {
                t.pages(pages(0, 7));
            }
            t.exchange(PAGES, 3, page(3, denied()), page(3, rw())).invalidate(page_form(3)).end();
        }),
        // A batch changes what none of its changes is for.
        mistake(Level2, &[Verdict::Contract], |t, bad| {
            mapped_pages(t, rw());
            t.act(Action::Begin(Operation::whole(Batch))).pages(pages(2, 3)).pages(pages(5, 6));
            change_page(t, if bad { 4 } else { 5 }, rw(), denied());
            t.end();
        }),
        // A fault opens another page than the one that was written.
        mistake(Level2, &[Verdict::Contract], |t, bad| {
            mapped_pages(t, ro());
            t.begin(Fault, pages(3, 3));
            change_page(t, if bad { 4 } else { 3 }, ro(), rw());
            t.end();
        }),
        // A fault opens a page whose owner forbids writes; a harvest denies what it is to protect; a collapse grants.
        mistake(Level2, &[Verdict::Contract], |t, bad| {
            let held_back = if bad { denied() } else { ro() };
            mapped_pages(t, held_back);
            t.begin(Fault, pages(3, 3));
            change_page(t, 3, held_back, rw());
            t.end();
        }),
        mistake(Level2, &[Verdict::Contract], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Harvest, one_block());
            change_page(t, 3, rw(), if bad { denied() } else { ro() });
            t.end();
        }),
        mistake(Level2, &[Verdict::Contract], |t, bad| {
            let held_back = if bad { denied() } else { ro() };
            mapped_pages(t, held_back);
            t.begin(Collapse, one_block());
            change_page(t, 3, held_back, rw());
            t.end();
        }),
        // A page that hardware tracks is denied for a moment: nobody waits for a mark, as writers do when it is split.
        hardware(mistake(Level2, &[Verdict::Window], |t, bad| {
            mapped_pages(t, clean());
            t.begin(Protect, pages(3, 3));
            if bad {
                change_page(t, 3, clean(), denied());
                change_page(t, 3, denied(), clean());
            }
            t.end();
        })),
    ]);
}

#[test]
fn a_block_whose_log_has_ended_is_split_when_no_pe_holds_it_as_it_was() {
    // R_RTBRL makes no exception for pages that are open.
    assert_judged(&[hardware(mistake(BbmLevel::Level2, &[Verdict::Dirty], |t, bad| {
        mapped_block(t);
        t.begin(OperationKind::Start, one_block()).exchange(BLOCKS, 0, block(rw()), block(clean()));
        t.invalidate(everything()).end();
        t.begin(OperationKind::Stop, one_block());
        if !bad {
            t.exchange(BLOCKS, 0, block(clean()), block(rw())).invalidate(everything());
        }
        t.end();
        t.begin(OperationKind::Split, one_block()).allocate(PAGES).fill_leaves(PAGES, Level::L3, BASE, rw());
        let old = block(if bad { clean() } else { rw() });
        t.dsb(Dsb::IshSt).exchange(BLOCKS, 0, old, Descriptor::table(PAGES).0).dsb(Dsb::IshSt).end();
    }))]);
}

#[test]
fn a_log_ends_and_nothing_more() {
    // Pages that a log holds back stay so until their first write, which is another call.
    assert_judged(&[mistake(BbmLevel::Level2, &[Verdict::Contract], |t, bad| {
        mapped_pages(t, rw());
        t.begin(OperationKind::Start, one_block());
        change_page(t, 3, rw(), ro());
        t.end().begin(OperationKind::End, one_block());
        if !bad {
            t.end().begin(OperationKind::Fault, pages(3, 3));
        }
        change_page(t, 3, ro(), rw());
        t.end();
    })]);
}

#[test]
fn busy_marks_belong_to_one_pe_and_do_not_stay() {
    use BbmLevel::{Level1, Level2};
    use OperationKind::{Protect, Split};
    let contract = &[Verdict::Contract];
    assert_judged(&[
        // A block that stays nT.
        mistake(Level1, contract, |t, bad| {
            mapped_block(t);
            let nt = block(rw()) | bits::NT;
            t.begin(Split, one_block()).exchange(BLOCKS, 0, block(rw()), nt).invalidate(everything());
            if !bad {
                t.store(BLOCKS, 0, block(rw())).dsb(Dsb::IshSt);
            }
            t.end();
        }),
        // A block that was held for its split, and stays so.
        hardware(mistake(Level2, contract, |t, bad| {
            mapped_block(t);
            let marked = block(rw()) | bits::BUSY;
            t.begin(Split, one_block()).exchange(BLOCKS, 0, block(rw()), marked);
            if !bad {
                t.store(BLOCKS, 0, block(rw()));
            }
            t.dsb(Dsb::IshSt).end();
        })),
        // A right is taken from an entry that another PE has marked: good, if it is looked at again; its owner may
        // write over it.
        mistake(Level1, contract, |t, bad| {
            mapped_block(t);
            let nt = |attributes| block(attributes) | bits::NT;
            t.on(0).begin(Split, one_block()).allocate(PAGES).fill_leaves(PAGES, Level::L3, BASE, rw());
            t.exchange(BLOCKS, 0, block(rw()), nt(rw())).invalidate(everything());
            t.on(1).begin(Protect, one_block()).exchange(BLOCKS, 0, nt(rw()), nt(denied())).invalidate(everything());
            if bad {
                t.end();
            }
            t.on(0).store_table(BLOCKS, 0, PAGES).invalidate(everything()).end();
            if !bad {
                (0..512).for_each(|n| _ = t.on(1).exchange(PAGES, n, page(n as u64, rw()), page(n as u64, denied())));
                t.invalidate(everything()).end();
            }
        }),
    ]);
}

#[test]
fn others_at_work_excuse_only_what_they_may_have_done() {
    use BbmLevel::Level2;
    use OperationKind::{Fault, Harvest, Protect, Split, Start};
    assert_judged(&[
        // A PE that takes a right invalidates, though another PE that works on the same block will, too.
        mistake(Level2, &[Verdict::Stale], |t, bad| {
            mapped_pages(t, rw());
            t.on(0).begin(Protect, pages(3, 3)).exchange(PAGES, 3, page(3, rw()), page(3, denied()));
            t.on(1).begin(Protect, pages(3, 4)).exchange(PAGES, 4, page(4, rw()), page(4, denied()));
            t.exchange(PAGES, 3, page(3, denied()), page(3, denied() | bits::NO_EXECUTE));
            if !bad {
                t.on(0).invalidate(page_form(3));
            }
            t.on(0).end();
            t.on(1).invalidate(everything()).end();
        }),
        // A page is opened and marked by a fault that runs beside the harvest: in this report or in the next. By a
        // split it is not.
        mistake(Level2, &[Verdict::Dirty], |t, bad| {
            mapped_pages(t, ro());
            t.begin(Start, one_block()).end();
            t.on(1).begin(if bad { Split } else { Fault }, pages(3, 3));
            t.exchange(PAGES, 3, page(3, ro()), page(3, rw())).dsb(Dsb::IshSt);
            t.on(0).begin(Harvest, one_block()).end();
            t.on(1);
            if bad {
                // So that it is not found for having opened the page.
                t.exchange(PAGES, 3, page(3, rw()), page(3, ro())).invalidate(page_form(3));
            }
            t.end();
        }),
        // What another operation has left in a TLB lets writes through that no report will have.
        mistake(Level2, &[Verdict::Stale, Verdict::Dirty], |t, bad| {
            mapped_pages(t, rw());
            t.begin(Start, one_block()).end();
            t.begin(Protect, pages(3, 3)).exchange(PAGES, 3, page(3, rw()), page(3, denied()));
            if !bad {
                t.invalidate(page_form(3));
            }
            t.end();
            t.begin(Harvest, one_block()).pages(one_block()).end();
        }),
    ]);
}

/// Another alias of page 3.
const ALIAS: u64 = 0x7000_0000;

/// A fault of a page that the table allows is answered.
fn answer(t: &mut Trace, n: u64, va: Option<u64>) {
    t.begin(OperationKind::Fault, pages(n, n));
    invalidate_local(t, n, va);
    t.end();
}
fn open(t: &mut Trace, n: u64) {
    t.begin(OperationKind::Fault, pages(n, n)).exchange(PAGES, n as usize, page(n, ro()), page(n, rw()));
}

#[test]
fn a_fault_comes_back_once_for_what_its_answer_could_not_take() {
    use BbmLevel::Level2;
    use OperationKind::Fault;
    let progress = &[Verdict::Progress];
    assert_judged(&[
        // Another virtual address of the page faults once for itself; with the answer for the first one, it does so
        // again.
        mistake(Level2, progress, |t, bad| {
            mapped_pages(t, ro());
            guest_maps(t, ALIAS, 3);
            write(t, VA);
            open(t, 3);
            invalidate_local(t, 3, Some(VA));
            t.end();
            write(t, ALIAS);
            answer(t, 3, Some(if bad { VA } else { ALIAS }));
            write(t, ALIAS);
        }),
        // Another PE faults once for itself; the answer on the first one takes nothing from it.
        mistake(Level2, progress, |t, bad| {
            mapped_pages(t, ro());
            t.on(0);
            open(t, 3);
            invalidate_local(t, 3, Some(VA));
            t.end();
            write(t.on(1), VA);
            t.on(1).begin(Fault, pages(3, 3));
            invalidate_local(t.on(u8::from(!bad)), 3, Some(VA));
            t.on(1).end();
            write(t, VA);
        }),
        // What another PE has stored and not ordered is not seen yet: the fault comes back, but for that time only.
        mistake(Level2, progress, |t, bad| {
            mapped_pages(t, ro());
            t.on(1);
            open(t, 3);
            write(t.on(0), VA);
            answer(t, 3, Some(VA));
            t.on(1).dsb(Dsb::IshSt).end();
            write(t.on(0), VA);
            answer(t, 3, (!bad).then_some(VA));
            write(t, VA);
        }),
    ]);
}

#[test]
fn a_fault_comes_back_for_nothing_that_its_answer_could_have_taken() {
    use BbmLevel::Level2;
    let progress = &[Verdict::Progress];
    assert_judged(&[
        // What this PE has stored and not ordered: nothing excuses that.
        mistake(Level2, progress, |t, bad| {
            mapped_pages(t, ro());
            write(t, VA);
            open(t, 3);
            if bad {
                let local =
                    Invalidation { vmid: 1, form: page_form(3), scope: Scope::Local, hint: None, last_level: false };
                t.act(Action::Tlbi(local)).dsb(Dsb::Nsh);
                t.act(Action::Tlbi(Invalidation { form: Form::Va(VA), ..local })).dsb(Dsb::Nsh);
            } else {
                invalidate_local(t, 3, Some(VA));
            }
            t.end();
            write(t, VA);
        }),
        // The guest has changed its tables and not its TLB: the entry under the old page goes with the virtual address.
        mistake(Level2, progress, |t, bad| {
            mapped_pages(t, ro());
            guest_maps(t, ALIAS, 3);
            guest_maps(t, ALIAS, 4);
            open(t, 4);
            invalidate_local(t, 4, Some(VA + 0x1000));
            t.end();
            write(t, ALIAS);
            answer(t, 4, (!bad).then_some(ALIAS));
            write(t, ALIAS);
        }),
        // Page 3 is closed again meanwhile: then it is the table that refuses.
        mistake(Level2, progress, |t, bad| {
            mapped_pages(t, ro());
            write(t, VA);
            open(t, 3);
            invalidate_local(t, 3, (!bad).then_some(VA));
            t.end();
            if !bad {
                t.on(1).begin(OperationKind::Protect, pages(3, 3));
                change_page(t, 3, rw(), denied());
                t.end();
            }
            write(t.on(0), VA);
        }),
    ]);
}
