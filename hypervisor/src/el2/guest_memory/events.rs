//! The engine's events in the order in which they happened, for the oracle (`docs/testing.md`).
//!
//! Built with the feature `events`. Each event happens under one lock, so that the order of the records is the order of
//! the events. Without the feature nothing of this is left: each function is its argument.

use hypervisor_abi::events::{Call, Record};
use stage2::IpaRange;

#[cfg(feature = "events")]
pub use kept::{InUse, PLATFORM, attend, is_kept, lost, make_room, prepare, push, take};
#[cfg(not(feature = "events"))]
pub use unkept::{InUse, PLATFORM, attend, is_kept, lost, make_room, prepare, push, take};

/// Bytes of memory for events that the host has not asked for yet.
pub const BYTES: u64 = if cfg!(feature = "events") { 64 << 20 } else { 0 };

/// Calls the engine.
#[inline(always)]
pub fn operation<R>(call: Call, range: Option<IpaRange>, act: impl FnOnce() -> R, ok: impl FnOnce(&R) -> bool) -> R {
    begin(call, range);
    let result = act();
    end(ok(&result));
    result
}

/// A call of the engine begins.
#[inline(always)]
pub fn begin(call: Call, range: Option<IpaRange>) {
    push(|| Record::begin(call, range.map(|range| (range.start().0, range.end().0))));
}

/// It has returned, with success or without.
#[inline(always)]
pub fn end(ok: bool) {
    push(|| Record::end(ok));
}

/// Calls the engine for what may fail.
#[inline(always)]
pub fn fallible<T, E>(call: Call, range: Option<IpaRange>, act: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    operation(call, range, act, Result::is_ok)
}

#[cfg(not(feature = "events"))]
mod unkept {
    use super::Record;
    use crate::el2::guest_memory::platform::Platform;
    use stage2::Mapped;

    /// The platform in use: nothing is recorded.
    pub type InUse = Mapped<Platform>;

    pub const PLATFORM: InUse = Mapped::new(Platform);

    #[inline(always)]
    pub fn push(_: impl FnOnce() -> Record) {}

    #[inline(always)]
    pub fn make_room() {}

    #[inline(always)]
    pub fn prepare() {}

    #[inline(always)]
    pub fn attend(_: bool) {}

    /// Whether events are kept.
    pub const fn is_kept() -> bool {
        false
    }

    pub fn take(_: &mut [u8]) -> usize {
        0
    }

    pub fn lost() -> u64 {
        0
    }
}

#[cfg(feature = "events")]
mod kept {
    use super::{BYTES, Record};
    use crate::el2::base::cpu;
    use crate::el2::base::firmware;
    use crate::el2::base::frames::FRAMES;
    use crate::el2::base::registers::read_register;
    use crate::el2::guest_memory::platform::Platform;
    use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use hypervisor_abi::events::RECORD;
    use hypervisor_abi::recorded::{Recorded, Recorder};
    use spin::Mutex;
    use stage2::{Mapped, PAGE_SIZE};

    const CAPACITY: usize = BYTES as usize / RECORD;

    struct Ring {
        memory: Option<&'static mut [[u8; RECORD]]>,
        /// How many were ever written, and how many the host has.
        written: usize,
        taken: usize,
        /// Events that there was no room for.
        lost: u64,
    }

    static RING: Mutex<Ring> = Mutex::new(Ring { memory: None, written: 0, taken: 0, lost: 0 });
    /// Whether there is a host that takes them.
    static ATTENDED: AtomicBool = AtomicBool::new(false);
    /// Events that the host does not have yet.
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    /// A bit for each CPU that has stored descriptors and executed no DSB since: a CPU that reads them meanwhile orders
    /// them with its own, so that such loads are events too.
    static UNORDERED: AtomicU64 = AtomicU64::new(0);

    /// Takes the memory, if there is any: without it every event is lost.
    pub fn prepare() {
        let mut ring = RING.lock();
        if let Some(first) = FRAMES.allocate(BYTES / PAGE_SIZE, 1) {
            let start = first.0 as *mut [u8; RECORD];
            // SAFETY: the frames are this function's alone, mapped, and hold so many bytes.
            unsafe { start.write_bytes(0, CAPACITY) };
            // SAFETY: as above, initialised, and never freed.
            ring.memory = Some(unsafe { core::slice::from_raw_parts_mut(start, CAPACITY) });
        }
    }

    pub const fn is_kept() -> bool {
        true
    }

    impl Ring {
        fn push(&mut self, record: Record, pe: u8) {
            let used = self.written - self.taken;
            let place = self.memory.as_mut().filter(|_| used < CAPACITY);
            match place.and_then(|memory| memory.get_mut(self.written % CAPACITY)) {
                Some(place) => {
                    *place = record.by(pe).to_bytes();
                    self.written += 1;
                    WAITING.store(used + 1, Ordering::Relaxed);
                }
                None => self.lost += 1,
            }
        }
    }

    /// The executing CPU's place among all.
    fn pe() -> u8 {
        cpu::all().position(|area| core::ptr::eq(area, cpu::this_area())).unwrap_or(0) as u8
    }

    /// The ring, as [`Recorded`] knows it.
    #[derive(Debug)]
    pub struct Events;

    /// The platform in use: [`Platform`], whose events are recorded.
    pub type InUse = Recorded<Mapped<Platform>, Events>;

    pub const PLATFORM: InUse = Recorded::new(Mapped::new(Platform), Events);

    // SAFETY: `load` returns what was loaded last.
    unsafe impl Recorder for Events {
        fn ordered<R>(&self, act: impl FnOnce() -> R, record: impl FnOnce(&R) -> Option<Record>) -> R {
            let pe = pe();
            let mut ring = RING.lock();
            let result = act();
            if let Some(record) = record(&result) {
                if record.orders_stores() {
                    UNORDERED.fetch_and(!(1 << pe), Ordering::SeqCst);
                }
                ring.push(record, pe);
            }
            result
        }

        fn stored<R>(&self, act: impl FnOnce() -> R, record: impl FnOnce(&R) -> Option<Record>) -> R {
            self.ordered(
                || {
                    // Before the store: a CPU that loads what it stored finds the bit.
                    UNORDERED.fetch_or(1 << pe(), Ordering::SeqCst);
                    act()
                },
                record,
            )
        }

        fn load(&self, act: impl Fn() -> u64, record: impl FnOnce(u64) -> Record) -> u64 {
            let pe = pe();
            let others = || UNORDERED.load(Ordering::SeqCst) & !(1 << pe) != 0;
            if !others() {
                let value = act();
                if !others() {
                    return value;
                }
            }
            let mut ring = RING.lock();
            let value = act();
            ring.push(record(value), pe);
            value
        }

        fn push(&self, record: Record) {
            push(|| record);
        }

        /// VTTBR_EL2, bits 63:48.
        fn held_vmid(&self) -> u16 {
            (read_register!("vttbr_el2") >> 48) as u16
        }
    }

    /// Writes something down that is no access of the engine's.
    pub fn push(record: impl FnOnce() -> Record) {
        let pe = pe();
        RING.lock().push(record(), pe);
    }

    /// Waits until the host has taken enough. Not for the management core, which gives it to the host, and not with the
    /// table's lock.
    pub fn make_room() {
        const ENOUGH: usize = CAPACITY / 4 * 3;
        while WAITING.load(Ordering::Relaxed) > ENOUGH && ATTENDED.load(Ordering::Relaxed) {
            firmware::park_if_stopped();
            cpu::pause();
        }
    }

    /// The host is there, or has gone.
    pub fn attend(attended: bool) {
        ATTENDED.store(attended, Ordering::Relaxed);
    }

    /// Moves the oldest records to `bytes`, and says how many bytes they are.
    pub fn take(bytes: &mut [u8]) -> usize {
        let mut ring = RING.lock();
        let mut used = 0;
        while ring.taken < ring.written {
            let taken = ring.taken;
            let record = ring.memory.as_ref().and_then(|memory| memory.get(taken % CAPACITY)).copied();
            let (Some(place), Some(record)) = (bytes.get_mut(used..used + RECORD), record) else { break };
            place.copy_from_slice(&record);
            used += RECORD;
            ring.taken += 1;
        }
        WAITING.store(ring.written - ring.taken, Ordering::Relaxed);
        used
    }

    /// How many events were lost so far.
    pub fn lost() -> u64 {
        RING.lock().lost
    }
}
