//! Aborts that no log asks for: what a leaf forbids, and aborts that come back although the tables allow the access.

use crate::dirty::{GIB, MIB, range, table};
use crate::host::Host;
use stage2::fault::Status;
use stage2::*;

const PAGE: Ipa = Ipa(GIB + 5 * 0x1000);

fn abort(status: Status) -> Abort {
    Abort { status, write: false, execute: false, stage1_walk: false, ipa: PAGE, va: 0xffff_0000_0000_5000 }
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
        table.protect(range(PAGE.0, 0x1000), Permissions { read, write, execute }).unwrap();
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

#[test]
fn an_output_that_is_too_large_for_a_pe_is_no_fault_of_the_table() {
    let host = Host::new();
    let table = table(&host, BbmLevel::Level2);
    let mut history = FaultHistory::new();
    // The page is mapped, so nothing but the status says that the engine can't help.
    assert_eq!(table.fault(&abort(Status::Permission), &mut history), Outcome::Retry);
    assert_eq!(table.fault(&abort(Status::AddressSize), &mut history), Outcome::Unmapped);
}
