//! The device as its driver sees it: the register frame, and the rules for what is written there.

mod handshake;
mod quiesce;

use crate::environment::Environment;
use crate::features::{Kind, feature};
use crate::queue::{NotWritable, Queue};
use crate::registers::{MAGIC, VERSION, interrupt, offset, status};
use crate::rings::{MAX_SIZE, Rings};
use crate::saved::{CONFIG_WORDS, QUEUES};
use crate::unusable::Unusable;
use crate::violation::Violation;

/// What came of a store to the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Written {
    /// All is well.
    Done,
    /// The driver, or the device, has broken a rule: the device takes nothing more before a reset. The driver was told.
    Stopped(Violation),
    /// A segment, or a used ring, is not writable. Nothing was decided: the caller makes it so and calls [`Device::retry`], or
    /// [`Device::stop`].
    NotWritable(NotWritable),
}

/// How often a device that was told to reset is asked whether it is quiet, at a time.
const PATIENCE: usize = 100;
/// Status bits that a driver writes.
const DRIVERS: u32 = status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK | status::FEATURES_OK | status::FAILED;

/// What the device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// What its driver asks for.
    Working,
    /// Its driver has told it to reset, and it has not yet said that it is quiet.
    Resetting,
    /// The same for [`Device::quiesce`].
    Quiescing,
    /// It is quiet until [`Device::resume`].
    Quiet,
}

/// A mediated device. One caller at a time: it is the lock that orders what is in flight and what is reported.
#[derive(Debug)]
pub struct Device<'m> {
    kind: Kind,
    /// What the driver is offered.
    offered: u64,
    /// What the driver has written.
    accepted: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    status: u32,
    /// InterruptStatus that is not the device's own.
    interrupt: u32,
    /// A rule was broken.
    needs_reset: bool,
    phase: Phase,
    /// The configuration space when the device was last quiesced.
    config: [u32; CONFIG_WORDS],
    violations: u64,
    queues: [Option<Queue<'m>>; QUEUES],
}

impl<'m> Device<'m> {
    /// Takes over the device: resets it, and asks what it can do. `rings` is called for each queue.
    ///
    /// # Errors
    ///
    /// [`Unusable`].
    pub fn new(environment: &impl Environment, mut rings: impl FnMut() -> Option<Rings<'m>>) -> Result<Self, Unusable> {
        let read = |offset| environment.read_register(offset, 4);
        let write = |offset, value| environment.write_register(offset, 4, value);
        if read(offset::MAGIC_VALUE) != MAGIC {
            return Err(Unusable::NoTransport);
        }
        match read(offset::VERSION) {
            VERSION => {}
            other => return Err(Unusable::Version(other)),
        }
        let kind = match read(offset::DEVICE_ID) {
            0 => return Err(Unusable::NoDevice),
            id => Kind::of_id(id).ok_or(Unusable::Kind(id))?,
        };
        write(offset::STATUS, 0);
        if !is_quiet(environment) {
            return Err(Unusable::NoReset);
        }
        let half = |select| {
            write(offset::DEVICE_FEATURES_SEL, select);
            u64::from(read(offset::DEVICE_FEATURES))
        };
        let features = half(0) | half(1) << 32;
        if features & feature::VERSION_1 == 0 {
            return Err(Unusable::Legacy);
        }
        let mut queues = [const { None }; QUEUES];
        for (number, slot) in (0..).zip(queues.iter_mut().take(kind.queues())) {
            write(offset::QUEUE_SEL, number);
            let max = read(offset::QUEUE_NUM_MAX).min(MAX_SIZE.into()) as u16;
            if max == 0 || read(offset::QUEUE_READY) != 0 {
                return Err(Unusable::Queue(number));
            }
            *slot = Some(Queue::new(rings().ok_or(Unusable::NoMemory)?, max));
        }
        Ok(Self {
            kind,
            offered: features & kind.allowed(),
            accepted: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            status: 0,
            interrupt: 0,
            needs_reset: false,
            phase: Phase::Working,
            config: [0; CONFIG_WORDS],
            violations: 0,
            queues,
        })
    }

    /// What kind of device it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// How many rules were broken so far.
    #[must_use]
    pub const fn violations(&self) -> u64 {
        self.violations
    }

    /// What a load of `bytes` bytes at `at` of the frame returns. A width or an alignment that a register does not have reads as
    /// 0, as does what is not there.
    // Inlined, as `write` is: each has one caller that counts, an exit of the guest's.
    #[inline(always)]
    pub fn read(&mut self, environment: &impl Environment, at: u64, bytes: u8) -> u64 {
        if !at.is_multiple_of(bytes.max(1).into()) {
            return 0;
        }
        match (at, bytes) {
            (offset::CONFIG.., 1 | 2 | 4) => environment.read_register(at, bytes).into(),
            (offset::CONFIG.., 8) => {
                let halves = [at, at + 4].map(|at| u64::from(environment.read_register(at, 4)));
                halves[0] | halves[1] << 32
            }
            (..offset::CONFIG, 4) => self.read_word(environment, at).into(),
            _ => 0,
        }
    }

    fn read_word(&mut self, environment: &impl Environment, at: u64) -> u32 {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        match at {
            offset::INTERRUPT_STATUS => {
                let own = environment.read_register(offset::INTERRUPT_STATUS, 4);
                (own | self.interrupt) & (interrupt::USED_BUFFER | interrupt::CONFIGURATION)
            }
            offset::MAGIC_VALUE => MAGIC,
            offset::VERSION => VERSION,
            offset::DEVICE_ID => self.kind.id(),
            offset::VENDOR_ID | offset::CONFIG_GENERATION => environment.read_register(at, 4),
            offset::DEVICE_FEATURES => half(self.offered, self.device_features_select),
            offset::QUEUE_NUM_MAX => self.selected().map_or(0, |queue| queue.max.into()),
            offset::QUEUE_READY => self.selected().is_some_and(|queue| queue.is_ready()).into(),
            offset::STATUS => self.read_status(environment),
            // There is no shared memory: a length of all ones says so (4.2.2).
            offset::SHM_LEN_LOW..=offset::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    /// Does what a store of `bytes` bytes at `at` of the frame asks for. What has another width than a register, or a
    /// place where there is none, does nothing.
    #[inline(always)]
    pub fn write(&mut self, environment: &impl Environment, at: u64, bytes: u8, value: u64) -> Written {
        let value = value as u32;
        match (at, bytes) {
            (offset::QUEUE_NOTIFY, 4) => return self.notify(environment, value),
            (offset::INTERRUPT_ACK, 4) => return self.acknowledge(environment, value),
            (offset::STATUS, 4) => self.write_status(environment, value),
            // A device that is being reset forgets the rest; the caller keeps the driver from one that is held.
            _ if self.phase != Phase::Working => {}
            (offset::CONFIG.., 1) if self.kind.may_write_config(at - offset::CONFIG, bytes, self.accepted) => {
                environment.write_register(at, bytes, value & 0xff);
            }
            (offset::QUEUE_READY, 4) => return self.write_ready(environment, value),
            (..offset::CONFIG, 4) if at.is_multiple_of(4) => self.write_word(at, value),
            _ => {}
        }
        Written::Done
    }

    fn write_word(&mut self, at: u64, value: u32) {
        match at {
            offset::DEVICE_FEATURES_SEL => self.device_features_select = value,
            offset::DRIVER_FEATURES_SEL => self.driver_features_select = value,
            // They are settled with FEATURES_OK.
            offset::DRIVER_FEATURES if self.status & status::FEATURES_OK == 0 => match self.driver_features_select {
                0 => set_low(&mut self.accepted, value),
                1 => set_high(&mut self.accepted, value),
                // None of these is known.
                _ => {}
            },
            offset::QUEUE_SEL => self.queue_select = value,
            _ => {
                let Some(queue) = self.selected_mut().filter(|queue| queue.is_idle()) else { return };
                let placement = &mut queue.placement;
                match at {
                    offset::QUEUE_NUM => placement.size = value,
                    offset::QUEUE_DESC_LOW => set_low(&mut placement.descriptors, value),
                    offset::QUEUE_DESC_HIGH => set_high(&mut placement.descriptors, value),
                    offset::QUEUE_DRIVER_LOW => set_low(&mut placement.driver, value),
                    offset::QUEUE_DRIVER_HIGH => set_high(&mut placement.driver, value),
                    offset::QUEUE_DEVICE_LOW => set_low(&mut placement.device, value),
                    offset::QUEUE_DEVICE_HIGH => set_high(&mut placement.device, value),
                    _ => {}
                }
            }
        }
    }

    fn selected(&self) -> Option<&Queue<'m>> {
        self.queues.get(self.queue_select as usize)?.as_ref()
    }

    fn selected_mut(&mut self) -> Option<&mut Queue<'m>> {
        self.queues.get_mut(self.queue_select as usize)?.as_mut()
    }

    /// Whether the driver may hand over buffers.
    fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && !self.needs_reset && self.phase == Phase::Working
    }

    fn write_ready(&mut self, environment: &impl Environment, value: u32) -> Written {
        let live = self.status & status::DRIVER_OK != 0;
        let agreed = self.status & status::FEATURES_OK != 0 && !self.needs_reset;
        let select = self.queue_select;
        let Some(queue) = self.selected_mut() else { return Written::Done };
        if value == 0 {
            queue.take_back(live);
            if queue.is_idle() {
                environment.write_register(offset::QUEUE_SEL, 4, select);
                environment.write_register(offset::QUEUE_READY, 4, 0);
            }
            return Written::Done;
        }
        if !agreed || !queue.is_idle() {
            return Written::Done;
        }
        let rings = match queue.make_ready(environment) {
            Ok(rings) => rings,
            Err(Violation::NotWritable { start, bytes }) => {
                return Written::NotWritable(NotWritable { queue: select, start, bytes });
            }
            Err(violation) => return self.stop(environment, violation),
        };
        let size = queue.placement.size;
        give_rings(environment, select, size, rings);
        Written::Done
    }

    /// Takes what has become available in a queue, as a store to QueueNotify asks for.
    pub fn notify(&mut self, environment: &impl Environment, number: u32) -> Written {
        if !self.is_live() {
            return Written::Done;
        }
        let queue = self.queues.get_mut(number as usize).and_then(Option::as_mut);
        let Some(queue) = queue.filter(|queue| queue.is_ready()) else { return Written::Done };
        let (any, result) = queue.feed(environment);
        if any {
            // The device that hears of it sees the index.
            environment.order_stores();
            environment.write_register(offset::QUEUE_NOTIFY, 4, number);
        }
        match result {
            Ok(()) => Written::Done,
            Err(Violation::NotWritable { start, bytes }) => {
                Written::NotWritable(NotWritable { queue: number, start, bytes })
            }
            Err(violation) => self.stop(environment, violation),
        }
    }

    /// Does again what [`Written::NotWritable`] was the answer to: makes the queue ready, or takes what is available in it.
    pub fn retry(&mut self, environment: &impl Environment, what: NotWritable) -> Written {
        let idle = self.queues.get(what.queue as usize).and_then(Option::as_ref).is_some_and(Queue::is_idle);
        if idle && what.queue == self.queue_select {
            self.write_ready(environment, 1)
        } else {
            self.notify(environment, what.queue)
        }
    }

    /// InterruptACK: the device first, and then the rings, so that what it uses meanwhile interrupts anew.
    fn acknowledge(&mut self, environment: &impl Environment, value: u32) -> Written {
        let bits = value & (interrupt::USED_BUFFER | interrupt::CONFIGURATION);
        self.interrupt &= !bits;
        environment.write_register(offset::INTERRUPT_ACK, 4, bits);
        // The store has reached the device when a load behind it has an answer; the rings are loaded after that.
        environment.read_register(offset::INTERRUPT_STATUS, 4);
        environment.order_loads();
        match self.drain_queues(environment) {
            Ok(_) => Written::Done,
            Err(violation) => self.stop(environment, violation),
        }
    }

    fn drain_queues(&mut self, environment: &impl Environment) -> Result<bool, Violation> {
        let mut any = false;
        for queue in self.queues.iter_mut().flatten() {
            any |= queue.drain(environment)?;
        }
        Ok(any)
    }

    /// Hands over what the device has used, for a caller other than the driver: nothing is acknowledged, and InterruptStatus says
    /// that there is something. The device's own interrupt has come or is to come, since its rings always ask for it.
    pub fn drain(&mut self, environment: &impl Environment) -> Written {
        match self.drain_queues(environment) {
            Ok(any) => {
                self.interrupt |= if any { interrupt::USED_BUFFER } else { 0 };
                Written::Done
            }
            Err(violation) => self.stop(environment, violation),
        }
    }

    /// [`Device::drain`], and marks all that the device may write at this moment. What it writes from now on is marked
    /// again: when this is next called, or when it is done with it.
    pub fn report_in_flight(&mut self, environment: &impl Environment) -> Written {
        let result = self.drain(environment);
        // A quiet device writes nothing, and what it may have written before was marked then.
        if self.phase == Phase::Quiet {
            return result;
        }
        self.queues.iter().flatten().for_each(|queue| queue.report_in_flight(environment));
        result
    }

    /// Whether the device, or a drain, may write a byte from `start` to before `end` at this moment.
    #[must_use]
    pub fn may_write(&self, start: u64, end: u64) -> bool {
        self.queues.iter().flatten().any(|queue| queue.may_write(start, end))
    }

    /// Stops the device for breaking a rule: nothing more is fed to it before a reset. What it has it may finish.
    pub fn stop(&mut self, environment: &impl Environment, violation: Violation) -> Written {
        self.violations = self.violations.saturating_add(1);
        let told = core::mem::replace(&mut self.needs_reset, true);
        // A driver that is not there yet finds it in Status (2.1.2).
        if !told && self.status & status::DRIVER_OK != 0 {
            self.interrupt |= interrupt::CONFIGURATION;
            environment.raise_interrupt();
        }
        Written::Stopped(violation)
    }

    /// Ends a reset if the device is quiet; asks it some times, so that no CPU waits for it here.
    fn end_reset(&mut self, environment: &impl Environment) {
        if is_quiet(environment) {
            self.forget(environment);
        }
    }

    /// What a reset means, of a device that is quiet.
    fn forget(&mut self, environment: &impl Environment) {
        // What it has written is marked after it was written.
        environment.order_loads();
        self.queues.iter_mut().flatten().for_each(|queue| queue.abandon(environment));
        (self.status, self.interrupt, self.accepted) = (0, 0, 0);
        (self.device_features_select, self.driver_features_select, self.queue_select) = (0, 0, 0);
        (self.needs_reset, self.phase) = (false, Phase::Working);
    }
}

/// Whether the device, which was told to reset, says that it has.
fn is_quiet(environment: &impl Environment) -> bool {
    (0..PATIENCE).any(|_| environment.read_register(offset::STATUS, 4) == 0)
}

/// Tells the device where the rings of a queue are.
fn give_rings(environment: &impl Environment, number: u32, size: u32, rings: [u64; 3]) {
    // The rings are as they are to be before the device looks at them.
    environment.order_stores();
    environment.write_register(offset::QUEUE_SEL, 4, number);
    environment.write_register(offset::QUEUE_NUM, 4, size);
    let places = [offset::QUEUE_DESC_LOW, offset::QUEUE_DRIVER_LOW, offset::QUEUE_DEVICE_LOW];
    for (place, ring) in places.into_iter().zip(rings) {
        environment.write_register(place, 4, ring as u32);
        environment.write_register(place + 4, 4, (ring >> 32) as u32);
    }
    environment.write_register(offset::QUEUE_READY, 4, 1);
}

fn set_low(whole: &mut u64, half: u32) {
    *whole = *whole & !u64::from(u32::MAX) | u64::from(half);
}

fn set_high(whole: &mut u64, half: u32) {
    *whole = *whole & u64::from(u32::MAX) | u64::from(half) << 32;
}
