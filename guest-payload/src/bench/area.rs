//! The memory that is measured on, and calls that must work.

use super::measure::{self, Failure, Timed};
use crate::machine::memory;
use hypervisor_abi::{function, leaf, log, status};
use stage2::Event;

/// Bytes of a block, and of a page.
pub const BLOCK: u64 = 2 << 20;
/// Bytes of a page.
pub const PAGE: u64 = memory::PAGE;

/// A part of the guest's memory, in whole blocks.
#[derive(Clone, Copy)]
pub struct Area {
    /// First address, a multiple of 2 MiB.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A call that succeeds.
///
/// # Errors
///
/// If it does not.
pub fn call(function: u32, arguments: [u64; 3], what: Failure) -> Result<Timed, Failure> {
    let timed = measure::call(function, arguments);
    if timed.answer[0] as i64 == status::SUCCESS { Ok(timed) } else { Err(what) }
}

/// How often something has happened so far, on all CPUs.
pub fn counter(event: Event) -> u64 {
    measure::call(function::COUNTER, [event as u64, 0, 0]).answer[1]
}

/// A log that runs.
pub struct Running {
    handle: u64,
    /// Instructions that starting it took.
    pub start: u64,
    buffer: u64,
    words: u64,
}

impl Area {
    /// `bytes` of memory that nothing is in.
    ///
    /// # Errors
    ///
    /// If there are not as many.
    pub fn allocate(bytes: u64) -> Result<Self, Failure> {
        Self::allocate_aligned(bytes, BLOCK)
    }

    /// The same, at a multiple of `alignment`.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn allocate_aligned(bytes: u64, alignment: u64) -> Result<Self, Failure> {
        let start = memory::allocate(bytes, alignment).ok_or("the machine has too little memory")?;
        Ok(Self { start, bytes })
    }

    /// The first `bytes` of it.
    pub fn first(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// Its blocks.
    pub fn blocks(self) -> impl Iterator<Item = Self> {
        (0..self.bytes / BLOCK).map(move |block| Self { start: self.start + block * BLOCK, bytes: BLOCK })
    }

    /// Number of pages.
    pub fn pages(self) -> u64 {
        self.bytes / PAGE
    }

    /// Makes it blocks of 2 MiB, none of them in a run, whatever it was.
    ///
    /// # Errors
    ///
    /// If a call fails.
    pub fn make_blocks(self) -> Result<(), Failure> {
        self.call(function::COLLAPSE, 0, "collapse failed")?;
        self.call(function::SPLIT, leaf::BLOCK_2M, "split to blocks failed").map(|_| ())
    }

    /// Makes it pages; instructions.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub fn make_pages(self) -> Result<u64, Failure> {
        self.call(function::SPLIT, leaf::PAGE, "split to pages failed")
    }

    /// Collapses it; instructions.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub fn collapse(self) -> Result<u64, Failure> {
        self.call(function::COLLAPSE, 0, "collapse failed")
    }

    /// Sets what may be done to it; instructions.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub fn protect(self, permissions: u64) -> Result<u64, Failure> {
        self.call(function::PROTECT, permissions, "protect failed")
    }

    /// Takes it from the guest and gives it back: instructions of each.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub fn remap(self) -> Result<(u64, u64), Failure> {
        let timed = call(function::REMAP, [self.start, self.bytes, 0], "remap failed")?;
        Ok((timed.answer[1], timed.answer[2]))
    }

    /// Makes all of it one block of 1 GiB.
    ///
    /// # Errors
    ///
    /// If the call fails, or it is none.
    pub fn make_gib(self) -> Result<(), Failure> {
        self.collapse()?;
        let leaf = call(function::LEAF, [self.start, 0, 0], "nothing is mapped")?.answer;
        if (leaf[1], leaf[2]) == (self.start, leaf::BLOCK_1G) { Ok(()) } else { Err("no block of 1 GiB was made") }
    }

    fn call(self, function: u32, argument: u64, what: Failure) -> Result<u64, Failure> {
        Ok(call(function, [self.start, self.bytes, argument], what)?.instructions)
    }

    /// Starts a log by write protection. Its bitmap goes to `buffer`.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub fn log(self, buffer: Area) -> Result<Running, Failure> {
        self.log_by(log::WRITE_PROTECT, buffer)
    }

    /// Starts a log with the [`log`] options `how`. Its bitmap goes to `buffer`.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub fn log_by(self, how: u64, buffer: Area) -> Result<Running, Failure> {
        let words = self.pages() / 64;
        if words * 8 > buffer.bytes {
            return Err("the bitmap's buffer is too small");
        }
        let timed = call(function::LOG_START, [self.start, self.bytes, how], "no log started")?;
        Ok(Running { handle: timed.answer[1], start: timed.instructions, buffer: buffer.start, words })
    }

    /// Stores to the first word of page number `page`; the instructions of the exit.
    pub fn store(self, page: u64) -> u64 {
        assert!(page < self.pages(), "a store outside of the area");
        // SAFETY: the area is memory of the measurements', and nothing is in it.
        unsafe { measure::store(self.start + page * PAGE, page) }
    }
}

impl Running {
    /// Harvests, and makes sure that the bitmap has the right number of pages; instructions.
    ///
    /// # Errors
    ///
    /// If the call fails, or reports another number of pages.
    pub fn harvest(&self, expected: u64) -> Result<u64, Failure> {
        let words = self.buffer as *mut u64;
        for word in 0..self.words as usize {
            let word = words.wrapping_add(word);
            // SAFETY: the buffer is memory of the measurements', and has room for the bitmap (`log`).
            unsafe { word.write_volatile(0) };
        }
        let timed = call(function::LOG_HARVEST, [self.handle, self.buffer, self.words], "harvest failed")?;
        let mut pages = 0;
        for word in 0..self.words as usize {
            let word = words.wrapping_add(word);
            // SAFETY: as above.
            pages += u64::from(unsafe { word.read_volatile() }.count_ones());
        }
        if pages != expected || timed.answer[1] != expected {
            return Err("a harvest reported another number of pages than were written");
        }
        Ok(timed.instructions)
    }

    /// Makes the first 64 pages count as clean; instructions.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub fn clear_first_64(&self) -> Result<u64, Failure> {
        // SAFETY: as in `harvest`.
        unsafe { (self.buffer as *mut u64).write_volatile(u64::MAX) };
        Ok(call(function::LOG_CLEAR, [self.handle, self.buffer, 1], "clear failed")?.instructions)
    }

    /// Ends the log, and leaves the leaves as they are; instructions.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub fn stop(self) -> Result<u64, Failure> {
        Ok(call(function::LOG_STOP, [self.handle, log::KEEP_LEAVES, 0], "stop failed")?.instructions)
    }

    /// Ends the log, and collapses the leaves; instructions.
    ///
    /// # Errors
    ///
    /// If the call fails.
    pub fn stop_and_collapse(self) -> Result<u64, Failure> {
        Ok(call(function::LOG_STOP, [self.handle, 0, 0], "stop failed")?.instructions)
    }
}
