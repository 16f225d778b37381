//! The same machines with pages of 16 and 64 KiB, which most devices do not fill.

use super::*;
use crate::range::without;

/// A machine of QEMU's whose guest's table has pages of so many bytes.
fn with_pages(original: &[u8], page: u64) -> Machine {
    Machine { page, ..machine(original, |_| ()) }
}

#[test]
fn what_does_not_fill_its_page_is_forwarded_to_and_not_lost() {
    let peripherals = [range(0x900_0000, 0x1000), range(0x901_0000, 0x1000)];
    for page in [16 << 10, 64 << 10] {
        let given = registers(&with_pages(GIC3, page), &[]).unwrap();
        let frames = range(0x80a_0000, 0x2_0000);
        let mapped = PhysRange::new(frames.start() + page, frames.end()).unwrap();
        assert_eq!(given.mapped(), [range(0x800_0000, 0x1_0000), mapped]);
        assert_eq!(given.forwarded().collect::<Vec<_>>(), peripherals);
        // Nothing lies between what is guarded and what is mapped.
        for offset in [0, 0x14, 0xffc, page - 4] {
            assert!(given.read(frames.start() + offset, 4).is_some(), "{offset:#x}");
        }
        assert_eq!(given.read(mapped.start(), 4), None);
        let gic2 = [range(0x800_0000, 0x1000), range(0x801_0000, 0x2000)];
        let given = registers(&with_pages(GIC2, page), &[]).unwrap();
        assert_eq!(given.mapped(), []);
        assert_eq!(given.forwarded().collect::<Vec<_>>(), [gic2, peripherals].concat());
    }
}

/// The identification registers lie at the end of a redistributor's first frame, of which nothing is mapped with 64 KiB.
#[test]
fn a_redistributor_is_known_in_a_page_of_64_kib() {
    let given = registers(&with_pages(GIC3, 64 << 10), &[]).unwrap();
    let all = Some(Answer::Masked(0xffff_ffff));
    assert_eq!((given.read(0x80a_ffe8, 4), given.read(0x80a_fffc, 4)), (all, all));
    assert_eq!((given.write(0x80a_ffe8, 4), given.read(0x80a_ffcc, 4)), (Some(Answer::Nothing), Some(Answer::Nothing)));
}

#[test]
fn a_distributor_that_is_no_whole_page_is_refused_in_its_terms() {
    let mut machine = with_pages(GIC3, 64 << 10);
    let Gic::V3(gic) = &mut machine.gic else { panic!() };
    gic.distributor = range(0x800_0000, 0x4000);
    let sentence = registers(&machine, &[]).unwrap_err().to_string();
    assert!(sentence.contains("whole pages of 64 KiB") && sentence.contains("pages of 4 KiB"), "{sentence}");
    machine.page = 16 << 10;
    assert_eq!(registers(&machine, &[]).unwrap().mapped()[0], range(0x800_0000, 0x4000));
}

/// A page that firmware or the hypervisor has a part of is not the guest's, and no other is missing.
#[test]
fn memory_is_the_guests_by_whole_pages() {
    const RAM: u64 = 0x4000_0000;
    for page in [4 << 10, 16 << 10, 64 << 10] {
        let mut machine = with_pages(GIC3, page);
        machine.ram = Vec::from([range(RAM + 0x1000, 0x1000_0000)]);
        machine.reserved = Vec::from([range(RAM + 0x4_1000, 0x1000), range(RAM + 0x8_0000, 0x1_0000)]);
        let own = range(RAM + 0x20_0000, 0x40_0000);
        let memory = machine.guest_memory(own);
        let free = without(&without(&machine.ram, &machine.reserved), &[own]);
        let is_free = |page: PhysRange| free.iter().any(|free| free.contains_range(page));
        for start in (RAM..RAM + 0x100_0000).step_by(page as usize) {
            let whole = range(start, page);
            let given = memory.iter().any(|range| range.overlaps(whole));
            assert_eq!(given, is_free(whole), "{whole} with pages of {page:#x}");
        }
        assert!(memory.iter().all(|range| range.grown_to(page) == Some(*range)));
    }
}

#[test]
fn a_shape_counts_the_granules_leaves() {
    let own = range(0x5f80_0000, 0x80_0000);
    for (page, leaves) in [(4 << 10, 15 + 12), (16 << 10, 15 + 12), (64 << 10, 252)] {
        let machine = Machine { ram: Vec::from([range(0x4000_0000, 0x2000_0000)]), ..with_pages(GIC3, page) };
        assert_eq!(machine.guest_shape(own).leaves, leaves, "{page:#x}");
    }
}
