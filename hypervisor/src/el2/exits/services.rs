//! Calls that let a guest work on its own stage-2 table: for the payload, off unless `hypercalls=on`.
//!
//! Every argument is the guest's. Ranges and buffers are checked against what it is given, and a call that is refused
//! has changed nothing.

use crate::el2::base::cpu;
use crate::el2::base::registers::{read_register, write_register};
use crate::el2::exits::arguments::{INVALID, done, range};
use crate::el2::exits::frame::{Frame, Next};
use crate::el2::exits::{abort, test_services};
use crate::el2::guest_memory::guest_logs::{Accepted, LOGS, Slot};
use crate::el2::guest_memory::table_lock::{Reading, Table};
use crate::el2::guest_memory::{self, GuestMemory};
use crate::el2::mediation;
use core::sync::atomic::AtomicU64;
use hypervisor::granule::{Granule, PAGE, of_sizes};
use hypervisor::not_frozen::NotFrozen;
use hypervisor_abi::{function, log, permissions, status};
use stage2::{Event, Ipa, IpaRange, LeafSize, LogOptions, Mechanism, Permissions};

/// Answers the call in the frame: a whole handler, with nothing left to do behind it. It is called on CPUs that have
/// the features that it is compiled for.
pub type Service = unsafe extern "C" fn(&mut Frame) -> Next;

/// Services by their numbers from [`function::FEATURES`] on.
pub type Services = [Service; NUMBERS];

/// How many of these the guest may call.
pub fn count() -> i64 {
    let may = guest_memory::guest_memory().is_some_and(|memory| memory.services);
    if may { 11 + test_services::COUNT } else { 0 }
}

/// A whole handler that serves, compiled for a feature if one is named.
macro_rules! handler {
    ([$($feature:literal)?] $ask:ident, $service:expr) => {{
        $(#[target_feature(enable = $feature)])?
        extern "C" fn handler(frame: &mut Frame) -> Next {
            serve::<$ask>(frame, $service)
        }
        handler as Service
    }};
}

/// The table's rows that are compiled for no feature, once: what is called seldom, and `other` for all the rest.
const SELDOM: Services = {
    let mut services: Services = [handler!([] FIRST, other); NUMBERS];
    services[row(function::LOG_PEEK)] = handler!([] ON_FAILURE, |memory, x| report(memory, false, x));
    services[row(function::LOG_STOP)] = handler!([] ON_FAILURE, stop);
    services
};

/// The table: the service that answers each call.
macro_rules! services {
    ($feature:tt) => {{
        let mut services = SELDOM;
        services[row(function::PROTECT)] = handler!($feature FIRST, |memory, x| protect(memory, x));
        services[row(function::LOG_HARVEST)] = handler!($feature ON_FAILURE, |memory, x| report(memory, true, x));
        services[row(function::LOG_CLEAR)] = handler!($feature ON_FAILURE, clear);
        services
    }};
}

const fn row(id: u32) -> usize {
    (id - function::FEATURES) as usize
}

/// For all CPUs.
pub static SERVICES: Services = services!([]);

/// For CPUs with FEAT_LSE.
pub static LSE_SERVICES: Services = services!(["lse"]);

/// Numbers from the first to the last.
pub const NUMBERS: usize = row(function::WATCH_TAKE) + 1;

/// The service that answers call `id`, if it is one of these.
#[inline(always)]
pub fn find(services: &Services, id: u32) -> Option<Service> {
    services.get(id.wrapping_sub(function::FEATURES) as usize).copied()
}

/// When it is asked whether the guest may call a service: before all else.
const FIRST: bool = true;
/// Only where it fails: a call about a log does without services, since then there is no log.
const ON_FAILURE: bool = false;

/// No status: the guest's memory stands still, and the call is to be made again once it does not. Nobody waits for that here, with a
/// lock that others wait for: the CPU is to come to where it waits with all that it has, for it may be about to be saved.
const AGAIN: i64 = i64::MIN;

/// The guest makes its call again.
#[cold]
fn again() -> Next {
    write_register!("elr_el2", read_register!("elr_el2").wrapping_sub(4));
    Next::RESUME
}

/// Has `service` answer the call, if the guest may call it.
#[inline(always)]
fn serve<const ASK_FIRST: bool>(
    frame: &mut Frame,
    service: impl FnOnce(&'static GuestMemory, &mut [u64; 19]) -> Result<(), i64>,
) -> Next {
    let memory = guest_memory::guest_memory();
    let may = |memory: &GuestMemory| memory.services;
    let result = match memory {
        Some(memory) if !ASK_FIRST || may(memory) => service(memory, &mut frame.x),
        _ => Err(status::NOT_SUPPORTED),
    };
    frame.x[0] = match result {
        Ok(()) => status::SUCCESS,
        Err(AGAIN) => return again(),
        Err(status) if ASK_FIRST || memory.is_some_and(may) => status,
        Err(_) => status::NOT_SUPPORTED,
    } as u64;
    Next::RESUME
}

/// All that has no row of its own.
fn other(memory: &'static GuestMemory, x: &mut [u64; 19]) -> Result<(), i64> {
    match x[0] as u32 {
        function::FEATURES => {
            let table = memory.table.read();
            let dirty_state = table.has_hardware_dirty_state().into();
            (x[1], x[2], x[3]) = (table.bbm_level() as u64, dirty_state, table.geometry().ipa_bits().into());
            Ok(())
        }
        function::COUNTER => counter(x[1]).map(|count| x[1] = count),
        function::INJECT_ABORT => abort::inject(x[1], x[2], Ipa(x[3])).ok_or(INVALID),
        function::SPLIT => {
            range(x[1], x[2]).and_then(|range| done(memory.table.read().split(range, size(x[3]).ok_or(INVALID)?)))
        }
        function::COLLAPSE => range(x[1], x[2]).and_then(|range| done(memory.table.write().collapse(range))),
        function::LOG_START => start(memory, x),
        id => test_services::call(id, &memory.table, x),
    }
}

fn size(code: u64) -> Option<LeafSize> {
    of_sizes(LeafSize::DESCENDING).into_iter().find(|&size| size as u64 == code)
}

fn counter(index: u64) -> Result<u64, i64> {
    let event = usize::try_from(index).ok().and_then(|index| Event::ALL.get(index)).ok_or(INVALID)?;
    Ok(cpu::all().map(|area| area.cpu.stage2.get(*event)).sum())
}

#[inline(always)]
fn protect(memory: &GuestMemory, x: &[u64; 19]) -> Result<(), i64> {
    const ALL: u64 = permissions::READ | permissions::WRITE | permissions::EXECUTE;
    let has = |bit| x[3] & bit != 0;
    let wanted = Permissions {
        read: has(permissions::READ),
        write: has(permissions::WRITE),
        execute: has(permissions::EXECUTE).into(),
    };
    if x[3] & !ALL != 0 {
        return Err(INVALID);
    }
    let range = range(x[1], x[2])?;
    // Rights to a device's registers are not the guest's to change.
    memory.is_ram_range(range).then_some(()).ok_or(INVALID)?;
    done(memory.table.read().protect(range, wanted))
}

fn start(memory: &GuestMemory, x: &mut [u64; 19]) -> Result<(), i64> {
    let range = range(x[1], x[2])?;
    let mechanism = match x[3] & !log::ALL_DIRTY {
        log::WRITE_PROTECT => Mechanism::WriteProtect,
        log::HARDWARE_PAGE => Mechanism::HardwarePage,
        log::HARDWARE_BLOCK => Mechanism::HardwareBlock,
        _ => return Err(INVALID),
    };
    if !memory.is_ram_range(range) {
        return Err(INVALID);
    }
    let mut logs = memory.logs.0.lock();
    let (handle, place) = logs.iter_mut().enumerate().find(|(_, slot)| slot.log.is_none()).ok_or(status::BUSY)?;
    let storage = place.storage(stage2::Layout::<Granule>::with_granule(range).words())?;
    let options = LogOptions { mechanism, all_dirty: x[3] & log::ALL_DIRTY != 0 };
    let started = memory.table.write().start_log(range, storage, options);
    match started {
        Ok(log) => {
            place.needed = log.layout().page_words();
            place.log = Some(log);
            x[1] = handle as u64;
            Ok(())
        }
        Err(error) => {
            place.spare = Some(storage);
            done(Err(error))
        }
    }
}

/// The pages that the `count` words at `address` are in, if these are a bitmap that the guest may have.
#[inline(always)]
fn pages_of(memory: &GuestMemory, address: u64, count: usize) -> Result<IpaRange, i64> {
    let bytes = 8 * count as u64;
    let enough = memory.ram_at(address).is_some_and(|ram| ram.end().0 - address >= bytes);
    if !enough || count == 0 || address == 0 || !address.is_multiple_of(8) {
        return Err(INVALID);
    }
    let (start, end) = (Ipa(address).align_down(PAGE), Ipa(address + bytes - 1).align_down(PAGE));
    IpaRange::new(start, end.offset(PAGE)).map_err(|_| INVALID)
}

/// The `count` words at `address`. Nobody but a reader of a table that is not frozen comes to them: while it is, the
/// guest's memory stands still, and an audit relies on that.
///
/// # Safety
///
/// They are RAM of the guest's, which EL2 maps where it lies, for good. The guest and this use it at the same time, as
/// atomic words.
#[inline(always)]
unsafe fn words<'t>(_: &'t NotFrozen<Reading<'_>>, address: u64, count: usize) -> &'t [AtomicU64] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(address as *const AtomicU64, count) }
}

impl Accepted {
    /// Looks at a buffer of `count` words, and remembers it. What the guest may not write it may not have written for
    /// it.
    #[cold]
    #[inline(never)]
    fn look(&mut self, memory: &GuestMemory, table: &Table, address: u64, count: usize, epoch: u64) -> Result<(), i64> {
        *self = Self::NONE;
        let pages = pages_of(memory, address, count)?;
        if !table.grants_writes(pages) {
            return Err(INVALID);
        }
        // With a device that writes memory each harvest looks anew, and so comes here first: what the device may be writing
        // counts as written. Without one this costs nothing.
        let epoch = if mediation::report_in_flight(table) { u64::MAX } else { epoch };
        *self = Self { address, epoch, logged: table.is_logged(pages) };
        Ok(())
    }
}

#[inline(always)]
fn report(memory: &GuestMemory, harvest: bool, x: &mut [u64; 19]) -> Result<(), i64> {
    let mut logs = memory.logs.0.lock();
    let Slot { log: Some(log), needed, accepted, .. } = slot(&mut logs, x[1])? else { return Err(INVALID) };
    let needed = *needed;
    if x[3] < needed as u64 {
        return Err(INVALID);
    }
    let table = memory.table.read_if_not_frozen().ok_or(AGAIN)?;
    let epoch = table.epoch();
    if accepted.address != x[2] || accepted.epoch != epoch {
        accepted.look(memory, &table, x[2], needed, epoch)?;
    }
    // SAFETY: it was looked at, now or before: RAM stays RAM, and a log's number of words stays the same.
    let words = unsafe { words(&table, accepted.address, needed) };
    let added = done(if harvest { table.harvest_into(log, words) } else { table.peek_into(log, words) })?;
    if accepted.logged && added != 0 {
        written(memory, &table, accepted.address, needed)?;
    }
    (x[1], x[2]) = (added, needed as u64);
    Ok(())
}

/// The guest's memory has been written for it.
#[cold]
fn written(memory: &GuestMemory, table: &Table, address: u64, count: usize) -> Result<(), i64> {
    table.mark_written(pages_of(memory, address, count)?);
    Ok(())
}

#[inline(always)]
fn slot(logs: &mut [Slot; LOGS], handle: u64) -> Result<&mut Slot, i64> {
    logs.get_mut(handle as usize).ok_or(INVALID)
}

#[inline(always)]
fn clear(memory: &GuestMemory, x: &mut [u64; 19]) -> Result<(), i64> {
    let mut logs = memory.logs.0.lock();
    let Slot { log: Some(log), needed, .. } = slot(&mut logs, x[1])? else { return Err(INVALID) };
    let count = (x[3] as usize).min(*needed);
    pages_of(memory, x[2], count)?;
    let table = memory.table.read_if_not_frozen().ok_or(AGAIN)?;
    // SAFETY: it was looked at.
    let words = unsafe { words(&table, x[2], count) };
    done(table.clear_from(log, words))
}

fn stop(memory: &GuestMemory, x: &mut [u64; 19]) -> Result<(), i64> {
    let mut logs = memory.logs.0.lock();
    let slot = slot(&mut logs, x[1])?;
    let log = slot.log.take().ok_or(INVALID)?;
    slot.accepted = Accepted::NONE;
    let mut table = memory.table.write();
    let storage =
        if x[2] & log::KEEP_LEAVES != 0 { table.stop_log_keeping_pages(log) } else { table.stop_log_and_collapse(log) };
    drop(table);
    slot.spare = storage;
    Ok(())
}
