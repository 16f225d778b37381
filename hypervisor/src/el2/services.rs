//! Calls that let a guest work on its own stage-2 table: for the payload, off unless `hypercalls=on`.
//!
//! Every argument is the guest's. Ranges and buffers are checked against what it is given, and a call that is refused has
//! changed nothing.

use crate::el2::exceptions::{Frame, Next};
use crate::el2::guest_memory::GuestMemory;
use crate::el2::{abort, cpu, guest_memory, test_services};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use hypervisor_abi::{function, log, permissions, status};
use spin::Mutex;
use stage2::{Error, Event, Ipa, IpaRange, LeafSize, Log, LogOptions, Mechanism, PAGE_SIZE, Permissions, Stage2};

pub type Table = Stage2<guest_memory::Platform>;

/// Whether the guest may call these.
static ENABLED: AtomicBool = AtomicBool::new(false);

/// Lets the guest call them.
pub fn enable() {
    ENABLED.store(true, Relaxed);
}

/// How many of these the guest may call.
pub fn count() -> i64 {
    if ENABLED.load(Relaxed) { 11 + test_services::COUNT } else { 0 }
}

/// Logs at a time.
const LOGS: usize = 4;

type Logs = [Option<Log>; LOGS];

/// Taken before the table's lock. One call at a time: the payload makes them, and nobody else.
static LOGS_OF_GUEST: Mutex<Logs> = Mutex::new([const { None }; LOGS]);

/// Answers the call in `frame`: a whole handler, with nothing left to do behind it.
#[inline(never)]
pub extern "C" fn answer(frame: &mut Frame) -> Next {
    frame.x[0] = call(frame.x[0] as u32, &mut frame.x) as u64;
    Next::RESUME
}

/// Does call `id` with the arguments in `x`, and puts the results there.
#[inline(always)]
fn call(id: u32, x: &mut [u64; 19]) -> i64 {
    if !ENABLED.load(Relaxed) {
        return status::NOT_SUPPORTED;
    }
    let Some(memory) = guest_memory::guest_memory() else { return status::NOT_SUPPORTED };
    let table = &memory.table;
    let mut logs = LOGS_OF_GUEST.lock();
    let result = match id {
        function::FEATURES => {
            let table = table.read();
            let dirty_state = table.has_hardware_dirty_state().into();
            (x[1], x[2], x[3]) = (table.bbm_level() as u64, dirty_state, table.geometry().ipa_bits().into());
            Ok(())
        }
        function::COUNTER => counter(x[1]).map(|count| x[1] = count),
        function::INJECT_ABORT => abort::inject(x[1], x[2], Ipa(x[3])).ok_or(status::INVALID_PARAMETERS),
        function::PROTECT => protect(&table.read(), x),
        function::SPLIT => {
            range(x[1], x[2]).and_then(|range| done(table.read().split(range, size(x[3]).ok_or(INVALID)?)))
        }
        function::COLLAPSE => range(x[1], x[2]).and_then(|range| done(table.write().collapse(range))),
        function::LOG_START => start(&mut logs, &mut table.write(), x),
        function::LOG_HARVEST | function::LOG_PEEK => report(&mut logs, memory, id == function::LOG_HARVEST, x),
        function::LOG_CLEAR => clear(&mut logs, memory, x),
        function::LOG_STOP => stop(&mut logs, &mut table.write(), x),
        _ => test_services::call(id, table, x),
    };
    result.map_or_else(|status| status, |()| status::SUCCESS)
}

const INVALID: i64 = status::INVALID_PARAMETERS;

/// The status that an error of the engine's amounts to.
pub fn done<T>(result: Result<T, Error>) -> Result<T, i64> {
    result.map_err(|error| match error {
        Error::OutOfMemory { .. } => status::NO_MEMORY,
        Error::LogOverlap { .. } | Error::TooManyLogs => status::BUSY,
        Error::NoHardwareDirtyState => status::NOT_SUPPORTED,
        _ => INVALID,
    })
}

pub fn range(start: u64, bytes: u64) -> Result<IpaRange, i64> {
    IpaRange::from_size(Ipa(start), bytes).map_err(|_| INVALID)
}

fn size(code: u64) -> Option<LeafSize> {
    LeafSize::DESCENDING.into_iter().find(|&size| size as u64 == code)
}

fn counter(index: u64) -> Result<u64, i64> {
    let event = usize::try_from(index).ok().and_then(|index| Event::ALL.get(index)).ok_or(INVALID)?;
    Ok(cpu::all().map(|area| area.cpu.stage2.get(*event)).sum())
}

fn protect(table: &Table, x: &[u64; 19]) -> Result<(), i64> {
    const ALL: u64 = permissions::READ | permissions::WRITE | permissions::EXECUTE;
    let has = |bit| x[3] & bit != 0;
    let wanted = Permissions {
        read: has(permissions::READ),
        write: has(permissions::WRITE),
        execute: has(permissions::EXECUTE),
    };
    if x[3] & !ALL != 0 {
        return Err(INVALID);
    }
    let range = range(x[1], x[2])?;
    // Rights to a device's registers are not the guest's to change.
    guest_memory::is_ram_range(range).then_some(()).ok_or(INVALID)?;
    done(table.protect(range, wanted))
}

/// Memory for a log, if there is any: a guest's wish is no reason to run out of it.
fn zeroed<T: Default>(words: usize) -> Result<Box<[T]>, i64> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(words).map_err(|_| status::NO_MEMORY)?;
    memory.resize_with(words, T::default);
    Ok(memory.into_boxed_slice())
}

fn start(logs: &mut Logs, table: &mut Table, x: &mut [u64; 19]) -> Result<(), i64> {
    let range = range(x[1], x[2])?;
    let mechanism = match x[3] & !log::ALL_DIRTY {
        log::WRITE_PROTECT => Mechanism::WriteProtect,
        log::HARDWARE_PAGE => Mechanism::HardwarePage,
        log::HARDWARE_BLOCK => Mechanism::HardwareBlock,
        _ => return Err(INVALID),
    };
    if !guest_memory::is_ram_range(range) {
        return Err(INVALID);
    }
    let (handle, place) = logs.iter_mut().enumerate().find(|(_, log)| log.is_none()).ok_or(status::BUSY)?;
    let storage: &'static [AtomicU64] = Box::leak(zeroed(stage2::Layout::new(range).words())?);
    let options = LogOptions { mechanism, all_dirty: x[3] & log::ALL_DIRTY != 0 };
    match table.start_log(range, storage, options) {
        Ok(log) => {
            *place = Some(log);
            x[1] = handle as u64;
            Ok(())
        }
        Err(error) => {
            release(storage);
            done(Err(error))
        }
    }
}

/// Gives a log's bitmap back.
fn release(storage: &'static [AtomicU64]) {
    let storage = core::ptr::from_ref(storage).cast_mut();
    // SAFETY: it was leaked from a box in `start`, and the engine uses it no more: it never began to, or has given it back.
    drop(unsafe { Box::from_raw(storage) });
}

/// Words of the guest's memory.
struct Buffer {
    words: &'static [AtomicU64],
    /// The pages that they are in.
    pages: IpaRange,
}

impl Buffer {
    /// The `count` words at `address`.
    #[inline(always)]
    fn new(memory: &GuestMemory, address: u64, count: usize) -> Result<Self, i64> {
        let bytes = 8 * count as u64;
        let enough = memory.ram_at(address).is_some_and(|ram| ram.end().0 - address >= bytes);
        if !enough || count == 0 || address == 0 || !address.is_multiple_of(8) {
            return Err(INVALID);
        }
        let (start, end) = (Ipa(address).align_down(PAGE_SIZE), Ipa(address + bytes - 1).align_down(PAGE_SIZE));
        // SAFETY: RAM of the guest's, which EL2 maps where it lies, for good. The guest and this use it at the same time, as
        // atomic words.
        let words = unsafe { core::slice::from_raw_parts(address as *const AtomicU64, count) };
        Ok(Self { words, pages: IpaRange::new(start, end.offset(PAGE_SIZE)).map_err(|_| INVALID)? })
    }
}

fn log_of(logs: &mut Logs, handle: u64) -> Result<&mut Log, i64> {
    usize::try_from(handle).ok().and_then(|handle| logs.get_mut(handle)).and_then(Option::as_mut).ok_or(INVALID)
}

#[inline(always)]
fn report(logs: &mut Logs, memory: &GuestMemory, harvest: bool, x: &mut [u64; 19]) -> Result<(), i64> {
    let log = log_of(logs, x[1])?;
    let needed = log.layout().page_words();
    if x[3] < needed as u64 {
        return Err(INVALID);
    }
    let buffer = Buffer::new(memory, x[2], needed)?;
    let table = memory.table.read();
    (x[1], x[2]) = (0, needed as u64);
    if table.is_clean(log) {
        return Ok(());
    }
    // What the guest may not write it may not have written for it.
    if !table.grants_writes(buffer.pages) {
        return Err(INVALID);
    }
    x[1] = done(match harvest {
        true => table.harvest_into(log, buffer.words),
        false => table.peek_into(log, buffer.words),
    })?;
    // The guest's memory has been written for it.
    table.mark_written(buffer.pages);
    Ok(())
}

#[inline(always)]
fn clear(logs: &mut Logs, memory: &GuestMemory, x: &[u64; 19]) -> Result<(), i64> {
    let log = log_of(logs, x[1])?;
    let words = usize::try_from(x[3]).map_err(|_| INVALID)?.min(log.layout().page_words());
    let buffer = Buffer::new(memory, x[2], words)?;
    done(memory.table.read().clear_from(log, buffer.words))
}

fn stop(logs: &mut Logs, table: &mut Table, x: &[u64; 19]) -> Result<(), i64> {
    let log = logs.get_mut(usize::try_from(x[1]).map_err(|_| INVALID)?).and_then(Option::take).ok_or(INVALID)?;
    let storage = if x[2] & log::KEEP_LEAVES != 0 { table.end_log(log) } else { table.stop_log(log) };
    if let Some(storage) = storage {
        release(storage);
    }
    Ok(())
}
