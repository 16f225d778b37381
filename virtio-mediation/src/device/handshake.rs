//! The status register: how driver and device agree on features, and what a reset is.

use super::{DRIVERS, Device, Phase, Written};
use crate::environment::Environment;
use crate::features::feature;
use crate::registers::{offset, status};
use crate::violation::Violation;

impl Device<'_> {
    pub(super) fn read_status(&mut self, environment: &impl Environment) -> u32 {
        let own = environment.read_register(offset::STATUS, 4);
        if self.phase == Phase::Resetting {
            self.end_reset(environment);
            // The driver waits for 0.
            return if self.phase == Phase::Resetting { own.max(status::DEVICE_NEEDS_RESET) } else { 0 };
        }
        let needs_reset = if self.needs_reset { status::DEVICE_NEEDS_RESET } else { own & status::DEVICE_NEEDS_RESET };
        self.status | needs_reset
    }

    pub(super) fn write_status(&mut self, environment: &impl Environment, value: u32) {
        if self.is_held() {
            return;
        }
        if value == 0 {
            environment.write_register(offset::STATUS, 4, 0);
            self.phase = Phase::Resetting;
            return self.end_reset(environment);
        }
        if self.phase == Phase::Resetting {
            return;
        }
        // A driver takes no bit back but by a reset (2.1.1).
        let mut status = self.status | value & DRIVERS;
        if status & !self.status & status::FEATURES_OK != 0 && !self.settle_features(environment) {
            status &= !status::FEATURES_OK;
        }
        if status & status::FEATURES_OK == 0 {
            status &= !status::DRIVER_OK;
        }
        environment.write_register(offset::STATUS, 4, status);
        // The device may refuse the features, too.
        if environment.read_register(offset::STATUS, 4) & status::FEATURES_OK == 0 {
            status &= !(status::FEATURES_OK | status::DRIVER_OK);
        }
        self.status = status;
    }

    /// Tells the device what the driver has accepted, if that is what it may.
    pub(super) fn settle_features(&self, environment: &impl Environment) -> bool {
        if self.accepted & !self.offered != 0 || self.accepted & feature::VERSION_1 == 0 {
            return false;
        }
        for (select, half) in [(0, self.accepted as u32), (1, (self.accepted >> 32) as u32)] {
            environment.write_register(offset::DRIVER_FEATURES_SEL, 4, select);
            environment.write_register(offset::DRIVER_FEATURES, 4, half);
        }
        true
    }

    /// What the driver relies on is lost: it is told to reset the device.
    pub fn lose(&mut self, environment: &impl Environment, violation: Violation) -> Written {
        self.status |= status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.stop(environment, violation)
    }
}
