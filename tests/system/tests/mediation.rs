//! Devices by way of EL2: what can't be mediated is refused, and nothing that a device writes is missed by an audit.

use std::path::PathBuf;
use std::process::Output;
use system_tests::{Scratch, hv_linux, scratch, stderr, stdout};

/// A disk of 8 MiB.
fn disk(scratch: &Scratch) -> PathBuf {
    let path = scratch.path("disk.img");
    std::fs::File::create(&path).and_then(|file| file.set_len(8 << 20)).expect("the build folder is writable");
    path
}

/// Reads and writes the disk again and again, past the cache, and talks to the network.
const TRAFFIC: &str = "for n in 1 2 3 4 5 6; do
    dd if=/dev/urandom of=/dev/vda bs=64k count=32 conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda >/tmp/sum
    head -c 100000 /dev/vda | nc -w 5 10.0.2.100 7 >/tmp/echo
done; wc -c </tmp/echo";

/// An audit of a guest with a disk and a network; what it prints last, as numbers: rounds, changed, reported, missed, over-reported.
fn audit(options: &[&str]) -> (Output, [u64; 5]) {
    let scratch = scratch();
    let disk = disk(&scratch).display().to_string();
    let net = "guestfwd=tcp:10.0.2.100:7-cmd:cat";
    let fixed = ["--memory", "512M", "--audit", "--every", "0.3", "--disk", &disk, "--net", net];
    let output = hv_linux(&[&fixed[..], options].concat(), TRAFFIC);
    let text = stdout(&output);
    let line = text.lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with("audit: rounds "), "{text}{}", stderr(&output));
    let numbers: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    (output, numbers.try_into().unwrap_or_else(|_| panic!("{line}")))
}

#[test]
fn nothing_that_a_device_writes_is_missed() {
    for options in [["--dirty", "hardware", "--smp", "2"], ["--dirty", "write-protect", "--smp", "2"]] {
        let (output, [rounds, changed, reported, missed, _]) = audit(&options);
        assert_eq!((output.status.code(), missed), (Some(0), 0), "{options:?}: {}", stderr(&output));
        assert!(rounds >= 3 && changed >= 512 && reported >= changed, "{}", stdout(&output));
    }
}

/// Of what is in flight no run can promise a miss: between the device's last write and its completion there is next to no time.
/// `virtio-mediation` has tests for these marks.
#[test]
fn marks_of_what_is_completed_that_are_left_out_are_missed() {
    let (_, [.., missed, _]) = audit(&["--dirty", "write-protect", "--smp", "2", "--unmarked", "completed"]);
    assert!(missed > 0, "without the marks of what is completed nothing was missed");
}
