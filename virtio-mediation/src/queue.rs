//! A queue: the guest's rings on one side, the device's on the other.

use crate::environment::Environment;
use crate::rings::{Descriptor, MAX_SIZE, NEXT, Rings, WRITE};
use crate::saved::{Heads, Placement, SavedQueue};
use crate::violation::Violation;
use core::cmp::Reverse;

/// A segment that the device would write where the guest may not, as the guest's table has it; or a used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotWritable {
    /// The queue with the segment.
    pub queue: u32,
    /// The segment's address.
    pub start: u64,
    /// Its length.
    pub bytes: u32,
}

/// The most bytes of a segment that is not counted.
const LARGE: u32 = 32 << 10;

/// A bit for each descriptor.
#[derive(Clone, Copy, Debug, Default)]
struct Bits([u64; MAX_SIZE as usize / 64]);

impl Bits {
    fn has(&self, number: u16) -> bool {
        self.0.get(usize::from(number / 64)).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    fn set(&mut self, number: u16) {
        if let Some(word) = self.0.get_mut(usize::from(number / 64)) {
            *word |= 1 << (number % 64);
        }
    }

    /// Takes a bit out. Whether it was there.
    fn take(&mut self, number: u16) -> bool {
        let had = self.has(number);
        if let Some(word) = self.0.get_mut(usize::from(number / 64)) {
            *word &= !(1 << (number % 64));
        }
        had
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().zip((0u16..).step_by(64)).flat_map(|(&word, first)| {
            let mut left = word;
            core::iter::from_fn(move || {
                let bit = left.trailing_zeros() as u16;
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(first + bit)
            })
        })
    }
}

impl Placement {
    /// The three rings: address, bytes, alignment (2.7).
    fn parts(&self) -> [(u64, u64, u64); 3] {
        let size = u64::from(self.size);
        [(self.descriptors, 16 * size, 16), (self.driver, 6 + 2 * size, 2), (self.device, 6 + 8 * size, 4)]
    }

    fn check(&self, environment: &impl Environment, max: u16) -> Result<(), Violation> {
        if !self.size.is_power_of_two() || self.size > max.into() {
            return Err(Violation::QueueSize(self.size));
        }
        let fits = |(start, bytes, alignment): (u64, u64, u64)| {
            start.is_multiple_of(alignment) && environment.is_ram(start, bytes)
        };
        if let Some((start, ..)) = self.parts().into_iter().find(|&part| !fits(part)) {
            return Err(Violation::Ring(start));
        }
        let [.., (device, bytes, _)] = self.parts();
        let not_writable = Violation::NotWritable { start: device, bytes: bytes as u32 };
        if environment.is_writable(device, bytes) { Ok(()) } else { Err(not_writable) }
    }
}

/// Whether a queue works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The driver has not made it ready.
    Idle,
    /// Its rings are checked, and the device has its own.
    Ready,
    /// The driver has taken it back while the device may still use it: nothing more is fed to it before a reset.
    Stopped,
}

/// A queue.
#[derive(Debug)]
pub(crate) struct Queue<'m> {
    rings: Rings<'m>,
    /// The most descriptors that the driver may choose.
    pub(crate) max: u16,
    /// What the driver has written; while the queue works, what was checked.
    pub(crate) placement: Placement,
    state: State,
    /// How far the guest's available ring was copied.
    available: u16,
    /// How far the device's available ring goes; its low 16 bits are the index there. A device that was quiesced begins anew.
    posted: u32,
    /// How far the device's used ring was copied.
    taken: u16,
    /// How far the guest's used ring goes.
    used: u16,
    /// Descriptors that the device has, or had when it was last looked at.
    in_flight: Bits,
    /// Those of them that a chain begins with.
    heads: Bits,
    /// Bytes of the large segments that the device may write, those that came back since they were counted last included, and the
    /// most that there may be. Buffers of a driver that means well do not overlap, so they are no more than there is memory; and
    /// looking at them takes no longer than looking at that. Of small segments there are no more than descriptors.
    large: u64,
    most: u64,
    /// For each of the heads, what `posted` was.
    order: [u32; MAX_SIZE as usize],
}

impl<'m> Queue<'m> {
    pub(crate) fn new(rings: Rings<'m>, max: u16) -> Self {
        Self {
            rings,
            max,
            placement: Placement::default(),
            state: State::Idle,
            available: 0,
            posted: 0,
            taken: 0,
            used: 0,
            in_flight: Bits::default(),
            heads: Bits::default(),
            large: 0,
            most: 0,
            order: [0; MAX_SIZE as usize],
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Checks what the driver has chosen, and returns where the device's own rings are.
    pub(crate) fn make_ready(&mut self, environment: &impl Environment) -> Result<[u64; 3], Violation> {
        self.placement.check(environment, self.max)?;
        self.most = environment.ram_bytes();
        self.rings.clear();
        (self.available, self.posted, self.taken, self.used) = (0, 0, 0, 0);
        self.state = State::Ready;
        Ok(self.rings.addresses())
    }

    /// The driver takes the queue back; `live` says whether the device may be using it.
    pub(crate) fn take_back(&mut self, live: bool) {
        self.state = match self.state {
            State::Idle => State::Idle,
            // With nothing in flight, as it is before a driver is there: a device might still use what it has.
            State::Ready if !live && self.in_flight.is_empty() => State::Idle,
            State::Ready | State::Stopped => State::Stopped,
        };
    }

    /// Copies what has become available. Says whether the device has got anything, and what ended it.
    ///
    /// What is copied is recorded as in flight before the device can see it. The chain that ends it is not copied.
    pub(crate) fn feed(&mut self, environment: &impl Environment) -> (bool, Result<(), Violation>) {
        // Once: what else the guest puts there meanwhile comes with its own notification.
        let index = environment.load_u16(self.placement.driver.wrapping_add(2));
        let count = index.wrapping_sub(self.available);
        if count == 0 {
            return (false, Ok(()));
        }
        if u32::from(count) > self.placement.size {
            return (false, Err(Violation::IndexJump(count)));
        }
        // The slots and descriptors are loaded after the index that covers them.
        environment.order_loads();
        let begun = self.available;
        let result = (0..count).try_for_each(|_| {
            let slot = self.slot(self.available);
            let head = environment.load_u16(self.placement.driver.wrapping_add(4 + 2 * u64::from(slot)));
            self.copy_chain(environment, head)?;
            self.post(head);
            self.available = self.available.wrapping_add(1);
            Ok(())
        });
        let any = self.available != begun;
        if any {
            self.rings.publish(environment, self.posted as u16);
        }
        (any, result)
    }

    /// Puts a head, whose chain is copied, into the device's available ring. The device does not see it before the index.
    #[inline]
    fn post(&mut self, head: u16) {
        self.rings.set_available(self.slot(self.posted as u16), head);
        if let Some(order) = self.order.get_mut(usize::from(head)) {
            *order = self.posted;
        }
        self.posted = self.posted.wrapping_add(1);
    }

    /// The slot of a ring that `index` leads to. The size is a power of two.
    fn slot(&self, index: u16) -> u16 {
        index & (self.placement.size as u16).wrapping_sub(1)
    }

    fn copy_chain(&mut self, environment: &impl Environment, head: u16) -> Result<(), Violation> {
        let (mut number, mut writes, mut copied) = (head, false, 0);
        // It ends: each descriptor is taken once.
        loop {
            match self.copy(environment, number, writes) {
                Ok(descriptor) if descriptor.has_next() => {
                    (number, writes) = (descriptor.next, descriptor.is_written())
                }
                Ok(_) => break,
                Err(violation) => {
                    self.forget(head, copied);
                    return Err(violation);
                }
            }
            copied += 1;
        }
        self.heads.set(head);
        Ok(())
    }

    /// Copies descriptor `number`; `writes` says whether the one before it is written by the device.
    #[inline]
    fn copy(&mut self, environment: &impl Environment, number: u16, writes: bool) -> Result<Descriptor, Violation> {
        if u32::from(number) >= self.placement.size {
            return Err(Violation::NoSuchDescriptor(number));
        }
        if self.in_flight.has(number) {
            return Err(Violation::InUse(number));
        }
        let at = self.placement.descriptors.wrapping_add(16 * u64::from(number));
        // Each word once: what is checked below is this copy.
        let descriptor = Descriptor::from_words(environment.load_u64(at), environment.load_u64(at.wrapping_add(8)));
        let Descriptor { address: start, bytes, flags, .. } = descriptor;
        if flags & !(NEXT | WRITE) != 0 {
            return Err(Violation::Flags(number));
        }
        if bytes == 0 {
            return Err(Violation::Empty(number));
        }
        if !environment.is_ram(start, bytes.into()) {
            return Err(Violation::Outside { start, bytes });
        }
        if descriptor.is_written() {
            if bytes > LARGE {
                self.count_large(number, bytes)?;
            }
            if !environment.is_writable(start, bytes.into()) {
                return Err(Violation::NotWritable { start, bytes });
            }
        } else if writes {
            return Err(Violation::Order(number));
        }
        self.rings.set_descriptor(number, descriptor);
        self.in_flight.set(number);
        Ok(descriptor)
    }

    /// Counts a large segment before anything looks at all of it.
    #[cold]
    fn count_large(&mut self, number: u16, bytes: u32) -> Result<(), Violation> {
        self.large = self.large.saturating_add(bytes.into());
        if self.large > self.most {
            let has = self.written().map(|descriptor| descriptor.bytes).filter(|&bytes| bytes > LARGE);
            self.large = has.map(u64::from).sum::<u64>() + u64::from(bytes);
        }
        if self.large > self.most { Err(Violation::TooMuch(number)) } else { Ok(()) }
    }

    /// Takes back the first `count` copies of a chain that is not handed over.
    fn forget(&mut self, head: u16, count: u32) {
        let mut number = head;
        for _ in 0..count {
            self.in_flight.take(number);
            number = self.rings.descriptor(number).next;
        }
    }

    /// Hands over to the guest what the device has used. Says whether there was any.
    ///
    /// # Errors
    ///
    /// [`Violation::NotGiven`]; what came before it is handed over.
    pub(crate) fn drain(&mut self, environment: &impl Environment) -> Result<bool, Violation> {
        if self.state == State::Idle {
            return Ok(false);
        }
        let index = self.rings.used_index();
        if index == self.taken {
            return Ok(false);
        }
        // What the device has written is loaded after the index that covers it.
        environment.order_loads();
        let begun = self.used;
        let mut result = Ok(());
        while self.taken != index && result.is_ok() {
            result = self.drain_one(environment);
        }
        if self.used != begun && self.is_ready() {
            let [.., (ring, bytes, _)] = self.placement.parts();
            // The guest that sees the index sees what it covers, the device's data included.
            environment.order_stores();
            // Flags of 0 with it: a driver that leaves out a notification would wait for ever.
            environment.store_u32(ring, u32::from(self.used) << 16);
            environment.mark_written(ring, bytes);
        }
        result.map(|()| self.used != begun)
    }

    #[inline]
    fn drain_one(&mut self, environment: &impl Environment) -> Result<(), Violation> {
        let (id, written) = self.rings.used(self.slot(self.taken));
        let head = u16::try_from(id).ok().filter(|&head| self.heads.take(head)).ok_or(Violation::NotGiven(id))?;
        self.take_chain(environment, head);
        // A queue that was taken back has no ring any more: its memory is the guest's to use.
        if self.is_ready() {
            let at = self.placement.device.wrapping_add(4 + 8 * u64::from(self.slot(self.used)));
            environment.store_u32(at, id);
            environment.store_u32(at.wrapping_add(4), written);
        }
        self.taken = self.taken.wrapping_add(1);
        self.used = self.used.wrapping_add(1);
        Ok(())
    }

    /// The device is done with a chain: all that it was allowed to write counts as written, however much it says that it was.
    fn take_chain(&mut self, environment: &impl Environment, head: u16) {
        let mut number = head;
        while self.in_flight.take(number) {
            let descriptor = self.rings.descriptor(number);
            mark(environment, descriptor);
            if !descriptor.has_next() {
                break;
            }
            number = descriptor.next;
        }
    }

    /// What the device may be writing at this moment.
    fn written(&self) -> impl Iterator<Item = Descriptor> + '_ {
        self.in_flight.iter().map(|number| self.rings.descriptor(number)).filter(|descriptor| descriptor.is_written())
    }

    /// Marks all that the device may be writing.
    pub(crate) fn report_in_flight(&self, environment: &impl Environment) {
        self.written().for_each(|descriptor| mark(environment, descriptor));
    }

    /// Whether the device, or a drain, may write any of these bytes.
    pub(crate) fn may_write(&self, start: u64, end: u64) -> bool {
        let overlaps = |first: u64, bytes: u64| first < end && start < first.saturating_add(bytes);
        let [.., (ring, bytes, _)] = self.placement.parts();
        self.is_ready() && overlaps(ring, bytes)
            || self.written().any(|descriptor| overlaps(descriptor.address, descriptor.bytes.into()))
    }

    /// What the device has, in the order in which it got it.
    pub(crate) fn heads_in_order(&self) -> Heads {
        let age = |head: &u16| self.order.get(usize::from(*head)).map_or(0, |order| self.posted.wrapping_sub(*order));
        let mut heads: Heads = self.heads.iter().collect();
        heads.sort_unstable_by_key(|head| Reverse(age(head)));
        heads
    }

    /// Posts again what the device had before it was reset, from the copies of then. Returns where the rings are.
    pub(crate) fn post_again(&mut self, environment: &impl Environment) -> [u64; 3] {
        let heads = self.heads_in_order();
        self.rings.restart();
        (self.posted, self.taken) = (0, 0);
        heads.iter().for_each(|&head| self.post(head));
        self.rings.publish(environment, self.posted as u16);
        self.rings.addresses()
    }

    /// What is to be kept of it. The device is quiet.
    pub(crate) fn save(&self) -> SavedQueue {
        SavedQueue {
            ready: self.is_ready(),
            placement: self.placement,
            available: self.available,
            used: self.used,
            heads: self.heads_in_order(),
        }
    }

    /// Makes a queue without any state one that was saved. What the device had is copied from the guest's memory, and
    /// checked, as if it came for the first time.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn restore(&mut self, environment: &impl Environment, saved: &SavedQueue) -> Result<(), Violation> {
        self.placement = saved.placement;
        if !saved.ready {
            return Ok(());
        }
        self.make_ready(environment)?;
        (self.available, self.used) = (saved.available, saved.used);
        // Everything that was made available is used, or in flight.
        let in_flight = saved.available.wrapping_sub(saved.used);
        if usize::from(in_flight) != saved.heads.len() || u32::from(in_flight) > saved.placement.size {
            return Err(Violation::IndexJump(in_flight));
        }
        saved.heads.iter().try_for_each(|&head| {
            self.copy_chain(environment, head)?;
            self.post(head);
            Ok(())
        })
    }

    /// The device was reset and is quiet: whatever it had may have been written.
    pub(crate) fn abandon(&mut self, environment: &impl Environment) {
        self.report_in_flight(environment);
        *self = Self::new(self.rings, self.max);
    }
}

fn mark(environment: &impl Environment, descriptor: Descriptor) {
    if descriptor.is_written() {
        environment.mark_written(descriptor.address, descriptor.bytes.into());
    }
}
