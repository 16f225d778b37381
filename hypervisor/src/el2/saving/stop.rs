//! Stopping the guest's CPUs, and what they have then.

use crate::el2::base::cpu::{CpuArea, all, pause, this_area};
use crate::el2::base::firmware;
use crate::el2::base::registers::read_register;
use crate::el2::guest_memory::{self, operations};
use crate::el2::saving::clock::{self, Moment};
use crate::el2::saving::cpu::{GENERAL, State};
use crate::el2::saving::devices::Devices;
use crate::el2::saving::error::Error;
use crate::el2::saving::gic::{Gic, Woken};
use crate::el2::saving::left_out::leave_out;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use hypervisor::cpu_id::CpuId;
use hypervisor::machine::Machine;
use hypervisor::options::Options;
use hypervisor::power_state::Power;
use spin::{Mutex, Once};

/// What a record is of. The numbers stand in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Item {
    /// Physical and virtual count at the stop, and how often the guest had gone on from a save.
    Clock = 1,
    /// A CPU.
    Cpu = 2,
    /// The interrupt controller.
    Gic = 3,
    /// UART and clock.
    Devices = 4,
}

/// What stopping needs to know of the machine.
pub struct Saving {
    pub gic: Gic,
    pub devices: Devices,
    pub slots: Vec<Slot>,
}

/// A CPU of the guest's.
pub struct Slot {
    pub area: &'static CpuArea,
    pub mpidr: u64,
    /// Its bit in lists of the interrupt controller's, once it has been set up.
    target: AtomicU64,
    /// [`STOP`] when it arrived last.
    arrived: AtomicU32,
    /// Written by the CPU itself before it says that it has arrived.
    state: Mutex<State>,
    /// It was woken, which is to be taken back.
    woken: Mutex<Option<Woken>>,
}

static SAVING: Once<Result<Saving, Error>> = Once::new();

/// The bit of the CPU that stops the others, in lists of the interrupt controller's.
static STOPPER: AtomicU64 = AtomicU64::new(0);

/// Odd while the guest is stopped; each stop has a number of its own.
static STOP: AtomicU32 = AtomicU32::new(0);

/// Gets ready to stop the guest, whose CPUs are all but `withheld`. Where this machine's guest cannot be saved, it is said
/// when somebody wants to.
pub fn prepare(machine: &Machine, options: &Options, withheld: Option<u64>) {
    if !options.wants_manager() {
        return;
    }
    leave_out(options.leave_out.clone());
    SAVING.call_once(|| {
        if all().any(|area| area.cpu.id.get().is_some_and(|id| id.has_memory_tags())) {
            return Err(Error::Said("the CPUs have FEAT_MTE2, and tags in memory are not saved: start them without"));
        }
        if all().any(|area| area.cpu.id.get().is_some_and(CpuId::has_sme2)) {
            return Err(Error::Said("the CPUs have FEAT_SME2, and its register ZT0 is not saved: start them without"));
        }
        if !options.grant_dma.is_empty() {
            return Err(Error::Said("grant-dma gives the guest a device whose state nobody knows"));
        }
        let known = all().filter_map(|area| Some((area, area.cpu.id.get()?.affinity())));
        let slots = known.filter(|&(_, mpidr)| Some(mpidr) != withheld).map(|(area, mpidr)| Slot {
            area,
            mpidr,
            target: AtomicU64::new(0),
            arrived: AtomicU32::new(0),
            state: Mutex::new(State::off(mpidr)),
            woken: Mutex::new(None),
        });
        Ok(Saving { gic: Gic::new(&machine.gic)?, devices: Devices::new(machine)?, slots: slots.collect() })
    });
}

pub fn saving() -> Result<&'static Saving, Error> {
    SAVING.get().ok_or(Error::Said("there is no management core"))?.as_ref().map_err(|&why| why)
}

/// How often the guest was stopped on this machine.
pub fn times_stopped() -> u64 {
    (STOP.load(Ordering::Relaxed) / 2).into()
}

/// Whether CPUs are to arrive.
pub fn is_stopping() -> bool {
    STOP.load(Ordering::Acquire) & 1 != 0
}

/// What the executing CPU's slot is, if it is the guest's.
fn own_slot() -> Option<(&'static Saving, &'static Slot)> {
    let saving = saving().ok()?;
    saving.slots.iter().find(|slot| core::ptr::eq(slot.area, this_area())).map(|slot| (saving, slot))
}

/// Notes what the executing CPU is to the interrupt controller. It has been set up for the guest.
pub fn note_cpu() {
    if let Some((saving, slot)) = own_slot() {
        slot.target.store(saving.gic.target(), Ordering::Release);
    }
}

/// The executing CPU has come from the guest with these in x0 to x30, and can do nothing there: it writes down what it has,
/// and waits until it may go on. Nothing of the guest's has changed then.
pub fn arrive(general: &[u64; GENERAL]) {
    let stop = STOP.load(Ordering::Acquire);
    let Some((saving, slot)) = own_slot().filter(|_| stop & 1 != 0) else { return };
    let stopper = STOPPER.load(Ordering::Relaxed);
    saving.gic.is_awake(stopper);
    if slot.state.lock().capture(&saving.gic, stopper, general).is_none() {
        log::error!("saving: CPU {:#x} has more vector registers than there is room for", slot.mpidr);
        return;
    }
    // Release: what it has is there for whoever sees that it has arrived.
    slot.arrived.store(stop, Ordering::Release);
    while STOP.load(Ordering::Acquire) == stop {
        firmware::park_if_stopped();
        pause();
    }
    // What was to wake it may have been sent while it came by itself.
    saving.gic.is_awake(stopper);
}

/// A guest that stands still. It goes on when this is dropped.
#[must_use]
pub struct Stopped {
    /// When all had arrived.
    moment: Moment,
    saving: &'static Saving,
}

/// Stops the guest: its memory stands still, its CPUs have all arrived, and what they have is known.
///
/// # Errors
///
/// Why not; the guest goes on.
pub fn stop_all() -> Result<Stopped, Error> {
    let saving = saving()?;
    let table = guest_memory::table().ok_or(Error::Said("the guest has no memory yet"))?;
    if table.read().is_frozen() {
        return Err(Error::Said("the guest is frozen: thaw it first"));
    }
    for slot in &saving.slots {
        let mut state = slot.state.lock();
        slot.area.cpu.id.get().map_or(Ok(()), |id| state.make_room(id))?;
    }
    STOPPER.store(saving.gic.target(), Ordering::Relaxed);
    // Release: a CPU that sees it finds the room, and who stops it.
    let stop = STOP.fetch_add(1, Ordering::AcqRel) + 1;
    let mut stopped = Stopped { moment: [0; 3], saving };
    operations::freeze(table)?;
    saving.wait_for_all(stop)?;
    stopped.moment = clock::now();
    Ok(stopped)
}

impl Drop for Stopped {
    fn drop(&mut self) {
        guest_memory::table().inspect(|table| operations::thaw(table));
        // Release: what was done for the guest meanwhile comes before it goes on.
        STOP.fetch_add(1, Ordering::Release);
    }
}

impl Saving {
    /// Waits until each CPU is off, or has arrived; wakes those that sleep.
    fn wait_for_all(&self, stop: u32) -> Result<(), Error> {
        /// A CPU that runs comes sooner.
        const SLEEPS_AFTER_MICROSECONDS: u64 = 200;
        let (start, second) = (read_register!("cntpct_el0"), read_register!("cntfrq_el0"));
        // A CPU that was off when it was looked at may have been turned on by one that arrived later: it takes two looks in
        // a row, the second with nobody left who could.
        let mut seen = false;
        let result = loop {
            let missing = self.slots.iter().find(|slot| !slot.stands_still(stop));
            match missing {
                None if seen => break Ok(()),
                None => seen = true,
                Some(slot) => {
                    seen = false;
                    let waited = read_register!("cntpct_el0").wrapping_sub(start);
                    if waited > second {
                        break Err(Error::DoesNotCome { mpidr: slot.mpidr });
                    }
                    let mut woken = slot.woken.lock();
                    if waited > second / 1_000_000 * SLEEPS_AFTER_MICROSECONDS && woken.is_none() {
                        *woken = self.gic.wake(slot.mpidr, slot.target.load(Ordering::Acquire));
                        aarch64_cpu::asm::sev();
                    }
                }
            }
            firmware::park_if_stopped();
            pause();
        };
        self.slots.iter().filter_map(|slot| slot.woken.lock().take()).for_each(Woken::undo);
        if result.is_ok() {
            self.slots.iter().filter(|slot| slot.is_off()).for_each(|slot| slot.state.lock().is_off());
        }
        result
    }
}

impl Slot {
    fn is_off(&self) -> bool {
        self.area.cpu.power.get() == Power::Off
    }

    fn stands_still(&self, stop: u32) -> bool {
        self.is_off() || self.arrived.load(Ordering::Acquire) == stop
    }
}

impl Stopped {
    /// Calls `each` with everything but memory, in any order.
    ///
    /// # Errors
    ///
    /// Those of `each`, or there is no memory for it.
    pub fn collect<E: From<Error>>(&self, mut each: impl FnMut(Item, &[u8]) -> Result<(), E>) -> Result<(), E> {
        each(Item::Clock, self.moment.map(u64::to_le_bytes).as_flattened())?;
        each(Item::Gic, &self.saving.gic.save()?)?;
        each(Item::Devices, &self.saving.devices.save()?)?;
        self.saving.slots.iter().try_for_each(|slot| each(Item::Cpu, &slot.state.lock().record()?))
    }
}
