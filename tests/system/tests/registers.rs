//! Trees that say odd things of the guest's own devices: the suite's tests of devices pass all the same.

use qemu::console::{End, passed_and_failed};
use qemu::machine::{Gic, Machine};
use qemu::run::Outcome;
use system_tests::tree::{add_node, add_property, pack, reg, replace, tree_of};
use system_tests::{assert_end, machine, payload, run, scratch};

/// QEMU's GICv3: the distributor, and the ITS some way behind it.
const DISTRIBUTOR: (u64, u64) = (0x0800_0000, 0x1_0000);
const ITS: &str = "its@8080000";

/// Runs the suite's tests with `filter` in their names on a machine whose tree was changed.
fn suite(filter: &str, change: impl FnOnce(&mut Vec<u8>)) -> Outcome {
    suite_on(machine(), filter, change)
}

fn suite_on(machine: Machine, filter: &str, change: impl FnOnce(&mut Vec<u8>)) -> Outcome {
    let scratch = scratch();
    let mut machine = Machine { smp: 2, ..machine };
    machine.append += " hypercalls=on";
    machine.load_guest(payload(), None, &format!("filter={filter}")).unwrap();
    let mut tree = tree_of(&scratch, &machine);
    pack(&mut tree);
    change(&mut tree);
    machine.extra.extend(["-dtb".into(), scratch.file("own.dtb", &tree).into()]);
    run(&machine)
}

/// That the suite said so, and that nothing failed or was left out.
fn passed(outcome: &Outcome, at_least: u64) {
    assert_end!(outcome, End::PowerOff);
    let lines = outcome.console.lines();
    let counts = lines.iter().rev().find_map(|line| passed_and_failed(line));
    assert!(counts.is_some_and(|(passed, failed)| passed >= at_least && failed == 0), "{}", outcome.console.tail(60));
}

#[test]
fn an_unchanged_tree_passes() {
    // Without this the others could fail for the wrong reason.
    passed(&suite("devices::", |_| ()), 20);
}

/// The attack that overwrote EL2: `gicv3_its_tables` in the suite.
#[test]
fn a_disabled_its_inside_the_distributors_reg_is_out_of_reach() {
    let outcome = suite("devices::", |tree| {
        replace(tree, &reg(DISTRIBUTOR.0, DISTRIBUTOR.1), &reg(DISTRIBUTOR.0, 0xa_0000));
        add_property(tree, ITS, "status", b"disabled\0");
    });
    passed(&outcome, 20);
}

/// As the J721S2's tree has it.
#[test]
fn an_enabled_its_inside_the_distributors_reg_is_no_reason_to_refuse() {
    let outcome = suite("devices::", |tree| {
        replace(tree, &reg(DISTRIBUTOR.0, DISTRIBUTOR.1), &reg(DISTRIBUTOR.0, 0xa_0000));
    });
    passed(&outcome, 20);
}

#[test]
fn a_uart_that_does_not_fill_its_page_is_reached_through_el2() {
    // Its identification registers end at 0xff0.
    let outcome = suite("devices::", |tree| replace(tree, &reg(0x0900_0000, 0x1000), &reg(0x0900_0000, 0xff0)));
    passed(&outcome, 20);
    let said = outcome.console.hypervisor().join("\n");
    assert!(said.contains("0x9000000-0x9000ff0 does not have its page for itself"), "{said}");
}

/// As the tree of Amlogic's T7 has it.
#[test]
fn a_cpu_interface_of_256_bytes_is_reached_through_el2() {
    let machine = Machine { gic: Gic::V2, ..machine() };
    let outcome =
        suite_on(machine, "interrupts::", |tree| replace(tree, &reg(0x0801_0000, 0x1_0000), &reg(0x0801_0000, 0x100)));
    passed(&outcome, 5);
    let said = outcome.console.hypervisor().join("\n");
    assert!(said.contains("0x8010000-0x8010100 does not have its page for itself"), "{said}");
}

/// A page where QEMU has nothing. EL2 forwards what is meant for the clock that the tree has there, since it does not fill the
/// page, and takes the external abort.
#[test]
fn what_a_forwarded_register_does_not_answer_is_the_guests_abort() {
    const ABSENT: u64 = 0x0b00_0000;
    let filter = format!("devices:: absent={ABSENT:#x}");
    let outcome = suite(&filter, |tree| replace(tree, &reg(0x0901_0000, 0x1000), &reg(ABSENT, 0x100)));
    passed(&outcome, 20);
    assert_passed(&outcome, "devices::registers_without_a_device");
    let said = outcome.console.hypervisor().join("\n");
    assert!(said.contains("0xb000000-0xb000100 does not have its page for itself"), "{said}");
}

/// That a test was not skipped.
fn assert_passed(outcome: &Outcome, test: &str) {
    let line = format!("test {test} ... ok");
    assert!(outcome.console.lines().iter().any(|said| said.contains(&line)), "{}", outcome.console.tail(60));
}

/// Stage-1 tables in RAM that the tree has and the machine has not: a walk through them, EL2's own too, is an external abort.
fn tables_where_nothing_answers(gic: Gic) {
    // Far from the RAM that there is, so that EL2 has nothing of its own there; none of QEMU's devices is near. QEMU replaces nodes
    // that are called "memory".
    const ABSENT: u64 = 0x10_0000_0000;
    const NODE: &str = "absent@1000000000";
    for (filter, tests) in [
        ("walks::", &["walks::table_where_nothing_answers", "walks::table_that_comes_and_goes"][..]),
        ("hostile::stage_1_tables", &["hostile::stage_1_tables"]),
    ] {
        let outcome = suite_on(Machine { gic, ..machine() }, &format!("{filter} absent={ABSENT:#x}"), |tree| {
            add_node(tree, NODE);
            add_property(tree, NODE, "reg", &reg(ABSENT, 0x20_0000));
            add_property(tree, NODE, "device_type", b"memory\0");
        });
        passed(&outcome, tests.len() as u64);
        tests.iter().for_each(|test| assert_passed(&outcome, test));
    }
}

#[test]
fn a_walk_of_el2s_where_nothing_answers_is_no_crash() {
    tables_where_nothing_answers(Gic::V3);
}

#[test]
fn a_walk_of_el2s_where_nothing_answers_is_no_crash_with_a_gicv2() {
    tables_where_nothing_answers(Gic::V2);
}
