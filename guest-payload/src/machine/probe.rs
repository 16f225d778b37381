//! Single accesses to addresses that may not answer.

use crate::machine::escape::{Escape, Exception, class};
use crate::machine::exceptions::{Caught, catch};
use crate::machine::report::Stop;

core::arch::global_asm!(include_str!("probe.S"));

macro_rules! probes {
    ($($name:ident)*) => {
        unsafe extern "C" {
            $(fn $name(address: u64, value: u64) -> u64;)*
        }
    };
}

probes! {
    probe_read8 probe_read16 probe_read32 probe_read64 probe_read_pair probe_read_acquire probe_read_exclusive
    probe_write8 probe_write16 probe_write32 probe_write64 probe_write_pair probe_write_release probe_write_pre_index
    probe_write_post_index probe_write_exclusive probe_atomic_add probe_atomic_swap probe_atomic_compare probe_zero_block
    probe_execute probe_atomic_compare_other probe_write_without_reservation probe_prefetch_load probe_prefetch_store
    probe_prefetch_fetch probe_translate_read probe_translate_write probe_clean_line probe_clean_and_invalidate_line
    probe_invalidate_line probe_invalidate_instructions
}

/// A kind of access.
#[derive(Clone, Copy)]
pub struct Probe {
    /// What it is called in reports.
    pub name: &'static str,
    function: Caught,
    /// Whether an abort of the access reports a write, in ISS.WnR. Unknown for an external abort of an atomic (Arm ARM,
    /// ESR_ELx, ISS encoding for a Data Abort).
    writes: Option<bool>,
    /// Whether the CPU must have FEAT_LSE.
    pub needs_atomics: bool,
    /// Bytes of instructions before the one that stores.
    skips: u64,
}

const fn probe(name: &'static str, function: Caught, writes: bool) -> Probe {
    Probe { name, function, writes: Some(writes), needs_atomics: false, skips: 0 }
}

const fn atomic(name: &'static str, function: Caught) -> Probe {
    Probe { name, function, writes: None, needs_atomics: true, skips: 0 }
}

/// A byte load.
pub const READ8: Probe = probe("byte load", probe_read8, false);
/// A half-word load.
pub const READ16: Probe = probe("half-word load", probe_read16, false);
/// A word load.
pub const READ32: Probe = probe("word load", probe_read32, false);
/// A double-word load.
pub const READ64: Probe = probe("double-word load", probe_read64, false);
/// A byte store.
pub const WRITE8: Probe = probe("byte store", probe_write8, true);
/// A half-word store.
pub const WRITE16: Probe = probe("half-word store", probe_write16, true);
/// A word store.
pub const WRITE32: Probe = probe("word store", probe_write32, true);
/// A double-word store.
pub const WRITE64: Probe = probe("double-word store", probe_write64, true);
/// A branch to the address.
pub const EXECUTE: Probe =
    Probe { name: "fetch", function: probe_execute, writes: None, needs_atomics: false, skips: 0 };

/// Every kind of data access, all at naturally aligned addresses.
pub const DATA_ACCESSES: [Probe; 20] = [
    READ8,
    READ16,
    READ32,
    READ64,
    probe("load of a pair", probe_read_pair, false),
    probe("load-acquire", probe_read_acquire, false),
    probe("exclusive load", probe_read_exclusive, false),
    WRITE8,
    WRITE16,
    WRITE32,
    WRITE64,
    probe("store of a pair", probe_write_pair, true),
    probe("store-release", probe_write_release, true),
    probe("pre-indexed store", probe_write_pre_index, true),
    probe("post-indexed store", probe_write_post_index, true),
    // Its load faults first.
    Probe { skips: 4, ..probe("exclusive store", probe_write_exclusive, false) },
    atomic("atomic add", probe_atomic_add),
    atomic("atomic swap", probe_atomic_swap),
    Probe { skips: 4, ..atomic("compare and swap", probe_atomic_compare) },
    probe("DC ZVA", probe_zero_block, true),
];

/// What accesses memory without changing what is in it, or without being an access to it at all.
pub const HARMLESS: [Probe; 8] = [
    probe("PRFM PLD", probe_prefetch_load, false),
    probe("PRFM PST", probe_prefetch_store, false),
    probe("PRFM PLI", probe_prefetch_fetch, false),
    probe("AT S1E1R", probe_translate_read, false),
    probe("AT S1E1W", probe_translate_write, false),
    probe("DC CVAC", probe_clean_line, false),
    probe("DC CIVAC", probe_clean_and_invalidate_line, false),
    probe("IC IVAU", probe_invalidate_instructions, false),
];

/// What changes nothing here, but which the architecture treats, or may treat, as a store.
pub const MAY_WRITE: [Probe; 3] = [
    atomic("compare and swap of another value", probe_atomic_compare_other),
    probe("exclusive store without reservation", probe_write_without_reservation, true),
    probe("DC IVAC", probe_invalidate_line, true),
];

impl Probe {
    /// Address of the instruction that makes the access; of an exclusive store, the one behind the load that it needs.
    pub fn instruction(&self) -> u64 {
        self.function as usize as u64 + self.skips
    }

    /// Whether an abort of the access reports a write; unknown for atomics.
    pub fn is_write(&self) -> Option<bool> {
        self.writes
    }

    /// Makes the access.
    ///
    /// # Errors
    ///
    /// The exception that it took.
    ///
    /// # Safety
    ///
    /// If the access succeeds it harms nothing that Rust relies on: the address is a device's or memory that is nobody's.
    pub unsafe fn attempt(&self, address: u64, value: u64) -> Result<u64, Escape> {
        // SAFETY: the caller answers for the access; the probes hold nothing.
        unsafe { catch(self.function, address, value) }
    }

    /// Makes the access to an address that must not answer: a synchronous external abort has to arrive that names the
    /// address. A failure says what arrived instead.
    ///
    /// Returns whether the access was kept off.
    ///
    /// # Safety
    ///
    /// As [`Probe::attempt`].
    pub unsafe fn must_abort(&self, address: u64, value: u64, what: &str) -> bool {
        // SAFETY: the caller's.
        let result = unsafe { self.attempt(address, value) };
        let name = self.name;
        match result {
            Err(Escape::Exception(seen)) => {
                let fetch = self.name == EXECUTE.name;
                let expected_class = if fetch { class::INSTRUCTION_ABORT } else { class::DATA_ABORT };
                let named = seen.esr & FAR_NOT_VALID == 0 && (address..address + 64).contains(&seen.far);
                let right = seen.vector == 0 && seen.is_external_abort() && seen.class() == expected_class;
                let writes = seen.esr & WRITE_NOT_READ != 0;
                check!(
                    right && named && self.writes.is_none_or(|expected| writes == expected),
                    "{name} at {what} {address:#x}: expected an external abort (class {expected_class:#x}, status 0x10, WnR {:?}) there, seen {seen}",
                    self.writes.map(u8::from)
                );
                right
            }
            Err(why) => {
                crate::machine::report::failure(format_args!(
                    "{name} at {what} {address:#x}: expected an external abort, seen {why}"
                ));
                false
            }
            Ok(value) => {
                crate::machine::report::failure(format_args!(
                    "{name} at {what} {address:#x}: expected an external abort, but it went through (x0 {value:#x})"
                ));
                false
            }
        }
    }
}

/// ESR_ELx.FnV.
const FAR_NOT_VALID: u64 = 1 << 10;
/// ESR_ELx.WnR.
const WRITE_NOT_READ: u64 = 1 << 6;

/// Calls a function whose only effect may be an exception, and expects it to return.
///
/// # Errors
///
/// Failed, with the exception in the report.
///
/// # Safety
///
/// As [`catch`].
pub unsafe fn must_work(function: Caught, a: u64, b: u64, what: &str) -> Result<u64, Stop> {
    // SAFETY: the caller's.
    match unsafe { catch(function, a, b) } {
        Ok(value) => Ok(value),
        Err(why) => fail!("{what}: expected it to work, seen {why}"),
    }
}

/// Calls a function that must be undefined. Reports a failure otherwise.
///
/// # Safety
///
/// As [`catch`].
pub unsafe fn must_be_undefined(function: Caught, what: &str) {
    // SAFETY: the caller's.
    match unsafe { catch(function, 0, 0) } {
        Err(Escape::Exception(seen)) if seen.is_undefined() => {}
        Err(why) => {
            crate::machine::report::failure(format_args!("{what}: expected an undefined instruction, seen {why}"))
        }
        Ok(value) => crate::machine::report::failure(format_args!(
            "{what}: expected an undefined instruction, but it worked (x0 {value:#x})"
        )),
    }
}

/// The exception of an attempt, if it took one.
pub fn exception(result: Result<u64, Escape>) -> Option<Exception> {
    result.err().and_then(Escape::exception)
}
