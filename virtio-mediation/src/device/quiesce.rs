//! A device is held quiet: for a save, or for the last harvest of a log. Then it goes on as if nothing had been.
//!
//! A reset is what makes a device quiet: QueueReady says nothing of requests that are on their way, and a network card's
//! receive buffers never come back by themselves. So what the device had is kept, in its order, and posted again after the
//! handshake is repeated: status, features, queues. A request that the device was at work on is then made twice, as when a
//! machine is migrated with requests in flight; a driver has no two requests in flight of which the order matters.

use super::{DRIVERS, Device, Phase, Written, give_rings, is_quiet};
use crate::environment::Environment;
use crate::features::{WRITEBACK, feature};
use crate::registers::{interrupt, offset, status};
use crate::saved::{CONFIG_WORDS, Saved, SavedQueue};
use crate::unusable::Unusable;
use crate::violation::Violation;
use core::task::Poll;

impl Device<'_> {
    /// Makes the device write nothing more: nothing is fed to it, it is reset, and what it has used is handed to the driver; all
    /// that it may have written is marked. [`Poll::Pending`]: it is not quiet yet, and the caller asks again.
    ///
    /// From the first call on until [`Device::resume`] the driver's accesses are to wait: stores would be lost.
    pub fn quiesce(&mut self, environment: &impl Environment) -> Poll<Written> {
        if self.phase == Phase::Resetting {
            self.end_reset(environment);
        }
        if self.phase == Phase::Working {
            self.config = self.read_config(environment);
            // What the driver was told of and has not acknowledged; the reset takes it from the device.
            self.interrupt |= environment.read_register(offset::INTERRUPT_STATUS, 4)
                & (interrupt::USED_BUFFER | interrupt::CONFIGURATION);
            environment.write_register(offset::STATUS, 4, 0);
            self.phase = Phase::Quiescing;
        }
        if self.phase == Phase::Quiescing && is_quiet(environment) {
            // What it has written is marked after it was written.
            environment.order_loads();
            let written = self.drain(environment);
            for queue in self.queues.iter_mut().flatten() {
                // A queue that is not to be fed before a reset has had it now.
                if queue.is_ready() && !self.needs_reset {
                    queue.report_in_flight(environment);
                } else if !queue.is_idle() {
                    queue.abandon(environment);
                }
            }
            self.phase = Phase::Quiet;
            return Poll::Ready(written);
        }
        if self.phase == Phase::Quiet { Poll::Ready(Written::Done) } else { Poll::Pending }
    }

    /// Whether the device is quiet, or to be, until [`Device::resume`].
    #[must_use]
    pub const fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Quiescing | Phase::Quiet)
    }

    /// How many queues a device of its kind has.
    #[must_use]
    pub fn queues(&self) -> u32 {
        self.kind.queues() as u32
    }

    /// Lets a device that is held go on: repeats the handshake as far as its driver had come, and posts what the device had. The
    /// caller then [notifies](Device::notify) each queue, for what the driver has made available meanwhile.
    pub fn resume(&mut self, environment: &impl Environment) -> Written {
        if !self.is_held() {
            return Written::Done;
        }
        if self.phase == Phase::Quiescing && self.quiesce(environment).is_pending() {
            self.phase = Phase::Working;
            return self.stop(environment, Violation::NotQuiet);
        }
        self.phase = Phase::Working;
        // A device that waits for its driver to reset it has nothing to do until then.
        let result = if self.needs_reset { Ok(()) } else { self.repeat_handshake(environment) };
        if self.status & status::DRIVER_OK != 0 {
            if self.config != self.read_config(environment) {
                self.interrupt |= interrupt::CONFIGURATION;
            }
            if self.interrupt != 0 {
                environment.raise_interrupt();
            }
        }
        match result {
            Ok(()) => Written::Done,
            Err(violation) => self.stop(environment, violation),
        }
    }

    fn repeat_handshake(&mut self, environment: &impl Environment) -> Result<(), Violation> {
        let agreed = self.status & status::FEATURES_OK != 0;
        let mut so_far = self.status & !(status::FEATURES_OK | status::DRIVER_OK);
        if self.status != 0 {
            environment.write_register(offset::STATUS, 4, so_far);
        }
        if agreed {
            so_far |= status::FEATURES_OK;
            let taken = self.settle_features(environment);
            environment.write_register(offset::STATUS, 4, so_far);
            if !taken || environment.read_register(offset::STATUS, 4) & status::FEATURES_OK == 0 {
                return Err(Violation::Features);
            }
        }
        for (number, queue) in (0..).zip(self.queues.iter_mut().flatten()).filter(|(_, queue)| queue.is_ready()) {
            let rings = queue.post_again(environment);
            give_rings(environment, number, queue.placement.size, rings);
        }
        if so_far != self.status {
            environment.write_register(offset::STATUS, 4, self.status);
        }
        if self.kind.may_write_config(WRITEBACK, 1, self.accepted) && agreed {
            let [.., word] = self.config;
            environment.write_register(offset::CONFIG + WRITEBACK, 1, word & 0xff);
        }
        if self.status & status::DRIVER_OK != 0 {
            // The device hears of it after it sees the indices, which came before the rings were given to it.
            let ready = (0..).zip(self.queues.iter().flatten()).filter(|(_, queue)| queue.is_ready());
            ready.for_each(|(number, _)| environment.write_register(offset::QUEUE_NOTIFY, 4, number));
        }
        Ok(())
    }

    /// The words of the configuration space that have a meaning.
    fn read_config(&self, environment: &impl Environment) -> [u32; CONFIG_WORDS] {
        let mut config = [0; CONFIG_WORDS];
        for (at, word) in (offset::CONFIG..).step_by(4).zip(config.iter_mut().take(self.kind.config_words())) {
            *word = environment.read_register(at, 4);
        }
        config
    }

    /// What is to be kept of a quiet device; nothing if it is not quiet.
    #[must_use]
    pub fn save(&self) -> Option<Saved> {
        let queue = |queue: &Option<_>| queue.as_ref().map_or_else(SavedQueue::default, super::Queue::save);
        (self.phase == Phase::Quiet).then(|| Saved {
            kind: self.kind.id(),
            offered: self.offered,
            accepted: self.accepted,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            status: self.status,
            interrupt: self.interrupt,
            needs_reset: self.needs_reset,
            violations: self.violations,
            config: self.config,
            queues: self.queues.each_ref().map(queue),
        })
    }

    /// Gives a saved state to a device that was just taken over, or is quiet. It is quiet from then on: [`Device::resume`] lets it
    /// go on. The guest's memory is already what it was: the chains of what was in flight are read there, and checked.
    ///
    /// # Errors
    ///
    /// [`Unusable`]: the device is as after a reset, and what it had before counts as written.
    pub fn restore(&mut self, environment: &impl Environment, saved: &Saved) -> Result<(), Unusable> {
        let fresh = self.phase == Phase::Working && self.status == 0;
        if !fresh && self.phase != Phase::Quiet {
            return Err(Unusable::InUse);
        }
        self.forget(environment);
        let result = self.take_over(environment, saved);
        if result.is_err() {
            self.forget(environment);
        }
        result
    }

    fn take_over(&mut self, environment: &impl Environment, saved: &Saved) -> Result<(), Unusable> {
        if saved.kind != self.kind.id() {
            return Err(Unusable::OtherKind(saved.kind));
        }
        // What the driver was offered, it may accept at any time.
        if saved.offered & !self.offered != 0 {
            return Err(Unusable::OtherFeatures(saved.offered & !self.offered));
        }
        let has = |bit| saved.status & bit != 0;
        let agreed = saved.accepted & !saved.offered == 0 && saved.accepted & feature::VERSION_1 != 0;
        let works = has(status::DRIVER_OK) || saved.queues.iter().any(|queue| queue.ready);
        // Nothing is fed to a device whose driver is not there.
        let fed = saved.queues.iter().any(|queue| !queue.heads.is_empty());
        if has(!DRIVERS)
            || fed && !has(status::DRIVER_OK)
            || works && !has(status::FEATURES_OK)
            || has(status::FEATURES_OK) && !agreed
        {
            return Err(Unusable::NoState(Violation::Features));
        }
        for (queue, saved) in self.queues.iter_mut().zip(&saved.queues) {
            match queue {
                Some(queue) => queue.restore(environment, saved).map_err(Unusable::NoState)?,
                None if saved.ready => return Err(Unusable::NoState(Violation::Ring(saved.placement.device))),
                None => {}
            }
        }
        self.offered = saved.offered;
        self.accepted = saved.accepted;
        self.device_features_select = saved.device_features_select;
        self.driver_features_select = saved.driver_features_select;
        self.queue_select = saved.queue_select;
        self.status = saved.status;
        self.interrupt = saved.interrupt & (interrupt::USED_BUFFER | interrupt::CONFIGURATION);
        self.needs_reset = saved.needs_reset;
        self.violations = saved.violations;
        self.config = saved.config;
        self.phase = Phase::Quiet;
        Ok(())
    }
}
