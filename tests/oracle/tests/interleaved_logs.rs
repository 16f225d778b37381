//! Several engine threads at once on what `interleaved.rs` leaves out: two logs that share a block, plain bitmaps, looks and
//! clears, batches that split, logs that have ended, hardware's marks at any moment, and the guest's own virtual addresses.

mod common;

use common::scenes::{BASE, machine, page, pages, setup, stop, storage, table};
use common::{MIB, Machine, range, scaled, seed, vmid};
use core::cell::RefCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use stage2::*;
use stage2_oracle::checked_logs::pages_of;
use stage2_oracle::schedule::{Body, Chooser, Random, explore, run};
use stage2_oracle::{Access, Checked, CheckedBatch, Model, Reference, Setup};
use std::collections::BTreeSet;

/// Where the guest maps its RAM once more.
const ALIASES: u64 = 0x7f00_0000_0000;

/// Runs in CI for a scene and a machine: in order, and at random.
const IN_ORDER: u32 = 300;
const AT_RANDOM: u32 = 300;

fn alias(n: u64) -> u64 {
    ALIASES + n * PAGE_SIZE
}

/// A model whose guest has a second virtual address for each of the first pages.
fn model(machine: Machine, late_stores: bool) -> Model {
    let hardware = machine.hardware_dirty;
    Model::new(Setup {
        mark_rate: if hardware && late_stores { 32 } else { 0 },
        conflicts: true,
        ..setup(machine, late_stores)
    })
}

/// The guest's accesses on one PE, which are allowed.
fn accesses<'t>(table: &'t Checked<'_>, pe: u8, all: &'t [(u64, Access)]) -> Body<'t> {
    let body = move || {
        let mut history = FaultHistory::new();
        for &(va, access) in all {
            table.access(va, access, &mut history).expect("an access that the table allows");
        }
    };
    (pe, Box::new(body))
}

/// A log and what it has reported, or what was seen and cleared.
struct Reported {
    log: Log,
    pages: BTreeSet<u64>,
}

impl Reported {
    fn start(table: &mut Checked<'_>, logged: IpaRange, mechanism: Mechanism) -> RefCell<Self> {
        let options = LogOptions { mechanism, all_dirty: false };
        let log = table.start_log(logged, storage(logged), options).expect("a log");
        RefCell::new(Self { log, pages: BTreeSet::new() })
    }

    fn bitmap(&self) -> Vec<AtomicU64> {
        (0..self.log.layout().page_words()).map(|_| AtomicU64::new(0)).collect()
    }

    fn harvest_into(&mut self, table: &Checked<'_>) {
        let bitmap = self.bitmap();
        let added = table.harvest_into(&mut self.log, &bitmap).expect("a harvest");
        let set: u64 = bitmap.iter().map(|word| u64::from(word.load(Relaxed).count_ones())).sum();
        assert_eq!(added, set, "bits that are said to be new");
        self.pages.extend(pages_of(&self.log, &bitmap).map(|page| page.0));
    }

    fn harvest(&mut self, table: &Checked<'_>) {
        let mut words = vec![0; self.log.layout().words()];
        let mut report = PageSet::new(self.log.layout(), &mut words).expect("words enough");
        table.harvest(&mut self.log, &mut report).expect("a harvest");
        report.for_each(|page| _ = self.pages.insert(page.0));
    }

    /// What a look shows is cleared, as a migration does that copies it afterwards.
    fn look_and_clear(&mut self, table: &Checked<'_>) {
        let mut words = vec![0; self.log.layout().words()];
        let mut report = PageSet::new(self.log.layout(), &mut words).expect("words enough");
        table.peek(&self.log, &mut report).expect("a look");
        let bitmap = self.bitmap();
        let base = self.log.range().start().align_down(LeafSize::Block2M.bytes()).0;
        report.for_each(|page| {
            let bit = (page.0 - base) / PAGE_SIZE;
            bitmap[(bit / 64) as usize].fetch_or(1 << (bit % 64), Relaxed);
            self.pages.insert(page.0);
        });
        table.clear_from(&mut self.log, &bitmap).expect("a clear");
    }
}

/// Two logs share a block. One PE writes into both while hardware marks pages, another looks and clears and harvests into a
/// bitmap, a third harvests and splits in a batch: no write is missed by either log.
fn two_logs(machine: Machine, late_stores: bool, mechanism: Mechanism, chooser: &mut dyn Chooser) {
    let model = model(machine, late_stores);
    let mut table = table(&model, machine);
    let first = Reported::start(&mut table, pages(0, 300), mechanism);
    let second = Reported::start(&mut table, pages(301, 511), mechanism);
    [3, 400].iter().for_each(|&n| model.guest_maps(vmid(), alias(n), Some(Ipa(page(n)))));
    {
        let (table, model, first, second) = (&table, &model, &first, &second);
        let writer = move || {
            let mut history = FaultHistory::new();
            let mut write = |va| table.access(va, Access::Write, &mut history).expect("a store that lands");
            // Even pages are opened by the short way, odd ones by the long one.
            write(page(4));
            model.hardware_marks(vmid(), Ipa(page(9)));
            write(alias(400));
            model.hardware_marks(vmid(), Ipa(page(401)));
            write(alias(3));
        };
        let looker = move || {
            let mut log = first.borrow_mut();
            log.look_and_clear(table);
            log.harvest_into(table);
        };
        let splitter = move || {
            let mut log = second.borrow_mut();
            log.harvest(table);
            let changes = |batch: &mut CheckedBatch<'_, &Model>| {
                batch.protect(pages(520, 530), Permissions::READ)?;
                batch.split(pages(0, 511), LeafSize::Page)
            };
            table.batch(changes).expect("memory");
            log.harvest_into(table);
        };
        run(model, vec![(0, Box::new(writer)), (1, Box::new(looker)), (2, Box::new(splitter))], chooser);
    }
    model.set_pe(0);
    model.assert_clean();
    let (mut first, mut second) = (first.into_inner(), second.into_inner());
    // Nobody is in a fault handler now, so these see every mark.
    first.harvest_into(&table);
    second.harvest(&table);
    let both = first.pages.contains(&page(3)) && first.pages.contains(&page(4));
    assert!(both, "{machine:?}, {mechanism:?}: a write that the first log has missed");
    assert!(second.pages.contains(&page(400)), "{machine:?}, {mechanism:?}: a write that the second log has missed");
    model.assert_clean();
    let words = table.stop_log_and_collapse(second.log).expect("the log's own words");
    // SAFETY: the words were leaked by `storage`, and the engine has given them back.
    drop(unsafe { Box::from_raw(core::ptr::from_ref(words).cast_mut()) });
    stop(&model, table, first.log);
}

#[test]
fn two_logs_of_one_block_miss_no_write() {
    for bbm in Machine::LEVELS {
        for (mechanism, hardware) in
            [(Mechanism::WriteProtect, false), (Mechanism::HardwarePage, true), (Mechanism::HardwareBlock, true)]
        {
            let machine = machine(bbm, false, hardware);
            let (orders, _) = explore(1, scaled(IN_ORDER) as usize, |c| two_logs(machine, false, mechanism, c));
            for n in 0..u64::from(scaled(AT_RANDOM)) {
                let seed = seed() + n;
                println!("two logs, {mechanism:?} at {bbm:?}: ORACLE_SEED={seed}");
                two_logs(machine, n % 2 == 1, mechanism, &mut Random::new(seed));
            }
            println!("two logs, {mechanism:?} at {bbm:?}: {orders} orders tried one by one");
        }
    }
}

/// A log has ended, and its pages are held back still. Two PEs write, and a third takes leaves apart or takes rights.
fn after_the_end(machine: Machine, late_stores: bool, mechanism: Mechanism, split: bool, chooser: &mut dyn Chooser) {
    let model = model(machine, late_stores);
    let mut table = table(&model, machine);
    if machine.contiguous {
        table.split(pages(0, 511), LeafSize::Contiguous64K).expect("memory");
    }
    let logged = pages(0, 511);
    let options = LogOptions { mechanism, all_dirty: false };
    let log = table.start_log(logged, storage(logged), options).expect("a log");
    let words = table.stop_log_keeping_pages(log).expect("the log's own words");
    // SAFETY: the words were leaked by `storage`, and the engine has given them back.
    drop(unsafe { Box::from_raw(core::ptr::from_ref(words).cast_mut()) });
    [3, 20].iter().for_each(|&n| model.guest_maps(vmid(), alias(n), Some(Ipa(page(n)))));
    let ours = [(page(3), Access::Write), (alias(20), Access::Write), (alias(3), Access::Read)];
    let theirs = [(page(20), Access::Write), (alias(3), Access::Write)];
    let mut expected = Reference::new();
    expected.map(range(BASE, BASE + 4 * MIB), PhysAddr(BASE), Attributes::RAM);
    {
        let table = &table;
        let third: Body<'_> = match split {
            true => (2, Box::new(|| table.split(pages(16, 47), LeafSize::Page).expect("memory"))),
            false => (2, Box::new(|| table.protect(pages(7, 12), Permissions::READ).expect("memory"))),
        };
        if !split {
            expected.protect(pages(7, 12), Permissions::READ);
        }
        run(&model, vec![accesses(table, 0, &ours), accesses(table, 1, &theirs), third], chooser);
    }
    model.set_pe(0);
    model.assert_clean();
    if let Some(difference) = expected.difference(&model, vmid(), range(BASE, BASE + 4 * MIB)) {
        panic!("{machine:?}: {difference}");
    }
    table.release();
    model.assert_clean();
    assert_eq!(model.frames_in_use(), 0, "frames are leaked");
}

#[test]
fn what_a_log_that_has_ended_held_back_is_opened_in_any_order() {
    for bbm in Machine::LEVELS {
        for (contiguous, hardware, split) in [
            (false, false, false),
            (false, false, true),
            (true, false, false),
            (true, false, true),
            (false, true, false),
            (false, true, true),
        ] {
            let machine = machine(bbm, contiguous, hardware);
            let mechanism = if hardware { Mechanism::HardwareBlock } else { Mechanism::WriteProtect };
            let (orders, _) =
                explore(1, scaled(IN_ORDER) as usize, |c| after_the_end(machine, false, mechanism, split, c));
            for n in 0..u64::from(scaled(AT_RANDOM)) {
                let seed = seed() + n;
                println!(
                    "after the end of {mechanism:?} at {bbm:?}, runs {contiguous}, split {split}: ORACLE_SEED={seed}"
                );
                after_the_end(machine, n % 2 == 1, mechanism, split, &mut Random::new(seed));
            }
            println!(
                "after the end of {mechanism:?} at {bbm:?}, runs {contiguous}, split {split}: {orders} orders tried one by one"
            );
        }
    }
}

/// Two PEs use RAM through virtual addresses of their own while a third changes the size of what they hold: each fault and
/// each TLB conflict is answered once.
fn beside_a_change_of_size(machine: Machine, late_stores: bool, chooser: &mut dyn Chooser) {
    let model = model(machine, late_stores);
    let table = table(&model, machine);
    [3, 600].iter().for_each(|&n| model.guest_maps(vmid(), alias(n), Some(Ipa(page(n)))));
    let ours = [(alias(3), Access::Write), (alias(600), Access::Read), (alias(3), Access::Execute)];
    let theirs = [(page(600), Access::Write), (alias(3), Access::Read)];
    {
        let table = &table;
        let changes = |batch: &mut CheckedBatch<'_, &Model>| {
            batch.split(pages(0, 511), LeafSize::Page)?;
            batch.protect(pages(520, 530), Permissions::READ)?;
            batch.split(pages(512, 1023), LeafSize::Contiguous64K)
        };
        let third: Body<'_> = (2, Box::new(|| table.batch(changes).expect("memory")));
        run(&model, vec![accesses(table, 0, &ours), accesses(table, 1, &theirs), third], chooser);
    }
    model.set_pe(0);
    model.assert_clean();
    let mut expected = Reference::new();
    expected.map(range(BASE, BASE + 4 * MIB), PhysAddr(BASE), Attributes::RAM);
    expected.protect(pages(520, 530), Permissions::READ);
    if let Some(difference) = expected.difference(&model, vmid(), range(BASE, BASE + 4 * MIB)) {
        panic!("{machine:?}: {difference}");
    }
    table.release();
    model.assert_clean();
}

#[test]
fn a_batch_that_splits_beside_accesses_keeps_nobody_for_ever() {
    for bbm in Machine::LEVELS {
        for contiguous in [false, true] {
            let machine = machine(bbm, contiguous, false);
            let (orders, _) = explore(1, scaled(IN_ORDER) as usize, |c| beside_a_change_of_size(machine, false, c));
            for n in 0..u64::from(scaled(AT_RANDOM)) {
                let seed = seed() + n;
                println!("a batch that splits at {bbm:?}, runs {contiguous}: ORACLE_SEED={seed}");
                beside_a_change_of_size(machine, n % 2 == 1, &mut Random::new(seed));
            }
            println!("a batch that splits at {bbm:?}, runs {contiguous}: {orders} orders tried one by one");
        }
    }
}
