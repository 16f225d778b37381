//! What errata ask of the engine, on a table of all levels.

use crate::dirty::{GIB, MIB, range, storage};
use crate::host::{Access, Host, guest_store, load};
use stage2::descriptor::bits;
use stage2::features::HardwareUpdate;
use stage2::*;
use std::cell::Cell;
use std::rc::Rc;

fn table(host: &Host, bbm: BbmLevel, errata: Errata) -> Stage2<&Host> {
    let hardware_update = HardwareUpdate::None;
    let features = Features::MINIMAL
        .with_pa_bits(36)
        .with_bbm(bbm)
        .with_hardware_update(hardware_update)
        .with_tlbi_range(true)
        .with_errata(errata);
    let mut table = Stage2::new(host, Config::new(Vmid::new(1).unwrap(), features)).unwrap();
    table.map(range(GIB, GIB), PhysAddr(GIB), Attributes::RAM).unwrap();
    table
}

const BREAKS: Errata = Errata::NONE.with_break_to_deny_execute(true);
const REPEATS: Errata = Errata::NONE.with_repeat_tlbi(true);

/// Whether `protect` of a GiB in leaves of `size` ever stores a leaf without execute permission over one with it, and how
/// often it breaks an entry.
fn deny(errata: Errata, bbm: BbmLevel, size: LeafSize, permissions: Permissions) -> (bool, u64) {
    let host = Host::new();
    let table = table(&host, bbm, errata);
    let all = range(GIB, 4 * MIB);
    table.split(all, size).unwrap();
    let direct = Rc::new(Cell::new(false));
    let seen = Rc::clone(&direct);
    let takes_execute = |old: u64, new: u64| {
        let executable = |value: u64| value & bits::VALID != 0 && value & bits::NO_EXECUTE == 0;
        executable(old) && new & bits::VALID != 0 && !executable(new)
    };
    host.interrupt(takes_execute, move || seen.set(true));
    let before = (host.count(Event::InvalidWindow), host.tlbis.get());
    table.protect(all, permissions).unwrap();
    assert!(table.leaves(all).all(|leaf| leaf.attributes.permissions == permissions), "{bbm:?} {size:?}");
    assert_eq!(load(&table, GIB + 0x3000), Access::Done, "it is mapped again");
    let broken = host.count(Event::InvalidWindow) - before.0;
    assert!(host.tlbis.get() - before.1 >= 2 * broken as usize, "each break is invalidated before the leaf comes back");
    (direct.get(), broken)
}

/// Cortex-A715 2645198.
#[test]
fn execute_permission_is_taken_by_a_break_where_an_erratum_wants_it() {
    use LeafSize::{Block2M, Contiguous64K, Page};
    for bbm in [BbmLevel::Level0, BbmLevel::Level1, BbmLevel::Level2, BbmLevel::Level3] {
        assert_eq!(deny(BREAKS, bbm, Block2M, Permissions::READ), (false, 2), "{bbm:?}");
        assert_eq!(deny(BREAKS, bbm, Page, Permissions::READ_WRITE), (false, 1024), "{bbm:?}");
        let (direct, broken) = deny(BREAKS, bbm, Contiguous64K, Permissions::READ);
        assert!(!direct && broken >= 1024, "{bbm:?}: a run is taken apart and its pages broken: {broken}");
        // Other permissions need none (R_GPPYH), and other cores need none.
        assert_eq!(deny(BREAKS, bbm, Block2M, Permissions::READ_EXECUTE), (false, 0), "{bbm:?}");
        assert_eq!(deny(Errata::default(), bbm, Block2M, Permissions::READ), (true, 0), "{bbm:?}");
    }
}

/// A harvest beside the break takes a page's mark and its right to be written, and finds the entry broken: the right must not
/// come back with the leaf, for nothing would mark the page again.
#[test]
fn a_harvest_beside_a_break_leaves_no_page_writable_and_unmarked() {
    let host: &'static Host = Box::leak(Box::new(Host::new()));
    let table: &'static mut Stage2<&'static Host> = Box::leak(Box::new(table(host, BbmLevel::Level2, BREAKS)));
    let (logged, page) = (range(GIB, 4 * MIB), range(GIB + 0x3000, 0x1000));
    let options = LogOptions { mechanism: Mechanism::WriteProtect, all_dirty: false };
    let mut log = table.start_log(logged, storage(logged), options).unwrap();
    assert!(guest_store(table, GIB + 0x3000).is_ok());
    let table: &'static Stage2<&'static Host> = table;
    let harvested = Rc::new(Cell::new(0));
    let seen = Rc::clone(&harvested);
    host.interrupt(
        |old, new| old & bits::VALID != 0 && new & (bits::VALID | bits::BUSY) == bits::BUSY,
        move || {
            let mut words = vec![0; log.layout().words()];
            let mut set = PageSet::new(log.layout(), &mut words).unwrap();
            table.harvest(&mut log, &mut set).unwrap();
            seen.set(set.len());
        },
    );
    table.protect(page, Permissions::READ_WRITE).unwrap();
    assert_eq!(harvested.get(), 1);
    let leaf = table.walk(page.start()).unwrap();
    assert!(leaf.write_protected && leaf.attributes.permissions == Permissions::READ_WRITE, "{leaf:?}");
}

/// TLBIs that one `protect` of a page, and a whole invalidation, take.
fn tlbis(table: &Stage2<&Host>, host: &Host) -> [usize; 2] {
    let count = |act: &dyn Fn()| {
        let before = host.tlbis.get();
        act();
        host.tlbis.get() - before
    };
    let page = range(GIB + 0x3000, 0x1000);
    table.split(page, LeafSize::Page).unwrap();
    table.protect(page, Permissions::ALL).unwrap();
    [count(&|| table.protect(page, Permissions::READ_EXECUTE).unwrap()), count(&|| table.invalidate_all())]
}

#[test]
fn a_late_cpu_with_an_erratum_makes_all_repeat() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2, Errata::default());
    assert_eq!(tlbis(&table, &host), [2, 1]);
    let same = table.config().features;
    table.admit(same.with_errata(REPEATS)).unwrap();
    assert_eq!(tlbis(&table, &host), [3, 2]);
    // It stays so when another comes that has none.
    table.admit(same).unwrap();
    assert_eq!(tlbis(&table, &host), [3, 2]);
}
