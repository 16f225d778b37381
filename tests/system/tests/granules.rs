//! A guest whose table has pages of 16 or 64 KiB: Linux boots, and its dirty log misses nothing, also where devices do not fill
//! their pages; a CPU without the granule is refused. Long, for an image is to be built for each.

use std::process::Output;
use system_tests::{hv, hv_linux, scratch, stderr, stdout, turn_alone};

/// Writes much and little, and ends.
const WORK: &str = "dd if=/dev/urandom of=/tmp/a bs=64k count=48 2>/dev/null; sha256sum /tmp/a >/dev/null; \
                    for n in 1 2 3 4; do (cat /tmp/a | gzip -1 >/tmp/$n) & done; wait";

/// Audits a Linux on 512 MiB with these options, and checks that the hypervisor's log has these words.
fn audited(options: &[&str], words: &[&str]) {
    let always = ["--memory", "512M", "--smp", "2", "--audit", "--log", "debug"];
    let output = hv_linux(&[&always, options].concat(), WORK);
    let text = stdout(&output);
    let line = text.lines().last().unwrap_or_default();
    assert!(line.starts_with("audit: rounds "), "{text}{}", stderr(&output));
    let numbers: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    let [rounds, changed, reported, missed, _] = numbers[..] else { panic!("{line}") };
    assert_eq!((output.status.code(), missed), (Some(0), 0), "{}", stderr(&output));
    assert!(rounds >= 2 && changed >= 1024 && reported >= changed, "{line}");
    for word in words {
        assert!(text.contains(word), "`{word}` was not said: {text}");
    }
}

#[test]
#[ignore = "long"]
fn linux_in_pages_of_16_kib_is_audited() {
    let shared = "the device at 0x9000000-0x9001000 does not have its page for itself: EL2 makes the accesses to it";
    audited(&["--granule", "16k", "--dirty", "hardware"], &[" of 32 MiB, ", " of 16 KiB); ", shared]);
}

/// Of GICv2, no frame fills a page of 64 KiB: the guest's interrupts go through EL2.
#[test]
#[ignore = "long"]
fn linux_in_pages_of_64_kib_is_audited() {
    let shared = "the device at 0x8010000-0x8012000 does not have its page for itself: EL2 makes the accesses to it";
    let options = ["--granule", "64k", "--dirty", "write-protect", "--gic", "2"];
    audited(&options, &[" of 512 MiB, ", " of 64 KiB); ", shared]);
}

/// A table is sixteen frames that lie side by side: all those of a collapse serve the next split.
#[test]
#[ignore = "long"]
fn tables_of_64_kib_come_back_whole() {
    let options = ["--memory", "512M", "--granule", "64k", "--split-storm", "100", "--every", "0.02"];
    let output = hv_linux(&options, "sleep 6; echo runs");
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", stderr(&output));
    assert!(text.starts_with("runs\nsplit-storm: rounds ") && text.contains("invalid windows 0,"), "{text}");
}

#[test]
#[ignore = "long"]
fn a_cpu_without_the_granule_is_refused_with_a_sentence() {
    let output = hv_linux(&["--granule", "16k", "--cpu", "cortex-a72"], "true");
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(120), "{told}");
    assert!(told.contains("pages of 16 KiB, and CPU 0x0 has none at stage 2"), "{told}");
}

/// A saved guest does not know of pages: it goes on under a hypervisor with 4 KiB.
#[test]
#[ignore = "long"]
fn a_guest_is_saved_in_pages_of_64_kib_and_goes_on_in_pages_of_4() {
    let scratch = scratch();
    let file = scratch.path("linux.saved");
    let file = file.to_str().expect("a path of UTF-8");
    let saved = hv_linux(&["--granule", "64k", "--save", file], "echo 41 >/tmp/n");
    assert_eq!(saved.status.code(), Some(0), "{}", stderr(&saved));
    let _turn = turn_alone();
    let went_on: Output = hv(&["resume", file, "--run", "echo $(($(cat /tmp/n) + 1))"]).output().expect("cargo runs");
    assert_eq!((went_on.status.code(), &stdout(&went_on)[..]), (Some(0), "42\n"), "{}", stderr(&went_on));
}
