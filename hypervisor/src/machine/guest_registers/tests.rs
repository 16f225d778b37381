//! What is mapped, forwarded and refused on QEMU's machines whose tree has one thing changed, and on machines at
//! random.

use super::*;
use crate::machine::Hidden;
use crate::tree::testing::{GIC2, GIC3, MACHINES, TestNode};
use alloc::string::String;
use proptest::prelude::*;

mod granules;

const UART: &str = "pl011@9000000";
const RTC: &str = "pl031@9010000";
const GIC: &str = "intc@8000000";
const ITS: &str = "intc@8000000/its@8080000";

const LAST: u64 = 1 << 4;
const VIRTUAL_LPIS: u64 = 1 << 1;

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::with_size(start, size).unwrap()
}

fn machine(original: &[u8], change: impl FnOnce(&mut TestNode)) -> Machine {
    let mut tree = TestNode::parse(original);
    change(&mut tree);
    Machine::read(&tree.checked()).unwrap()
}

/// Loads from GICv3 redistributors that lie at these addresses and have these GICR_TYPERs.
fn redistributors<const N: usize>(list: [(u64, u64); N]) -> impl FnMut(u64, u8) -> u64 {
    move |address, bytes| {
        let (start, typer) = *list.iter().rfind(|(start, _)| *start <= address).expect("a redistributor's register");
        match (address - start, bytes) {
            (8, 8) => typer,
            (0xffe8, 4) => 0x3b,
            other => panic!("{other:x?}"),
        }
    }
}

/// What the guest gets of a machine of QEMU's with one redistributor.
fn registers(machine: &Machine, granted: &[u64]) -> Result<GuestRegisters, MachineError> {
    let mut registers = GuestRegisters::new(machine, granted)?;
    registers.add_redistributors(machine, redistributors([(0x80a_0000, LAST)]))?;
    Ok(registers)
}

/// The same for a tree that was changed.
fn changed(original: &[u8], change: impl FnOnce(&mut TestNode)) -> Result<GuestRegisters, MachineError> {
    registers(&machine(original, change), &[])
}

/// Which device is in the way of which.
fn shared(result: Result<GuestRegisters, MachineError>) -> (String, String) {
    match result.unwrap_err() {
        MachineError::SharedPage { device, other, .. } => (device, other),
        other => panic!("{other}"),
    }
}

fn pair(device: &str, other: &str) -> (String, String) {
    (device.to_string(), other.to_string())
}

/// Adds a node to a tree.
fn add(tree: &mut TestNode, name: &str, start: u64, size: u64, status: &[u8]) {
    let mut node = TestNode::new(name);
    node.set("compatible", *b"test,other\0").set("status", status);
    node.set_cells("reg", &[(start >> 32) as u32, start as u32, (size >> 32) as u32, size as u32]);
    tree.add(node);
}

/// GICD, the two frames of a redistributor without its first page, and the peripherals.
fn usual() -> [PhysRange; 4] {
    [range(0x800_0000, 0x1_0000), range(0x80a_1000, 0x1_f000), range(0x900_0000, 0x1000), range(0x901_0000, 0x1000)]
}

#[test]
fn the_guest_gets_frames_of_the_architectures_size() {
    for (gic, _, _, tree) in MACHINES {
        let given = changed(tree, |_| ()).unwrap();
        let v2 = [range(0x800_0000, 0x1000), range(0x801_0000, 0x2000), usual()[2], usual()[3]];
        assert_eq!(given.mapped(), if gic == 2 { v2 } else { usual() });
        assert_eq!(given.forwarded().count(), 0);
    }
}

/// Whatever the tree says of an ITS that lies in the distributor's `reg`, or if it says nothing.
#[test]
fn an_its_in_the_distributors_reg_is_not_mapped_and_refuses_nothing() {
    let its = range(0x808_0000, 0x2_0000);
    let wide = |tree: &mut TestNode| {
        let cells = [0, 0x800_0000, 0, 0xa_0000, 0, 0x80a_0000, 0, 0xf6_0000];
        tree.at(GIC).set_cells("reg", &cells);
    };
    let changes: [&dyn Fn(&mut TestNode); 3] = [
        &|_| (),
        &|tree| {
            tree.at(ITS).set("status", *b"disabled\0");
        },
        &|tree| {
            tree.at(GIC).take("its@8080000");
        },
    ];
    for change in changes {
        let machine = machine(GIC3, |tree| {
            wide(tree);
            change(tree);
        });
        let Gic::V3(gic) = &machine.gic else { panic!() };
        assert_eq!(gic.distributor, range(0x800_0000, 0x1_0000), "what the guest is told");
        assert!(machine.hidden.iter().any(|hidden| hidden.registers.contains_range(its)));
        assert_eq!(registers(&machine, &[]).unwrap().mapped(), usual());
    }
}

#[test]
fn a_frame_that_the_tree_makes_smaller_stays_smaller() {
    let given = changed(GIC3, |tree| {
        tree.at(GIC).set_cells("reg", &[0, 0x800_0000, 0, 0x2000, 0, 0x80a_0000, 0, 0xf6_0000]);
    });
    assert_eq!(given.unwrap().mapped()[0], range(0x800_0000, 0x2000));
    let given = changed(GIC2, |tree| {
        tree.at(GIC).set_cells("reg", &[0, 0x800_0000, 0, 0x1000, 0, 0x801_0000, 0, 0x1000]);
    });
    assert_eq!(given.unwrap().mapped()[1], range(0x801_0000, 0x1000));
    // What is not whole pages can't be given by pages: Amlogic's T7 says that GICC has 256 bytes.
    let given = changed(GIC2, |tree| {
        tree.at(GIC).set_cells("reg", &[0, 0x800_0000, 0, 0x1000, 0, 0x801_0000, 0, 0x100]);
    });
    assert_eq!(given.unwrap().forwarded().collect::<Vec<_>>(), [range(0x801_0000, 0x100)]);
    let wanted = range(0x800_0000, 0x800);
    let error = changed(GIC3, |tree| {
        tree.at(GIC).set_cells("reg", &[0, 0x800_0000, 0, 0x800, 0, 0x80a_0000, 0, 0xf6_0000]);
    });
    assert!(matches!(error, Err(MachineError::PartOfPage { registers, .. }) if registers == wanted), "{error:?}");
}

#[test]
fn what_lies_in_the_gics_pages_refuses_it_whether_it_is_disabled_or_not() {
    for status in [&b"okay\0"[..], b"disabled\0", b"reserved\0", b"fail\0"] {
        for (start, device) in [(0x800_fff8, "the GIC's distributor"), (0x80a_1000, "the GIC's redistributors")] {
            let refused = changed(GIC3, |tree| add(tree, "its@0", start, 8, status));
            assert_eq!(shared(refused), pair(device, "its@0"));
        }
        // Below a node that is disabled, too.
        let refused = changed(GIC3, |tree| {
            let mut bus = TestNode::new("bus");
            bus.set("status", status).set("ranges", []).set_cells("#address-cells", &[2]);
            add(bus.set_cells("#size-cells", &[2]), "its@0", 0x800_0000, 8, b"okay\0");
            tree.add(bus);
        });
        assert_eq!(shared(refused), pair("the GIC's distributor", "its@0"));
    }
    // One of several ranges that can't be read hides no other.
    let refused = changed(GIC3, |tree| {
        add(tree, "its@0", 0, 8, b"okay\0");
        tree.at("its@0").set_cells("reg", &[u32::MAX, 0, 2, 0, 0, 0x800_0000, 0, 8]);
    });
    assert_eq!(shared(refused), pair("the GIC's distributor", "its@0"));
}

/// GICv2's virtual interface, and the memory-mapped interfaces of a GICv3, stand behind the frames of the guest's.
#[test]
fn the_other_frames_of_the_gic_are_hidden() {
    let v2 = |at: u32| {
        let gicv2 = [0, 0x800_0000, 0, 0x1_0000, 0, 0x801_0000, 0, 0x1_0000, 0, 0x803_0000, 0, 0x1_0000];
        changed(GIC2, |tree| {
            tree.at(GIC).set_cells("reg", &[&gicv2[..], &[0, at, 0, 0x1_0000]].concat());
        })
    };
    assert_eq!(shared(v2(0x801_1ff8)), pair("the GIC's CPU interface", GIC));
    assert_eq!(v2(0x801_2000).unwrap().mapped()[1], range(0x801_0000, 0x2000));
    let v3 = |at: u32| {
        let gicv3 = [0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000];
        changed(GIC3, |tree| {
            tree.at(GIC).set_cells("reg", &[&gicv3[..], &[0, at, 0, 0x2000]].concat());
        })
    };
    assert_eq!(shared(v3(0x800_f000)), pair("the GIC's distributor", GIC));
    assert_eq!(v3(0x801_0000).unwrap().mapped(), usual());
    // The distributor itself, as another of the node's ranges.
    assert_eq!(shared(v3(0x800_0000)), pair("the GIC's distributor", GIC));
}

#[test]
fn a_device_in_a_shared_page_is_forwarded_to_alone() {
    // Beside a device that is listed, one that is not enabled, and unknown registers behind its own.
    let changes: [&dyn Fn(&mut TestNode); 4] = [
        &|tree| add(tree, "dma@0", 0x900_0f00, 0x100, b"okay\0"),
        &|tree| add(tree, "dma@0", 0x900_0f00, 0x100, b"disabled\0"),
        &|_| (),
        &|tree| {
            tree.at(RTC).set_cells("reg", &[0, 0x900_0200, 0, 0x100]);
        },
    ];
    for change in changes {
        let given = changed(GIC3, |tree| {
            tree.at(UART).set_cells("reg", &[0, 0x900_0000, 0, 0x100]);
            change(tree);
        });
        let given = given.unwrap();
        let page = range(0x900_0000, 0x1000);
        assert!(!given.mapped().iter().any(|mapped| mapped.overlaps(page)));
        assert_eq!(given.forwarded().next(), Some(range(0x900_0000, 0x100)));
        for answer in [GuestRegisters::read, GuestRegisters::write] {
            for bytes in [1, 2, 4] {
                let passed_on = Some(Answer::Masked(0xffff_ffff));
                let last = 0x900_0100 - u64::from(bytes);
                assert_eq!((answer(&given, 0x900_0000, bytes), answer(&given, last, bytes)), (passed_on, passed_on));
                // Behind the registers, before them, and across their end.
                for other in [0x900_0100, 0x900_0f00, 0x8ff_fffc, 0x900_1000, 0] {
                    assert_eq!(answer(&given, other, bytes), None, "{bytes} at {other:#x}");
                }
            }
            for (address, bytes) in
                [(0x900_0001, 2), (0x900_0002, 4), (0x900_00ff, 2), (0x900_00fe, 4), (0x900_0000, 8)]
            {
                assert_eq!(answer(&given, address, bytes), None, "{bytes} at {address:#x}");
            }
        }
    }
}

/// An access that is forwarded to the UART would reach the other as well.
#[test]
fn a_device_over_another_is_refused() {
    for status in [&b"okay\0"[..], b"disabled\0"] {
        let refused = changed(GIC3, |tree| add(tree, "dma@0", 0x900_0ffc, 0x100, status));
        assert_eq!(shared(refused), pair("the UART", "dma@0"));
    }
    let refused = changed(GIC3, |tree| {
        tree.at(RTC).set_cells("reg", &[0, 0x900_0f00, 0, 0x1000]);
    });
    assert_eq!(shared(refused), pair("the UART", "the clock"));
    let twice = changed(GIC3, |tree| {
        let mut second = tree.at(UART).clone();
        second.name = "pl011@9000001".to_string();
        tree.add(second);
    });
    assert_eq!(shared(twice), pair("the UART", "pl011@9000001"));
}

#[test]
fn a_peripheral_has_one_page_whatever_its_reg() {
    let given = changed(GIC3, |tree| {
        tree.at(UART).set_cells("reg", &[0, 0x900_0000, 0, 0x1_0000]);
        tree.at(RTC).set_cells("reg", &[0, 0x901_0000, 0, 0x1_0000]);
    });
    assert_eq!(given.unwrap().mapped(), usual());
}

#[test]
fn a_word_across_the_end_of_the_registers_is_not_forwarded() {
    let given = changed(GIC3, |tree| {
        tree.at(UART).set_cells("reg", &[0, 0x900_0000, 0, 0x102]);
    });
    let given = given.unwrap();
    assert_eq!((given.read(0x900_0100, 2), given.read(0x900_0100, 4)), (Some(Answer::Masked(0xffff_ffff)), None));
}

#[test]
fn memory_is_no_device() {
    for (node, reg) in [
        (RTC, &[0, 0x4020_0000, 0, 0x1000][..]),
        (RTC, &[0, 0x3fff_ffff, 0, 2]),
        (GIC, &[0, 0x3fff_8000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000]),
        (GIC, &[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0x4000_0000]),
        ("virtio_mmio@a000200", &[0, 0x4020_0000, 0, 0x200]),
    ] {
        let mut tree = TestNode::parse(GIC3);
        tree.at(node).set_cells("reg", reg);
        let error = Machine::read(&tree.checked()).unwrap_err();
        assert!(matches!(&error, MachineError::SharedPage { other, .. } if other == "RAM"), "{error}");
    }
}

#[test]
fn a_granted_transport_is_forwarded_to_without_its_neighbours() {
    let machine = machine(GIC3, |tree| {
        tree.at("virtio_mmio@a003e00").set_cells("reg", &[0, 0xb00_0000, 0, 0x1000]);
    });
    // The fourth of a page of eight, one whole page, and none.
    let given = registers(&machine, &[0xa00_0600, 0xb00_0000, 0xb00_0200]).unwrap();
    assert_eq!(given.mapped()[4..], [range(0xb00_0000, 0x1000)]);
    assert_eq!(given.forwarded().collect::<Vec<_>>(), [range(0xa00_0600, 0x200)]);
    assert_eq!(given.write(0xa00_0650, 4), Some(Answer::Masked(0xffff_ffff)));
    assert_eq!((given.write(0xa00_0550, 4), given.write(0xa00_0850, 4)), (None, None));
    assert_eq!(registers(&machine, &[]).unwrap().mapped(), usual());
    // Two at one place: nobody knows which it is.
    let mut machine = machine;
    machine.virtio.push(machine.virtio[0].clone());
    assert_eq!(shared(registers(&machine, &[0xa00_0000])), pair(VIRTIO, VIRTIO));
}

/// A machine with these regions of redistributors, and this stride.
fn with_regions(regions: &[PhysRange], stride: Option<u64>) -> Machine {
    let mut machine = machine(GIC3, |_| ());
    let Gic::V3(gic) = &mut machine.gic else { panic!() };
    (gic.redistributors, gic.redistributor_stride) = (regions.to_vec(), stride);
    machine
}

/// The redistributors that the guest gets, by their first pages, of a machine.
fn found<const N: usize>(machine: &Machine, list: [(u64, u64); N]) -> Result<Vec<u64>, MachineError> {
    let mut registers = GuestRegisters::new(machine, &[])?;
    registers.add_redistributors(machine, redistributors(list))?;
    let starts: Vec<u64> = registers.guarded.iter().map(|guarded| guarded.registers.start()).collect();
    // Two frames of each, without the first page; nothing else of the region.
    let frames = starts.iter().map(|start| range(start + 0x1000, 0x1_f000));
    let regions = with_regions(&[], None);
    let others = GuestRegisters::new(&regions, &[])?.mapped();
    assert_eq!(registers.mapped(), merged(others.into_iter().chain(frames).collect()));
    for start in starts.iter().copied() {
        assert_eq!(registers.write(start + 0x70, 8), Some(Answer::Nothing), "GICR_PROPBASER");
        assert_eq!(registers.read(start, 4), Some(redistributor::read(0, 4)));
        assert_eq!(registers.read(start + 0x1000, 4), None);
    }
    Ok(starts)
}

#[test]
fn redistributors_are_as_large_as_they_say() {
    let region = [range(0x1000_0000, 0x100_0000)];
    let plain = with_regions(&region, None);
    assert_eq!(found(&plain, [(0x1000_0000, 0), (0x1002_0000, LAST)]).unwrap(), [0x1000_0000, 0x1002_0000]);
    // The frames for virtual LPIs are left out.
    let list = [(0x1000_0000, VIRTUAL_LPIS), (0x1004_0000, VIRTUAL_LPIS | LAST)];
    assert_eq!(found(&plain, list).unwrap(), [0x1000_0000, 0x1004_0000]);
    // A stride counts if it is longer; one that is shorter would map those frames.
    assert_eq!(found(&with_regions(&region, Some(0x2_0000)), list).unwrap(), [0x1000_0000, 0x1004_0000]);
    let list = [(0x1000_0000, 0), (0x1008_0000, LAST)];
    assert_eq!(found(&with_regions(&region, Some(0x8_0000)), list).unwrap(), [0x1000_0000, 0x1008_0000]);
    assert_eq!(found(&with_regions(&region, Some(u64::MAX)), [(0x1000_0000, 0)]).unwrap(), [0x1000_0000]);
}

#[test]
fn every_region_has_its_redistributors_and_ends_them() {
    let regions = [range(0x1000_0000, 0x4_0000), range(0x2000_0000, 0x3_0000)];
    let machine = with_regions(&regions, None);
    // None is the last; the second region has room for one and a half.
    let list = [(0x1000_0000, 0), (0x1002_0000, 0), (0x2000_0000, 0)];
    assert_eq!(found(&machine, list).unwrap(), [0x1000_0000, 0x1002_0000, 0x2000_0000]);
    assert_eq!(found(&with_regions(&[range(0x1000_0000, 0x1_0000)], None), []).unwrap(), []);
    let endless = with_regions(&[range(0x1000_0000, 0x2000_0000)], None);
    let mut registers = GuestRegisters::new(&endless, &[]).unwrap();
    let error = registers.add_redistributors(&endless, |_, bytes| if bytes == 4 { 0x30 } else { 0 });
    assert!(matches!(error, Err(MachineError::TooMany { what: "redistributors", .. })));
}

/// EL2 reads GICR_PIDR2 there, and an unaligned read of a device is a fault of EL2's.
#[test]
fn a_redistributor_that_is_not_aligned_is_not_read() {
    let machine = with_regions(&[range(0x1000_1000, 0x10_0000)], None);
    let mut registers = GuestRegisters::new(&machine, &[]).unwrap();
    let error = registers.add_redistributors(&machine, |address, _| panic!("a read at {address:#x}"));
    assert_eq!(error, Err(MachineError::NoRedistributor { address: 0x1000_1000 }));
}

#[test]
fn a_redistributor_is_one_and_has_its_frames_for_itself() {
    let region = range(0x1000_0000, 0x100_0000);
    for pidr2 in [0, 0x20, 0x50, 0xff] {
        let machine = with_regions(&[region], None);
        let mut registers = GuestRegisters::new(&machine, &[]).unwrap();
        let error = registers.add_redistributors(&machine, |_, bytes| if bytes == 4 { pidr2 } else { LAST });
        assert_eq!(error, Err(MachineError::NoRedistributor { address: 0x1000_0000 }));
    }
    // An ITS behind the last one is in nobody's way; one in the frames is, and is not read.
    let list = [(0x1000_0000, 0), (0x1002_0000, LAST)];
    for (start, fits) in [(0x1004_0000, true), (0x1003_fff8, false), (0x1002_0000, false), (0x1000_0000, false)] {
        let mut machine = with_regions(&[region], None);
        machine.hidden.push(Hidden { name: "its".to_string(), registers: range(start, 0x2_0000) });
        match found(&machine, list) {
            Ok(starts) => assert!(fits && starts.len() == 2),
            Err(MachineError::SharedPage { other, .. }) => assert!(!fits && other == "its"),
            Err(other) => panic!("{other}"),
        }
    }
    // Another region over it, or one that does not begin with a page.
    let overlap = with_regions(&[region, range(0x1001_0000, 0x2_0000)], None);
    assert!(matches!(found(&overlap, list), Err(MachineError::SharedPage { .. })));
    let askew = with_regions(&[range(0x1000_0800, 0x10_0000)], None);
    assert!(matches!(found(&askew, list), Err(MachineError::PartOfPage { .. })));
}

proptest! {
    /// Whatever lies where: no page is mapped that has a byte of anything else's or of nothing's, and nothing is
    /// forwarded to that is another's.
    #[test]
    fn the_guest_reaches_its_own_registers_only(
        gic2: bool,
        frames in prop::array::uniform4((0u64..24, 0u64..16, prop::sample::select(alloc::vec![0, 0, 0, 0x100, 0xf00]))),
        hidden in prop::collection::vec((0u64..0x2_8000, 1u64..0x2000), 0..3),
        granted: bool,
        page in prop::sample::select(alloc::vec![0x1000u64, 0x4000, 0x1_0000]),
    ) {
        const BASE: u64 = 0x1000_0000;
        let frame = |index: usize, most: u64| {
            let (page, pages, odd) = frames[index];
            range(BASE + (page << 12) + odd, (pages << 12) + if odd != 0 { 0x200 } else { 0x1000 }).at_most(most)
        };
        let mut machine = machine(if gic2 { GIC2 } else { GIC3 }, |_| ());
        machine.page = page;
        match &mut machine.gic {
            Gic::V2(gic) => (gic.distributor, gic.cpu_interface) = (frame(0, 0x1000), frame(1, 0x2000)),
            Gic::V3(gic) => (gic.distributor, gic.redistributors) = (frame(0, 0x1_0000), Vec::from([range(BASE + 0x2_0000, 0x2_0000)])),
        }
        machine.uart.as_mut().unwrap().device.registers = frame(2, 0x1000);
        machine.virtio[0].registers = frame(3, 0x1000);
        let name = || "other".to_string();
        machine.hidden = hidden.iter().map(|&(at, size)| Hidden { name: name(), registers: range(BASE + at, size) }).collect();
        let grants = if granted { Vec::from([frame(3, 0x1000).start()]) } else { Vec::new() };
        let Ok(mut given) = GuestRegisters::new(&machine, &grants) else { return Ok(()) };
        if given.add_redistributors(&machine, redistributors([(BASE + 0x2_0000, LAST)])).is_err() {
            return Ok(());
        }
        let own: Vec<PhysRange> = machine.given().iter().map(|given| given.1).collect();
        let own = own.into_iter().chain(machine.virtio.first().filter(|_| granted).map(|device| device.registers));
        let own = merged(own.collect());
        let others = machine.hidden.iter().map(|hidden| hidden.registers);
        let others: Vec<PhysRange> = others.chain(machine.virtio[usize::from(granted)..].iter().map(|device| device.registers)).collect();
        for reached in given.mapped().into_iter().chain(given.forwarded()) {
            prop_assert!(own.iter().any(|own| own.contains_range(reached)), "{reached} is not all of {own:?}");
            prop_assert!(!others.iter().any(|other| other.overlaps(reached)), "{reached} is another's: {others:?}");
        }
        for mapped in given.mapped() {
            prop_assert_eq!(mapped.grown_to(page), Some(mapped));
            for guarded in &given.guarded {
                prop_assert!(!guarded.registers.grown_to(page).unwrap().overlaps(mapped));
            }
        }
    }
}
