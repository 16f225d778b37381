//! Several engine threads at once: every event is a scheduling point, and the adversary walks between any two of them.
//! Small configurations are tried in every order with few preemptions, larger ones at random.

mod common;

use common::scenes::{BASE, machine, page, pages, setup, stop, storage, table};
use common::{MIB, Machine, range, scaled, seed, vmid};
use core::cell::RefCell;
use stage2::*;
use stage2_oracle::schedule::{Body, Chooser, Random, explore, run};
use stage2_oracle::{Checked, Model, Reference};

/// Threads that share a table; what they do must commute, so that the result is one for all orders.
type Scene = fn(&Checked<'_>, u8);

fn split_and_protect(table: &Checked<'_>, thread: u8) {
    match thread {
        0 => table.split(pages(0, 511), LeafSize::Page).expect("memory"),
        _ => table.protect(pages(7, 8), Permissions::READ).expect("memory"),
    }
}

fn split_twice(table: &Checked<'_>, _: u8) {
    table.split(pages(0, 511), LeafSize::Page).expect("memory");
}

fn protect_both_edges(table: &Checked<'_>, thread: u8) {
    let n = 16 * u64::from(thread);
    table.protect(pages(n + 3, n + 20), Permissions::READ).expect("memory");
}

/// `READ_EXECUTE` sets no bit of a leaf's: it is taken by one atomic instruction each, no matter which PE is at work on
/// the entry.
fn split_and_take(table: &Checked<'_>, thread: u8) {
    match thread {
        0 => table.split(pages(0, 511), LeafSize::Page).expect("memory"),
        _ => table.protect(pages(0, 1023), Permissions::READ_EXECUTE).expect("memory"),
    }
}

fn play(
    machine: Machine,
    late_stores: bool,
    threads: u8,
    scene: Scene,
    expected: &Reference,
    chooser: &mut dyn Chooser,
) {
    let model = Model::new(setup(machine, late_stores));
    let table = table(&model, machine);
    let bodies = (0..threads).map(|n| -> Body<'_> {
        let table = &table;
        (n, Box::new(move || scene(table, n)))
    });
    run(&model, bodies.collect(), chooser);
    model.set_pe(0);
    model.assert_clean();
    if let Some(difference) = expected.difference(&model, vmid(), range(BASE, BASE + 4 * MIB)) {
        panic!("{difference}");
    }
    table.release();
    model.assert_clean();
    assert_eq!(model.frames_in_use(), 0, "frames are leaked");
}

fn scenes() -> [(&'static str, Scene, Reference); 4] {
    let mut whole = Reference::new();
    whole.map(range(BASE, BASE + 4 * MIB), PhysAddr(BASE), Attributes::RAM);
    let (mut few, mut edges, mut all) = (whole.clone(), whole.clone(), whole.clone());
    few.protect(pages(7, 8), Permissions::READ);
    edges.protect(pages(3, 36), Permissions::READ);
    all.protect(pages(0, 1023), Permissions::READ_EXECUTE);
    [
        ("split and protect", split_and_protect as Scene, few),
        ("split twice", split_twice, whole),
        ("split and take", split_and_take, all),
        ("protect overlapping ranges", protect_both_edges, edges),
    ]
}

fn every_order_with_two_preemptions(contiguous: bool, late: bool) {
    for bbm in Machine::LEVELS {
        for (name, scene, expected) in scenes() {
            let machine = machine(bbm, contiguous, false);
            let most = scaled(if late { 2000 } else { 6000 }) as usize;
            let (runs, all) = explore(2, most, |chooser| play(machine, late, 2, scene, &expected, chooser));
            println!(
                "{name} at {bbm:?}, runs {contiguous}, stores late {late}: {runs} orders{}",
                if all { ", all" } else { "" }
            );
            assert!(runs > 100, "{name}: too few orders to mean anything");
        }
    }
}

#[test]
fn every_order_with_two_preemptions_and_runs() {
    every_order_with_two_preemptions(true, false);
    every_order_with_two_preemptions(true, true);
}

#[test]
fn every_order_with_two_preemptions_without_runs() {
    every_order_with_two_preemptions(false, false);
    every_order_with_two_preemptions(false, true);
}

/// Two PEs give one contiguous run different permissions. Says whose all of the run has in the end, 0 or 1. They may
/// also have taken the run apart, and share its pages: 2. A run with two permissions must not be.
fn change_one_run(machine: Machine, late_stores: bool, chooser: &mut dyn Chooser) -> usize {
    const WANTED: [Permissions; 2] = [Permissions::READ, Permissions::READ_WRITE];
    let run_of_pages = pages(16, 31);
    let model = Model::new(setup(machine, late_stores));
    let table = table(&model, machine);
    table.split(range(BASE, BASE + 2 * MIB), LeafSize::Contiguous64K).expect("memory");
    let bodies = (0..2).map(|n| -> Body<'_> {
        let table = &table;
        (n, Box::new(move || table.protect(run_of_pages, WANTED[usize::from(n)]).expect("no memory is needed")))
    });
    run(&model, bodies.collect(), chooser);
    model.set_pe(0);
    model.assert_clean();
    let won = WANTED.iter().position(|&permissions| {
        let mut expected = Reference::new();
        expected.map(range(BASE, BASE + 4 * MIB), PhysAddr(BASE), Attributes::RAM);
        expected.protect(run_of_pages, permissions);
        expected.difference(&model, vmid(), range(BASE, BASE + 4 * MIB)).is_none()
    });
    if won.is_none() {
        let mut leaves = table.stage2().leaves(run_of_pages);
        let is_shared = |leaf: Leaf| leaf.size == LeafSize::Page && WANTED.contains(&leaf.attributes.permissions);
        assert!(leaves.all(is_shared), "{machine:?}: a run with two permissions");
    }
    table.release();
    model.assert_clean();
    won.unwrap_or(2)
}

#[test]
fn a_run_that_two_change_never_has_two_permissions() {
    for bbm in Machine::LEVELS {
        let machine = machine(bbm, true, false);
        let mut won = [0; 3];
        let (runs, _) = explore(2, scaled(6000) as usize, |chooser| won[change_one_run(machine, false, chooser)] += 1);
        for n in 0..u64::from(scaled(2000)) {
            let seed = seed() + n;
            won[change_one_run(machine, n % 2 == 1, &mut Random::new(seed))] += 1;
        }
        println!("a run changed twice at {bbm:?}: {runs} orders, and random ones from ORACLE_SEED={}: {won:?}", seed());
        assert!(won[0] > 0 && won[1] > 0, "the order makes no difference: {won:?}");
    }
}

#[test]
fn three_threads_in_random_order() {
    for bbm in Machine::LEVELS {
        for (name, scene, mut expected) in scenes() {
            if name.starts_with("protect") {
                expected.protect(pages(3, 52), Permissions::READ);
            }
            for n in 0..u64::from(scaled(600)) {
                let seed = seed() + n;
                println!("{name} at {bbm:?}: ORACLE_SEED={seed}");
                play(machine(bbm, n % 2 == 0, false), n % 4 > 1, 3, scene, &expected, &mut Random::new(seed));
            }
        }
    }
}

/// Two vCPUs write, a third PE harvests and splits: no write is missed.
fn log_race(machine: Machine, late_stores: bool, mechanism: Mechanism, all_dirty: bool, chooser: &mut dyn Chooser) {
    let model = Model::new(setup(machine, late_stores));
    let mut table = table(&model, machine);
    let logged = pages(0, 511);
    let log = table.start_log(logged, storage(logged), LogOptions { mechanism, all_dirty }).expect("a log");
    let log = RefCell::new(log);
    {
        let (table, log) = (&table, &log);
        let writer = |pe: u8, first: u64| -> Body<'_> {
            let body = move || {
                let mut history = FaultHistory::new();
                for n in [first, 9, first] {
                    table.store(Ipa(page(n)), &mut history).expect("a store that lands");
                }
            };
            (pe, Box::new(body))
        };
        let harvester: Body<'_> = (
            2,
            Box::new(move || {
                let mut log = log.borrow_mut();
                let mut words = vec![0; log.layout().words()];
                let mut report = PageSet::new(log.layout(), &mut words).expect("words enough");
                table.harvest(&mut log, &mut report).expect("a harvest");
                table.split(pages(0, 511), LeafSize::Page).expect("memory");
                table.harvest(&mut log, &mut report).expect("a harvest");
            }),
        );
        run(&model, vec![writer(0, 3), writer(1, 9), harvester], chooser);
    }
    model.set_pe(2);
    let mut log = log.into_inner();
    let mut words = vec![0; log.layout().words()];
    let mut report = PageSet::new(log.layout(), &mut words).expect("words enough");
    // Nobody is in a fault handler now, so this one sees every mark.
    table.harvest(&mut log, &mut report).expect("a harvest");
    stop(&model, table, log);
}

#[test]
fn no_write_is_missed_in_any_order() {
    for bbm in Machine::LEVELS {
        for (mechanism, hardware) in
            [(Mechanism::WriteProtect, false), (Mechanism::HardwarePage, true), (Mechanism::HardwareBlock, true)]
        {
            let machine = machine(bbm, false, hardware);
            let (runs, _) =
                explore(1, scaled(1200) as usize, |chooser| log_race(machine, false, mechanism, false, chooser));
            for n in 0..u64::from(scaled(600)) {
                let seed = seed() + n;
                println!("{mechanism:?} at {bbm:?}: ORACLE_SEED={seed}");
                log_race(machine, n % 4 > 1, mechanism, n % 2 == 1, &mut Random::new(seed));
            }
            println!("{mechanism:?} at {bbm:?}: {runs} orders tried one by one");
        }
    }
}

/// A block that hardware has marked is split while another PE harvests: what it says of its pages, busy ones too, is
/// not over when the harvest looks.
fn harvest_beside_a_split(machine: Machine, late_stores: bool, chooser: &mut dyn Chooser) {
    let model = Model::new(setup(machine, late_stores));
    let mut table = table(&model, machine);
    let logged = pages(0, 511);
    let options = LogOptions { mechanism: Mechanism::HardwareBlock, all_dirty: false };
    let mut log = table.start_log(logged, storage(logged), options).expect("a log");
    table.store(Ipa(page(3)), &mut FaultHistory::new()).expect("a store that lands");
    {
        let (table, log) = (&table, &mut log);
        let harvester = move || {
            let mut words = vec![0; log.layout().words()];
            let mut report = PageSet::new(log.layout(), &mut words).expect("words enough");
            table.harvest(log, &mut report).expect("a harvest");
            assert!(report.contains(Ipa(page(3))), "{machine:?}: written long before, and not reported");
        };
        let bodies: Vec<Body<'_>> =
            vec![(0, Box::new(|| table.split(logged, LeafSize::Page).expect("memory"))), (1, Box::new(harvester))];
        run(&model, bodies, chooser);
    }
    model.set_pe(0);
    model.assert_clean();
    stop(&model, table, log);
}

#[test]
fn a_harvest_beside_a_split_misses_no_earlier_write() {
    for bbm in Machine::LEVELS {
        let machine = machine(bbm, false, true);
        for late_stores in [false, true] {
            let play = |chooser: &mut dyn Chooser| harvest_beside_a_split(machine, late_stores, chooser);
            let (runs, all) = explore(1, scaled(600) as usize, play);
            println!(
                "a split harvested at {bbm:?}, stores late {late_stores}: {runs} orders{}",
                if all { ", all" } else { "" }
            );
        }
        for n in 0..u64::from(scaled(300)) {
            let seed = seed() + n;
            println!("a split harvested at {bbm:?}: ORACLE_SEED={seed}");
            harvest_beside_a_split(machine, n % 2 == 1, &mut Random::new(seed));
        }
    }
}

/// A run is taken apart beside a `protect` of pages that it is part of.
fn take_a_run_apart(machine: Machine, late_stores: bool, chooser: &mut dyn Chooser) {
    let model = Model::new(setup(machine, late_stores));
    let table = table(&model, machine);
    // All pages but those of one run: `protect` looks at the last of each sixteen, and finds no edge inside of a leaf.
    table.split(range(BASE, BASE + 2 * MIB), LeafSize::Contiguous64K).expect("memory");
    table.split(pages(0, 15), LeafSize::Page).expect("no memory is needed");
    table.split(pages(32, 511), LeafSize::Page).expect("no memory is needed");
    let protected = pages(0, 47);
    let bodies: Vec<Body<'_>> = vec![
        (0, Box::new(|| table.split(pages(16, 31), LeafSize::Page).expect("no memory is needed"))),
        (1, Box::new(|| table.protect(protected, Permissions::READ_EXECUTE).expect("no memory is needed"))),
    ];
    run(&model, bodies, chooser);
    model.set_pe(0);
    model.assert_clean();
    let mut expected = Reference::new();
    expected.map(range(BASE, BASE + 4 * MIB), PhysAddr(BASE), Attributes::RAM);
    expected.protect(protected, Permissions::READ_EXECUTE);
    if let Some(difference) = expected.difference(&model, vmid(), range(BASE, BASE + 4 * MIB)) {
        panic!("{machine:?}: {difference}");
    }
    table.release();
    model.assert_clean();
}

#[test]
fn no_permission_comes_back_with_the_members_of_a_run() {
    for bbm in Machine::LEVELS {
        for late_stores in [false, true] {
            let machine = machine(bbm, true, false);
            let play = |chooser: &mut dyn Chooser| take_a_run_apart(machine, late_stores, chooser);
            let (runs, all) = explore(1, scaled(6000) as usize, play);
            println!(
                "a run apart at {bbm:?}, stores late {late_stores}: {runs} orders{}",
                if all { ", all" } else { "" }
            );
            for n in 0..u64::from(scaled(1000)) {
                take_a_run_apart(machine, late_stores, &mut Random::new(seed() + n));
            }
        }
    }
}

/// A log by hardware has ended, and its leaves still have DBM. A `protect` that takes DBM from a block, whose
/// invalidation may not be complete, beside a split of the block: the size may not change while a PE holds the writable
/// entry (R_RTBRL).
fn split_after_a_hardware_log(machine: Machine, late_stores: bool, grant_between: bool, chooser: &mut dyn Chooser) {
    let model = Model::new(setup(machine, late_stores));
    let mut table = table(&model, machine);
    let logged = pages(0, 511);
    let options = LogOptions { mechanism: Mechanism::HardwareBlock, all_dirty: false };
    let log = table.start_log(logged, storage(logged), options).expect("a log");
    let words = table.stop_log_keeping_pages(log).expect("the log's own words");
    // SAFETY: the words were leaked by `storage`, and the engine has given them back.
    drop(unsafe { Box::from_raw(core::ptr::from_ref(words).cast_mut()) });
    let denier = || {
        if grant_between {
            // The block comes back to the value that the other PE has read, so that its compare-exchange succeeds.
            table.protect(logged, Permissions::READ).expect("no memory is needed");
            table.protect(logged, Permissions::ALL).expect("no memory is needed");
        }
        table.protect(logged, Permissions::READ).expect("no memory is needed");
    };
    let bodies: Vec<Body<'_>> =
        vec![(0, Box::new(denier)), (1, Box::new(|| table.split(logged, LeafSize::Page).expect("memory")))];
    run(&model, bodies, chooser);
    model.set_pe(0);
    model.assert_clean();
    table.release();
    model.assert_clean();
    assert_eq!(model.frames_in_use(), 0, "frames are leaked");
}

#[test]
fn a_size_waits_for_dbm_that_is_being_taken_away_after_a_log() {
    for bbm in Machine::LEVELS {
        let machine = machine(bbm, false, true);
        for (late_stores, grant_between) in [(false, false), (true, false), (false, true)] {
            let play =
                |chooser: &mut dyn Chooser| split_after_a_hardware_log(machine, late_stores, grant_between, chooser);
            let (runs, all) = explore(2, scaled(6000) as usize, play);
            println!(
                "a split after a log by hardware at {bbm:?}, stores late {late_stores}: {runs} orders{}",
                if all { ", all" } else { "" }
            );
        }
        for n in 0..u64::from(scaled(600)) {
            let seed = seed() + n;
            println!("a split after a log by hardware at {bbm:?}: ORACLE_SEED={seed}");
            split_after_a_hardware_log(machine, n % 2 == 1, n % 4 > 1, &mut Random::new(seed));
        }
    }
}

/// The same in one batch, whose one invalidation comes last.
#[test]
fn a_batch_splits_what_it_has_just_denied_after_a_hardware_log() {
    for bbm in Machine::LEVELS {
        let machine = machine(bbm, false, true);
        let model = Model::new(setup(machine, false));
        let mut table = table(&model, machine);
        let logged = pages(0, 511);
        let options = LogOptions { mechanism: Mechanism::HardwareBlock, all_dirty: false };
        let log = table.start_log(logged, storage(logged), options).expect("a log");
        table.stop_log_keeping_pages(log).expect("the log's own words");
        table
            .batch(|batch| {
                batch.protect(logged, Permissions::READ)?;
                batch.split(logged, LeafSize::Page)
            })
            .expect("memory");
        model.assert_clean();
        assert!(table.stage2().leaves(logged).all(|leaf| leaf.size == LeafSize::Page), "{bbm:?}");
        table.release();
        model.assert_clean();
    }
}
