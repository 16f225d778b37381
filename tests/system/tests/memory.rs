//! The hypervisor goes to the end of RAM, and the guest gets the rest in one piece.

use qemu::console::{Console, End};
use qemu::machine::{Gic, Machine, Module};
use qemu::run::{Flow, Outcome, Stop};
use qemu::setup::u_boot;
use qemu::size::Size;
use system_tests::tree::{pack, reg, replace, run_with_tree, run_with_tree_at, tree_of};
use system_tests::{assert_end, bytes, hypervisor, linux, machine, observe, run, scratch, workspace};

/// Behind QEMU's device tree.
const KERNEL: u64 = bytes::RAM + (144 << 20);

/// Runs a kernel of a few instructions, with the last bytes of RAM taken by a module where that is asked for.
fn bare(mut machine: Machine, kernel: &[u8], end_is_taken: bool) -> Outcome {
    let scratch = scratch();
    let file = scratch.file("guest", kernel);
    machine.modules = vec![Module { address: KERNEL, file, bootargs: Some(String::new()) }];
    if end_is_taken {
        let (address, file) = (machine.memory_end() - 4096, scratch.file("initrd", &[1; 4096]));
        machine.modules.push(Module { address, file, bootargs: None });
    }
    let outcome = run(&machine);
    assert_end!(outcome, End::PowerOff);
    outcome
}

/// The hypervisor's line with these words.
fn line(outcome: &Outcome, words: &str) -> String {
    let lines = outcome.console.hypervisor();
    lines.iter().find(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words}: {lines:?}")).to_string()
}

/// The number in front of a word.
fn number_before(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line.split([' ', ',', ';']).collect();
    let at = words.iter().position(|&other| other == word).unwrap_or_else(|| panic!("no {word}: {line}"));
    words[at - 1].parse().unwrap_or_else(|_| panic!("no number before {word}: {line}"))
}

fn shapes() -> [Machine; 5] {
    let shape = |cpu: &str, gic, mib| Machine { cpu: cpu.into(), gic, memory: Size::mib(mib), ..machine() };
    [
        shape("max", Gic::V3, 512),
        shape("cortex-a53", Gic::V3, 1024),
        shape("cortex-a72", Gic::V2, 1537),
        shape("max", Gic::V3, 3072),
        shape("max", Gic::V2, 5120),
    ]
}

/// By what the engine says of its table, and by what was told.
#[test]
fn the_end_of_ram_costs_no_leaf_and_no_table() {
    for machine in shapes() {
        let (moved, stays) = (bare(machine.clone(), &bytes::guest(), false), bare(machine, &bytes::guest(), true));
        let [after, before] = [&moved, &stays].map(|outcome| line(outcome, "stage 2: "));
        for what in ["leaves", "bytes"] {
            assert!(number_before(&after, what) <= number_before(&before, what), "{before}\n{after}");
        }
        let told = line(&moved, "image moved from 0x40200000 to the end of RAM");
        assert!(told.contains("guest's memory: 1 range, ") && told.contains("before: 2 ranges, "), "{told}");
        // Devices have the same leaves in both.
        let fewer = number_before(&before, "leaves") - number_before(&after, "leaves");
        let (now, then) = told.split_once("before: ").expect("two shapes");
        assert_eq!(number_before(then, "leaves") - number_before(now, "leaves"), fewer, "{told}\n{before}\n{after}");
        let told = line(&stays, "image stays where it was loaded");
        assert!(told.contains("the module /chosen/module@") && told.contains("2 ranges"), "{told}");
    }
}

#[test]
fn linux_has_one_range_from_the_start_of_ram() {
    let ran = linux(machine(), "cd /proc/device-tree; echo memory*; od -An -v -tx1 memory*/reg | tr -d ' \\n'");
    assert_end!(ran.outcome, End::PowerOff);
    let (nodes, reg) = ran.output.split_once('\n').expect("two lines");
    assert_eq!(nodes, "memory@40000000");
    let (start, size) = reg.trim().split_at(16);
    assert_eq!(start, format!("{:016x}", bytes::RAM));
    let size = u64::from_str_radix(size, 16).expect("one range alone");
    let own = line(&ran.outcome, "hypervisor: memory at ");
    assert!(own.contains(&format!("{:#x}-{:#x}", bytes::RAM + size, machine().memory_end())), "{own}");
}

#[test]
fn what_was_left_behind_is_zero() {
    let image = std::fs::read(hypervisor()).unwrap();
    let size = u64::from_le_bytes(image[16..24].try_into().unwrap());
    let end = bytes::HYPERVISOR + size;
    // All of it; and a byte of what is not zero, so that the guest is known to look.
    let outcome = bare(machine(), &bytes::guest_that_finds_zeros(bytes::HYPERVISOR, end), false);
    assert!(outcome.console.lines().iter().any(|line| line == bytes::YES), "{}", outcome.console.tail(20));
    let outcome = bare(machine(), &bytes::guest_that_finds_zeros(KERNEL, KERNEL + 16), false);
    assert!(outcome.console.lines().iter().any(|line| line == bytes::NO), "{}", outcome.console.tail(20));
}

/// The copy could not run there.
#[test]
fn ram_that_the_tree_has_and_the_machine_has_not() {
    let scratch = scratch();
    let mut machine = machine();
    machine.modules =
        vec![Module { address: KERNEL, file: scratch.file("guest", &bytes::guest()), bootargs: Some(String::new()) }];
    let mut tree = tree_of(&scratch, &machine);
    let real = machine.memory.0;
    replace(&mut tree, &reg(bytes::RAM, real), &reg(bytes::RAM, real + (64 << 20)));
    // QEMU writes the RAM that there is into a tree that it is given: a starter hands this one over.
    let outcome = run_with_tree(&scratch, machine, &tree);
    assert_end!(outcome, End::PowerOff);
    let told = line(&outcome, "image stays where it was loaded");
    assert!(told.contains("there is none"), "{told}");
}

/// As some loaders put it.
#[test]
fn a_tree_at_the_end_of_ram_goes_out_of_the_way() {
    let scratch = scratch();
    let file = scratch.file("guest", &bytes::guest());
    let mut machine = machine();
    machine.modules = vec![Module { address: KERNEL, file, bootargs: Some(String::new()) }];
    let mut tree = tree_of(&scratch, &machine);
    pack(&mut tree);
    // In the pool's last bytes, and where the image itself goes.
    let end = machine.memory_end();
    for address in [(end - tree.len() as u64) & !7, end - (10 << 20)] {
        let outcome = run_with_tree_at(&scratch, machine.clone(), &tree, address);
        assert_end!(outcome, End::PowerOff);
        let told = line(&outcome, "image moved from 0x40200000 to the end of RAM");
        assert!(told.contains("guest's memory: 1 range, "), "{told}");
    }
}

#[test]
fn a_raw_binary_starts_behind_its_tree() {
    let outcome = bare(machine(), &bytes::raw_guest(), false);
    assert!(outcome.console.lines().iter().any(|line| line == bytes::YES), "{}", outcome.console.tail(20));
    // Where the hypervisor cannot go away, that is not to be had.
    let outcome = bare(machine(), &bytes::raw_guest(), true);
    assert!(outcome.console.lines().iter().any(|line| line == bytes::NO), "{}", outcome.console.tail(20));
}

/// U-Boot looks for its tree at the start of RAM, and takes RAM for one piece. It reads its environment from QEMU's flash, which
/// no guest has: here, from RAM.
#[test]
fn u_boot_as_a_guest_finds_its_tree() {
    let u_boot = match u_boot::get(workspace()) {
        Ok(path) => std::fs::read(path).unwrap(),
        Err(error) => {
            eprintln!("skipped: {error:#}");
            return;
        }
    };
    let (flash, ram) = (0x0400_u32, 0x4400_u32);
    let words = u_boot.chunks(4).map(|word| word.try_into().map_or(0, u32::from_le_bytes));
    // movz and movk of an X register, with the half that is shifted by 16.
    let is_flash = |word: u32| word & 0xdfff_ffe0 == 0xd2a0_0000 | flash << 5;
    let changed = words.map(|word| if is_flash(word) { word & !(0xffff << 5) | ram << 5 } else { word });
    let changed: Vec<u8> = changed.flat_map(u32::to_le_bytes).collect();

    let scratch = scratch();
    let mut machine = machine();
    let file = scratch.file("u-boot.bin", &changed);
    machine.modules = vec![Module { address: KERNEL, file, bootargs: Some(String::new()) }];
    let mut keys = ["\r", "bdinfo\r", "poweroff\r"].into_iter();
    let mut prompts = 0;
    let outcome = observe(&machine, |_, console: &Console| {
        let lines = console.lines();
        let asked = lines.iter().any(|line| line.contains("Hit any key"));
        let seen = lines.iter().filter(|line| line.starts_with("=> ")).count();
        if (prompts == 0 && asked) || (prompts > 0 && seen >= prompts && lines.last().is_some_and(|line| line == "=> "))
        {
            prompts += 1;
            return keys.next().map_or(Flow::Continue, |keys| Flow::Send(keys.into()));
        }
        Flow::Continue
    });
    assert_end!(outcome, End::PowerOff);
    assert!(matches!(outcome.stop, Stop::Exited(_)));
    let text = outcome.console.lines().join("\n");
    let own = line(&outcome, "hypervisor: memory at ");
    let size = own.split(['x', '-']).nth(1).and_then(|start| u64::from_str_radix(start, 16).ok()).unwrap() - bytes::RAM;
    assert!(text.contains("-> start    = 0x0000000040000000"), "{text}");
    assert!(text.contains(&format!("-> size     = 0x{size:016x}")) && text.contains("devicetree  = board"), "{text}");
}
