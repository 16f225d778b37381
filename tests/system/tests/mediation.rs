//! Devices by way of EL2: what can't be mediated is refused, and nothing that a device writes is missed by an audit.

use qemu::console::End;
use qemu::machine::{Machine, Module};
use std::path::PathBuf;
use std::process::Output;
use system_tests::tree::{replace, run_with_tree, tree_of};
use system_tests::{Scratch, assert_end, bytes, hv_linux, hv_linux_with, machine, run, scratch, stderr, stdout};

/// A disk of 8 MiB.
fn disk(scratch: &Scratch) -> PathBuf {
    let path = scratch.path("disk.img");
    std::fs::File::create(&path).and_then(|file| file.set_len(8 << 20)).expect("the build folder is writable");
    path
}

/// Reads and writes the disk again and again, past the cache, and talks to the network.
const TRAFFIC: &str = "for n in 1 2 3; do
    dd if=/dev/urandom of=/dev/vda bs=64k count=32 conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda >/tmp/sum
    head -c 100000 /dev/vda | nc -w 5 10.0.2.100 7 >/tmp/echo
done; wc -c </tmp/echo";

/// The same, and the guest looks itself whether all is right.
const CHECKED: &str = "for n in 1 2 3 4 5 6 7 8; do
    dd if=/dev/urandom of=/dev/vda bs=64k count=32 conv=fsync 2>/dev/null
    first=$(head -c 2097152 /dev/vda | sha256sum)
    echo 3 >/proc/sys/vm/drop_caches; [ \"$(head -c 2097152 /dev/vda | sha256sum)\" = \"$first\" ] || exit 1
    head -c 100000 /dev/vda | nc -w 5 10.0.2.100 7 >/tmp/echo
    head -c 100000 /dev/vda | cmp - /tmp/echo || exit 2
done";

/// Reads from a disk that takes its time.
const READS: &str = "dd if=/dev/vda of=/dev/null bs=1M count=8 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=1M count=8 2>/dev/null";

/// What an audit prints last.
#[derive(Debug)]
struct Found {
    rounds: u64,
    changed: u64,
    reported: u64,
    missed: u64,
}

impl Found {
    fn read(output: &Output) -> Self {
        let text = stdout(output);
        let line = text.lines().last().unwrap_or_default();
        assert!(line.starts_with("audit: rounds "), "{text}{}", stderr(output));
        let numbers: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let [rounds, changed, reported, missed, _] = numbers[..] else { panic!("{line}") };
        Self { rounds, changed, reported, missed }
    }
}

/// The more memory, the longer all of it is hashed.
const AUDIT: [&str; 5] = ["--memory", "256M", "--audit", "--every", "0.3"];

/// An audit of a guest with a disk and a network.
fn audit(options: &[&str], shell: &str) -> (Output, Found) {
    let scratch = scratch();
    let disk = disk(&scratch).display().to_string();
    let devices = ["--disk", &disk, "--net", "guestfwd=tcp:10.0.2.100:7-cmd:cat"];
    let output = hv_linux(&[&AUDIT[..], &devices, options].concat(), shell);
    let found = Found::read(&output);
    (output, found)
}

/// Nothing that a device writes is missed.
fn nothing_is_missed(mechanism: &str) {
    let (output, found) = audit(&["--dirty", mechanism, "--smp", "2"], TRAFFIC);
    assert_eq!((output.status.code(), found.missed), (Some(0), 0), "{}", stderr(&output));
    assert!(found.rounds >= 3 && found.changed >= 512 && found.reported >= found.changed, "{found:?}");
}

#[test]
fn nothing_that_a_device_writes_is_missed_by_write_protection() {
    nothing_is_missed("write-protect");
}

#[test]
#[ignore = "long"]
fn nothing_that_a_device_writes_is_missed_by_hardware() {
    nothing_is_missed("hardware");
}

/// At each harvest and each audit the devices are reset, and given back what they had: every other time by way of the bytes that a
/// save keeps. The network's buffers never come back by themselves, so that nothing would arrive any more if they were lost.
#[test]
fn a_guest_notices_nothing_of_devices_that_are_quiesced_and_nothing_is_missed() {
    let (output, found) = audit(&["--dirty", "write-protect", "--smp", "2", "--quiesce"], CHECKED);
    assert_eq!((output.status.code(), found.missed), (Some(0), 0), "{}", stderr(&output));
    assert!(found.rounds >= 10, "{found:?}");
}

#[test]
fn marks_of_what_is_completed_that_are_left_out_are_missed() {
    let (_, found) = audit(&["--dirty", "write-protect", "--smp", "2", "--unmarked", "completed"], TRAFFIC);
    assert!(found.missed > 0, "without the marks of what is completed nothing was missed");
}

/// A disk of 2 MiB a second, whose large requests QEMU does in pieces of 64 KiB: a request's first pieces are in the guest's memory
/// long before it is completed.
#[test]
#[ignore = "long"]
fn marks_of_what_is_in_flight_that_are_left_out_are_missed() {
    let scratch = scratch();
    let content: Vec<u8> = (0..8u32 << 18).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let file = scratch.file("slow.img", &content);
    let file = format!("driver=file,node-name=file,read-only=on,filename={}", file.display());
    let qemu = [
        "-object",
        "throttle-group,id=slow,x-bps-total=2097152",
        "-blockdev",
        &file,
        "-blockdev",
        "driver=throttle,node-name=throttled,throttle-group=slow,read-only=on,file=file",
        "-blockdev",
        "driver=blkdebug,node-name=pieces,max-transfer=65536,read-only=on,image=throttled",
    ];
    let run = |unmarked: &[&str]| {
        let disk = ["--dirty", "write-protect", "--mediate", "virtio-blk-device,drive=pieces"];
        Found::read(&hv_linux_with(&[&AUDIT[..], &disk, unmarked].concat(), READS, &qemu))
    };
    let found = run(&["--unmarked", "in-flight"]);
    assert!(found.missed > 0, "without the marks of what is in flight nothing was missed: {found:?}");
    let found = run(&[]);
    assert!(found.missed == 0 && found.changed >= 2048, "{found:?}");
}

/// A small guest that is to get the device at the first virtio-mmio transport.
fn mediated(scratch: &Scratch, devices: &[&str]) -> Machine {
    let file = scratch.file("guest", &bytes::guest());
    let bootargs = Some("console=ttyAMA0".into());
    let mut machine =
        Machine { modules: vec![Module { address: bytes::RAM + (144 << 20), file, bootargs }], ..machine() };
    machine.append += " mediate=virtio_mmio@a000000";
    machine.extra.extend(devices.iter().map(Into::into));
    machine
}

const MODERN: [&str; 2] = ["-global", "virtio-mmio.force-legacy=off"];
const ENTROPY: [&str; 2] = ["-device", "virtio-rng-device,bus=virtio-mmio-bus.0"];

#[test]
fn a_device_that_can_not_be_mediated_is_refused() {
    let scratch = scratch();
    let balloon = ["-device", "virtio-balloon-device,bus=virtio-mmio-bus.0"];
    for (devices, words) in [
        // QEMU's transports are legacy unless it is told otherwise.
        (&[ENTROPY][..], ["version 1 (1 is legacy)", "force-legacy=off"]),
        (&[MODERN, balloon], ["ID 5 is not mediated", "disks (2)"]),
        (&[MODERN], ["mediate=0xa000000", "no device is attached"]),
    ] {
        let outcome = run(&mediated(&scratch, &devices.concat()));
        assert_end!(outcome, End::Refused);
        let lines = outcome.console.hypervisor();
        let sentence = lines.iter().find(|line| line.starts_with("refused: ")).expect("a line `refused: ...`");
        assert!(words.iter().all(|word| sentence.contains(word)), "{sentence}");
    }
}

#[test]
fn a_device_whose_dma_is_not_coherent_is_refused() {
    let scratch = scratch();
    let machine = mediated(&scratch, &[MODERN, ENTROPY].concat());
    let mut tree = tree_of(&scratch, &machine);
    assert_end!(run_with_tree(&scratch, machine.clone(), &tree), End::PowerOff);
    // The property's name, which all nodes share.
    replace(&mut tree, b"\0dma-coherent\0", b"\0not-coherent\0");
    let outcome = run_with_tree(&scratch, machine, &tree);
    assert_end!(outcome, End::Refused);
    assert!(outcome.console.hypervisor().iter().any(|line| line.contains("DMA is not coherent")));
}
