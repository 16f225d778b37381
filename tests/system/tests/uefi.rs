//! The hypervisor started by UEFI firmware: by GRUB, from the EFI shell, as a boot option of its own. What it cannot start
//! on, it says while firmware still runs, and firmware goes on.

use qemu::console::End;
use qemu::images::{self, PROFILE};
use qemu::machine::{Gic, Machine, Module};
use qemu::run::{Outcome, Stop};
use qemu::setup::rust::TARGET;
use qemu::size::Size;
use qemu::uefi::{self, BOOT_FILE, Disk};
use qemu::{code_size, pe};
use system_tests::tree::{replace, tree_of};
use system_tests::{
    Scratch, assert_end, bytes, firmware, hv_linux, hypervisor, linux_started, machine, run, scratch, stderr, stdout,
    workspace,
};

/// What the shell says when it is reached.
const NEXT: &str = "firmware went on";

/// A disk whose `startup.nsh` the EFI shell runs.
fn disk(scratch: &Scratch, shell: &str) -> Disk {
    let disk = Disk::new(&scratch.path("disk")).unwrap();
    disk.write("startup.nsh", format!("{shell}\r\necho {NEXT}\r\nreset -s\r\n")).unwrap();
    disk
}

/// Asserts that the hypervisor refused with a sentence that has all these words in it, and that firmware went on.
fn refused(outcome: &Outcome, words: &[&str]) {
    let tail = outcome.console.tail(40);
    let lines = outcome.console.hypervisor();
    let sentence = lines.iter().find(|line| line.starts_with("refused: "));
    let sentence = sentence.unwrap_or_else(|| panic!("no line `refused: ...`:\n{tail}"));
    for word in words {
        assert!(sentence.contains(word), "`{word}` is not in: {sentence}");
    }
    went_on(outcome);
}

fn went_on(outcome: &Outcome) {
    let lines = outcome.console.lines();
    // The shell also shows the command.
    let reached = lines.iter().any(|line| line.contains(NEXT) && !line.contains("echo"));
    assert!(reached && outcome.end.is_none(), "{:?}:\n{}", outcome.stop, outcome.console.tail(40));
    assert!(matches!(outcome.stop, Stop::Exited(_)), "the machine was still on: {:?}", outcome.stop);
}

/// Starts an image as the disk's own boot option; the EFI shell is the next one.
fn boot_option(mut machine: Machine, image: &[u8], acpi: bool) -> Outcome {
    let scratch = scratch();
    let disk = disk(&scratch, "");
    disk.write(BOOT_FILE, image).unwrap();
    disk.start(&mut machine, firmware());
    machine.uefi.as_mut().unwrap().acpi = acpi;
    run(&machine)
}

fn image() -> Vec<u8> {
    std::fs::read(hypervisor()).unwrap()
}

/// Where the hypervisor says that its image is.
fn place(outcome: &Outcome) -> u64 {
    // GRUB has not ended its line.
    let lines = outcome.console.lines();
    let place = lines.iter().find_map(|line| line.split_once("[unbroken] Unbroken")?.1.split_once("image at 0x"));
    u64::from_str_radix(place.expect("it says where it is").1, 16).expect("an address")
}

fn boots_by_grub(cpu: &str, gic: Gic, smp: u32, mib: u64) {
    let machine = Machine { cpu: cpu.into(), gic, smp, memory: Size::mib(mib), ..machine() };
    let shell = "nproc; awk '/^MemTotal/ { print $2 }' /proc/meminfo; cat /proc/cmdline";
    let ran = linux_started(machine, shell, |machine, scratch| {
        machine.modules[0].bootargs.as_mut().unwrap().push_str(" a=1,2 b=$c");
        uefi::start_by_grub(machine, firmware(), &scratch.path("disk")).unwrap()
    });
    assert_end!(ran.outcome, End::PowerOff);
    let lines: Vec<&str> = ran.output.lines().collect();
    let [cpus, kib, line] = lines[..] else { panic!("unexpected output: {}", ran.output) };
    assert_eq!((cpus, ran.status), (&*smp.to_string(), Some(0)));
    assert!(line.starts_with("console=ttyAMA0 ") && line.ends_with(" a=1,2 b=$c"), "{line}");
    // Firmware keeps a few MiB for ever; the kernel its own image and a 64th for its page structures.
    let (total, least) = (mib << 10, (mib << 10) * 31 / 32 - (112 << 10));
    assert!((least..=total).contains(&kib.parse().unwrap()), "{kib} KiB of {total} KiB");
    // Firmware, not QEMU, has put it there, and it has moved to whole blocks.
    assert!(place(&ran.outcome) != bytes::HYPERVISOR && place(&ran.outcome).is_multiple_of(2 << 20));
    assert!(ran.outcome.console.lines().iter().any(|line| line.contains("Welcome to GRUB!")));
}

#[test]
fn grub_starts_it_as_it_starts_xen() {
    boots_by_grub("max", Gic::V3, 2, 1024);
}

#[test]
#[ignore = "long"]
fn grub_starts_it_on_an_older_cpu_with_more_memory() {
    boots_by_grub("cortex-a72", Gic::V2, 1, 5120);
}

#[test]
fn the_efi_shell_starts_it_with_files_of_the_disk() {
    let ran = linux_started(machine(), "cat /proc/cmdline; echo; nproc", |machine, scratch| {
        let modules = std::mem::take(&mut machine.modules);
        let [Module { file: kernel, bootargs, .. }, Module { file: initrd, .. }] = &modules[..] else {
            panic!("two modules")
        };
        let arguments = bootargs.as_deref().unwrap();
        let line =
            format!("fs0:\\unbroken.efi kernel=/guest/linux log=debug initrd=\\guest\\initrd -- {arguments} d=e");
        let disk = disk(scratch, &line);
        disk.put("unbroken.efi", hypervisor()).unwrap().put("guest/linux", kernel).unwrap();
        disk.put("guest/initrd", initrd).unwrap();
        disk.start(machine, firmware());
        disk
    });
    assert_end!(ran.outcome, End::PowerOff);
    let lines: Vec<&str> = ran.output.lines().collect();
    assert!(lines[0].starts_with("console=ttyAMA0 ") && lines[0].ends_with(" d=e"), "{}", ran.output);
    assert_eq!((lines[lines.len() - 1], ran.status), ("1", Some(0)));
    // Its own options have come through, too.
    assert!(ran.outcome.console.hypervisor().iter().any(|line| line.starts_with("exits of cpu 0")));
}

/// The application's memory becomes the guest's; it has the hypervisor's constants in it, and what it has read of the tree.
#[test]
fn what_the_application_left_behind_is_zero() {
    let start = |guest: &[u8]| {
        let scratch = scratch();
        let disk = disk(&scratch, "fs0:\\unbroken.efi kernel=\\kernel");
        disk.put("unbroken.efi", hypervisor()).unwrap().write("kernel", guest).unwrap();
        let mut machine = machine();
        disk.start(&mut machine, firmware());
        let outcome = run(&machine);
        let lines = outcome.console.hypervisor();
        let place = lines.iter().find_map(|line| line.split_once("as an application at 0x")?.1.split_once("-0x"));
        let (start, end) = place.unwrap_or_else(|| panic!("{}", outcome.console.tail(20)));
        let place = [start, end].map(|address| u64::from_str_radix(address, 16).expect("an address"));
        (place, outcome)
    };
    // Firmware puts it in the same place as long as the files have the same sizes.
    // The first one looks at RAM's start, whatever is there, and ends.
    let (place, _) = start(&bytes::guest_that_finds_zeros(0x4000_0000, 0x4000_0010));
    let (same, outcome) = start(&bytes::guest_that_finds_zeros(place[0], place[1]));
    assert_eq!(place, same);
    assert!(outcome.console.lines().iter().any(|line| line == bytes::YES), "{}", outcome.console.tail(20));
}

/// U-Boot's firmware loads the headers and the sections, and nothing in between.
#[test]
fn firmware_need_not_load_what_is_in_no_section() {
    let scratch = scratch();
    let mut machine = machine();
    let mut image = image();
    let headers = 0xf8 + 3 * 40;
    assert!(image[headers..0x1000].iter().any(|&byte| byte != 0));
    image[headers..0x1000].fill(0);
    let disk = disk(&scratch, "fs0:\\unbroken.efi kernel=\\kernel");
    disk.write("unbroken.efi", image).unwrap().write("kernel", bytes::guest()).unwrap();
    disk.start(&mut machine, firmware());
    assert_end!(run(&machine), End::PowerOff);
}

#[test]
fn one_command_does_it_all() {
    let output = hv_linux(&["--firmware", "uefi"], "echo a; exit 3");
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("a\n", Some(3)), "{}", stderr(&output));
    assert!(stderr(&output).contains("Booting Linux by UEFI and GRUB"), "{}", stderr(&output));
}

#[test]
#[ignore = "long"]
fn one_command_tells_why_it_was_refused() {
    let output = hv_linux(&["--firmware", "uefi", "--cpu", "cortex-a72", "--gic", "2", "--bbm", "direct"], "true");
    assert_eq!(output.status.code(), Some(120), "{}", stderr(&output));
    assert!(stderr(&output).contains("bbm=direct"), "{}", stderr(&output));
}

#[test]
fn a_boot_option_without_a_kernel() {
    refused(&boot_option(machine(), &image(), false), &["no guest kernel", "kernel=PATH", "xen_module"]);
}

#[test]
fn firmware_with_acpi_alone() {
    refused(&boot_option(machine(), &image(), true), &["no device tree", "ACPI", "acpi=off"]);
}

#[test]
fn firmware_at_el1() {
    let machine = Machine { virtualization: false, ..machine() };
    refused(&boot_option(machine, &image(), false), &["EL1", "EL2"]);
}

#[test]
fn a_file_that_is_cut_short() {
    // Firmware itself sees that sections are missing ...
    let whole = image();
    for length in [whole.len() / 2, whole.len() - 512, 70] {
        let outcome = boot_option(machine(), &whole[..length], false);
        assert!(outcome.console.hypervisor().is_empty(), "{length}:\n{}", outcome.console.tail(40));
        went_on(&outcome);
    }
    // ... but not that the last of what counts was never written to the disk.
    let mut holed = whole.clone();
    holed[whole.len() - 2048..whole.len() - 512].fill(0);
    refused(&boot_option(machine(), &holed, false), &["cut short"]);
}

#[test]
fn what_the_shell_is_told_must_be_there() {
    let scratch = scratch();
    let mut machine = machine();
    let lines = [
        "memmap",
        "fs0:\\unbroken.efi kernel=\\none",
        "fs0:\\unbroken.efi kernel=\\kernel initrd=\\none",
        "fs0:\\unbroken.efi kernel=\\empty",
        "fs0:\\unbroken.efi kernel=\\kernel nonsense=1",
        "fs0:\\unbroken.efi kernel=\\elf",
        "memmap",
        "fs0:\\hog.efi",
        "fs0:\\unbroken.efi kernel=\\kernel",
    ];
    let disk = disk(&scratch, &lines.join("\r\n"));
    disk.put("unbroken.efi", hypervisor()).unwrap().write("kernel", bytes::guest()).unwrap();
    disk.write("empty", b"")
        .unwrap()
        .write("elf", b"\x7fELF\x02\x01\x01\0")
        .unwrap()
        .write("hog.efi", bytes::hog())
        .unwrap();
    disk.start(&mut machine, firmware());
    let outcome = run(&machine);
    went_on(&outcome);
    let said = outcome.console.hypervisor();
    let expected = [
        "refused: the kernel cannot be read",
        "refused: the initramfs cannot be read",
        "refused: the kernel cannot be read",
        "refused: the hypervisor's command line: there is no option nonsense=1",
        "refused: the guest kernel is an ELF file",
        // Another program has taken the memory.
        "refused: firmware has no ",
    ];
    assert_eq!(said.len(), expected.len(), "{}", outcome.console.tail(60));
    for (line, start) in said.iter().zip(expected) {
        assert!(line.starts_with(start), "{line} should start with {start}");
    }
    // What was allocated for the first five has been given back.
    let lines = outcome.console.lines();
    let [before, after] = [0, 1].map(|nth| lines.iter().filter(|line| line.contains("LoaderData:")).nth(nth));
    assert!(before.is_some() && before == after, "{before:?}, then {after:?}");
    assert!(said[5].contains("KiB of memory in one piece for the hypervisor"), "{}", said[5]);
}

/// GRUB starts the hypervisor with a device tree of the test's own; if that fails, it says so and turns the machine off.
fn with_tree(from: &[u8], to: &[u8]) -> Outcome {
    let scratch = scratch();
    let mut machine = machine();
    let mut tree = tree_of(&scratch, &machine);
    replace(&mut tree, from, to);
    let disk = Disk::new(&scratch.path("disk")).unwrap();
    disk.put("unbroken.img", hypervisor())
        .unwrap()
        .write("guest", bytes::guest())
        .unwrap()
        .write("tree", tree)
        .unwrap();
    let script = "insmod xen_boot\ninsmod fdt\nxen_hypervisor /unbroken.img log=info\nxen_module /guest\n\
                  devicetree /tree\nboot\n";
    disk.put_grub(firmware(), &format!("{script}echo\necho {NEXT}\nhalt\n")).unwrap();
    disk.start(&mut machine, firmware());
    run(&machine)
}

#[test]
fn a_tree_without_ram_will_do_for_firmware_knows_its_memory() {
    let outcome = with_tree(b"memory\0", b"mem0ry\0");
    assert_end!(outcome, End::PowerOff);
}

#[test]
fn a_clock_that_the_tree_does_not_tell_follows_from_what_firmware_has_set() {
    let outcome = with_tree(b"fixed-clock\0", b"other-clock\0");
    assert_end!(outcome, End::PowerOff);
    // EDK2 has divided 24 MHz by 16 and 39 and 4/64 for 38400, which the tree does not say: for what is taken for 115200 a guest that
    // is told three times the rate sets the same divisor.
    let told = "console: a clock of 72000000 Hz for the guest, by the divisor that makes 115200 baud";
    assert!(outcome.console.hypervisor().iter().any(|line| line == told), "{}", outcome.console.tail(40));
}

#[test]
fn trees_that_will_not_do() {
    refused(&with_tree(b"arm,armv8-timer", b"arm,armv8-tim3r"), &["no generic timer"]);
    refused(&with_tree(b"cpus\0", b"spuc\0"), &["no device tree of this machine"]);
}

#[test]
fn the_file_is_a_pe_file_and_no_field_of_it_is_there_by_chance() {
    let whole = image();
    pe::check(&whole).unwrap();
    // Fields of the headers at 0x40, and of the section table at 0xf8.
    for (field, at) in [
        ("signature", 0x40),
        ("machine", 0x44),
        ("number of sections", 0x46),
        ("characteristics", 0x56),
        ("magic", 0x58),
        ("entry", 0x6b),
        ("section alignment", 0x79),
        ("file alignment", 0x7d),
        ("size of the image", 0x91),
        ("size of the headers", 0x95),
        ("subsystem", 0x9c),
        ("relocations", 0xf1),
        (".text: size", 0x101),
        (".text: address", 0x105),
        (".text: size in the file", 0x109),
        (".text: place in the file", 0x10d),
        (".data: size", 0x129),
        (".data: place in the file", 0x135),
        (".reloc: address", 0x155),
        (".reloc: size in the file", 0x159),
    ] {
        let mut changed = whole.clone();
        changed[at] ^= 2;
        assert!(pe::check(&changed).is_err(), "{field}");
    }
    let mut writable = whole.clone();
    writable[0x11f] |= 0x80;
    assert!(pe::check(&writable).unwrap_err().to_string().contains("written and executed"));
    assert!(pe::check(&whole[..whole.len() - 1]).is_err());
}

#[test]
fn the_efi_part_is_small() {
    hypervisor();
    let elf = images::build_folder(workspace()).unwrap().join(TARGET).join(PROFILE).join("unbroken");
    let is_efi = |name: &str| name.contains("::efi::") || name.starts_with("efi_");
    let text = code_size::text(&std::fs::read(elf).unwrap(), is_efi).unwrap();
    // Its constants, relocations and headers are another 3 KiB: 24 KiB in all.
    assert!(text <= 21 << 10, "{text} bytes");
}
