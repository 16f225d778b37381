//! The rules, one by one.

mod world;

use virtio_mediation::registers::{interrupt, offset, status};
use virtio_mediation::{Device, Kind, NotWritable, Unusable, Violation, Written, feature};
use world::{Driver, RAM, World};

const BLOCK: u32 = 2;
const NETWORK: u32 = 1;
/// Data of the tests', behind the rings.
const DATA: u64 = RAM.start + 0x8000;

/// Offers one chain: a header that is read, and a page that is written.
fn request(driver: &mut Driver<'_>, head: u16) {
    driver.set(0, head, DATA, 16, 1, head + 1);
    driver.set(0, head + 1, DATA + 0x1000 * (1 + u64::from(head / 2)), 0x1000, 2, 0);
    driver.offer(0, head);
}

#[test]
fn a_request_goes_to_the_device_and_comes_back() {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    for round in 0..70_000u32 {
        request(&mut driver, 4);
        assert_eq!(driver.notify(0), Written::Done);
        world.fetch();
        world.complete(0);
        assert_eq!(driver.read(offset::INTERRUPT_STATUS), interrupt::USED_BUFFER);
        assert_eq!(driver.used_index(0), round as u16, "nothing comes before the acknowledgement");
        assert_eq!(driver.acknowledge(), Written::Done);
        assert_eq!(driver.read(offset::INTERRUPT_STATUS), 0);
        let slot = driver.used_index(0).wrapping_sub(1) % driver.size;
        assert_eq!((driver.used_index(0), driver.used(0, slot)), ((round + 1) as u16, 4));
    }
    assert_eq!(driver.missed(), []);
}

#[test]
fn features_are_those_of_the_list() {
    let world = World::new(BLOCK);
    let mut driver = Driver::new(&world);
    let mut offered = |select| {
        let _ = driver.write(offset::DEVICE_FEATURES_SEL, select);
        u64::from(driver.read(offset::DEVICE_FEATURES))
    };
    assert_eq!([0, 1, 2].map(&mut offered), [0xe64, 1, 0]);
    for features in [0, feature::BLK_FLUSH, feature::VERSION_1 | 1 << 28, feature::VERSION_1 | 1 << 33, u64::MAX] {
        let _ = driver.write(offset::STATUS, 0);
        driver.agree(features);
        assert_eq!(driver.read(offset::STATUS), 3, "{features:#x}");
        let _ = driver.write(offset::STATUS, 15);
        assert_eq!(driver.read(offset::STATUS) & status::DRIVER_OK, 0, "{features:#x}");
    }
    let _ = driver.write(offset::STATUS, 0);
    driver.agree(feature::VERSION_1 | feature::BLK_FLUSH);
    assert_eq!((driver.read(offset::STATUS), world.real_features()), (11, feature::VERSION_1 | feature::BLK_FLUSH));
    // They are settled.
    driver.agree(feature::VERSION_1 | feature::BLK_RO);
    assert_eq!(world.real_features(), feature::VERSION_1 | feature::BLK_FLUSH);
    for kind in [Kind::Network, Kind::Block] {
        for dangerous in [24, 28, 29, 33, 34, 35, 36, 38, 40] {
            assert_eq!(kind.allowed() >> dangerous & 1, 0, "{kind:?} is offered feature {dangerous}");
        }
    }
    // Queues of a card beyond the first two, and requests with addresses of their own.
    assert_eq!(Kind::Network.allowed() & (1 << 17 | 1 << 22), 0);
    assert_eq!(Kind::Block.allowed() & (1 << 12), 0);
}

#[test]
fn what_cannot_be_mediated_is_refused() {
    let refused = |world: World| Device::new(&world, || world.rings()).map(|_| ()).unwrap_err();
    let world = |change: fn(&World)| {
        let world = World::new(BLOCK);
        change(&world);
        world
    };
    assert_eq!(refused(world(|world| world.version.set(1))), Unusable::Version(1));
    assert_eq!(refused(World::new(0)), Unusable::NoDevice);
    assert_eq!(refused(World::new(3)), Unusable::Kind(3));
    assert_eq!(refused(world(|world| world.features.set(!feature::VERSION_1))), Unusable::Legacy);
    assert_eq!(refused(world(|world| world.busy.set(true))), Unusable::NoReset);
    let world = World::new(BLOCK);
    assert_eq!(Device::new(&world, || None).map(|_| ()).unwrap_err(), Unusable::NoMemory);
}

/// What `act` makes of a device that works; it is stopped, and its driver is told.
#[track_caller]
fn breaks(expected: Violation, act: impl FnOnce(&mut Driver<'_>)) {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    act(&mut driver);
    assert_eq!(driver.notify(0), Written::Stopped(expected));
    assert_ne!(driver.read(offset::STATUS) & status::DEVICE_NEEDS_RESET, 0);
    assert_eq!(driver.read(offset::INTERRUPT_STATUS), interrupt::CONFIGURATION);
    assert_eq!((world.raised.get(), driver.device.violations()), (1, 1));
    // Only what is acknowledged goes.
    let _ = driver.write(offset::INTERRUPT_ACK, interrupt::USED_BUFFER);
    assert_eq!(driver.read(offset::INTERRUPT_STATUS), interrupt::CONFIGURATION);
    world.fetch();
    assert!(world.chains().is_empty());
    assert_eq!(driver.notify(0), Written::Done, "a stopped device takes nothing");
    let _ = driver.device.report_in_flight(&world);
    assert!(world.take_marked().is_empty(), "a chain that was not taken is in flight");
    driver.start();
    request(&mut driver, 0);
    assert_eq!(driver.notify(0), Written::Done);
    world.fetch();
    assert_eq!(world.chains().len(), 1, "after a reset it works again");
}

#[test]
fn chains_that_lie_stop_the_device() {
    breaks(Violation::NoSuchDescriptor(8), |driver| driver.offer(0, 8));
    breaks(Violation::NoSuchDescriptor(0xffff), |driver| driver.offer(0, 0xffff));
    breaks(Violation::NoSuchDescriptor(9), |driver| {
        driver.set(0, 0, DATA, 16, 1, 9);
        driver.offer(0, 0);
    });
    breaks(Violation::InUse(0), |driver| {
        (0..8).for_each(|number| driver.set(0, number, DATA, 16, 1, (number + 1) % 8));
        driver.offer(0, 0);
    });
    breaks(Violation::Flags(1), |driver| {
        driver.set(0, 0, DATA, 16, 1, 1);
        driver.set(0, 1, DATA, 16, 4, 0);
        driver.offer(0, 0);
    });
    breaks(Violation::Empty(0), |driver| {
        driver.set(0, 0, DATA, 0, 0, 0);
        driver.offer(0, 0);
    });
    breaks(Violation::Order(1), |driver| {
        driver.set(0, 0, DATA, 16, 1 | 2, 1);
        driver.set(0, 1, DATA, 16, 0, 0);
        driver.offer(0, 0);
    });
    for (start, bytes) in
        [(0, 1), (RAM.start - 1, 2), (RAM.end - 1, 2), (RAM.end, 1), (u64::MAX, 1), (u64::MAX - 7, 16)]
    {
        breaks(Violation::Outside { start, bytes }, |driver| {
            driver.set(0, 0, DATA, 16, 1, 1);
            driver.set(0, 1, start, bytes, 2, 0);
            driver.offer(0, 0);
        });
    }
    for by in [9, 0x8000, 0xffff] {
        breaks(Violation::IndexJump(by), |driver| driver.jump(0, by));
    }
}

#[test]
fn a_descriptor_that_the_device_has_is_not_given_twice() {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    request(&mut driver, 0);
    assert_eq!(driver.notify(0), Written::Done);
    // Its second one, as a head and as a part.
    driver.set(0, 2, DATA, 16, 1, 1);
    driver.offer(0, 2);
    assert_eq!(driver.notify(0), Written::Stopped(Violation::InUse(1)));
    world.fetch();
    assert_eq!(world.chains().len(), 1);
    // The first goes on to its end.
    world.complete(0);
    assert_eq!(driver.acknowledge(), Written::Done);
    assert_eq!((driver.used_index(0), driver.missed()), (1, vec![]));
}

#[test]
fn a_descriptor_is_read_once() {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    request(&mut driver, 0);
    // Whatever is about to be read for the second time is something that the device must not have.
    let mut seen = std::collections::BTreeSet::new();
    world.on_load(move |world, address| {
        if !seen.insert(address) {
            world.poke(address, &[0; 8]);
        }
    });
    world.loads.set(0);
    assert_eq!(driver.notify(0), Written::Done);
    // The index, the head, and two words of two descriptors.
    assert_eq!(world.loads.get(), 6);
    world.on_load(|_, _| ());
    driver.set(0, 1, 0, 4096, 2, 0);
    world.fetch();
    assert_eq!(world.chains()[0].segments[1].address, DATA + 0x1000, "the device sees the copy");
}

#[test]
fn what_may_not_be_written_is_decided_by_the_caller() {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    world.denied.borrow_mut().push(DATA + 0x1800..DATA + 0x1801);
    request(&mut driver, 2);
    request(&mut driver, 0);
    request(&mut driver, 4);
    let start = DATA + 0x1000;
    assert_eq!(driver.notify(0), Written::NotWritable(NotWritable { queue: 0, start, bytes: 0x1000 }));
    world.fetch();
    assert_eq!(world.chains().len(), 1, "what comes before it was taken");
    assert!(driver.device.may_write(DATA + 0x2000, DATA + 0x2001) && !driver.device.may_write(start, start + 0x1000));
    world.denied.borrow_mut().clear();
    assert_eq!(driver.device.notify(&world, 0), Written::Done);
    world.fetch();
    assert_eq!(world.chains().iter().map(|chain| chain.head).collect::<Vec<_>>(), [2, 0, 4]);
    assert!(driver.device.may_write(start + 0xfff, start + 0x1000));
    // The used ring is written for as long as the queue works.
    let [.., ring] = Driver::rings(0);
    assert!(driver.device.may_write(ring, ring + 1));
}

#[test]
fn queues_are_checked() {
    let good = Driver::rings(0);
    let world = World::new(BLOCK);
    for size in [0, 3, 257, 512, 1 << 16, u32::MAX] {
        let mut driver = Driver::new(&world);
        driver.agree(feature::VERSION_1);
        assert!(driver.select(0) && !driver.select(1) && driver.select(0));
        assert_eq!(driver.place(size, good), Written::Stopped(Violation::QueueSize(size)));
        assert_eq!(driver.read(offset::QUEUE_READY), 0);
    }
    for (place, bad) in [
        (0, good[0] + 8),
        (1, good[1] + 1),
        (2, good[2] + 2),
        (0, RAM.end - 112),
        (1, RAM.end - 20),
        (2, RAM.end - 68),
        (0, 0),
        (1, RAM.end),
        (2, !3),
    ] {
        let mut driver = Driver::new(&world);
        driver.agree(feature::VERSION_1);
        driver.select(0);
        let mut rings = good;
        rings[place] = bad;
        assert_eq!(driver.place(8, rings), Written::Stopped(Violation::Ring(bad)), "ring {place}");
    }
    world.denied.borrow_mut().push(good[2]..good[2] + 1);
    let mut driver = Driver::new(&world);
    driver.agree(feature::VERSION_1);
    driver.select(0);
    // Whether it may be made writable is the caller's to decide, too.
    let what = NotWritable { queue: 0, start: good[2], bytes: 70 };
    assert_eq!(driver.place(8, good), Written::NotWritable(what));
    assert_eq!((driver.device.retry(&world, what), driver.read(offset::QUEUE_READY)), (Written::NotWritable(what), 0));
    world.denied.borrow_mut().clear();
    assert_eq!((driver.device.retry(&world, what), driver.read(offset::QUEUE_READY)), (Written::Done, 1));
}

/// Whoever looks at what is in flight looks at no more than there is memory.
#[test]
fn a_device_writes_no_more_than_there_is_memory() {
    let world = World::new(NETWORK);
    let mut driver = Driver::started(&world);
    let half = (RAM.end - RAM.start) as u32 / 2;
    for (number, start) in [(0, RAM.start), (1, RAM.start + u64::from(half)), (2, RAM.start)] {
        driver.set(0, number, start, half, 2, 0);
        driver.offer(0, number);
    }
    assert_eq!(driver.notify(0), Written::Stopped(Violation::TooMuch(2)));
    // What came back counts no more.
    let mut driver = Driver::started(&world);
    for _ in 0..3 {
        driver.set(0, 0, RAM.start, half * 2, 2, 0);
        driver.offer(0, 0);
        assert_eq!(driver.notify(0), Written::Done);
        world.fetch();
        world.complete(0);
        assert_eq!(driver.acknowledge(), Written::Done);
    }
}

#[test]
fn what_is_in_flight_is_reported_until_it_is_back() {
    let world = World::new(NETWORK);
    let mut driver = Driver::started(&world);
    request(&mut driver, 0);
    let _ = driver.notify(0);
    let page = DATA + 0x1000;
    for _ in 0..3 {
        let _ = driver.device.report_in_flight(&world);
        assert!(world.take_marked().contains(&page));
        // It writes whenever it likes, with nobody told.
        world.fetch();
        world.write_chain(0);
    }
    world.complete(0);
    // The management core drains, and leaves the interrupt to the driver.
    let _ = driver.device.drain(&world);
    assert!(world.take_marked().contains(&page), "it came back");
    assert_eq!((driver.used_index(0), world.real_interrupt()), (1, interrupt::USED_BUFFER));
    let _ = driver.device.report_in_flight(&world);
    assert!(world.take_marked().is_empty(), "it is the driver's again");
    let _ = driver.acknowledge();
    assert_eq!((world.real_interrupt(), driver.read(offset::INTERRUPT_STATUS)), (0, 0));
}

#[test]
fn a_drain_by_others_is_told_of_when_the_device_is_silent() {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    request(&mut driver, 0);
    let _ = driver.notify(0);
    world.fetch();
    world.complete(0);
    let _ = driver.device.drain(&world);
    // Acknowledging the configuration alone leaves it.
    let _ = driver.write(offset::INTERRUPT_ACK, interrupt::CONFIGURATION);
    assert_eq!(driver.read(offset::INTERRUPT_STATUS), interrupt::USED_BUFFER);
    world.change_configuration();
    assert_eq!(driver.read(offset::INTERRUPT_STATUS), interrupt::USED_BUFFER | interrupt::CONFIGURATION);
}

#[test]
fn a_reset_waits_for_the_device_and_reports_what_it_had() {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    request(&mut driver, 0);
    let _ = driver.notify(0);
    world.busy.set(true);
    let _ = driver.write(offset::STATUS, 0);
    assert_ne!(driver.read(offset::STATUS), 0);
    assert!(world.take_marked().is_empty());
    // It takes nothing meanwhile.
    request(&mut driver, 2);
    assert_eq!(driver.notify(0), Written::Done);
    let _ = driver.write(offset::STATUS, 3);
    let _ = driver.device.report_in_flight(&world);
    let marked = world.take_marked();
    assert!(marked.contains(&(DATA + 0x1000)), "it may still be written");
    assert!(!marked.contains(&(DATA + 0x2000)), "a device that is being reset was fed");
    world.busy.set(false);
    assert_eq!(driver.read(offset::STATUS), 0);
    assert!(world.take_marked().contains(&(DATA + 0x1000)), "it may have been written to the end");
    let _ = driver.device.report_in_flight(&world);
    assert!(world.take_marked().is_empty());
    driver.start();
}

#[test]
fn a_queue_that_was_taken_back_is_drained_and_not_fed() {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    request(&mut driver, 0);
    let _ = driver.notify(0);
    world.fetch();
    assert!(driver.select(0));
    let _ = driver.write(offset::QUEUE_READY, 0);
    assert_eq!(driver.read(offset::QUEUE_READY), 0);
    request(&mut driver, 2);
    assert_eq!(driver.notify(0), Written::Done);
    world.fetch();
    assert_eq!(world.chains().len(), 1);
    world.complete(0);
    let ring = Driver::rings(0)[2];
    world.poke(ring, &[7; 128]);
    let _ = driver.acknowledge();
    assert_eq!(world.peek::<128>(ring), [7; 128], "its used ring is the guest's memory again");
    assert_eq!(driver.missed(), []);
    let _ = driver.write(offset::QUEUE_READY, 1);
    assert_eq!(driver.read(offset::QUEUE_READY), 0);
    driver.start();
}

#[test]
fn registers_have_one_width() {
    let world = World::new(BLOCK);
    let mut driver = Driver::new(&world);
    for bytes in [1, 2, 8] {
        for at in (0..0x100).filter(|at| *at != 0x100) {
            assert_eq!(driver.device.read(&world, at, bytes), 0, "{bytes} bytes at {at:#x}");
            assert_eq!(driver.device.write(&world, at, bytes, u64::MAX), Written::Done);
        }
    }
    assert_eq!(driver.read(offset::STATUS), 0);
    for at in (0..0x200).filter(|at| at % 4 != 0) {
        assert_eq!(driver.device.read(&world, at, 4), 0);
        let _ = driver.device.write(&world, at, 4, u64::MAX);
    }
    assert_eq!(driver.device.read(&world, 0x1f8, 8), 0);
    driver.start();
}
