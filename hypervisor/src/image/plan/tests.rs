//! Each rule of the plan by an example, and all of them on random layouts.

use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::with_size(start, size).unwrap()
}

/// RAM of 512 MiB whose 2nd to 17th MiB are the hypervisor's.
fn ram() -> Vec<PhysRange> {
    vec![range(0x4000_0000, 2 * MIB), range(0x4120_0000, 494 * MIB)]
}

fn image(image_size: u64) -> Kernel {
    Kernel::Image { text_offset: 0, image_size, page_size: Some(4096), anywhere: true }
}

/// Plans, and checks what holds for every plan.
fn planned(
    kernel: Kernel,
    kernel_file: PhysRange,
    initrd: Option<PhysRange>,
    guest_ram: &[PhysRange],
) -> Result<LoadPlan, ImageError> {
    let request = Request { kernel, kernel_file, initrd, guest_ram };
    let result = plan(&request);
    if let Ok(plan) = &result {
        assert_sound(&request, plan);
    }
    result
}

fn assert_sound(request: &Request<'_>, plan: &LoadPlan) {
    let guest_ram = merged(request.guest_ram.to_vec());
    let in_ram = |range| guest_ram.iter().any(|ram| ram.contains_range(range));
    let offset = request.kernel.text_offset();

    assert_eq!(plan.entry, plan.kernel.start());
    assert!(plan.entry.checked_sub(offset).is_some_and(|base| base.is_multiple_of(2 * MIB)), "{plan:?}");
    assert!(plan.kernel.size() >= request.kernel.image_size() && plan.kernel.size() >= request.kernel_file.size());
    assert_eq!(plan.initrd.map(PhysRange::size), request.initrd.map(PhysRange::size));
    assert!(plan.device_tree.start().is_multiple_of(2 * MIB) && plan.device_tree.size() == 2 * MIB);

    let all: Vec<PhysRange> = [plan.kernel, plan.device_tree].into_iter().chain(plan.initrd).collect();
    for (index, &one) in all.iter().enumerate() {
        assert!(in_ram(one), "{one} of {plan:?} is not the guest's");
        assert!(all[..index].iter().all(|other| !one.overlaps(*other)), "{plan:?} overlaps itself");
    }
    if let Some(initrd) = plan.initrd {
        let gib = 1 << 30;
        let start = initrd.start().min(plan.entry) & !(gib - 1);
        assert!(initrd.end().max(plan.kernel.end()) - start <= 32 << 30, "{plan:?} is no 32 GiB window");
    }
    if request.kernel == Kernel::Raw {
        assert!(plan.device_tree.end() == plan.entry || plan.device_tree.start() >= plan.kernel.end());
    }

    // Follow the copies: at the end each file is where the plan says, and no copy went over what was still needed.
    let mut at: Vec<(PhysRange, u64)> = [(request.kernel_file, plan.entry)].to_vec();
    at.extend(request.initrd.zip(plan.initrd.map(PhysRange::start)));
    let mut now: Vec<PhysRange> = at.iter().map(|(file, _)| *file).collect();
    for copy in &plan.moves {
        let which = now.iter().position(|place| *place == copy.from).expect("a copy of something that lies there");
        let to = range(copy.to, copy.from.size());
        for (other, place) in now.iter().enumerate() {
            assert!(other == which || !place.overlaps(to), "{copy:?} destroys {place}");
        }
        now[which] = to;
    }
    assert!(at.iter().zip(&now).all(|((_, wanted), place)| *wanted == place.start()), "{plan:?} ends at {now:?}");
}

#[test]
fn what_lies_right_stays() {
    let (kernel, initrd) = (range(0x4800_0000, 30 * MIB), range(0x4c00_0000, 5 * MIB));
    let plan = planned(image(33 * MIB), kernel, Some(initrd), &ram()).unwrap();
    assert_eq!(plan.moves, []);
    assert_eq!(plan.kernel, range(0x4800_0000, 33 * MIB));
    assert_eq!(plan.initrd, Some(initrd));
    // The first 2 MiB behind the kernel's BSS that are aligned.
    assert_eq!(plan.device_tree, range(0x4a20_0000, 2 * MIB));
}

#[test]
fn a_kernel_off_its_alignment_moves_down() {
    let file = range(0x4810_0000, 30 * MIB);
    let plan = planned(image(33 * MIB), file, None, &ram()).unwrap();
    assert_eq!(plan.moves, [Move { from: file, to: 0x4120_0000 }]);
    assert_eq!(plan.kernel, range(0x4120_0000, 33 * MIB));
}

#[test]
fn text_offset_counts_from_an_aligned_base() {
    let kernel = Kernel::Image { text_offset: 0x8_0000, image_size: 4 * MIB, page_size: None, anywhere: true };
    let here = range(0x4808_0000, MIB);
    assert_eq!(planned(kernel, here, None, &ram()).unwrap().moves, []);
    let plan = planned(kernel, range(0x4800_0000, MIB), None, &ram()).unwrap();
    assert_eq!(plan.entry, 0x4128_0000);
}

#[test]
fn a_kernel_that_wants_the_start_of_ram_gets_it() {
    let kernel = Kernel::Image { text_offset: 0x8_0000, image_size: MIB, page_size: None, anywhere: false };
    let plan = planned(kernel, range(0x4808_0000, MIB), None, &ram()).unwrap();
    assert_eq!(plan.entry, 0x4008_0000);
    let kernel = Kernel::Image { text_offset: 0x8_0000, image_size: 3 * MIB, page_size: None, anywhere: false };
    let plan = planned(kernel, range(0x4808_0000, MIB), None, &ram()).unwrap();
    assert_eq!(plan.entry, 0x4128_0000);
}

#[test]
fn an_initrd_in_the_bss_moves_away() {
    let (kernel, initrd) = (range(0x4800_0000, 30 * MIB), range(0x4a00_0000, 5 * MIB));
    let plan = planned(image(40 * MIB), kernel, Some(initrd), &ram()).unwrap();
    assert_eq!(plan.kernel.start(), 0x4800_0000);
    assert_eq!(plan.moves, [Move { from: initrd, to: 0x6000_0000 - 5 * MIB }]);
}

#[test]
fn an_initrd_under_a_moving_kernel_moves_first() {
    // Room for the kernel only where the initrd lies.
    let guest_ram = [range(0x4000_0000, 48 * MIB), range(0x5000_0000, 40 * MIB)];
    let (kernel, initrd) = (range(0x5010_0000, 30 * MIB), range(0x4100_0000, 4 * MIB));
    let plan = planned(image(44 * MIB), kernel, Some(initrd), &guest_ram).unwrap();
    assert_eq!(plan.moves.iter().map(|copy| copy.from).collect::<Vec<_>>(), [initrd, kernel]);
    assert_eq!(plan.entry, 0x4000_0000);
}

/// The kernel has to go where the initramfs lies, and that could go over the kernel's file only, which is still needed.
#[test]
fn an_initrd_never_moves_over_the_kernels_file() {
    let guest_ram = [range(0x4000_0000, 64 * MIB), range(0x5000_0000, 32 * MIB)];
    let (kernel, initrd) = (range(0x5010_0000, 30 * MIB), range(0x4100_0000, 8 * MIB));
    let error = planned(image(60 * MIB), kernel, Some(initrd), &guest_ram).unwrap_err();
    assert_eq!(error, ImageError::NoRoom { what: "initramfs", size: 8 * MIB, largest: 4 * MIB });
}

#[test]
fn an_initrd_in_reserved_memory_moves_into_the_guests() {
    let initrd = range(0x3000_0000, 5 * MIB);
    let plan = planned(image(33 * MIB), range(0x4800_0000, MIB), Some(initrd), &ram()).unwrap();
    assert_eq!(plan.moves, [Move { from: initrd, to: 0x6000_0000 - 5 * MIB }]);
}

#[test]
fn an_initrd_out_of_the_kernels_reach_moves_closer() {
    let guest_ram = [range(0x4000_0000, 64 << 30)];
    let far = range(60 << 30, 5 * MIB);
    let plan = planned(image(33 * MIB), range(0x4800_0000, MIB), Some(far), &guest_ram).unwrap();
    assert_eq!(plan.initrd, Some(range((33 << 30) - 5 * MIB, 5 * MIB)));
}

#[test]
fn a_signature_behind_the_kernel_is_kept() {
    let plan = planned(image(MIB), range(0x4800_0000, 3 * MIB), None, &ram()).unwrap();
    assert_eq!(plan.kernel.size(), 3 * MIB);
}

#[test]
fn a_raw_binary_lies_behind_its_tree_at_the_start_of_ram() {
    let file = range(0x5000_0000, 300);
    let plan = planned(Kernel::Raw, file, None, &[range(0x4000_0000, 502 * MIB)]).unwrap();
    assert_eq!((plan.device_tree.start(), plan.entry), (0x4000_0000, 0x4020_0000));
    assert_eq!(plan.moves, [Move { from: file, to: 0x4020_0000 }]);
    // Of several banks the first, though another one is larger, unless it is tiny.
    let banks = [range(0x4000_0000, 128 * MIB), range(1 << 32, 2048 * MIB)];
    assert_eq!(planned(Kernel::Raw, file, None, &banks).unwrap().device_tree.start(), 0x4000_0000);
    let banks = [range(0x4000_0000, 126 * MIB), range(1 << 32, 2048 * MIB)];
    assert_eq!(planned(Kernel::Raw, file, None, &banks).unwrap().entry, (1 << 32) + 2 * MIB);
    // The hypervisor could not move: behind it.
    let plan = planned(Kernel::Raw, file, None, &ram()).unwrap();
    assert_eq!((plan.device_tree.start(), plan.entry), (0x4120_0000, 0x4140_0000));
    // Hardly any memory; too little in one piece, so that the tree goes above.
    let plan = planned(Kernel::Raw, range(0x4000_0000, 3 * MIB), None, &[range(0x4000_0000, 6 * MIB)]).unwrap();
    assert_eq!((plan.device_tree.start(), plan.entry), (0x4000_0000, 0x4020_0000));
    let pieces = [range(0x4000_0000, 4 * MIB), range(0x5000_0000, 2 * MIB)];
    let plan = planned(Kernel::Raw, range(0x4000_0000, 3 * MIB), None, &pieces).unwrap();
    assert_eq!((plan.device_tree.start(), plan.entry), (0x5000_0000, 0x4000_0000));
}

#[test]
fn an_initrd_where_a_raw_binarys_tree_goes_moves_away() {
    let initrd = range(0x4010_0000, MIB);
    let plan = planned(Kernel::Raw, range(0x4800_0000, MIB), Some(initrd), &[range(0x4000_0000, 502 * MIB)]).unwrap();
    assert_eq!(plan.device_tree.start(), 0x4000_0000);
    assert!(plan.initrd.is_some_and(|to| to.start() >= plan.entry + 128 * MIB), "{plan:?}");
}

#[test]
fn a_raw_binary_keeps_its_distance_from_an_initrd_that_moves() {
    let initrd = range(0x4130_0000, 8 * MIB);
    let big = range(0x5000_0000, 480 * MIB);
    let plan = planned(Kernel::Raw, range(0x6000_0000, MIB), Some(initrd), &[big]).unwrap();
    assert!(plan.initrd.unwrap().start() >= plan.kernel.start() + 128 * MIB);
}

#[test]
fn an_image_without_a_size_keeps_its_distance_too() {
    let kernel = Kernel::Image { text_offset: 0x8_0000, image_size: 0, page_size: None, anywhere: false };
    let plan = planned(kernel, range(0x4808_0000, 8 * MIB), None, &ram()).unwrap();
    assert!(plan.device_tree.start() >= plan.kernel.start() + 128 * MIB);
}

#[test]
fn what_has_no_room_is_named() {
    let no_room = |kernel, file, initrd, ram: &[PhysRange]| match planned(kernel, file, initrd, ram).unwrap_err() {
        ImageError::NoRoom { what, size, largest } => (what, size, largest),
        other => panic!("{other}"),
    };
    let file = range(0x4800_0000, MIB);
    assert_eq!(no_room(image(495 * MIB), file, None, &ram()), ("kernel", 495 * MIB, 494 * MIB));
    assert_eq!(no_room(image(MIB), file, None, &[]), ("kernel", MIB, 0));
    let initrd = Some(range(0x5000_0000, 480 * MIB));
    let (what, size, largest) = no_room(image(33 * MIB), file, initrd, &ram());
    assert_eq!((what, size), ("initramfs", 480 * MIB));
    assert!(largest < 480 * MIB);
    assert_eq!(no_room(image(MIB), file, None, &[range(0x4800_0000, 2 * MIB)]).0, "device tree");
    // There is nothing above it.
    let below = [range(0x4000_0000, 2 * MIB), range(0x4800_0000, MIB)];
    assert_eq!(no_room(Kernel::Raw, file, None, &below).0, "device tree");
    let sentence = planned(image(495 * MIB), file, None, &ram()).unwrap_err().to_string();
    assert!(sentence.contains("kernel: it takes 0x1ef00000") && sentence.contains("more memory"), "{sentence}");
}

#[test]
fn sizes_that_wrap_are_refused() {
    let kernel = Kernel::Image { text_offset: u64::MAX, image_size: 4096, page_size: None, anywhere: true };
    let error = planned(kernel, range(0x4800_0000, MIB), None, &ram()).unwrap_err();
    assert_eq!(error, ImageError::Size { text_offset: u64::MAX, image_size: MIB });
    let result = planned(image(u64::MAX), range(0x4800_0000, MIB), None, &ram());
    assert!(matches!(result, Err(ImageError::NoRoom { what: "kernel", .. })));
}

/// A kernel of any kind, with sizes of all magnitudes up to a largest.
fn kernels(largest: u64) -> impl Strategy<Value = Kernel> {
    let images = (0_u64..3, prop_oneof![Just(0), 1..MIB, MIB..400 * MIB, 1..largest], any::<bool>());
    let images = images.prop_map(|(offset, image_size, anywhere)| Kernel::Image {
        text_offset: offset * 0x8_0000,
        image_size,
        page_size: None,
        anywhere,
    });
    prop_oneof![4 => images, 1 => Just(Kernel::Raw)]
}

/// A range within the first 4 GiB, or anywhere.
fn ranges(largest: u64) -> impl Strategy<Value = PhysRange> {
    let starts =
        prop_oneof![8 => (0_u64..2048).prop_map(|index| index * 2 * MIB), 2 => 0_u64..4 << 30, 1 => any::<u64>()];
    (starts, 1..largest).prop_filter_map("wraps", |(start, size)| PhysRange::with_size(start, size))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn every_plan_is_sound(
        kernel in kernels(u64::MAX),
        file in ranges(64 * MIB),
        initrd in proptest::option::of(ranges(64 * MIB)),
        ram in proptest::collection::vec(ranges(2048 * MIB), 0..6),
    ) {
        // What Machine::check_placement has seen to.
        let initrd = initrd.filter(|initrd| !initrd.overlaps(file));
        let _ = planned(kernel, file, initrd, &ram);
    }

    /// Where there is plenty of memory, there is a plan.
    #[test]
    fn plenty_of_memory_is_enough(
        kernel in kernels(400 * MIB),
        file in ranges(64 * MIB),
        initrd in proptest::option::of(ranges(64 * MIB)),
        base in 0_u64..64,
    ) {
        let initrd = initrd.filter(|initrd| !initrd.overlaps(file));
        let ram = [range(base << 30, 2 << 30)];
        prop_assert!(planned(kernel, file, initrd, &ram).is_ok());
    }
}
