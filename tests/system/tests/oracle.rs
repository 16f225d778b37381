//! The oracle judges what the engine does on a machine: every change of the table, every barrier and invalidation, while
//! Linux runs on it.

use qemu::events;
use stage2_oracle::record::RECORD;
use std::path::Path;
use system_tests::{hv_linux, scratch, stderr, stdout};

/// Writes memory from two CPUs at once.
const WORK: &str = "for n in 1 2 3 4; do (dd if=/dev/urandom of=/tmp/$n bs=64k count=32 2>/dev/null; \
                    for m in 1 2 3; do cat /tmp/$n >/tmp/$n.copy; done) & done; wait";

/// Boots Linux with these services, and returns the oracle's numbers: events, calls, writes, TLBIs, windows, violations.
fn judged(options: &[&str], events: &Path) -> [u64; 6] {
    let file = events.to_str().expect("a path of this test's");
    // A few changes at a time, but often: the guest's memory is one range, and most of it is not written to in a short boot.
    let every = if options.contains(&"--churn") { "0.05" } else { "0.3" };
    let oracle = ["--memory", "512M", "--smp", "2", "--every", every, "--oracle", "--events", file];
    let output = hv_linux(&[&oracle, options].concat(), WORK);
    let text = stdout(&output);
    let line = text.lines().last().unwrap_or_default();
    assert!(line.starts_with("oracle: "), "{text}{}", stderr(&output));
    let numbers: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    numbers.try_into().unwrap_or_else(|_| panic!("{line}"))
}

/// Random splits, protections and collapses from the first instruction of Linux on; and the log is one that tells: without
/// its TLBIs, or without the barriers that order stores, it breaks the rules.
#[test]
fn linux_boots_while_its_table_changes_at_random() {
    let scratch = scratch();
    let path = scratch.path("events");
    let [events, calls, writes, _, windows, violations] = judged(&["--churn", "1"], &path);
    assert!(events > 10_000 && calls > 1000 && writes > 2000, "{events} {calls} {writes}");
    assert_eq!((windows, violations), (0, 0));

    let log = std::fs::read(&path).expect("it was written");
    /// Says of a record's kind and first operand whether it goes.
    type Goes = fn(u8, u8) -> bool;
    let mistakes: [(&str, Goes); 2] =
        [("TLBI", |kind, _| kind == 9), ("DSB ISHST", |kind, barrier| (kind, barrier) == (7, 0))];
    for (what, goes) in mistakes {
        let (header, records) = log.split_at(RECORD);
        let kept = records.chunks(RECORD).filter(|record| !goes(record[0], record[4]));
        let without = scratch.file("without", &[header, &kept.flatten().copied().collect::<Vec<u8>>()].concat());
        let judgement = events::judge(&without).expect("it fits together");
        assert!(judgement.stats.violations > 0, "without any {what}");
    }
}

#[test]
#[ignore = "long"]
fn linux_boots_while_its_table_changes_at_random_without_feat_bbm() {
    let scratch = scratch();
    let [.., windows, violations] = judged(&["--cpu", "cortex-a72", "--churn", "2"], &scratch.path("events"));
    assert!(windows > 0 && violations == 0);
}

#[test]
fn write_protected_pages_are_harvested_while_cpus_write() {
    let scratch = scratch();
    let [_, calls, .., violations] = judged(&["--dirty", "write-protect"], &scratch.path("events"));
    assert!(calls > 1000 && violations == 0, "{calls}");
}

#[test]
#[ignore = "long"]
fn hardware_marks_are_harvested_and_audited_while_cpus_write() {
    let scratch = scratch();
    let [_, _, writes, .., violations] = judged(&["--audit", "--dirty", "hardware"], &scratch.path("events"));
    assert!(writes > 1000 && violations == 0, "{writes}");
}

/// A CPU without FEAT_BBM that the guest turns on late splits everything by nT first, which takes two invalidations a block.
/// Each is judged for the VMID that the CPU holds when it executes it: a late CPU has held none.
#[test]
#[ignore = "long"]
fn a_late_cpu_repaints_for_the_vmid_that_the_guest_has() {
    let scratch = scratch();
    let options = ["--bbm", "nt", "--weaken", "1"];
    let [_, _, writes, invalidations, _, violations] = judged(&options, &scratch.path("events"));
    assert!(writes > 500 && invalidations > 500 && violations == 0, "{writes} {invalidations}");
}
