//! A device that is held quiet, and goes on: its driver notices nothing.

mod world;

use std::task::Poll;
use virtio_mediation::registers::{interrupt, offset, status};
use virtio_mediation::{Placement, SAVED_BYTES, Saved, SavedQueue, Unusable, Violation, Written, feature};
use world::{Driver, RAM, World};

const BLOCK: u32 = 2;
const NETWORK: u32 = 1;
/// Data of the tests', behind the rings.
const DATA: u64 = RAM.start + 0x8000;

/// Offers a page to be written, with `number` in it for the order.
fn offer(driver: &mut Driver<'_>, queue: u64, number: u16) {
    driver.set(queue, number, DATA + 0x1000 * u64::from(number), 0x1000, 2, 0);
    driver.offer(queue, number);
    assert_eq!(driver.notify(queue as u32), Written::Done);
}

fn heads(world: &World, queue: usize) -> Vec<u16> {
    world.fetch();
    world.chains().into_iter().filter(|chain| chain.queue == queue).map(|chain| chain.head).collect()
}

/// Held and let go.
fn quiesce(driver: &mut Driver<'_>) {
    assert_eq!(driver.device.quiesce(driver.world), Poll::Ready(Written::Done));
    assert!(driver.device.is_held());
}

fn resume(driver: &mut Driver<'_>) {
    assert_eq!(driver.device.resume(driver.world), Written::Done);
    assert!(!driver.device.is_held());
    for queue in 0..driver.device.queues() {
        assert_eq!(driver.device.notify(driver.world, queue), Written::Done);
    }
}

/// By way of bytes, into a device that was just taken over.
fn move_over(driver: &mut Driver<'_>) {
    quiesce(driver);
    let bytes = postcard::to_stdvec(&driver.device.save().unwrap()).unwrap();
    let saved: Saved = postcard::from_bytes(&bytes).unwrap();
    driver.device = driver.world.device();
    assert_eq!(driver.device.restore(driver.world, &saved), Ok(()));
    assert_eq!(driver.device.save(), Some(saved));
    resume(driver);
}

#[test]
fn requests_that_come_back_in_any_order_are_posted_again_in_the_order_that_they_came_in() {
    for how in [|driver: &mut Driver<'_>| (quiesce(driver), resume(driver)).1, move_over] {
        let world = World::new(NETWORK);
        let mut driver = Driver::started(&world);
        // 3 is older than anything that the ring still has: the others have come and gone more often than it has slots.
        for number in [3, 1, 0] {
            offer(&mut driver, 0, number);
        }
        let mut used = 0;
        for round in 0..70_000u32 {
            let number = 4 + (round % 3) as u16;
            offer(&mut driver, 0, number);
            let chains = heads(&world, 0);
            world.complete(chains.len() - 1);
            assert_eq!(driver.acknowledge(), Written::Done);
            used += 1;
            assert_eq!(driver.used_index(0), used as u16);
            if round % 4999 == 4998 {
                how(&mut driver);
                assert_eq!(heads(&world, 0), [3, 1, 0], "round {round}");
            }
        }
        // The ring goes on where it was, slot by slot.
        for number in [3, 1, 0] {
            world.complete(0);
            assert_eq!(driver.acknowledge(), Written::Done);
            assert_eq!(driver.used(0, (used % 8) as u16), number);
            used += 1;
        }
        assert_eq!((driver.used_index(0), driver.missed()), (used as u16, vec![]));
    }
}

#[test]
fn what_was_used_is_handed_over_and_what_may_have_been_written_is_marked() {
    let world = World::new(NETWORK);
    let mut driver = Driver::started(&world);
    (0..3).for_each(|number| offer(&mut driver, 0, number));
    heads(&world, 0);
    // One is done and not told of, another begun.
    world.complete(1);
    world.write_chain(0);
    quiesce(&mut driver);
    assert_eq!((driver.used_index(0), driver.used(0, 0)), (1, 1));
    let _ = driver.device.report_in_flight(&world);
    assert_eq!(world.missed(), []);
    // The interrupt is still to be taken, though the device's own is gone.
    assert_eq!((world.real_interrupt(), driver.read(offset::INTERRUPT_STATUS)), (0, interrupt::USED_BUFFER));
    assert_eq!(world.raised.get(), 0);
    resume(&mut driver);
    assert_eq!(world.raised.get(), 1);
    assert_eq!(driver.acknowledge(), Written::Done);
    assert_eq!((driver.read(offset::INTERRUPT_STATUS), heads(&world, 0)), (0, vec![0, 2]));
    quiesce(&mut driver);
    resume(&mut driver);
    assert_eq!(world.raised.get(), 1, "there is nothing to tell");
    // Denied meanwhile it can't be: the device has it again.
    assert!(driver.device.may_write(DATA, DATA + 1) && !driver.device.may_write(DATA + 0x1000, DATA + 0x1001));
}

#[test]
fn what_came_while_the_device_was_held_is_fed_afterwards() {
    let world = World::new(NETWORK);
    let mut driver = Driver::started(&world);
    quiesce(&mut driver);
    driver.set(1, 0, DATA, 16, 0, 0);
    driver.offer(1, 0);
    assert_eq!(driver.notify(1), Written::Done);
    assert_eq!((heads(&world, 1), world.real_status()), (vec![], 0));
    // A reset of the driver's is none of this moment: its CPU waits.
    let _ = driver.write(offset::STATUS, 0);
    resume(&mut driver);
    assert_eq!((heads(&world, 1), world.real_status()), (vec![0], 15));
}

#[test]
fn the_handshake_is_repeated_as_far_as_it_had_come() {
    let world = World::new(BLOCK);
    world.config.borrow_mut()[0x20] = 1;
    let mut driver = Driver::new(&world);
    let held = |driver: &mut Driver<'_>| {
        move_over(driver);
        (world.real_status(), world.real_features(), driver.read(offset::STATUS))
    };
    assert_eq!(held(&mut driver), (0, 0, 0));
    let _ = driver.write(offset::STATUS, 3);
    assert_eq!(held(&mut driver), (3, 0, 3));
    let features = feature::VERSION_1 | feature::BLK_CONFIG_WCE;
    driver.agree(features);
    assert_eq!(held(&mut driver), (11, features, 11));
    driver.select(0);
    assert_eq!(driver.place(8, Driver::rings(0)), Written::Done);
    assert_eq!(held(&mut driver), (11, features, 11));
    assert_eq!(driver.read(offset::QUEUE_READY), 1);
    let _ = driver.write(offset::STATUS, 15);
    assert_eq!(held(&mut driver), (15, features, 15));
    offer(&mut driver, 0, 2);
    assert_eq!(heads(&world, 0), [2]);
    // The cache was on after the device's reset; its driver has turned it off.
    let _ = driver.device.write(&world, offset::CONFIG + 0x20, 1, 0);
    quiesce(&mut driver);
    world.config.borrow_mut()[0x20] = 1;
    resume(&mut driver);
    assert_eq!((world.config.borrow()[0x20], driver.read(offset::INTERRUPT_STATUS)), (0, 0));
}

#[test]
fn a_configuration_that_has_changed_meanwhile_is_told_of() {
    let world = World::new(NETWORK);
    let mut driver = Driver::started(&world);
    quiesce(&mut driver);
    world.config.borrow_mut()[6] = 1;
    resume(&mut driver);
    assert_eq!((driver.read(offset::INTERRUPT_STATUS), world.raised.get()), (interrupt::CONFIGURATION, 1));
    // One that the device had told of, and the driver has not yet seen.
    let _ = driver.acknowledge();
    world.change_configuration();
    quiesce(&mut driver);
    resume(&mut driver);
    assert_eq!((driver.read(offset::INTERRUPT_STATUS), world.raised.get()), (interrupt::CONFIGURATION, 2));
}

#[test]
fn a_device_that_is_not_quiet_is_asked_again_and_may_write_until_then() {
    let world = World::new(NETWORK);
    let mut driver = Driver::started(&world);
    offer(&mut driver, 0, 5);
    heads(&world, 0);
    world.busy.set(true);
    for _ in 0..3 {
        assert!(driver.device.quiesce(&world).is_pending() && driver.device.save().is_none());
        world.write_chain(0);
        assert_eq!(driver.missed(), []);
    }
    world.complete(0);
    world.busy.set(false);
    quiesce(&mut driver);
    assert_eq!((driver.used_index(0), driver.missed()), (1, vec![]));
    resume(&mut driver);
    assert_eq!(heads(&world, 0), []);
    // One that never is has to be reset by its driver.
    world.busy.set(true);
    assert!(driver.device.quiesce(&world).is_pending());
    assert_eq!(driver.device.resume(&world), Written::Stopped(Violation::NotQuiet));
    assert_ne!(driver.read(offset::STATUS) & status::DEVICE_NEEDS_RESET, 0);
    world.busy.set(false);
    driver.start();
    offer(&mut driver, 0, 5);
    assert_eq!(heads(&world, 0), [5]);
}

#[test]
fn a_device_whose_driver_resets_it_or_has_to_is_held_as_it_is() {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    offer(&mut driver, 0, 1);
    driver.jump(0, 9);
    assert_eq!(driver.notify(0), Written::Stopped(Violation::IndexJump(9)));
    move_over(&mut driver);
    assert_ne!(driver.read(offset::STATUS) & status::DEVICE_NEEDS_RESET, 0);
    assert_eq!((driver.read(offset::INTERRUPT_STATUS), driver.device.violations()), (interrupt::CONFIGURATION, 1));
    assert!(world.real_status() == 0 && !driver.device.may_write(RAM.start, RAM.end));
    driver.start();
    offer(&mut driver, 0, 1);
    world.busy.set(true);
    let _ = driver.write(offset::STATUS, 0);
    assert!(driver.device.quiesce(&world).is_pending() && !driver.device.is_held());
    world.busy.set(false);
    quiesce(&mut driver);
    resume(&mut driver);
    assert_eq!((driver.read(offset::STATUS), heads(&world, 0)), (0, vec![]));
    // A queue that was taken back is not fed any more, and its memory is the guest's.
    driver.start();
    offer(&mut driver, 0, 1);
    driver.select(0);
    let _ = driver.write(offset::QUEUE_READY, 0);
    quiesce(&mut driver);
    assert!(world.take_marked().contains(&(DATA + 0x1000)));
    resume(&mut driver);
    assert_eq!(heads(&world, 0), []);
    assert!(!driver.device.may_write(RAM.start, RAM.end));
}

#[test]
fn a_device_that_refuses_its_features_afterwards_is_stopped() {
    let world = World::new(BLOCK);
    let mut driver = Driver::started(&world);
    quiesce(&mut driver);
    world.refuses_features.set(true);
    assert_eq!(driver.device.resume(&world), Written::Stopped(Violation::Features));
    assert_ne!(driver.read(offset::STATUS) & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_state_that_no_device_can_have_is_refused() {
    let world = World::new(NETWORK);
    let mut driver = Driver::started(&world);
    (0..3).for_each(|number| offer(&mut driver, 0, number));
    assert_eq!(driver.device.save(), None);
    let other = Saved { kind: 2, ..saved(&mut driver) };
    assert_eq!(driver.device.restore(&world, &other), Err(Unusable::OtherKind(2)));
    driver.start();
    (0..3).for_each(|number| offer(&mut driver, 0, number));
    let good = saved(&mut driver);
    let refused = |change: &dyn Fn(&mut Saved)| {
        let mut bad = good.clone();
        change(&mut bad);
        let mut device = world.device();
        let error = device.restore(&world, &bad).unwrap_err();
        assert!(!device.is_held() && !device.may_write(RAM.start, RAM.end) && world.real_status() == 0);
        assert_eq!(device.restore(&world, &good), Ok(()), "a device that has refused one state takes another");
        error
    };
    let features = Unusable::NoState(Violation::Features);
    assert_eq!(refused(&|saved| saved.offered |= 1 << 28), Unusable::OtherFeatures(1 << 28));
    assert_eq!(refused(&|saved| saved.accepted |= 1 << 33), features);
    assert_eq!(refused(&|saved| saved.accepted &= !feature::VERSION_1), features);
    assert_eq!(refused(&|saved| saved.status = 7), features);
    assert_eq!(refused(&|saved| saved.status |= 1 << 20), features);
    // No driver, and chains of its: the device would write what nobody counts as in flight.
    assert_eq!(refused(&|saved| saved.status &= !status::DRIVER_OK), features);
    let queue = |why| Unusable::NoState(why);
    assert_eq!(refused(&|saved| saved.queues[0].placement.size = 3), queue(Violation::QueueSize(3)));
    assert_eq!(refused(&|saved| saved.queues[1].placement.device = RAM.end), queue(Violation::Ring(RAM.end)));
    assert_eq!(refused(&|saved| saved.queues[0].available += 1), queue(Violation::IndexJump(4)));
    assert_eq!(refused(&|saved| saved.queues[0].heads[1] = 8), queue(Violation::NoSuchDescriptor(8)));
    assert_eq!(refused(&|saved| saved.queues[0].heads[1] = 0), queue(Violation::InUse(0)));
    // Not all of memory is what it was.
    driver.set(0, 2, RAM.end, 1, 2, 0);
    let mut device = world.device();
    let outside = queue(Violation::Outside { start: RAM.end, bytes: 1 });
    assert_eq!(device.restore(&world, &good), Err(outside));
    driver.device = device;
    driver.start();
    assert_eq!(driver.device.restore(&world, &good), Err(Unusable::InUse));
    let bytes = postcard::to_stdvec(&good).unwrap();
    assert!((0..bytes.len()).all(|end| postcard::from_bytes::<Saved>(&bytes[..end]).is_err()));
}

#[test]
fn a_driver_whose_state_is_lost_is_told_to_reset() {
    let world = World::new(NETWORK);
    let mut driver = Driver::started(&world);
    offer(&mut driver, 0, 0);
    let bad = Saved { kind: 2, ..saved(&mut driver) };
    assert_eq!(driver.device.restore(&world, &bad), Err(Unusable::OtherKind(2)));
    assert_eq!(driver.device.lose(&world, Violation::Features), Written::Stopped(Violation::Features));
    let (told, bits) = (driver.read(offset::STATUS), driver.read(offset::INTERRUPT_STATUS));
    assert_eq!((told & status::DEVICE_NEEDS_RESET, bits), (status::DEVICE_NEEDS_RESET, interrupt::CONFIGURATION));
    assert_eq!(driver.device.notify(&world, 0), Written::Done);
    assert!(heads(&world, 0).is_empty(), "nothing is fed to it");
    driver.start();
    offer(&mut driver, 0, 1);
    assert_eq!(heads(&world, 0), [1]);
}

#[test]
fn the_largest_state_fits() {
    let all = u64::MAX;
    let placement = Placement { size: u32::MAX, descriptors: all, driver: all, device: all };
    let queue = SavedQueue { ready: true, placement, available: !0, used: !0, heads: [!0; 256].into_iter().collect() };
    let saved = Saved {
        kind: !0,
        offered: all,
        accepted: all,
        device_features_select: !0,
        driver_features_select: !0,
        queue_select: !0,
        status: !0,
        interrupt: !0,
        needs_reset: true,
        violations: all,
        config: [!0; 9],
        queues: [queue.clone(), queue],
    };
    assert!(postcard::to_stdvec(&saved).unwrap().len() <= SAVED_BYTES);
}

fn saved(driver: &mut Driver<'_>) -> Saved {
    quiesce(driver);
    driver.device.save().expect("it is quiet")
}
