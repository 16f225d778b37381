//! A guest that goes on from what was saved: everything is read and checked first, then the machine gets it, then the CPUs
//! start.

use crate::el2::base::cpu::this_cpu;
use crate::el2::base::firmware;
use crate::el2::saving::clock::{self, Moment};
use crate::el2::saving::cpu::State;
use crate::el2::saving::error::Error;
use crate::el2::saving::stop::{Item, saving};
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
    let copy = |bytes: &[u8]| {
        let mut copy = Vec::new();
        copy.try_reserve_exact(bytes.len()).map_err(|_| Error::Said("there is no memory for what was saved"))?;
        copy.extend(bytes);
        Ok::<_, Error>(copy)
    };
    let twice = Error::Said("the file has something twice");
    if item == Item::Clock as u16 {
        let moment = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect::<Vec<_>>();
        let moment = Moment::try_from(moment).map_err(|_| Error::Said("the file's counters are no counters"))?;
        loaded.moment.replace(moment).map_or(Ok(()), |_| Err(twice))
    } else if item == Item::Gic as u16 {
        loaded.gic.replace(copy(bytes)?).map_or(Ok(()), |_| Err(twice))
    } else if item == Item::Devices as u16 {
        loaded.devices.replace(copy(bytes)?).map_or(Ok(()), |_| Err(twice))
    } else if item == Item::Cpu as u16 {
        let state = State::read(bytes, saving.slots.iter().map(|slot| slot.area))?;
        if loaded.cpus.iter().any(|other| other.mpidr() == state.mpidr()) {
            return Err(twice);
        }
        loaded.cpus.push(state);
        Ok(())
    } else {
        Err(Error::Said("the file has something that this hypervisor does not know"))
    }
}

/// Starts the guest that was loaded: its memory is there, and everything else was given to [`apply`]. `ready` is called before its
/// first instruction, when its devices have all they had.
///
/// # Errors
///
/// Where something is missing: nothing has started. Or where the firmware does not start a CPU.
pub fn start(ready: impl FnOnce()) -> Result<(), Error> {
    let saving = saving()?;
    let (on, moment) = {
        let loaded = LOADED.lock();
        let missing = Error::Said("the file lacks a part of the guest's state");
        let (Some(moment), Some(gic), Some(devices)) = (loaded.moment, &loaded.gic, &loaded.devices) else {
            return Err(missing);
        };
        let on: Vec<u64> = loaded.cpus.iter().filter(|state| state.is_on()).map(State::mpidr).collect();
        if loaded.cpus.len() != saving.slots.len() || on.is_empty() {
            return Err(missing);
        }
        saving.gic.restore(gic)?;
        saving.devices.restore(devices)?;
        (on, moment)
    };
    clock::go_on_from(moment);
    ready();
    for slot in saving.slots.iter().filter(|slot| on.contains(&slot.mpidr)) {
        let not_started = Error::NotStarted { mpidr: slot.mpidr };
        let power = &slot.area.cpu.power;
        // It goes on where it was, so these two are not used.
        let ticket = power.turn_on(0, 0).map_err(|_| not_started)?;
        firmware::start(slot.area, slot.mpidr, || power.is_pending(ticket)).map_err(|_| not_started)?;
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
