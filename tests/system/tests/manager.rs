//! The management core beside a running Linux: logs, audits, protection and the split storm, as a user calls for them.

use std::process::Output;
use system_tests::{hv_linux, scratch, stderr, stdout};

/// Runs `cargo hv linux` on 512 MiB.
fn linux(options: &[&str], shell: &str) -> Output {
    hv_linux(&[&["--memory", "512M"], options].concat(), shell)
}

/// Audits `cargo hv linux` on 256 MiB: the more memory, the longer all of it is hashed.
fn audited(options: &[&str], shell: &str) -> Output {
    hv_linux(&[&["--memory", "256M", "--audit"], options].concat(), shell)
}

/// The numbers of the last line of an audit: rounds, changed, reported, missed, over-reported.
fn audit(output: &Output) -> [u64; 5] {
    let text = stdout(output);
    let line = text.lines().last().unwrap_or_default();
    assert!(line.starts_with("audit: rounds "), "{text}{}", stderr(output));
    let numbers: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{line}"))
}

/// Writes much and little, and ends.
const WORK: &str = "dd if=/dev/urandom of=/tmp/a bs=64k count=48 2>/dev/null; sha256sum /tmp/a >/dev/null; \
                    for n in 1 2 3 4 5 6 7 8; do (cat /tmp/a | gzip -1 >/tmp/$n) & done; wait";

#[test]
fn no_dirty_page_is_missed_by_hardware() {
    let output = audited(&["--dirty", "hardware", "--smp", "2"], WORK);
    let [rounds, changed, reported, missed, _] = audit(&output);
    assert_eq!((output.status.code(), missed), (Some(0), 0), "{}", stderr(&output));
    assert!(rounds >= 3 && changed >= 2048 && reported >= changed, "{}", stdout(&output));
}

#[test]
fn no_dirty_page_is_missed_by_write_protection() {
    let output = audited(&["--dirty", "auto", "--cpu", "cortex-a72", "--smp", "2"], WORK);
    let [rounds, changed, reported, missed, _] = audit(&output);
    assert_eq!((output.status.code(), missed), (Some(0), 0), "{}", stderr(&output));
    assert!(rounds >= 3 && changed >= 2048 && reported >= changed, "{}", stdout(&output));
    assert!(stderr(&output).contains("dirty log by write protection"));
}

/// A kernel whose stage-1 walks start at level −1 on `max`: what is invalid for a moment is met there too.
const WIDE: [&str; 6] = ["--kernel", "debian-6.12", "--smp", "2", "--bbm", "break"];

#[test]
#[ignore = "long"]
fn no_dirty_page_is_missed_with_52_bit_addresses() {
    let output = audited(&[&WIDE[..], &["--dirty", "write-protect"]].concat(), WORK);
    let [rounds, changed, reported, missed, _] = audit(&output);
    assert_eq!((output.status.code(), missed), (Some(0), 0), "{}", stderr(&output));
    assert!(rounds >= 3 && changed >= 2048 && reported >= changed, "{}", stdout(&output));
}

#[test]
#[ignore = "long"]
fn a_guest_with_52_bit_addresses_lives_through_invalid_windows() {
    let shell = "uname -r; dd if=/dev/urandom of=/tmp/a bs=1M count=64 2>/dev/null; sum=$(md5sum </tmp/a); \
                 check() { [ \"$(md5sum </tmp/a)\" = \"$sum\" ] || echo wrong; }; check & check & wait; echo sums hold";
    let output = linux(&[&WIDE[..], &["--split-storm", "4", "--every", "0.7"]].concat(), shell);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    let mut lines = text.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("6.12.")) && lines.next() == Some("sums hold"), "{text}");
    let line = text.lines().last().unwrap_or_default();
    let counted: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    let [rounds, windows, _] = counted[..] else { panic!("{counted:?}") };
    assert!(rounds >= 4 && windows > 0, "{line}");
}

#[test]
fn a_guest_that_dies_gives_no_verdict() {
    // Services have begun their work when the command begins, and the guest dies before it has done its own.
    let crash = "echo c >/proc/sysrq-trigger; sleep 1000";
    for (options, line) in [(&["--audit", "--every", "0.5"][..], "audit: "), (&["--split-storm", "1"], "split-storm: ")]
    {
        let output = linux(options, crash);
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(123), "{told}");
        assert!(!stdout(&output).contains(line), "{}", stdout(&output));
        assert!(told.contains("no verdict") && told.contains("did not come to the end of its work"), "{told}");
    }
}

#[test]
fn an_audit_finds_pages_that_are_dropped() {
    let output = linux(&["--audit", "--dirty", "write-protect", "--drop-dirty", "1000"], WORK);
    let [_, _, _, missed, _] = audit(&output);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(missed > 0);
}

#[test]
fn a_log_leaves_its_files_and_nothing_else() {
    let scratch = scratch();
    let out = scratch.path("dirty");
    let options = ["--dirty", "hardware", "--granularity", "block", "--every", "0.5", "--out", out.to_str().unwrap()];
    let output = linux(&options, WORK);
    // The tool fails if leaves or tables are not what they were.
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("tables took"), "{}", stderr(&output));
    let csv = std::fs::read_to_string(out.join("dirty.csv")).unwrap();
    let pages: Vec<u64> = csv.lines().skip(1).map(|line| line.split(',').nth(2).unwrap().parse().unwrap()).collect();
    assert!(pages.len() >= 3 && pages.iter().sum::<u64>() >= 2048, "{csv}");
    // Each row of the bitmaps has as many bits as its line in the table says.
    let bitmaps = std::fs::read(out.join("dirty.bitmaps")).unwrap();
    let row = u64::from_le_bytes(bitmaps[24..32].try_into().unwrap()) as usize;
    let bits = bitmaps[32..].chunks(row).map(|row| row.iter().map(|byte| u64::from(byte.count_ones())).sum());
    assert_eq!(bits.collect::<Vec<u64>>(), pages);
    assert!(std::fs::read(out.join("dirty.png")).unwrap().starts_with(b"\x89PNG"));
    // The page is made of these files alone.
    let page = std::fs::read_to_string(qemu::report::write(&out, None).unwrap()).unwrap();
    for words in ["the command begins", "the hypervisor's memory", "the guest's kernel", "the guest's initramfs"] {
        assert!(page.contains(words), "`{words}` is not on the page");
    }
    let splits: u64 = csv.lines().skip(1).map(|line| line.split(',').nth(7).unwrap().parse::<u64>().unwrap()).sum();
    assert!(splits > 0, "blocks that are written again and again are split: {csv}");
}

#[test]
fn stores_are_reported_with_address_instruction_and_cpu() {
    let scratch = scratch();
    let out = scratch.path("stores");
    let options = ["--protect", "0x5b000000-0x5f000000:report", "--smp", "2", "--out", out.to_str().unwrap()];
    let output = linux(&options, WORK);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let csv = std::fs::read_to_string(out.join("stores.csv")).unwrap();
    let number = |field: &str| u64::from_str_radix(field.trim_start_matches("0x"), 16).unwrap();
    let stores: Vec<Vec<u64>> = csv.lines().skip(1).map(|line| line.split(',').take(5).map(number).collect()).collect();
    assert!(stores.len() >= 100, "{csv}");
    // The kernel's code and a program's both write memory.
    assert!(stores.iter().any(|store| store[2] >> 48 == 0xffff), "{csv}");
    for store in &stores {
        assert!((0x5b00_0000..0x5f00_0000).contains(&store[0]) && store[2] % 4 == 0 && store[3] < 2 && store[4] == 0);
    }
}

/// What the README shows is what a user sees: stores, and the kernel's functions that made them, by the names and addresses that
/// the guest itself has.
#[test]
fn the_readme_s_example_reports_stores_by_function() {
    let readme = std::fs::read_to_string(system_tests::workspace().root().join("README.md")).unwrap();
    let line = readme.lines().find(|line| line.contains(":report")).expect("the README shows --protect");
    let range = line.split("--protect ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a range");
    let scratch = scratch();
    let out = scratch.path("stores");
    let shell = "sha256sum /hv/busybox >/dev/null; echo 0 >/proc/sys/kernel/kptr_restrict; grep -E ' (__init_single_page|rmqueue_bulk|___slab_alloc|__slab_free|clear_page)$' /proc/kallsyms";
    let output = hv_linux(&["--protect", range, "--out", out.to_str().unwrap()], shell);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let told = stderr(&output);
    assert!(
        told.lines().any(|line| line.contains("store to 0x7") && line.contains("+0x") && line.ends_with("(cpu 0)")),
        "{told}"
    );
    let symbols = stdout(&output);
    let kernel: std::collections::HashMap<&str, u64> = symbols
        .lines()
        // Modules' stand in brackets.
        .filter(|line| !line.contains('['))
        .filter_map(|line| Some((line.get(19..)?, u64::from_str_radix(line.get(..16)?, 16).ok()?)))
        .collect();
    let csv = std::fs::read_to_string(out.join("stores.csv")).unwrap();
    let mut named = 0;
    for line in csv.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        if let Some((name, offset)) = fields[5].split_once("+0x") {
            let [pc, offset] = [&fields[2][2..], offset].map(|digits| u64::from_str_radix(digits, 16).unwrap());
            // One name may stand for several functions.
            named += usize::from(kernel.get(name) == Some(&(pc - offset)));
        }
    }
    assert!(named >= 10, "{named} of {}: {csv}", csv.lines().count());
}

/// Splits and collapses all memory while every CPU computes checksums of 128 MiB, and the checksums hold. A break of each
/// block leaves an emulated CPU little time in between, so the pauses are the caller's.
fn storm(bbm: &str, every: &str) -> Vec<u64> {
    let shell = "dd if=/dev/urandom of=/tmp/a bs=1M count=128 2>/dev/null; sum=$(md5sum </tmp/a); \
                 check() { [ \"$(md5sum </tmp/a)\" = \"$sum\" ] || echo wrong; }; \
                 check & check & wait; echo sums hold";
    let output =
        hv_linux(&["--memory", "512M", "--split-storm", "10", "--every", every, "--smp", "2", "--bbm", bbm], shell);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    assert!(text.starts_with("sums hold\n"), "{text}");
    let line = text.lines().last().unwrap_or_default();
    line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn checksums_hold_while_blocks_split_and_collapse_directly() {
    let counted = storm("direct", "0.2");
    let [rounds, windows, faults] = counted[..] else { panic!("{counted:?}") };
    assert!(rounds >= 10 && windows == 0 && faults == 0, "{counted:?}");
}

#[test]
#[ignore = "long"]
fn checksums_hold_while_blocks_split_and_collapse_by_break_before_make() {
    let counted = storm("break", "0.7");
    let [rounds, windows, _] = counted[..] else { panic!("{counted:?}") };
    assert!(rounds >= 10 && windows > 0, "{counted:?}");
}

/// Only the hypervisor knows which memory is its own.
#[test]
fn a_service_that_is_refused_ends_the_run_at_once_and_says_so_once() {
    let output = linux(&["--protect", "0x5fe00000-0x60000000:deny"], "sleep 10000");
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert_eq!(told.matches("the management core refuses: 0x5fe00000-0x60000000").count(), 1, "{told}");
}

#[test]
fn linux_runs_on_with_its_text_protected_and_a_store_to_it_aborts() {
    // The first run says where the text lies: the same place each time, for placement is not random.
    let output = linux(&["--append", "nokaslr"], "grep 'Kernel code' /proc/iomem");
    let text = stdout(&output);
    let range =
        text.trim().split(' ').next().and_then(|range| range.split_once('-')).expect("iomem has the kernel's code");
    let address = |digits: &str| u64::from_str_radix(digits, 16).expect("iomem has hexadecimal addresses");
    let (start, end) = (address(range.0).next_multiple_of(4096), (address(range.1) + 1) / 4096 * 4096);
    let protect = format!("{start:#x}-{end:#x}:deny");
    // Tracing turns a branch in the kernel's text into another instruction, through an alias that may be written.
    let shell = "sha256sum /hv/busybox >/dev/null && echo runs on; cd /sys/kernel/debug/tracing/events || exit 1; \
                 tries=0; until dmesg | grep -q 'synchronous external abort'; do \
                 (echo 1 >sched/sched_switch/enable) & wait; tries=$((tries + 1)); [ $tries -lt 1000 ] || exit 2; done; \
                 sha256sum /hv/busybox >/dev/null && echo caught";
    let output = linux(&["--append", "nokaslr", "--protect", &protect, "--protect-late", "--every", "0.1"], shell);
    let text = stdout(&output);
    assert!(text.contains("runs on") && text.contains("caught"), "{text}{}", stderr(&output));
    let told = stderr(&output);
    let stores = told.lines().find(|line| line.contains("denied: store to ")).unwrap_or_else(|| panic!("{told}"));
    // The kernel's code is written by its functions for that, which have names.
    assert!(!stores.contains("by 0x") && stores.contains("+0x"), "{stores}");
}
