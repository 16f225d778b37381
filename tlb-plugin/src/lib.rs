//! A plugin for QEMU 10 that watches what a guest at EL1 and EL0 fetches, loads and stores, and what it invalidates, and feeds
//! [`tlb_model`] with it.
//!
//! Windows are marked by the guest: HINT instructions at EL0 (`Marker`), x0 being the window's number. Outside of windows
//! only those are looked for, at nearly QEMU's own speed. Each window ends as a line of JSON.
//!
//! Everything is called on QEMU's vCPU threads. Under `-icount` that is one thread; otherwise they take turns at a lock.

mod api;
mod machine;
mod ram;
mod settings;

use api::Id;
use machine::Machine;
use settings::Settings;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tlb_model::instruction::{Instruction, decode};
use tlb_model::{Access, Kind, Level};

/// What QEMU looks for to see what it has loaded.
#[unsafe(export_name = "qemu_plugin_version")]
pub static QEMU_PLUGIN_VERSION: c_int = api::VERSION;

/// HINTs that mark windows; the architecture has no use for them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marker {
    /// Watch from now on.
    Watch,
    /// Count in the window that x0 names.
    Open,
    /// Write down what was counted, and watch no more.
    Close,
}

impl Marker {
    /// The marker with this number.
    fn of(hint: u8) -> Option<Self> {
        match hint {
            96 => Some(Self::Watch),
            97 => Some(Self::Open),
            98 => Some(Self::Close),
            _ => None,
        }
    }
}

static MACHINE: OnceLock<Mutex<Machine>> = OnceLock::new();
static ID: AtomicU64 = AtomicU64::new(0);

/// The machine; nothing before the installation, when no callback comes.
fn machine() -> Option<MutexGuard<'static, Machine>> {
    MACHINE.get().map(|machine| machine.lock().unwrap_or_else(PoisonError::into_inner))
}

/// QEMU has loaded the plugin.
///
/// # Safety
///
/// `count` words that end with a zero are at `words`, as QEMU gives them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    count: c_int,
    words: *const *const c_char,
) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the caller's promise; without words there may be no array.
    let words = if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(words, count) } };
    // SAFETY: the caller's promise.
    let words: Vec<_> = words.iter().map(|&word| unsafe { CStr::from_ptr(word) }.to_string_lossy()).collect();
    let settings = Settings::parse(words.iter().map(|word| &**word));
    let made = settings.and_then(|settings| {
        Machine::new(&settings)
            .map_err(|error| format!("{}, {}: {error}", settings.ram.display(), settings.out.display()))
    });
    match made {
        Ok(made) => {
            ID.store(id, Relaxed);
            // QEMU installs once.
            let _ = MACHINE.set(Mutex::new(made));
            api::on_translation(id, translate);
            0
        }
        Err(error) => {
            let line = CString::new(format!("tlb-plugin: {error}\n")).unwrap_or_default();
            eprint!("{}", line.to_string_lossy());
            1
        }
    }
}

/// After the callbacks were forgotten: what is translated is watched, or no more.
extern "C" fn set_up(id: Id) {
    api::on_translation(id, translate);
}

/// Packs a number with an exception level; [`level`] and a shift by two take them apart.
const fn packed(number: u64, level: u64) -> u64 {
    number << 2 | level & 3
}

/// The exception level in what [`packed`] has made; only EL0 and EL1 have the callbacks.
fn level(data: u64) -> Level {
    if data & 3 == 0 { Level::El0 } else { Level::El1 }
}

extern "C" fn translate(_id: Id, block: *mut api::RawBlock) {
    let Some(mut machine) = machine() else { return };
    let Some(level) = machine.level() else { return };
    let is_watching = machine.is_watching() && level <= 2;
    let (mut page, mut start) = (None, None);
    let all: Vec<api::Instruction> = api::instructions(block).collect();
    // EL2's own are not counted: a management core never rests, and would wait for the lock at each block.
    if let Some(first) = all.first().filter(|_| is_watching && level <= 1) {
        first.on_execution(counts, packed(all.len() as u64, level));
    }
    for instruction in all {
        let what = decode(instruction.opcode());
        if let Some(Instruction::Hint(hint)) = what
            && level == 0
            && Marker::of(hint).is_some()
        {
            instruction.on_execution(marked, hint.into());
        }
        if !is_watching {
            continue;
        }
        if level <= 1 {
            let address = instruction.address();
            // QEMU executes a block wherever its page is mapped: what holds is the way from its first instruction.
            let offset = address.wrapping_sub(*start.get_or_insert(address));
            if page.replace(address >> 12) != Some(address >> 12) {
                instruction.on_execution(fetched, packed(offset, level));
            }
            instruction.on_access(accessed, level);
        }
        match what {
            Some(Instruction::Invalidate(..)) => instruction.on_execution(invalidates, instruction.opcode().into()),
            Some(Instruction::SetsRegister) => instruction.on_execution(sets_register, 0),
            Some(Instruction::ZeroesBlock(register)) if level <= 1 => {
                instruction.on_execution(zeroes_block, packed(register.into(), level));
            }
            _ => {}
        }
    }
}

extern "C" fn counts(_vcpu: c_uint, data: *mut c_void) {
    if let Some(mut machine) = machine() {
        let data = data.addr() as u64;
        machine.count(data & 3, data >> 2);
    }
}

extern "C" fn fetched(_vcpu: c_uint, data: *mut c_void) {
    let Some(mut machine) = machine() else { return };
    machine.read_registers();
    let data = data.addr() as u64;
    let va = machine.block_address(data >> 2);
    machine.access(Access { kind: Kind::Fetch, level: level(data), va }, || None);
}

extern "C" fn accessed(_vcpu: c_uint, access: u32, va: u64, data: *mut c_void) {
    let Some(mut machine) = machine() else { return };
    let kind = if api::is_store(access) { Kind::Store } else { Kind::Load };
    let what = Access { kind, level: level(data.addr() as u64), va };
    machine.access(what, || api::physical_address(access, va));
}

extern "C" fn zeroes_block(_vcpu: c_uint, data: *mut c_void) {
    let Some(mut machine) = machine() else { return };
    let data = data.addr() as u64;
    let va = machine.general((data >> 2) as u8);
    machine.access(Access { kind: Kind::Store, level: level(data), va }, || None);
}

extern "C" fn invalidates(_vcpu: c_uint, data: *mut c_void) {
    let Some(mut machine) = machine() else { return };
    if let Some(Instruction::Invalidate(operation, register)) = decode(data.addr() as u32) {
        let what = operation.with(machine.general(register));
        machine.invalidate(what);
    }
}

extern "C" fn sets_register(_vcpu: c_uint, _data: *mut c_void) {
    if let Some(mut machine) = machine() {
        machine.registers_change();
    }
}

extern "C" fn marked(_vcpu: c_uint, data: *mut c_void) {
    let Some(mut machine) = machine() else { return };
    match Marker::of(data.addr() as u8) {
        Some(Marker::Watch) => machine.watch(),
        Some(Marker::Open) => {
            let window = machine.general(0);
            return machine.open(window);
        }
        Some(Marker::Close) => machine.close(),
        None => return,
    }
    drop(machine);
    // Code is translated anew, with callbacks or without.
    api::reset(ID.load(Relaxed), set_up);
}
