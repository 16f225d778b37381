//! Devices are held quiet, for a save or the last harvest of a log: they write nothing, and the guest's accesses to them wait.

use super::{Host, Later, Mediated, devices};
use crate::el2::base::firmware;
use crate::el2::guest_memory::{self, table_lock::TableLock, watch};
use core::fmt;
use core::task::Poll;
use hypervisor::options::Unmarked;
use stage2::Ipa;
use virtio_mediation::{Device, Saved, Unusable, Violation, Written};

/// The most bytes that a device's state takes.
pub const STATE_BYTES: usize = virtio_mediation::SAVED_BYTES;

/// A device that does not become quiet.
#[derive(Clone, Copy)]
pub struct NotQuiet {
    /// Where its registers are.
    pub address: u64,
}

impl fmt::Display for NotQuiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the device at {:#x} was told to reset and is not quiet after a second: its driver has to reset it",
            self.address
        )
    }
}

/// Makes all devices quiet, until [`resume_all`]: what they have used is the guest's, what they may have written is marked, and
/// they write nothing more. The table may be frozen. Nothing happens to those that are quiet already.
///
/// # Errors
///
/// [`NotQuiet`]; the others may be held by then: [`resume_all`] lets them go on.
pub fn quiesce_all(table: &TableLock) -> Result<(), NotQuiet> {
    devices().iter().try_for_each(|device| {
        let quiet = firmware::wait_until(|| device.quiesce(table));
        quiet.ok_or(NotQuiet { address: device.registers.start })
    })
}

/// Lets all devices that are held go on: what they had when they were made quiet, they are given again. Not while the table is
/// frozen: it waits until it no longer is.
pub fn resume_all() {
    for device in devices() {
        let resume = |device: &mut Device<'_>, host: &Host<'_>| (device.is_held(), device.resume(host));
        let Some((held, written)) = device.with_any(resume) else { return };
        if let Written::Stopped(violation) = written {
            device.tell(violation);
        }
        for queue in 0..if held { device.lock().queues() } else { 0 } {
            let notify = || device.settle(device.with_any(|device, host| device.notify(host, queue))?);
            while let Some(Err(Later)) = notify() {}
        }
    }
}

/// How many devices there are, each of which [`save`] gives the state of.
pub fn count() -> usize {
    devices().len()
}

/// Calls `each` with the address of each device's registers and its state, which [`restore`] takes. Whether all are quiet; those
/// that are not are left out.
pub fn save(mut each: impl FnMut(u64, &[u8])) -> bool {
    devices().iter().fold(true, |all, device| {
        let saved = device.lock().save();
        let mut bytes = [0; STATE_BYTES];
        let state = saved.and_then(|saved| postcard::to_slice(&saved, &mut bytes).ok());
        if let Some(state) = &state {
            each(device.registers.start, state);
        }
        all && state.is_some()
    })
}

/// Why a state can't be restored.
#[derive(Clone, Copy)]
pub enum Unrestorable {
    /// There is no such device.
    NoDevice,
    /// The bytes are none of [`save`]'s.
    Rubbish,
    /// What the device says to it.
    Unusable(Unusable),
}

impl fmt::Display for Unrestorable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("no device is mediated at this address: name it with mediate="),
            Self::Rubbish => f.write_str("the bytes are no device's state, or not all of it"),
            Self::Unusable(why) => why.fmt(f),
        }
    }
}

/// Gives the device at `address` a state of [`save`]'s, which need not come from this machine. The guest's memory is what it was
/// then, and no CPU of the guest's runs. The device is held until [`resume_all`].
///
/// # Errors
///
/// [`Unrestorable`]; the device is as after a reset.
pub fn restore(address: u64, state: &[u8]) -> Result<(), Unrestorable> {
    let saved: Saved = postcard::from_bytes(state).map_err(|_| Unrestorable::Rubbish)?;
    let device = devices().iter().find(|device| device.registers.start == address).ok_or(Unrestorable::NoDevice)?;
    let memory = guest_memory::guest_memory().ok_or(Unrestorable::NoDevice)?;
    loop {
        let table = memory.table.read();
        let host = Host { memory, table: &table, registers: &device.registers, marks: true };
        let restored = device.lock().restore(&host, &saved);
        drop(table);
        match restored {
            Ok(()) => return Ok(()),
            // Pages whose stores are only reported are opened, as for a store.
            Err(Unusable::NoState(Violation::NotWritable { start, bytes }))
                if watch::lets_device_through(Ipa(start), bytes.into()) => {}
            Err(why) => return Err(Unrestorable::Unusable(why)),
        }
    }
}

/// The state of the device at `address`, which [`restore`] was to give back to a driver that works, is lost: the driver is told.
pub fn lose(address: u64) {
    let device = devices().iter().find(|device| device.registers.start == address);
    let lost = |device: &Mediated| device.with_any(|device, host| device.lose(host, Violation::Features));
    if let Some((device, Written::Stopped(violation))) = device.and_then(|device| Some((device, lost(device)?))) {
        device.tell(violation);
    }
}

impl Mediated {
    /// Whether the device is quiet by now.
    fn quiesce(&self, lock: &TableLock) -> bool {
        let Some(memory) = guest_memory::guest_memory() else { return true };
        let table = lock.read();
        let host = |marks| Host { memory, table: &table, registers: &self.registers, marks };
        let mut device = self.lock();
        let drained = device.drain(&host(self.marks(Unmarked::Completed)));
        let quiesced = device.quiesce(&host(self.marks(Unmarked::InFlight)));
        drop(device);
        for written in [Poll::Ready(drained), quiesced] {
            if let Poll::Ready(Written::Stopped(violation)) = written {
                self.tell(violation);
            }
        }
        quiesced.is_ready()
    }
}
