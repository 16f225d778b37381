//! Bad input gets a sentence and a stop: never a hang, never a crash.

use qemu::console::End;
use qemu::machine::{Machine, Module};
use qemu::run::{Outcome, Stop};
use qemu::size::Size;
use std::path::PathBuf;
use system_tests::tree::{TREE, reg, replace, run_with_tree, run_with_tree_at, tree_of};
use system_tests::{Scratch, assert_end, bytes, hypervisor, machine, run, scratch};

/// Asserts that the hypervisor refused, with a sentence that has all these words in it.
fn refused(outcome: &Outcome, words: &[&str]) {
    assert_end!(outcome, End::Refused);
    let lines = outcome.console.hypervisor();
    let sentence = lines.iter().find(|line| line.starts_with("refused: ")).expect("a line `refused: ...`");
    for word in words {
        assert!(sentence.contains(word), "`{word}` is not in: {sentence}");
    }
    assert!(matches!(outcome.stop, Stop::Exited(_)), "the machine was still on: {:?}", outcome.stop);
}

/// A small guest on a machine.
fn with_guest(scratch: &Scratch, machine: Machine) -> Machine {
    with_kernel(scratch, machine, &bytes::guest())
}

fn with_kernel(scratch: &Scratch, mut machine: Machine, kernel: &[u8]) -> Machine {
    let kernel = Module {
        address: bytes::RAM + (144 << 20),
        file: scratch.file("guest", kernel),
        bootargs: Some("console=ttyAMA0".into()),
    };
    machine.modules = vec![kernel];
    machine
}

/// Runs the small guest with its module's `reg` changed in the device tree.
fn with_reg(address: u64, size: u64) -> Outcome {
    let scratch = scratch();
    let machine = with_guest(&scratch, machine());
    let mut tree = tree_of(&scratch, &machine);
    let old = reg(machine.modules[0].address, bytes::guest().len() as u64);
    replace(&mut tree, &old, &reg(address, size));
    run_with_tree(&scratch, machine, &tree)
}

#[test]
fn the_unchanged_tree_is_fine() {
    // Without this, the tests with changed trees could pass for the wrong reason.
    let scratch = scratch();
    let machine = with_guest(&scratch, machine());
    let tree = tree_of(&scratch, &machine);
    assert_end!(run_with_tree(&scratch, machine, &tree), End::PowerOff);
}

#[test]
fn started_at_el1() {
    let scratch = scratch();
    refused(&run(&with_guest(&scratch, Machine { virtualization: false, ..machine() })), &["EL1", "EL2"]);
}

#[test]
fn no_device_tree() {
    let scratch = scratch();
    let mut machine = machine();
    machine.extra.push("-device".into());
    let file = hypervisor().display();
    machine.extra.push(format!("loader,file={file},addr={:#x},force-raw=on", bytes::HYPERVISOR).into());
    for x0 in [0, TREE, TREE + 1, u64::MAX - 7] {
        eprintln!("x0 = {x0:#x}");
        machine.kernel = scratch.file("starter", &bytes::starter(x0));
        refused(&run(&machine), &["device tree"]);
    }
}

#[test]
fn a_truncated_device_tree() {
    let scratch = scratch();
    let machine = with_guest(&scratch, machine());
    let tree = tree_of(&scratch, &machine);
    let word = |at: usize| u32::from_be_bytes(tree[at..at + 4].try_into().unwrap()) as usize;
    let (structure, strings) = (word(8), word(12));
    // In the header, behind it, in the structure block, in the strings block.
    for length in [4, 40, structure + word(36) / 2, strings + word(32) / 2] {
        eprintln!("the first {length} bytes");
        refused(&run_with_tree(&scratch, machine.clone(), &tree[..length]), &["device tree"]);
    }
}

#[test]
fn a_corrupt_device_tree() {
    let scratch = scratch();
    let machine = with_guest(&scratch, machine());
    let tree = tree_of(&scratch, &machine);
    // The header's fields: total size, offsets, last compatible version, sizes.
    for field in [4, 8, 12, 24, 32, 36] {
        eprintln!("the header's field at {field}");
        let mut tree = tree.clone();
        tree[field..field + 4].copy_from_slice(&0xfff0_0001_u32.to_be_bytes());
        refused(&run_with_tree(&scratch, machine.clone(), &tree), &["device tree"]);
    }
    // The structure: a different place in every round, always the same ones.
    let at = u32::from_be_bytes(tree[8..12].try_into().unwrap()) as usize;
    for round in 0..8 {
        let mut tree = tree.clone();
        tree[at + 4 * (1 + round * 37)..][..4].copy_from_slice(&[0xff; 4]);
        let outcome = run_with_tree(&scratch, machine.clone(), &tree);
        // Not every byte matters; but it ends well either way.
        assert!(matches!(outcome.end, Some(End::Refused | End::PowerOff)), "{round}:\n{}", outcome.console.tail(40));
    }
}

#[test]
fn no_kernel() {
    refused(&run(&machine()), &["kernel"]);
}

#[test]
fn a_module_outside_ram() {
    refused(&with_reg(0x1000, 4096), &["RAM"]);
    refused(&with_reg(bytes::RAM + (64 << 30), 4096), &["RAM"]);
    refused(&with_reg(bytes::RAM + (144 << 20), 1 << 40), &["RAM"]);
    refused(&with_reg(bytes::RAM + (144 << 20), u64::MAX), &[]);
}

#[test]
fn a_module_over_the_hypervisor() {
    refused(&with_reg(bytes::HYPERVISOR + 0x1000, 4096), &["overlap"]);
}

#[test]
fn a_module_over_the_device_tree() {
    refused(&with_reg(TREE, 4096), &["overlap"]);
}

#[test]
fn modules_over_each_other() {
    let scratch = scratch();
    let mut machine = with_guest(&scratch, machine());
    let address = machine.modules[0].address;
    let initrd = scratch.file("initrd", &[0; 64 << 10]);
    machine.modules.push(Module { address: address + (2 << 20), file: initrd, bootargs: None });
    let mut tree = tree_of(&scratch, &machine);
    replace(&mut tree, &reg(address + (2 << 20), 64 << 10), &reg(address + 16, 64 << 10));
    refused(&run_with_tree(&scratch, machine, &tree), &["overlap"]);
}

/// The device tree is believed of what is memory, but not without a look.
#[test]
fn memory_that_is_not_there_or_not_in_whole_pages() {
    let scratch = scratch();
    let machine = with_guest(&scratch, machine());
    let module = reg(machine.modules[0].address, bytes::guest().len() as u64);
    let ram = machine.memory.0;
    let changed = |new_ram: u64, address: u64, size: u64| {
        let mut tree = tree_of(&scratch, &machine);
        replace(&mut tree, &module, &reg(address, size));
        replace(&mut tree, &reg(bytes::RAM, ram), &reg(bytes::RAM, new_ram));
        run_with_tree(&scratch, machine.clone(), &tree)
    };
    let behind = bytes::RAM + ram + (16 << 20);
    refused(&changed(ram + (1 << 30), behind, 4096), &["module", "is not reached at"]);
    // The last page of RAM is not whole.
    refused(&changed((144 << 20) + 0x1800, bytes::RAM + (144 << 20), 0x1800), &["module", "is not reached at"]);
    // A tree in the last page of RAM that says that it goes on behind it.
    let mut tree = tree_of(&scratch, &machine);
    tree.truncate(4096);
    tree[4..8].copy_from_slice(&(2_u32 << 20).to_be_bytes());
    let last = bytes::RAM + ram - 4096;
    refused(&run_with_tree_at(&scratch, machine.clone(), &tree, last), &["device tree", "no memory"]);
    // One that lies where the hypervisor's heap is.
    let tree = tree_of(&scratch, &machine);
    let inside = bytes::HYPERVISOR + (3 << 20);
    refused(&run_with_tree_at(&scratch, machine, &tree, inside), &["device tree", "over the hypervisor"]);
}

#[test]
fn a_transport_at_which_nothing_answers() {
    let scratch = scratch();
    let machine = with_guest(&scratch, Machine { append: "manager=on".into(), ..machine() });
    let mut tree = tree_of(&scratch, &machine);
    replace(&mut tree, &reg(0x0a00_0000, 0x200), &reg(0x0b00_0000, 0x200));
    refused(&run_with_tree(&scratch, machine, &tree), &["manager"]);
}

#[test]
fn kernels_that_are_none() {
    let scratch = scratch();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(4096, 0);
    for (kernel, word) in [(&elf[..], "ELF"), (&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0], "gzip")] {
        refused(&run(&with_kernel(&scratch, machine(), kernel)), &[word, "Image"]);
    }
}

#[test]
fn an_impossible_image_size() {
    let scratch = scratch();
    for size in [u64::MAX, 1 << 40] {
        refused(&run(&with_kernel(&scratch, machine(), &bytes::guest_of_size(size))), &["kernel"]);
    }
}

#[test]
fn too_little_memory() {
    let scratch = scratch();
    // A kernel that needs more than there is; QEMU can still load its file.
    let small = Machine { memory: Size::mib(64), ..machine() };
    let mut small = with_kernel(&scratch, small, &bytes::guest_of_size(80 << 20));
    small.modules[0].address = bytes::RAM + (48 << 20);
    refused(&run(&small), &["memory"]);
    // Not even the hypervisor's own memory fits into what the device tree promises.
    let machine = with_guest(&scratch, machine());
    let mut tree = tree_of(&scratch, &machine);
    replace(&mut tree, &reg(bytes::RAM, machine.memory.0), &reg(bytes::RAM, (2 << 20) + 4096));
    refused(&run_with_tree(&scratch, machine, &tree), &["RAM"]);
}

#[test]
fn options_that_do_not_exist() {
    let scratch = scratch();
    for (append, word) in [("log=info nonsense=1", "nonsense"), ("log=loud", "log"), ("bbm=", "bbm")] {
        refused(&run(&with_guest(&scratch, Machine { append: append.into(), ..machine() })), &[word]);
    }
}

#[test]
fn a_size_change_that_the_cpu_does_not_promise() {
    let scratch = scratch();
    let machine = Machine { cpu: "cortex-a72".into(), append: "bbm=direct".into(), ..machine() };
    refused(&run(&with_guest(&scratch, machine)), &["bbm"]);
}

#[test]
fn a_missing_file_is_named_before_anything_starts() {
    let mut machine = machine();
    machine.modules =
        vec![Module { address: bytes::RAM + (144 << 20), file: PathBuf::from("no-such-kernel"), bootargs: None }];
    assert!(machine.arguments().unwrap_err().to_string().contains("no-such-kernel"));
}
