//! A guest that goes on from what was saved: everything is read and checked first, then the machine gets it, then the CPUs
//! start.

use crate::el2::base::cpu::this_cpu;
use crate::el2::base::firmware;
use crate::el2::guest_memory::{self, operations};
use crate::el2::saving::clock::{self, Moment};
use crate::el2::saving::cpu::State;
use crate::el2::saving::error::{Error, NO_MEMORY, copy, room};
use crate::el2::saving::stop::{Item, Saving, saving};
use alloc::vec::Vec;
use spin::Mutex;

/// What has been read.
struct Loaded {
    moment: Option<Moment>,
    gic: Option<Vec<u8>>,
    devices: Option<Vec<u8>>,
    cpus: Vec<State>,
}

static LOADED: Mutex<Loaded> = Mutex::new(Loaded { moment: None, gic: None, devices: None, cpus: Vec::new() });

/// Takes in what [`Stopped::collect`](super::stop::Stopped::collect) has given. Nothing of the guest's changes yet.
///
/// # Errors
///
/// Where it does not fit this machine, or is no sense.
pub fn apply(item: u16, bytes: &[u8]) -> Result<(), Error> {
    let saving = saving()?;
    let mut loaded = LOADED.lock();
    let twice = Error::Said("the file has something twice");
    if item == Item::Clock as u16 {
        let (&[a, b, c], []) = bytes.as_chunks() else {
            return Err(Error::Said("the file's counters are no counters"));
        };
        loaded.moment.replace([a, b, c].map(u64::from_le_bytes)).map_or(Ok(()), |_| Err(twice))
    } else if item == Item::Gic as u16 {
        saving.gic.check(bytes)?;
        loaded.gic.replace(copy(bytes)?).map_or(Ok(()), |_| Err(twice))
    } else if item == Item::Devices as u16 {
        saving.devices.check(bytes)?;
        loaded.devices.replace(copy(bytes)?).map_or(Ok(()), |_| Err(twice))
    } else if item == Item::Cpu as u16 {
        let state = State::read(bytes, saving.slots.iter().map(|slot| slot.area))?;
        if loaded.cpus.iter().any(|other| other.mpidr() == state.mpidr()) {
            return Err(twice);
        }
        loaded.cpus.try_reserve(1).map_err(|_| NO_MEMORY)?;
        loaded.cpus.push(state);
        Ok(())
    } else {
        Err(Error::Said("the file has something that this hypervisor does not know"))
    }
}

/// Whether everything was given to [`apply`] that a guest has.
///
/// # Errors
///
/// Where something is missing.
pub fn is_whole() -> Result<(), Error> {
    LOADED.lock().whole(saving()?).map(|_| ())
}

impl Loaded {
    fn whole(&self, saving: &Saving) -> Result<(Moment, &[u8], &[u8]), Error> {
        match (self.moment, &self.gic, &self.devices) {
            (Some(moment), Some(gic), Some(devices))
                if self.cpus.len() == saving.slots.len() && self.cpus.iter().any(State::is_on) =>
            {
                Ok((moment, gic, devices))
            }
            _ => Err(Error::Said("the file lacks a part of the guest's state")),
        }
    }
}

/// Starts the guest that was loaded: its memory is there, and everything else was given to [`apply`]. `ready` is called before its
/// first instruction, when its devices have all they had.
///
/// # Errors
///
/// Where something is missing: nothing has started. Or where the firmware does not start a CPU: those that it has started stand
/// still, and for ever, for half a guest is none.
pub fn start(ready: impl FnOnce()) -> Result<(), Error> {
    let saving = saving()?;
    let mut on = room(saving.slots.len())?;
    let moment = {
        let loaded = LOADED.lock();
        let (moment, gic, devices) = loaded.whole(saving)?;
        // All of them first: to the first that runs, the others are on their way, as they were on when it was saved.
        for state in loaded.cpus.iter().filter(|state| state.is_on()) {
            let not_started = Error::NotStarted { mpidr: state.mpidr() };
            let slot = saving.slots.iter().find(|slot| slot.mpidr == state.mpidr()).ok_or(not_started)?;
            // It goes on where it was, so these two are not used.
            on.push((slot, slot.area.cpu.power.turn_on(0, 0).map_err(|_| not_started)?));
        }
        saving.gic.restore(gic)?;
        saving.devices.restore(devices)?;
        moment
    };
    clock::go_on_from(moment);
    ready();
    for (slot, ticket) in on {
        let power = &slot.area.cpu.power;
        if firmware::start(slot.area, slot.mpidr, || power.is_pending(ticket)).is_err() {
            guest_memory::table().map_or(Ok(()), |table| operations::freeze(table).map(|_| ()))?;
            return Err(Error::NotStarted { mpidr: slot.mpidr });
        }
    }
    Ok(())
}

/// Goes on where the executing CPU was when the guest was saved, if it was on then and has not done so yet.
pub fn enter_if_saved() {
    let own = this_cpu().id.get().map(|id| id.affinity());
    let state = {
        let mut loaded = LOADED.lock();
        let place = loaded.cpus.iter().position(|state| state.is_on() && Some(state.mpidr()) == own);
        place.map(|place| loaded.cpus.swap_remove(place))
    };
    if let (Some(state), Ok(saving)) = (state, saving()) {
        state.enter(&saving.gic);
    }
}
