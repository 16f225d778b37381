//! Devices that write memory, and that the guest reaches through EL2 only (`mediate=`).
//!
//! What is decided, [`virtio_mediation`] decides; here are the lock of each device, and the ways in: the guest's accesses, what
//! reports dirty pages, and the management core.
//!
//! Order of locks: policies, logs, the table's (shared), a device's. Nobody who holds a device's lock waits for another, and a
//! device's lock is only taken by who reads the table, or needs nothing of it. So a CPU that waits to write the table waits
//! for work that ends. The guest's accesses begin when the table is not frozen, and keep it from being frozen: while it is,
//! nothing is handed to a device, and an audit sees memory that changes only where devices had been let in before.

pub mod hold;
mod host;

use crate::el2::base::registers::read_register;
use crate::el2::base::{firmware, refusal::Refusal};
use crate::el2::guest_memory::table_lock::Table;
use crate::el2::guest_memory::watch::{self, Set};
use crate::el2::guest_memory::{self, GuestMemory};
use alloc::{boxed::Box, vec::Vec};
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering, Ordering::Relaxed};
use host::{Host, Registers};
use hypervisor::machine::Machine;
use hypervisor::options::{Options, Unmarked};
use hypervisor::policy::Policy;
use hypervisor::range::PhysRange;
use spin::{Mutex, MutexGuard};
use stage2::{Error, Ipa};
use virtio_mediation::registers::{FRAME_BYTES, offset};
use virtio_mediation::{Device, NotWritable, Violation, Written};

/// A mediated device, for good.
struct Mediated {
    registers: Registers,
    /// The lock below the table's. What is in flight changes under it alone.
    device: Mutex<Device<'static>>,
    /// Violations that were told of on the console.
    told: AtomicU64,
    /// Marks that are left out, to test that an audit finds it.
    unmarked: Option<Unmarked>,
}

/// Null before [`prepare`] has made them, then theirs for good. Every access of the guest's to a device asks for it, more than
/// once: a pointer is one load, where a `Once` is a state to be looked at before it.
static DEVICES: AtomicPtr<Vec<Mediated>> = AtomicPtr::new(ptr::null_mut());

/// All of them.
#[inline(always)]
fn devices() -> &'static [Mediated] {
    // Acquire: what `prepare` has written is there.
    // SAFETY: null, or what `prepare` has leaked, which nobody changes.
    unsafe { DEVICES.load(Ordering::Acquire).as_ref() }.map_or(&[], Vec::as_slice)
}

/// Takes the devices at these transports over. They are the guest's from now on, by way of EL2.
///
/// # Errors
///
/// A sentence: what cannot be mediated.
pub fn prepare(machine: &Machine, options: &Options) -> Result<(), Refusal> {
    if options.mediate.is_empty() {
        return Ok(());
    }
    let (Some(memory), distributor) = (guest_memory::guest_memory(), machine.gic.distributor()) else { return Ok(()) };
    let mut devices = Vec::new();
    for &address in &options.mediate {
        let registers = Registers::new(machine.mediable(address)?, distributor);
        let table = memory.table.read();
        let device = Device::new(&Host { memory, table: &table, registers: &registers, marks: true }, host::rings)
            .map_err(|why| Refusal(alloc::format!("mediate={address:#x} cannot be done: {why}")))?;
        log::info!("mediation: {:?} device at {address:#x}, by way of EL2", device.kind());
        let unmarked = options.unmarked;
        devices.push(Mediated { registers, device: Mutex::new(device), told: AtomicU64::new(0), unmarked });
    }
    // Release: whoever sees them finds them written.
    DEVICES.store(Box::leak(Box::new(devices)), Ordering::Release);
    Ok(())
}

/// The device in whose frame `ipa` lies, and where there.
#[inline(always)]
fn at(ipa: Ipa) -> Option<(&'static Mediated, u64)> {
    devices().iter().find_map(|device| {
        let offset = ipa.0.wrapping_sub(device.registers.start);
        (offset < FRAME_BYTES).then_some((device, offset))
    })
}

/// Whether the address is in a mediated device's frame.
#[inline(always)]
pub fn has(ipa: Ipa) -> bool {
    at(ipa).is_some()
}

/// An access that is made again once the guest's memory does not stand still any more, or the device goes on: see [`wait`].
/// Nothing of it has happened that may not happen twice.
pub struct Later;

/// Waits for what [`Later`] tells of, at an address in a mediated device's frame, and until something `else_` is to be done.
#[cold]
pub fn wait(ipa: Ipa, else_: impl Fn() -> bool) {
    guest_memory::table().inspect(|table| table.wait_for_thaw(&else_));
    let Some((device, _)) = at(ipa) else { return };
    while device.lock().is_held() && !else_() {
        host::wait();
    }
}

/// What a load of the guest's from a mediated device's frame returns; nothing if `ipa` is in none.
pub fn load(ipa: Ipa, bytes: u8) -> Option<Result<u64, Later>> {
    let (device, offset) = at(ipa)?;
    device.with(|device, host| device.read(host, offset, bytes))
}

/// Does what a store of the guest's to a mediated device's frame asks for; nothing if `ipa` is in none.
pub fn store(ipa: Ipa, bytes: u8, value: u64) -> Option<Result<(), Later>> {
    let (device, offset) = at(ipa)?;
    match device.with(|device, host| device.write(host, offset, bytes, value))? {
        Ok(written) => device.settle(written),
        Err(later) => Some(Err(later)),
    }
}

impl Mediated {
    /// Whether marks of this kind are made.
    #[inline(always)]
    fn marks(&self, kind: Unmarked) -> bool {
        self.unmarked != Some(kind)
    }

    /// Waits for the lock; a CPU that crashed may hold it.
    fn lock(&self) -> MutexGuard<'_, Device<'static>> {
        loop {
            match self.device.try_lock() {
                Some(device) => return device,
                None => host::wait(),
            }
        }
    }

    /// Does something for the guest, unless its memory stands still or the device is held.
    #[inline(always)]
    fn with<R>(&self, act: impl FnOnce(&mut Device<'static>, &Host<'_>) -> R) -> Option<Result<R, Later>> {
        let memory = guest_memory::guest_memory()?;
        let Some(table) = memory.table.read_if_not_frozen() else { return Some(Err(Later)) };
        let mut device = self.lock();
        if device.is_held() {
            return Some(Err(Later));
        }
        Some(Ok(act(&mut device, &self.host(memory, &table))))
    }

    /// Does something, once the guest's memory does not stand still; the device may be held.
    fn with_any<R>(&self, act: impl FnOnce(&mut Device<'static>, &Host<'_>) -> R) -> Option<R> {
        let memory = guest_memory::guest_memory()?;
        let table = memory.table.read_not_frozen();
        Some(act(&mut self.lock(), &self.host(memory, &table)))
    }

    #[inline(always)]
    fn host<'t>(&'t self, memory: &'t GuestMemory, table: &'t Table) -> Host<'t> {
        Host { memory, table, registers: &self.registers, marks: self.marks(Unmarked::Completed) }
    }

    /// What is left to do after a store of the guest's.
    fn settle(&self, written: Written) -> Option<Result<(), Later>> {
        match written {
            Written::Done => {}
            Written::Stopped(violation) => self.tell(violation),
            Written::NotWritable(what) => return self.open(what),
        }
        Some(Ok(()))
    }

    /// A queue has a segment where the table does not let the guest write. Pages whose stores are only reported are opened and
    /// reported, as for a store of the guest's own; for all else the device is stopped.
    #[cold]
    fn open(&self, mut what: NotWritable) -> Option<Result<(), Later>> {
        /// Each time a page is opened that was not open. After some the guest makes its store again, and may be interrupted before.
        const ATTEMPTS: usize = 8;
        for attempt in 0.. {
            if !watch::lets_device_through(Ipa(what.start), what.bytes.into()) {
                break;
            }
            if attempt == ATTEMPTS {
                return Some(Err(Later));
            }
            match self.with(|device, host| device.retry(host, what))? {
                Ok(Written::NotWritable(next)) => what = next,
                Ok(settled) => return self.settle(settled),
                Err(later) => return Some(Err(later)),
            }
        }
        let violation = Violation::NotWritable { start: what.start, bytes: what.bytes };
        match self.with(|device, host| device.stop(host, violation))? {
            Ok(stopped) => self.settle(stopped),
            Err(later) => Some(Err(later)),
        }
    }

    /// Tells of a violation; not of all that a hostile guest can make.
    #[cold]
    fn tell(&self, violation: Violation) {
        const TOLD: u64 = 8;
        let address = self.registers.start;
        match self.told.fetch_add(1, Relaxed) {
            ..TOLD => {
                log::warn!("mediation: the device at {address:#x} is stopped until its driver resets it: {violation}")
            }
            TOLD => log::warn!("mediation: what else is wrong with the device at {address:#x} is only counted"),
            _ => {}
        }
    }
}

/// Marks all that devices may be writing at this moment, after what they have used was handed over. To be called before dirty
/// pages are reported, by a reader of `table`, which may be frozen: then nothing is handed to a device until it is thawed.
/// Whether there are any devices.
pub fn report_in_flight(table: &Table) -> bool {
    let Some(memory) = guest_memory::guest_memory() else { return false };
    for device in devices() {
        let host = |marks| Host { memory, table, registers: &device.registers, marks };
        let mut locked = device.lock();
        let drained = locked.drain(&host(device.marks(Unmarked::Completed)));
        let reported = locked.report_in_flight(&host(device.marks(Unmarked::InFlight)));
        drop(locked);
        let written = if drained == Written::Done { reported } else { drained };
        if let Written::Stopped(violation) = written {
            device.tell(violation);
        }
    }
    !devices().is_empty()
}

/// [`watch::set`], for which devices are asked whether they may be writing to the range.
///
/// # Errors
///
/// As there.
pub fn set_policy(range: PhysRange, policy: Option<Policy>) -> Result<Set, Error> {
    watch::set(range, policy, || devices().iter().any(|device| device.lock().may_write(range.start(), range.end())))
}

/// Hands over what devices have used, for a guest that looks at its rings and touches no register. For the management core, as
/// often as it likes: it waits for nobody.
pub fn poll() {
    /// What a guest that polls may have to wait for longer than on its own: a second's part.
    const PART: u64 = 10_000;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = read_register!("cntpct_el0");
    if devices().is_empty() || now < NEXT.load(Relaxed) {
        return;
    }
    NEXT.store(now.wrapping_add(read_register!("cntfrq_el0") / PART), Relaxed);
    let Some(memory) = guest_memory::guest_memory() else { return };
    let Some(table) = memory.table.try_read().filter(|table| !table.is_frozen()) else { return };
    for device in devices() {
        let marks = device.marks(Unmarked::Completed);
        let host = Host { memory, table: &table, registers: &device.registers, marks };
        let written = device.device.try_lock().map(|mut device| device.drain(&host));
        if let Some(Written::Stopped(violation)) = written {
            device.tell(violation);
        }
    }
}

/// The guest has ended: devices are reset, and what they may have written is marked, so that the last report has it.
pub fn end() {
    for device in devices() {
        let quiet = || {
            let reset = device.with(|device, host| {
                let _ = device.write(host, offset::STATUS, 4, 0);
                device.read(host, offset::STATUS, 4) == 0
            });
            match reset {
                Some(Ok(quiet)) => quiet,
                // The host holds it, and has or will have marked what it wrote.
                Some(Err(Later)) if device.lock().is_held() => true,
                Some(Err(Later)) => {
                    wait(Ipa(device.registers.start), || false);
                    false
                }
                None => true,
            }
        };
        if firmware::wait_until(quiet).is_none() {
            log::warn!("mediation: the device at {:#x} does not become quiet", device.registers.start);
        }
    }
}

/// How often a guest has broken a rule, if there are devices.
pub fn violations() -> Option<u64> {
    let count = |device: &Mediated| device.lock().violations();
    (!devices().is_empty()).then(|| devices().iter().map(count).sum())
}
