//! Where the kernel, the initramfs, the hypervisor and the tree may lie.

use super::*;

/// Where the hypervisor and the tree lie in the tests of placement.
fn placed(kernel: (u64, u64), initrd: (u64, u64)) -> Result<(), MachineError> {
    let mut machine = machine(GIC3, |_| ());
    machine.kernel.as_mut().unwrap().range = range(kernel.0, kernel.1);
    machine.initrd.as_mut().unwrap().range = range(initrd.0, initrd.1);
    machine.check_placement(range(HYPERVISOR.0, HYPERVISOR.1), range(TREE.0, TREE.1))
}

#[test]
fn what_is_placed_apart_in_ram_is_fine() {
    assert_eq!(placed((0x4800_0000, 0x100), (0x4800_0100, 0x100)), Ok(()));
    // Up to the last byte of RAM, and right behind the hypervisor and the tree.
    assert_eq!(placed((0x5fff_0000, 0x1_0000), (HYPERVISOR.0 + HYPERVISOR.1, 1)), Ok(()));
    assert_eq!(placed((TREE.0 + TREE.1, 1), (TREE.0 - 1, 1)), Ok(()));
}

#[test]
fn a_module_outside_ram_is_refused() {
    for outside in [(0x1000, 0x1000), (0x5fff_f001, 0x1000), (0x3fff_ffff, 2), (0x7000_0000, 1)] {
        let fine = (0x4800_0000, 0x1000);
        let range = range(outside.0, outside.1);
        let what = "the module /chosen/module@0x48000000".to_string();
        assert_eq!(placed(outside, fine), Err(MachineError::OutsideRam { what, range }));
        let what = "the module /chosen/module@0x4c000000".to_string();
        assert_eq!(placed(fine, outside), Err(MachineError::OutsideRam { what, range }));
    }
}

/// What overlaps what, without the addresses.
fn overlap(result: Result<(), MachineError>) -> (String, String) {
    match result.unwrap_err() {
        MachineError::Overlap { what, other, .. } => (what, other),
        other => panic!("{other}"),
    }
}

fn pair(what: &str, other: &str) -> (String, String) {
    (what.to_string(), other.to_string())
}

#[test]
fn overlapping_modules_are_refused() {
    let fine = (0x4800_0000, 0x1000);
    let (kernel, initrd) = ("the module /chosen/module@0x48000000", "the module /chosen/module@0x4c000000");
    assert_eq!(overlap(placed((HYPERVISOR.0 - 1, 2), fine)), pair(kernel, "the hypervisor"));
    assert_eq!(overlap(placed(fine, (HYPERVISOR.0 + HYPERVISOR.1 - 1, 2))), pair(initrd, "the hypervisor"));
    assert_eq!(overlap(placed((TREE.0 - 1, 2), fine)), pair(kernel, "the device tree"));
    assert_eq!(overlap(placed(fine, (TREE.0 + 1, 2))), pair(initrd, "the device tree"));
    assert_eq!(overlap(placed(fine, (fine.0 + 0xfff, 2))), pair(initrd, kernel));
}

#[test]
fn what_the_firmware_keeps_is_not_loaded_over() {
    let mut machine = machine(GIC3, |_| ());
    let (hypervisor, tree) = (range(HYPERVISOR.0, HYPERVISOR.1), range(TREE.0, TREE.1));
    let firmware = "memory that the firmware keeps";
    machine.reserved = Vec::from([range(0x4800_0fff, 1)]);
    let (kernel, other) = overlap(machine.check_placement(hypervisor, tree));
    assert_eq!((kernel.contains("0x48000000"), &other[..]), (true, firmware));
    machine.reserved = Vec::from([range(HYPERVISOR.0, 1)]);
    assert_eq!(overlap(machine.check_placement(hypervisor, tree)), pair("the hypervisor", firmware));
    // The tree may be reserved: it is not kept.
    machine.reserved = Vec::from([tree]);
    assert_eq!(machine.check_placement(hypervisor, tree), Ok(()));
}

#[test]
fn a_hypervisor_outside_ram_or_over_the_tree_is_refused() {
    let machine = machine(GIC3, |_| ());
    let tree = range(TREE.0, TREE.1);
    let outside = range(0x3fff_0000, 0x2_0000);
    let error = machine.check_placement(outside, tree).unwrap_err();
    assert_eq!(error, MachineError::OutsideRam { what: "the hypervisor".to_string(), range: outside });
    assert_eq!(overlap(machine.check_placement(tree, tree)), pair("the hypervisor", "the device tree"));
}
