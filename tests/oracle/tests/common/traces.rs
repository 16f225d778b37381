//! Traces written by hand, in a good form and a bad one.

use super::{GIB, MIB, range};
use stage2::Scope;
use stage2::descriptor::bits;
use stage2::{Attributes, BbmLevel, Descriptor, Dsb, IpaRange, Level, PhysAddr};
use stage2_oracle::{Access, Action, Checks, Form, Invalidation, Model, OperationKind, Setup, Trace, Verdict, record};

pub const ROOT: PhysAddr = PhysAddr(0x1000_0000);
/// The table of level 2 for the third GiB.
pub const BLOCKS: PhysAddr = PhysAddr(0x1000_1000);
/// A table of level 3 in it.
pub const PAGES: PhysAddr = PhysAddr(0x1000_2000);
pub const BASE: u64 = 2 * GIB;
pub const OTHER: u64 = 6 * GIB;

pub fn rw() -> u64 {
    Attributes::RAM.encode()
}

pub fn ro() -> u64 {
    rw() & !bits::WRITE
}

pub fn block(attributes: u64) -> u64 {
    Descriptor::leaf(Level::L2, PhysAddr(BASE), attributes).0
}

pub fn page(n: u64, attributes: u64) -> u64 {
    Descriptor::leaf(Level::L3, PhysAddr(BASE + n * 4096), attributes).0
}

pub fn pages(first: u64, last: u64) -> IpaRange {
    range(BASE + first * 4096, BASE + (last + 1) * 4096)
}

pub fn one_block() -> IpaRange {
    range(BASE, BASE + 2 * MIB)
}

/// One block of RAM at `BASE`, nothing else.
pub fn mapped_block(t: &mut Trace) {
    t.root(ROOT, 36).begin(OperationKind::Map, one_block());
    t.allocate(BLOCKS).fill(BLOCKS, 0, 0).store(BLOCKS, 0, block(rw()));
    t.dsb(Dsb::IshSt).store_table(ROOT, 2, BLOCKS).dsb(Dsb::IshSt).end();
}

/// The same in pages.
pub fn mapped_pages(t: &mut Trace, attributes: u64) {
    t.root(ROOT, 36).begin(OperationKind::Map, one_block());
    t.allocate(BLOCKS).fill(BLOCKS, 0, 0);
    t.allocate(PAGES).fill_leaves(PAGES, Level::L3, BASE, attributes).store_table(BLOCKS, 0, PAGES);
    t.dsb(Dsb::IshSt).store_table(ROOT, 2, BLOCKS).dsb(Dsb::IshSt).end();
}

/// An empty table of pages.
pub fn no_pages(t: &mut Trace) {
    t.root(ROOT, 36).begin(OperationKind::Map, one_block());
    t.allocate(BLOCKS).fill(BLOCKS, 0, 0);
    t.allocate(PAGES).fill(PAGES, 0, 0).store_table(BLOCKS, 0, PAGES);
    t.dsb(Dsb::IshSt).store_table(ROOT, 2, BLOCKS).dsb(Dsb::IshSt).end();
}

/// A direct split of the block.
pub fn split(t: &mut Trace) {
    t.begin(OperationKind::Split, one_block()).allocate(PAGES).fill_leaves(PAGES, Level::L3, BASE, rw());
    t.dsb(Dsb::IshSt).exchange(BLOCKS, 0, block(rw()), Descriptor::table(PAGES).0).dsb(Dsb::IshSt).end();
}

/// The guest's address of page 3, as long as its stage 1 is off.
pub const VA: u64 = BASE + 0x3000;

/// The guest writes to a virtual address, and takes what faults it has to.
pub fn write(t: &mut Trace, va: u64) {
    t.act(Action::Access { vmid: 1, va, access: Access::Write });
}

/// The guest maps a virtual address to page `n`.
pub fn guest_maps(t: &mut Trace, va: u64, n: u64) {
    t.act(Action::GuestMaps { vmid: 1, va, ipa: Some(BASE + n * 4096) });
}

/// The invalidation of a fault handler: page `n` of stage 2, and the virtual address.
pub fn invalidate_local(t: &mut Trace, n: u64, va: Option<u64>) {
    let local = |form| Action::Tlbi(Invalidation { vmid: 1, form, scope: Scope::Local, hint: None, last_level: false });
    t.dsb(Dsb::IshSt).act(local(Form::Ipa(BASE + n * 4096))).dsb(Dsb::Nsh);
    va.into_iter().for_each(|va| _ = t.act(local(Form::Va(va))));
    t.dsb(Dsb::Nsh);
}

pub fn everything() -> Form {
    Form::Range { base: BASE, scale: 1, num: 7, granule: 12, unit: 12 }
}

/// A mistake, made (`true`) or not.
#[derive(Clone, Copy)]
pub struct Mistake {
    /// Its number in `docs/mutations.md`; 0 for one that is not on that list.
    pub number: u8,
    pub level: BbmLevel,
    pub hardware_dirty: bool,
    pub found_by: &'static [Verdict],
    pub trace: fn(&mut Trace, bool),
}

/// A mistake that is not on the list, on a machine without hardware dirty state.
pub fn mistake(level: BbmLevel, found_by: &'static [Verdict], trace: fn(&mut Trace, bool)) -> Mistake {
    Mistake { number: 0, level, hardware_dirty: false, found_by, trace }
}

/// All good traces are accepted, and the bad ones rejected for the right reason and no other.
pub fn assert_judged(mistakes: &[Mistake]) {
    for (n, mistake) in mistakes.iter().enumerate() {
        let good = judge(mistake, false, Checks::ALL);
        assert!(good.is_clean(), "trace {n}, mistake {}:\n{}", mistake.number, good.violations()[0]);
        let bad = judge(mistake, true, Checks::ALL);
        let all: Vec<_> = bad.violations().iter().map(ToString::to_string).collect();
        assert_eq!(bad.verdicts(), mistake.found_by, "trace {n}, mistake {}:\n{}", mistake.number, all.join("\n"));
        assert!(all[0].contains("history") && all[0].contains("PE"), "{}", all[0]);
    }
}

pub fn judge(mistake: &Mistake, bad: bool, checks: Checks) -> Model {
    let setup = Setup { checks, hardware_dirty: mistake.hardware_dirty, ..Setup::new(mistake.level) };
    let model = Model::new(setup);
    let mut trace = Trace::new(1);
    (mistake.trace)(&mut trace, bad);
    // Through the machine's format, so that it is known to keep everything that matters.
    let log: Vec<u8> = trace.events().iter().flat_map(record::encode).collect();
    let events = record::decode(&log).expect("what was encoded");
    assert_eq!(events, trace.events());
    model.replay(&events).expect("a trace that fits");
    model
}
