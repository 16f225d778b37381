//! Two threads at the same descriptor.

use loom::sync::Arc;
use loom::thread;
use stage2::fault::Status;
use stage2::features::Features;
use stage2::*;
use stage2_loom::Machine;
use std::sync::atomic::AtomicU64;

const BLOCK: u64 = 2 << 20;
/// The block that all of it is about: entry 1 of its level-2 table. Index 1 of its pages is used by both threads, too.
const START: u64 = BLOCK;
const PAGE: u64 = START + PAGE_SIZE;
const OTHER_PAGE: u64 = START + 7 * PAGE_SIZE;
const SHARED: [usize; 2] = [1, 7];

type Table = Stage2<Machine>;

fn pages(start: u64, bytes: u64) -> IpaRange {
    IpaRange::from_size(Ipa(start), bytes).unwrap()
}

/// A table with one block of 2 MiB.
fn table(bbm: BbmLevel) -> Table {
    table_on(Machine::new(6, &SHARED), bbm)
}

fn table_on(machine: Machine, bbm: BbmLevel) -> Table {
    let features = Features::MINIMAL.with_pa_bits(40).with_bbm(bbm).with_tlbi_range(true).with_lse(true);
    let config = Config::new(Vmid::new(1).unwrap(), features).with_ipa_bits(32);
    let mut table = Stage2::new(machine, config).unwrap();
    table.map(pages(START, BLOCK), PhysAddr(START), Attributes::RAM).unwrap();
    table
}

/// Runs two threads on a table that `make` makes, in every interleaving with up to three preemptions, then `check`.
fn both(
    make: impl Fn() -> Table + Sync + Send + 'static,
    one: impl Fn(&Table) + Sync + Send + 'static,
    other: fn(&Table),
    check: impl Fn(&mut Table) + Sync + Send + 'static,
) {
    both_within(3, make, one, other, check);
}

/// The same with up to so many preemptions.
fn both_within(
    preemptions: usize,
    make: impl Fn() -> Table + Sync + Send + 'static,
    one: impl Fn(&Table) + Sync + Send + 'static,
    other: fn(&Table),
    check: impl Fn(&mut Table) + Sync + Send + 'static,
) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 100_000;
    model.check(move || {
        let table = Arc::new(make());
        let theirs = Arc::clone(&table);
        let thread = thread::spawn(move || {
            other(&theirs);
            theirs.platform().drain();
        });
        one(&table);
        table.platform().drain();
        thread.join().unwrap();
        let mut table = Arc::try_unwrap(table).unwrap();
        check(&mut table);
    });
}

/// Each page of the block translates to itself, and there is one table for each level.
fn is_whole_and_split(table: &Table) {
    let leaves: Vec<Leaf> = table.leaves(pages(START, BLOCK)).collect();
    assert!(leaves.iter().all(|leaf| leaf.ipa.0 == leaf.output.0), "{leaves:?}");
    assert_eq!(leaves.iter().map(|leaf| leaf.range().pages()).sum::<u64>(), 512);
    // The root, level 2, level 3: the thread that came second gave its frame back.
    assert_eq!(table.platform().in_use(), 3);
}

fn split(table: &Table) {
    table.split(pages(START, BLOCK), LeafSize::Page).unwrap();
}

/// Whether a store goes through: it is allowed, and no log waits for it.
fn is_open(table: &Table, page: u64) -> bool {
    let leaf = table.walk(Ipa(page)).unwrap();
    leaf.attributes.permissions.write && !leaf.write_protected
}

/// A guest's store: faults until it is let through.
fn write(table: &Table, page: u64) {
    while !is_open(table, page) {
        write_fault(table, page);
        thread::yield_now();
    }
}

fn write_fault(table: &Table, page: u64) {
    let abort = Abort {
        status: Status::Permission,
        write: true,
        execute: false,
        stage1_walk: false,
        el0: false,
        ipa: Ipa(page),
        va: page,
    };
    assert_eq!(table.fault(&abort, &mut FaultHistory::new()), Outcome::Retry);
}

#[test]
fn two_threads_split_one_block_directly() {
    both(|| table(BbmLevel::Level2), split, split, |table| is_whole_and_split(table));
}

#[test]
fn two_threads_split_one_block_by_break_before_make() {
    both(|| table(BbmLevel::Level0), split, split, |table| is_whole_and_split(table));
}

#[test]
fn two_threads_split_one_block_through_nt() {
    both(|| table(BbmLevel::Level1), split, split, |table| is_whole_and_split(table));
}

#[test]
fn a_page_is_protected_while_its_block_is_split() {
    let protect = |table: &Table| table.protect(pages(PAGE, PAGE_SIZE), Permissions::READ).unwrap();
    for level in [BbmLevel::Level0, BbmLevel::Level2] {
        both(
            move || table(level),
            split,
            protect,
            |table| {
                is_whole_and_split(table);
                assert!(!is_open(table, PAGE) && is_open(table, START) && is_open(table, OTHER_PAGE));
            },
        );
    }
}

#[test]
fn two_threads_protect_one_page() {
    let read = |table: &Table| table.protect(pages(PAGE, PAGE_SIZE), Permissions::READ).unwrap();
    let execute = |table: &Table| table.protect(pages(PAGE, PAGE_SIZE), Permissions::READ_EXECUTE).unwrap();
    let make = || {
        let table = table(BbmLevel::Level2);
        split(&table);
        table
    };
    both(make, read, execute, |table| {
        let now = table.walk(Ipa(PAGE)).unwrap().attributes.permissions;
        assert!(now == Permissions::READ || now == Permissions::READ_EXECUTE, "{now:?}");
        is_whole_and_split(table);
    });
}

/// With break-before-make a run's members come back by plain stores: the last may be there, and others not.
#[test]
fn a_permission_is_taken_while_the_members_of_a_run_come_back() {
    const RUN: u64 = 16;
    let run = || pages(START + RUN * PAGE_SIZE, RUN * PAGE_SIZE);
    let make = move || {
        // Both threads use the first member, which is the run's lock, and the last two.
        let table = table_on(Machine::new(6, &[16, 30, 31]).with_late_stores(), BbmLevel::Level0);
        table.split(pages(START, BLOCK), LeafSize::Contiguous64K).unwrap();
        table.split(pages(START, RUN * PAGE_SIZE), LeafSize::Page).unwrap();
        table.split(IpaRange::new(run().end(), Ipa(START + BLOCK)).unwrap(), LeafSize::Page).unwrap();
        assert_eq!(table.walk(run().start()).unwrap().size, LeafSize::Contiguous64K);
        table
    };
    let protect = |table: &Table| table.protect(pages(START, 3 * RUN * PAGE_SIZE), Permissions::READ_EXECUTE).unwrap();
    // With a third preemption it takes minutes: where `CI` is set, as for the oracle's whole runs.
    let preemptions = if std::env::var_os("CI").is_some() { 3 } else { 2 };
    both_within(
        preemptions,
        make,
        move |table| table.split(run(), LeafSize::Page).unwrap(),
        protect,
        |table| {
            is_whole_and_split(table);
            let mut leaves = table.leaves(pages(START, 3 * RUN * PAGE_SIZE));
            assert!(leaves.all(|leaf| !leaf.attributes.permissions.write), "a permission that was taken is back");
        },
    );
}

/// A table whose block is logged by write protection, with nothing dirty.
fn logged(level: BbmLevel) -> (Table, Log) {
    let mut table = table(level);
    let range = pages(START, BLOCK);
    let storage: Vec<AtomicU64> = (0..Layout::new(range).words()).map(|_| AtomicU64::new(0)).collect();
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: false };
    let log = table.start_log(range, storage.leak(), options).unwrap();
    (table, log)
}

#[test]
fn two_threads_write_into_one_protected_block() {
    for level in [BbmLevel::Level0, BbmLevel::Level2] {
        both(
            move || logged(level).0,
            |table| write(table, PAGE),
            |table| write(table, OTHER_PAGE),
            |table| {
                assert!(is_open(table, PAGE) && is_open(table, OTHER_PAGE) && !is_open(table, START));
                is_whole_and_split(table);
            },
        );
    }
}

/// A page that is opened while the log is harvested is in this report or in the next, or is closed again.
#[test]
fn a_page_is_opened_while_its_log_is_harvested() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 100_000;
    model.check(|| {
        let (table, mut log) = logged(BbmLevel::Level2);
        write_fault(&table, OTHER_PAGE);
        let table = Arc::new(table);
        let theirs = Arc::clone(&table);
        let thread = thread::spawn(move || write_fault(&theirs, PAGE));
        let layout = Layout::new(pages(START, BLOCK));
        let mut report = |table: &Table| {
            let mut words = vec![0; layout.words()];
            let mut set = PageSet::new(layout, &mut words).unwrap();
            table.harvest(&mut log, &mut set).unwrap();
            let has = |page| set.contains_range(pages(page, PAGE_SIZE));
            (has(PAGE), has(OTHER_PAGE))
        };
        let (first, written_before) = report(&table);
        assert!(written_before);
        thread.join().unwrap();
        let open = is_open(&table, PAGE);
        let (second, _) = report(&table);
        assert!(first || second, "the store that follows the fault would be missed");
        assert!(second || !open, "open, and not in the next report");
        assert!(!is_open(&table, PAGE));
    });
}
