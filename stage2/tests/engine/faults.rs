//! Aborts that no log asks for: what a leaf forbids, and aborts that come back although the tables allow the access.

use crate::dirty::{GIB, MIB, range, table};
use crate::host::Host;
use stage2::fault::Status;
use stage2::*;

const PAGE: Ipa = Ipa(GIB + 5 * 0x1000);

fn abort(status: Status) -> Abort {
    Abort { status, write: false, execute: false, stage1_walk: false, el0: false, ipa: PAGE, va: 0xffff_0000_0000_5000 }
}

/// A load, a store, a fetch, and hardware's update of the guest's own table.
fn accesses() -> [(&'static str, Abort); 4] {
    let load = abort(Status::Permission);
    [
        ("load", load),
        ("store", Abort { write: true, ..load }),
        ("fetch", Abort { execute: true, ..load }),
        ("update", Abort { write: true, stage1_walk: true, ..load }),
    ]
}

#[test]
fn what_a_leaf_forbids_is_denied_and_what_it_allows_is_tried_again() {
    for rights in 0..8 {
        let [read, write, execute] = [1, 2, 4].map(|bit| rights & bit != 0);
        let host = Host::new();
        let table = table(&host, BbmLevel::Level2);
        table.split(range(GIB, 2 * MIB), LeafSize::Page).unwrap();
        table.protect(range(PAGE.0, 0x1000), Permissions { read, write, execute: execute.into() }).unwrap();
        for (name, abort) in accesses() {
            let allowed = match name {
                "load" => read,
                "store" => write,
                "fetch" => execute,
                _ => read && write,
            };
            let expected = if allowed { Outcome::Retry } else { Outcome::Denied };
            let spurious = host.count(Event::FaultSpurious);
            assert_eq!(table.fault(&abort, &mut FaultHistory::new()), expected, "{name}, rights {rights:#05b}");
            assert_eq!(host.count(Event::FaultSpurious) - spurious, allowed.into(), "{name}, rights {rights:#05b}");
        }
    }
}

#[test]
fn fetches_are_told_by_exception_level_where_they_are_granted_apart() {
    for execute in [Execute::Never, Execute::El0, Execute::El1, Execute::Always] {
        let host = Host::new();
        let features = Features::MINIMAL.with_pa_bits(36).with_bbm(BbmLevel::Level2).with_xnx(true);
        let mut table = Stage2::new(&host, Config::new(Vmid::new(1).unwrap(), features)).unwrap();
        table.map(range(GIB, GIB), PhysAddr(GIB), Attributes::RAM).unwrap();
        table.protect(range(PAGE.0, 0x1000), Permissions { execute, ..Permissions::READ }).unwrap();
        for el0 in [false, true] {
            let fetch = Abort { execute: true, el0, ..abort(Status::Permission) };
            let expected = if execute.at(el0) { Outcome::Retry } else { Outcome::Denied };
            assert_eq!(table.fault(&fetch, &mut FaultHistory::new()), expected, "{execute:?}, at EL0: {el0}");
        }
        // A CPU without FEAT_XNX would read what is granted apart as more, or less.
        let apart = matches!(execute, Execute::El0 | Execute::El1);
        let refused = Err(Error::MissingFeature { feature: "FEAT_XNX" });
        let weaker = features.with_xnx(false);
        assert_eq!(table.admit(weaker), if apart { refused } else { Ok(()) }, "{execute:?}");
        let mut old = Stage2::new(&host, Config::new(Vmid::new(1).unwrap(), weaker)).unwrap();
        let permissions = Permissions { execute, ..Permissions::READ };
        let attributes = Attributes { permissions, ..Attributes::RAM };
        assert_eq!(old.map(range(GIB, GIB), PhysAddr(GIB), attributes), if apart { refused } else { Ok(()) });
        assert_eq!(old.protect(range(GIB, GIB), permissions), if apart { refused } else { Ok(()) });
    }
}

#[test]
fn nothing_is_mapped_beyond_the_mappings_and_beyond_the_space() {
    let host = Host::new();
    let table = table(&host, BbmLevel::Level2);
    for ipa in [0, 1 << 39, 1 << 47, u64::MAX] {
        let abort = Abort { ipa: Ipa(ipa), ..abort(Status::Translation) };
        assert_eq!(table.fault(&abort, &mut FaultHistory::new()), Outcome::Unmapped, "{ipa:#x}");
        assert!(!table.first_write(Ipa(ipa), ipa, &mut FaultHistory::new()));
    }
}

/// Invalidations grow with the patience that an abort costs: the page, all combined entries, everything; then it is said.
#[test]
fn an_abort_that_comes_back_is_answered_with_more_and_at_last_reported() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let load = abort(Status::Permission);
    let counts = |host: &Host| {
        [Event::TlbiVaLocal, Event::EscalateVmallE1, Event::EscalateVmallS12E1, Event::TlbiVmallS12E1Local]
            .map(|event| host.count(event))
    };
    let mut history = FaultHistory::new();
    for n in 0..64 {
        assert_eq!(table.fault(&load, &mut history), Outcome::Retry, "{n}");
        let whole = if n < 2 { 0 } else { n - 1 };
        assert_eq!(counts(&host), [1, u64::from(n > 0), whole, whole], "{n}");
    }
    assert_eq!(table.fault(&load, &mut history), Outcome::Stuck);
    // An abort elsewhere, or a change of the table, is a reason to be patient anew.
    let elsewhere = Abort { ipa: Ipa(PAGE.0 + 0x1000), ..load };
    assert_eq!(table.fault(&elsewhere, &mut history), Outcome::Retry);
    (0..64).for_each(|_| _ = table.fault(&load, &mut history));
    table.protect(range(GIB + 2 * MIB, 0x1000), Permissions::READ).unwrap();
    assert_eq!(table.fault(&load, &mut history), Outcome::Retry);
    table.collapse(range(GIB, GIB)).unwrap();
}

#[test]
fn a_conflict_that_comes_back_is_answered_as_often_and_at_last_reported() {
    let host = Host::new();
    let table = table(&host, BbmLevel::Level2);
    let mut history = FaultHistory::new();
    for n in 1..=64 {
        assert_eq!(table.fault(&abort(Status::Conflict), &mut history), Outcome::Retry, "{n}");
        assert_eq!([Event::FaultConflict, Event::TlbiVmallS12E1Local].map(|event| host.count(event)), [n, n]);
    }
    assert_eq!(table.fault(&abort(Status::Conflict), &mut history), Outcome::Stuck);
}

/// A walk of stage 1 through a device, which HCR_EL2.PTW refuses, is over at once, whatever the leaf allows; one for which the
/// table was broken for a moment is tried again.
#[test]
fn a_walk_through_a_device_is_denied_at_once() {
    let host = Host::new();
    let mut table = table(&host, BbmLevel::Level2);
    let device = range(8 * GIB, 0x1000);
    table.map(device, PhysAddr(device.start().0), Attributes::DEVICE).unwrap();
    for write in [false, true] {
        let walk = Abort { stage1_walk: true, write, ipa: device.start(), ..abort(Status::Permission) };
        assert_eq!(table.fault(&walk, &mut FaultHistory::new()), Outcome::Denied);
        let broken = Abort { status: Status::Translation, write: false, ..walk };
        assert_eq!(table.fault(&broken, &mut FaultHistory::new()), Outcome::Retry);
        // A driver's access, which another PE's change has made fault.
        let access = Abort { stage1_walk: false, ..walk };
        assert_eq!(table.fault(&access, &mut FaultHistory::new()), Outcome::Retry);
    }
    assert_eq!(host.count(Event::FaultSpurious), 4);
}

#[test]
fn an_address_without_translation_is_answered_with_more_and_at_last_reported() {
    const VA: u64 = 0xffff_0000_0000_5000;
    for why in [Untranslated::Fault(0x07), Untranslated::Fault(0x0d), Untranslated::Exception] {
        let host = Host::new();
        let table = table(&host, BbmLevel::Level2);
        let counts = || {
            [
                Event::FaultNoTranslation,
                Event::TlbiIpaLocal,
                Event::TlbiVaLocal,
                Event::EscalateVmallE1,
                Event::TlbiVmallE1Local,
                Event::EscalateVmallS12E1,
                Event::TlbiVmallS12E1Local,
            ]
            .map(|event| host.count(event))
        };
        let mut history = FaultHistory::new();
        for n in 1..=64 {
            assert_eq!(table.untranslated(VA, why, &mut history), Outcome::Retry, "{n}");
            let (combined, whole) = (u64::from(n > 1), if n < 3 { 0 } else { n - 2 });
            assert_eq!(counts(), [n, 0, 1, combined, combined, whole, whole], "{n}");
        }
        assert_eq!(table.untranslated(VA, why, &mut history), Outcome::Stuck);
        // An access that was denied meanwhile has been answered: what comes next is another.
        let denied = Abort { write: true, ..abort(Status::Permission) };
        table.protect(range(PAGE.0, 0x1000), Permissions::READ).unwrap();
        (0..64).for_each(|_| _ = table.untranslated(VA, why, &mut history));
        assert_eq!(table.fault(&denied, &mut history), Outcome::Denied);
        assert_eq!(table.untranslated(VA, why, &mut history), Outcome::Retry);
    }
}

/// PAR_EL1.FST says what a conflict abort would.
#[test]
fn a_conflict_of_the_translation_is_answered_as_a_conflict_abort() {
    let host = Host::new();
    let table = table(&host, BbmLevel::Level2);
    let mut history = FaultHistory::new();
    for n in 1..=64 {
        assert_eq!(table.untranslated(0x5000, Untranslated::Fault(0x30), &mut history), Outcome::Retry);
        assert_eq!(
            [Event::FaultConflict, Event::TlbiVmallS12E1Local, Event::TlbiVaLocal].map(|event| host.count(event)),
            [n, n, 0]
        );
    }
    assert_eq!(table.untranslated(0x5000, Untranslated::Fault(0x30), &mut history), Outcome::Stuck);
}

#[test]
fn an_output_that_is_too_large_for_a_pe_is_no_fault_of_the_table() {
    let host = Host::new();
    let table = table(&host, BbmLevel::Level2);
    let mut history = FaultHistory::new();
    // The page is mapped, so nothing but the status says that the engine can't help.
    assert_eq!(table.fault(&abort(Status::Permission), &mut history), Outcome::Retry);
    assert_eq!(table.fault(&abort(Status::AddressSize), &mut history), Outcome::Unmapped);
}
