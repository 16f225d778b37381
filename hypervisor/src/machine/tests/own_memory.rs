//! Where the hypervisor's own memory goes: odd machines and hostile trees.

use super::*;

const MIB: u64 = 1 << 20;
const BASE: u64 = 0x4000_0000;
const POOL: u64 = 4 * MIB;

/// An image of 5 MiB where QEMU loads it, on a CPU with 44 bits of address.
fn needs() -> Needs {
    Needs { image: range(BASE + 2 * MIB, 5 * MIB), pool: POOL, tree: range(TREE.0, TREE.1), pa_bits: 44 }
}

/// QEMU's machine with this RAM (start and MiB), its modules in the middle of the first.
fn with_ram(ram: &[(u64, u64)]) -> Machine {
    let mut machine = machine(GIC3, |_| ());
    machine.ram = ram.iter().map(|&(start, mib)| range(start, mib * MIB)).collect();
    machine.kernel.as_mut().unwrap().range = range(BASE + 80 * MIB, 30 * MIB);
    machine.initrd.as_mut().unwrap().range = range(BASE + 112 * MIB, MIB);
    machine
}

fn taken(machine: &Machine, needs: &Needs) -> (String, PhysRange) {
    match machine.better_place(needs) {
        Err(Stays::Taken { what, range }) => (what, range),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_goes_to_the_end_of_ram() {
    let machine = with_ram(&[(BASE, 512)]);
    let place = machine.better_place(&needs()).unwrap();
    assert_eq!(place, range(BASE + 502 * MIB, 10 * MIB));
    // The guest gets what is below in one piece, in no more leaves than around the hypervisor.
    assert_eq!(machine.guest_memory(place), [range(BASE, 502 * MIB)]);
    let [before, after] = [machine.own_memory(&needs()), place].map(|own| machine.guest_shape(own));
    assert_eq!(before, GuestShape { ranges: 2, late: false, leaves: 1 + 10 + 15 });
    assert_eq!(after, GuestShape { ranges: 1, late: false, leaves: 15 + 11 });
    assert_eq!(after.to_string(), "1 range, 26 leaves");
}

/// What the copy does if it asks again: nothing.
#[test]
fn it_stays_at_the_end() {
    for ram in [&[(BASE, 512)][..], &[(BASE, 300), (1 << 32, 512)], &[(BASE, 128)]] {
        let machine = with_ram(ram);
        let place = machine.better_place(&needs()).unwrap();
        let there = Needs { image: place.at_most(5 * MIB), ..needs() };
        assert_eq!(machine.own_memory(&there), place);
        assert_eq!(machine.better_place(&there), Err(Stays::AtEnd));
    }
}

#[test]
fn what_is_left_behind_it_is_its_own() {
    for tail in [4096, 4095, 4097, MIB, 2 * MIB - 4096] {
        let mut machine = with_ram(&[(BASE, 512)]);
        machine.ram = Vec::from([range(BASE, 512 * MIB + tail)]);
        let place = machine.better_place(&needs()).unwrap();
        assert!(place.start().is_multiple_of(2 * MIB) && place.size() >= 9 * MIB);
        assert_eq!(place.end(), BASE + 512 * MIB + tail / 4096 * 4096);
        assert_eq!(machine.guest_memory(place).len(), 1);
        let there = Needs { image: place.at_most(5 * MIB), ..needs() };
        assert_eq!(machine.own_memory(&there), place);
    }
}

#[test]
fn what_lies_at_the_end_is_named() {
    let machine = with_ram(&[(BASE, 512)]);
    let at_end = range(BASE + 511 * MIB, MIB);
    let mut changed = machine.clone();
    changed.kernel.as_mut().unwrap().range = at_end;
    assert_eq!(taken(&changed, &needs()), ("the module /chosen/module@0x48000000".to_string(), at_end));
    changed = machine.clone();
    changed.initrd.as_mut().unwrap().range = at_end;
    assert_eq!(taken(&changed, &needs()), ("the module /chosen/module@0x4c000000".to_string(), at_end));
    // A device whose registers, or whose framebuffer, the tree has in RAM: by its last byte.
    changed = machine.clone();
    changed.hidden.push(Hidden { name: "framebuffer@0".to_string(), registers: range(BASE + 501 * MIB, MIB + 1) });
    assert_eq!(taken(&changed, &needs()).0, "framebuffer@0");
    changed.hidden.last_mut().unwrap().registers = range(BASE + 501 * MIB, MIB);
    assert!(changed.better_place(&needs()).is_ok());
    let sentence = Stays::Taken { what: "the module".to_string(), range: at_end }.to_string();
    assert!(sentence.contains("the module is at 0x5ff00000-0x60000000"), "{sentence}");
}

/// A tree at the end of RAM keeps nothing there: the image takes it along, to just below its own memory.
#[test]
fn a_tree_at_the_end_goes_out_of_the_way() {
    let machine = with_ram(&[(BASE, 512)]);
    let own = range(BASE + 502 * MIB, 10 * MIB);
    let with_tree = |start: u64, bytes: u64| Needs { tree: range(start, bytes), ..needs() };
    // Anywhere in what the hypervisor would have, where the image goes or in its pool.
    for tree in [with_tree(BASE + 511 * MIB, MIB), with_tree(own.start(), 4097), with_tree(own.end() - 8, 8)] {
        assert_eq!(machine.better_place(&tree), Ok(own));
        let copy = machine.tree_place(own, &tree).unwrap();
        assert!(copy.start().is_multiple_of(4096) && copy.end() <= own.start() && own.start() - copy.end() < 4096);
        assert_eq!(copy.size(), tree.tree.size());
        // The copied image finds itself where it should be, and the tree out of its way.
        let there = Needs { image: own.at_most(5 * MIB), tree: copy, ..needs() };
        assert_eq!((machine.own_memory(&there), machine.better_place(&there)), (own, Err(Stays::AtEnd)));
    }
    // Elsewhere it is left alone.
    assert_eq!(machine.tree_place(own, &needs()), Some(needs().tree));
    // It lies half in the way, so that the copy would lie on it.
    let half = with_tree(own.start() - 4096, 8192);
    assert_eq!((machine.tree_place(own, &half), taken(&machine, &half).0), (None, "the device tree".to_string()));
    // No room below: a module, what firmware keeps, a device's memory, the start of RAM.
    let at_end = with_tree(BASE + 511 * MIB, MIB);
    let below = range(own.start() - 4096, 4096);
    let mut changed = machine.clone();
    changed.kernel.as_mut().unwrap().range = below;
    assert_eq!(taken(&changed, &at_end), ("the device tree".to_string(), at_end.tree));
    changed = machine.clone();
    changed.hidden.push(Hidden { name: "framebuffer@0".to_string(), registers: below });
    assert_eq!(taken(&changed, &at_end).1, at_end.tree);
    changed = machine.clone();
    changed.reserved = Vec::from([below]);
    assert_eq!(changed.tree_place(own, &at_end), None);
}

#[test]
fn it_keeps_clear_of_what_firmware_keeps() {
    let mut machine = with_ram(&[(BASE, 512)]);
    // At the very end: below it is the end of what is free.
    machine.reserved = Vec::from([range(BASE + 510 * MIB + 4096, MIB)]);
    // The larger part of RAM ends there; what is behind is too small.
    let place = machine.better_place(&needs()).unwrap();
    assert_eq!(place, PhysRange::new(BASE + 500 * MIB, BASE + 510 * MIB + 4096).unwrap());
    assert_eq!(machine.guest_memory(place).len(), 2);
    // All over the end.
    machine.reserved = Vec::from([range(BASE + 128 * MIB, 384 * MIB)]);
    assert_eq!(machine.better_place(&needs()), Ok(range(BASE + 118 * MIB, 10 * MIB)));
    machine.reserved = Vec::from([range(BASE + 120 * MIB, 392 * MIB)]);
    assert!(matches!(machine.better_place(&needs()), Err(Stays::Taken { .. })));
}

#[test]
fn of_several_banks_it_takes_the_end_that_costs_least() {
    // The end of the second is whole gibibytes, that of the first is not.
    let machine = with_ram(&[(BASE, 512), (1 << 32, 2048)]);
    let place = machine.better_place(&needs()).unwrap();
    assert_eq!(place.end(), BASE + 512 * MIB);
    assert_eq!(machine.guest_memory(place), [range(BASE, 502 * MIB), range(1 << 32, 2048 * MIB)]);
    // With a module at the first one's end it takes the other, for the hole counts more than leaves.
    let mut changed = machine.clone();
    changed.kernel.as_mut().unwrap().range = range(BASE + 482 * MIB, 30 * MIB);
    assert_eq!(changed.better_place(&needs()).unwrap().end(), (1 << 32) + 2048 * MIB);
    // Where the last bank is too small, or both ends are taken.
    let machine = with_ram(&[(BASE, 512), (1 << 32, 8)]);
    assert_eq!(machine.better_place(&needs()).unwrap().end(), BASE + 512 * MIB);
    changed = with_ram(&[(BASE, 512), (1 << 32, 256)]);
    changed.kernel.as_mut().unwrap().range = range(BASE + 482 * MIB, 30 * MIB);
    changed.initrd.as_mut().unwrap().range = range((1 << 32) + 255 * MIB, MIB);
    assert_eq!(taken(&changed, &needs()).1, changed.kernel.as_ref().unwrap().range);
}

#[test]
fn it_leaves_the_start_of_ram_to_the_guest() {
    let machine = with_ram(&[(BASE, 512)]);
    let at_base = Needs { image: range(BASE, 5 * MIB), ..needs() };
    assert!(machine.guest_shape(machine.own_memory(&at_base)).late);
    assert_eq!(machine.better_place(&at_base), Ok(range(BASE + 502 * MIB, 10 * MIB)));
}

#[test]
fn tiny_ram() {
    let mut machine = with_ram(&[(BASE, 512)]);
    machine.kernel.as_mut().unwrap().range = range(BASE, 4096);
    machine.initrd = None;
    let needs = Needs { tree: range(BASE + 4096, 4096), ..needs() };
    for mib in 7..40 {
        machine.ram = Vec::from([range(BASE, mib * MIB)]);
        let place = machine.better_place(&needs);
        // Never over the image that runs.
        let wanted = place.as_ref().is_ok_and(|place| place.start() >= needs.image.end());
        assert!(if mib < 17 { place.is_err() } else { wanted }, "{mib}: {place:?}");
    }
    machine.ram = Vec::from([range(BASE, 7 * MIB)]);
    assert_eq!(machine.better_place(&needs), Err(Stays::TooSmall { bytes: 9 * MIB }));
    machine.ram = Vec::from([range(BASE, 16 * MIB)]);
    assert_eq!(taken(&machine, &needs), ("the image itself".to_string(), needs.image));
}

#[test]
fn ram_beyond_the_cpus_addresses_is_no_place() {
    let machine = with_ram(&[(BASE, 512), (1 << 40, 512)]);
    let small = Needs { pa_bits: 40, ..needs() };
    assert_eq!(machine.better_place(&small).unwrap().end(), BASE + 512 * MIB);
    let mut all = machine.clone();
    all.kernel.as_mut().unwrap().range = range(BASE + 482 * MIB, 30 * MIB);
    assert_eq!(taken(&all, &small).1, all.kernel.as_ref().unwrap().range);
    assert_eq!(all.better_place(&needs()).unwrap().end(), (1 << 40) + 512 * MIB);
    // Up to the last byte that it reaches; EL2 reaches 48 bits, whatever the CPU has.
    let last = with_ram(&[(BASE, 120), ((1 << 40) - 512 * MIB, 512)]);
    assert_eq!(last.better_place(&small).unwrap().end(), 1 << 40);
    let far = with_ram(&[(BASE, 160), (1 << 48, 512)]);
    assert!(far.better_place(&Needs { pa_bits: 52, ..needs() }).is_ok_and(|place| place.end() < 1 << 48));
}

#[test]
fn hostile_numbers_are_no_crash() {
    let mut machine = with_ram(&[(0, 512)]);
    machine.ram = Vec::from([range(0, u64::MAX)]);
    for image in [range(0, 5 * MIB), range(u64::MAX - 5 * MIB, 5 * MIB), range(1 << 63, 1 << 62)] {
        for pool in [0, 1, 1 << 62, u64::MAX] {
            for pa_bits in [0, 32, 52, 64, u8::MAX] {
                let needs = Needs { image, pool, tree: range(u64::MAX, 0), pa_bits };
                let own = machine.own_memory(&needs);
                let _ = machine.guest_shape(own);
                if let Ok(place) = machine.better_place(&needs) {
                    assert!(
                        !place.overlaps(image) && !place.overlaps(machine.kernel.as_ref().unwrap().range),
                        "{place} {needs:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_images_have_left_is_the_guests_but_for_what_lies_there_now() {
    let machine = with_ram(&[(BASE, 512)]);
    let place = machine.better_place(&needs()).unwrap();
    let loaded = needs().image;
    // An application of firmware's lay where nothing is, where the hypervisor is now, half below it, and outside RAM.
    let free = range(BASE + 200 * MIB, 5 * MIB);
    assert_eq!(machine.left_behind(place, &[loaded, free]), [loaded, free]);
    assert_eq!(machine.left_behind(place, &[loaded, place.at_most(5 * MIB)]), [loaded]);
    let half = range(place.start() - MIB, 5 * MIB);
    assert_eq!(machine.left_behind(place, &[half]), [range(place.start() - MIB, MIB)]);
    assert_eq!(machine.left_behind(place, &[range(BASE - 5 * MIB, 5 * MIB)]), []);
    // And where firmware has put a module since.
    let initrd = machine.initrd.as_ref().unwrap().range;
    let around = range(initrd.start() - MIB, 3 * MIB);
    let expected = [range(initrd.start() - MIB, MIB), range(initrd.end(), MIB)];
    assert_eq!(machine.left_behind(place, &[around]), expected);
}
