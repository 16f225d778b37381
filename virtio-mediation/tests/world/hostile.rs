//! Bytes become what a hostile guest, its device and the management core do, in any order.

use super::{Chain, Driver, RAM, World};
use virtio_mediation::registers::offset;
use virtio_mediation::{Saved, Violation, Written};

/// The bytes, one after the other; zeros at the end.
struct Choices<'b>(&'b [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn below(&mut self, bound: u64) -> u64 {
        u64::from(self.byte()) % bound
    }

    /// An address: mostly in the guest's memory, at its edges, or far off.
    fn address(&mut self) -> u64 {
        match self.byte() {
            kind @ 0..200 => RAM.start + 0x6000 + u64::from(kind) * 0x200 + self.below(3),
            200..220 => RAM.end - self.below(32),
            220..230 => RAM.start - self.below(32),
            230..240 => u64::MAX - self.below(32),
            _ => self.below(256) << 40,
        }
    }

    fn length(&mut self) -> u32 {
        [1, 16, 512, 4096, 0x1_0000, 0, u32::MAX, 0x8000_0000][self.below(8) as usize]
    }

    fn flags(&mut self) -> u16 {
        [0, 1, 2, 3, 1, 3, 2, 4][self.below(8) as usize]
    }
}

/// Sees to it that no descriptor that the device reads is one that it must not have, that nothing that was written is missed
/// by an audit, that nothing panics, and that each store of the guest's costs a bounded number of loads.
pub fn run(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let world = World::new(1 + u32::from(choices.byte() & 1));
    // Memory that changes while it is read: a few words at each load, in the rings and behind them.
    let mut seed = u64::from(choices.byte());
    if seed & 1 != 0 {
        world.on_load(move |world, address| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            if seed >> 60 == 0 {
                let at = if seed >> 40 & 1 != 0 { address & !7 } else { RAM.start + (seed >> 33) % 0x6000 / 8 * 8 };
                let values = [0, RAM.start + 0x8000, 0x0001_0003_0000_0200, 0x0002_0002_0000_1000, u64::MAX, seed];
                world.poke(at, &values[(seed >> 50) as usize % 6].to_le_bytes());
            }
        });
    }
    let mut driver = Driver::started(&world);
    while !choices.0.is_empty() {
        world.loads.set(0);
        step(&world, &mut driver, &mut choices);
        assert!(world.loads.get() <= 4 * 256 * 3, "{} loads for one store", world.loads.get());
    }
    assert_eq!(driver.missed(), []);
    world.on_load(|_, _| ());
    world.denied.borrow_mut().clear();
    world.busy.set(false);
    // A driver that keeps to the rules gets a device that works.
    driver.start();
    driver.set(0, 0, RAM.start + 0x8000, 512, 0, 0);
    driver.offer(0, 0);
    assert_eq!(driver.notify(0), Written::Done);
    world.fetch();
    world.complete(0);
    assert_eq!(driver.acknowledge(), Written::Done);
    assert_eq!(driver.used_index(0), 1);
    assert_eq!(driver.missed(), []);
}

fn step(world: &World, driver: &mut Driver<'_>, choices: &mut Choices<'_>) {
    let queue = choices.below(2);
    match choices.byte() % 16 {
        0 | 1 => {
            let (number, next) = (choices.below(9) as u16, choices.below(10) as u16);
            let (address, length, flags) = (choices.address(), choices.length(), choices.flags());
            driver.set(queue, number, address, length, flags, next);
        }
        2 | 3 => {
            // A request that is good: two descriptors, the second one written.
            let number = choices.below(4) as u16 * 2;
            driver.set(queue, number, RAM.start + 0x7000, 16, 1, number + 1);
            driver.set(queue, number + 1, RAM.start + 0x8000 + choices.below(8) * 0x800, 0x900, 2, 0);
            driver.offer(queue, number);
        }
        4 => driver.offer(queue, choices.below(10) as u16),
        5 => driver.jump(queue, choices.below(12) as u16),
        6 | 7 => {
            let written = driver.notify(queue as u32);
            decide(world, driver, written);
        }
        8 => world.fetch(),
        9 => world.write_chain(choices.below(4) as usize),
        10 => world.complete(choices.below(4) as usize),
        11 => {
            let _ = driver.acknowledge();
        }
        12 => {
            let _ = driver.device.drain(world);
        }
        13 => assert_eq!(driver.missed(), []),
        14 => match choices.byte() % 5 {
            0 => {
                world.busy.set(false);
                driver.start();
            }
            1 => deny(world, driver, choices),
            2 => world.busy.set(choices.byte() & 1 != 0),
            3 => hold(world, driver, choices.byte()),
            _ => {
                let _ = driver.write(offset::STATUS, 0);
            }
        },
        _ => {
            let (at, width) = (choices.below(0x80) * 4 + choices.below(4), 1 << choices.below(4));
            let value = u64::from_le_bytes(core::array::from_fn(|_| choices.byte()));
            let _ = driver.device.read(world, at, width);
            let written = driver.device.write(world, at, width, value);
            decide(world, driver, written);
        }
    }
}

/// Holds the device quiet, and lets it go on; perhaps with a save and a restore between.
fn hold(world: &World, driver: &mut Driver<'_>, how: u8) {
    world.fetch();
    let had = [0, 1].map(|queue| chains(world, queue));
    if driver.device.quiesce(world).is_ready() {
        assert_eq!(driver.missed(), []);
        assert!(world.chains().is_empty() && world.real_status() == 0);
        let _ = driver.device.report_in_flight(world);
        assert!(world.take_marked().is_empty(), "a quiet device is said to write");
        let saved = driver.device.save().expect("it is quiet");
        let restored = how & 1 == 0 || restore(world, driver, &saved, how & 2 != 0);
        let ready = |queue: &usize| restored && saved.queues[*queue].ready;
        resume(world, driver);
        world.fetch();
        for queue in [0, 1].into_iter().filter(ready) {
            let has = chains(world, queue);
            assert_eq!(heads(&has), heads(&had[queue]), "what was in flight, in its order");
            assert!(how & 1 != 0 || has == had[queue], "the copies that were checked");
        }
    } else {
        assert!(world.busy.get(), "a device that is not busy does not become quiet");
        resume(world, driver);
    }
    // What was made available meanwhile.
    for queue in 0..driver.device.queues() {
        let written = driver.device.notify(world, queue);
        decide(world, driver, written);
    }
}

fn resume(world: &World, driver: &mut Driver<'_>) {
    let written = driver.device.resume(world);
    decide(world, driver, written);
}

/// Gives a state to the device itself, or to one that was just taken over. Whether it has it: the guest's memory may say something
/// else by now, and then its driver has to begin anew.
fn restore(world: &World, driver: &mut Driver<'_>, saved: &Saved, other: bool) -> bool {
    let bytes = postcard::to_stdvec(saved).unwrap();
    assert_eq!(postcard::from_bytes::<Saved>(&bytes).as_ref(), Ok(saved));
    if other {
        driver.device = world.device();
    }
    let restored = driver.device.restore(world, saved);
    assert!(restored.is_err() || driver.device.save().as_ref() == Some(saved));
    restored.is_ok()
}

/// What the device has of a queue: each chain's head, and what the segments are.
fn chains(world: &World, queue: usize) -> Vec<(u16, Vec<(u64, u32)>)> {
    let segments = |chain: &Chain| chain.segments.iter().map(|segment| (segment.address, segment.bytes)).collect();
    let of_queue = world.chains().into_iter().filter(|chain| chain.queue == queue);
    of_queue.map(|chain| (chain.head, segments(&chain))).collect()
}

fn heads(chains: &[(u16, Vec<(u64, u32)>)]) -> Vec<u16> {
    chains.iter().map(|(head, _)| *head).collect()
}

/// Forbids writes to a range that no device may be writing to.
fn deny(world: &World, driver: &Driver<'_>, choices: &mut Choices<'_>) {
    // Not the rings: a driver whose rings are denied does not start.
    let start = RAM.start + 0x6000 + choices.below(26) * 0x1000;
    world.denied.borrow_mut().clear();
    if !driver.device.may_write(start, start + 0x1000) {
        world.denied.borrow_mut().push(start..start + 0x1000);
    }
}

/// Answers for a segment that is not writable, as the hypervisor does: here it never becomes so.
fn decide(world: &World, driver: &mut Driver<'_>, written: Written) {
    if let Written::NotWritable(what) = written {
        let _ = driver.device.stop(world, Violation::NotWritable { start: what.start, bytes: what.bytes });
    }
}
