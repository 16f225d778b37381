//! The hypervisor's calls that work on the guest's own stage-2 table, as tests use them.

use crate::calls::hypercall;
use crate::machine::conduit::call;
use crate::machine::memory::{self, PAGE};
use crate::machine::report::{self, Outcome, Stop};
use crate::machine::{self, Conduit};
use crate::options::{self, MODES};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use hypervisor_abi::{function, leaf as size, log, permissions, status};
use stage2::Event;

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// What a page of RAM may be used for unless something is protected.
pub const ALL: u64 = permissions::READ | permissions::WRITE | permissions::EXECUTE;

/// Whether a test may have left something behind that [`reset`] has to undo.
static USED: AtomicBool = AtomicBool::new(false);

/// Calls a function of the hypervisor's, and returns x0 to x3.
pub fn hvc(function: u32, arguments: [u64; 3]) -> [u64; 4] {
    let [x1, x2, x3] = arguments;
    call(Conduit::Hvc, function, [x1, x2, x3, 0])
}

/// Calls a function whose only answer is a status.
pub fn status_of(function: u32, arguments: [u64; 3]) -> i64 {
    hvc(function, arguments)[0] as i64
}

/// Whether the hypervisor is there, with these calls on.
pub fn available() -> bool {
    hypercall::present() && status_of(function::FEATURES, [0; 3]) == status::SUCCESS
}

/// What the tests that need these calls return early with.
///
/// # Errors
///
/// As [`hypercall::required`]; skipped also if the calls are switched off.
pub fn required() -> Outcome {
    hypercall::required()?;
    if !available() {
        skip!("the hypervisor was started without hypercalls=on");
    }
    USED.store(true, Relaxed);
    Ok(())
}

/// The FEAT_BBM level that sizes change by.
pub fn bbm_level() -> u64 {
    hvc(function::FEATURES, [0; 3])[1]
}

/// How often an event was counted on all CPUs.
pub fn counter(event: Event) -> u64 {
    hvc(function::COUNTER, [event as u64, 0, 0])[1]
}

/// Counters at one time, to see what happens after it.
pub struct Since<const N: usize>([Event; N], [u64; N]);

impl<const N: usize> Since<N> {
    /// As they are now.
    pub fn now(events: [Event; N]) -> Self {
        Self(events, events.map(counter))
    }

    /// How often each has been counted since.
    pub fn counts(&self) -> [u64; N] {
        core::array::from_fn(|index| counter(self.0[index]) - self.1[index])
    }
}

/// All counters, for the report of a test that fails.
pub struct AllCounters(Option<[u64; Event::ALL.len()]>);

impl AllCounters {
    /// As they are now; nothing where they can't be asked for.
    pub fn now() -> Self {
        Self(available().then(|| core::array::from_fn(|index| counter(Event::ALL[index]))))
    }

    /// Adds a line for those that have changed to the report.
    pub fn report(&self) {
        let Some(before) = self.0 else { return };
        for (event, before) in Event::ALL.iter().zip(before) {
            let now = counter(*event);
            if now != before {
                report::counter(event.name(), now - before);
            }
        }
    }
}

/// A leaf of the guest's stage-2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its first address.
    pub start: u64,
    /// Its size, as `hypervisor_abi::leaf` has it.
    pub size: u64,
    /// What may be done there, as `hypervisor_abi::permissions` has it.
    pub allowed: u64,
}

/// The leaf that maps an address.
pub fn leaf(ipa: u64) -> Option<Leaf> {
    let [x0, start, size, allowed] = hvc(function::LEAF, [ipa, 0, 0]);
    (x0 as i64 == status::SUCCESS).then_some(Leaf { start, size, allowed })
}

fn on_range(function: u32, range: &Range<u64>, argument: u64) -> i64 {
    status_of(function, [range.start, range.end - range.start, argument])
}

/// Gives a range permissions; the status.
pub fn protect(range: &Range<u64>, allowed: u64) -> i64 {
    on_range(function::PROTECT, range, allowed)
}

/// Splits a range; the status.
pub fn split(range: &Range<u64>, size: u64) -> i64 {
    on_range(function::SPLIT, range, size)
}

/// Collapses a range; the status.
pub fn collapse(range: &Range<u64>) -> i64 {
    on_range(function::COLLAPSE, range, 0)
}

/// Has stores to a range watched; the status.
pub fn watch(range: &Range<u64>, policy: u64) -> i64 {
    on_range(function::WATCH, range, policy)
}

/// Lets `meet` requests for table frames through and refuses all after these.
pub fn refuse_frames(meet: u64) {
    hvc(function::REFUSE_FRAMES, [meet, u64::MAX, 0]);
}

/// Ends [`refuse_frames`]. Returns how many requests were refused.
pub fn meet_all_frames() -> u64 {
    hvc(function::REFUSE_FRAMES, [0; 3])[1]
}

/// The page at an address, as a range.
pub fn page(address: u64) -> Range<u64> {
    address..address + PAGE
}

/// `bytes` of the guest's memory at a multiple of `alignment`.
///
/// # Errors
///
/// Skipped if there is not as much.
pub fn area(bytes: u64, alignment: u64) -> Result<Range<u64>, Stop> {
    match memory::allocate(bytes, alignment) {
        Some(start) => Ok(start..start + bytes),
        None => skip!("the machine has too little memory"),
    }
}

/// Makes the leaves of a range the largest that lie in it alone: one that goes beyond it is split, which a collapse of the range
/// does not undo.
///
/// # Errors
///
/// Fails if the hypervisor does not do so.
pub fn apart(range: &Range<u64>) -> Outcome {
    check_eq!(split(range, size::BLOCK_2M), status::SUCCESS, "split of what goes beyond {range:#x?}");
    check_eq!(collapse(range), status::SUCCESS, "collapse");
    Ok(())
}

/// Stores to memory that the test has allocated.
pub fn write(address: u64, value: u64) {
    // SAFETY: the tests store to memory that they have allocated, which is mapped; where stage 2 does not allow it, the
    // abort ends the test or whatever `catch` is around it.
    unsafe { (address as *mut u64).write_volatile(value) };
}

/// Loads from memory that the test has allocated.
pub fn read(address: u64) -> u64 {
    // SAFETY: as for `write`.
    unsafe { (address as *const u64).read_volatile() }
}

/// Puts an instruction to memory that the test has allocated, so that every CPU executes it.
pub fn write_code(address: u64, instructions: &[u32]) {
    for (offset, instruction) in (address..).step_by(4).zip(instructions) {
        // SAFETY: as for `write`. The maintenance makes the instruction visible to fetches: the store reaches the point of
        // unification (DC CVAU, DSB), stale lines go everywhere (IC IVAU, DSB), and this CPU fetches anew (ISB).
        unsafe {
            core::arch::asm!(
                "str {word:w}, [{at}]", "dc cvau, {at}", "dsb ish", "ic ivau, {at}", "dsb ish", "isb",
                word = in(reg) *instruction, at = in(reg) offset, options(nostack, preserves_flags)
            );
        }
    }
}

/// `ret`.
pub const RET: u32 = 0xd65f_03c0;

/// `mov x0, #value`.
pub const fn move_to_x0(value: u16) -> u32 {
    0xd280_0000 | (value as u32) << 5
}

/// The ways to keep a log that this machine has and that the command line asks for.
///
/// # Errors
///
/// Skipped if there is none.
pub fn modes() -> Result<impl Iterator<Item = (&'static str, u64)>, Stop> {
    let hardware = hvc(function::FEATURES, [0; 3])[2] != 0;
    let wanted = options::get().dirty;
    let has = move |(name, mode): &(&str, u64)| {
        wanted.is_none_or(|wanted| wanted == *name) && (hardware || *mode == log::WRITE_PROTECT)
    };
    if !MODES.iter().any(has) {
        skip!("the CPU has no hardware dirty state");
    }
    Ok(MODES.into_iter().filter(has))
}

/// A log of the pages of a range.
pub struct Log {
    handle: u64,
    /// Address of the page that bit 0 stands for.
    base: u64,
    words: u64,
    bitmap: u64,
}

impl Log {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// The status.
    pub fn start(range: &Range<u64>, options: u64) -> Result<Self, i64> {
        let base = range.start / (2 * MIB) * (2 * MIB);
        let words = ((range.end - base) / PAGE).div_ceil(64);
        let bitmap = memory::allocate(words * 8, PAGE).ok_or(status::NO_MEMORY)?;
        let [x0, handle, ..] = hvc(function::LOG_START, [range.start, range.end - range.start, options]);
        if x0 as i64 != status::SUCCESS {
            return Err(x0 as i64);
        }
        Ok(Self { handle, base, words, bitmap })
    }

    /// Starts one that has to start.
    ///
    /// # Errors
    ///
    /// Failed, with the status in the report.
    pub fn must_start(range: &Range<u64>, options: u64) -> Result<Self, Stop> {
        match Self::start(range, options) {
            Ok(log) => Ok(log),
            Err(status) => fail!("a log of {range:#x?} with options {options:#x}: status {status}"),
        }
    }

    fn report(&self, function: u32) -> Result<u64, Stop> {
        // Bits are added to what is there.
        self.bitmap().iter().for_each(|word| word.store(0, Relaxed));
        let [x0, pages, words, _] = hvc(function, [self.handle, self.bitmap, self.words]);
        check_eq!(x0 as i64, status::SUCCESS, "the log's bitmap: status");
        check_eq!(words, self.words, "words of the bitmap");
        let set: u64 = self.bitmap().iter().map(|word| u64::from(word.load(Relaxed).count_ones())).sum();
        check_eq!(pages, set, "the pages of the answer, against the bits of the bitmap");
        if x0 as i64 == status::SUCCESS { Ok(pages) } else { Err(Stop::Failed) }
    }

    /// Takes the pages that were written since the last time. Returns how many.
    ///
    /// # Errors
    ///
    /// Failed, if the answer is no success.
    pub fn harvest(&self) -> Result<u64, Stop> {
        self.report(function::LOG_HARVEST)
    }

    /// The same, and nothing changes.
    ///
    /// # Errors
    ///
    /// As [`Log::harvest`].
    pub fn peek(&self) -> Result<u64, Stop> {
        self.report(function::LOG_PEEK)
    }

    /// Makes the pages clean that are set in the bitmap.
    pub fn clear(&self) -> i64 {
        status_of(function::LOG_CLEAR, [self.handle, self.bitmap, self.words])
    }

    /// Ends it. Returns the status.
    pub fn stop(self) -> i64 {
        status_of(function::LOG_STOP, [self.handle, 0, 0])
    }

    /// What was last reported; bit 0 stands for the page at the range's start rounded down to 2 MiB.
    pub fn bitmap(&self) -> &'static [AtomicU64] {
        bitmap(self.bitmap, self.words)
    }

    /// Another bitmap of this shape, empty.
    ///
    /// # Errors
    ///
    /// Failed without memory.
    pub fn empty_bitmap(&self) -> Result<&'static [AtomicU64], Stop> {
        let Some(address) = memory::allocate(self.words * 8, PAGE) else { fail!("no memory for a bitmap") };
        let bitmap = bitmap(address, self.words);
        bitmap.iter().for_each(|word| word.store(0, Relaxed));
        Ok(bitmap)
    }

    /// The word and the bit that stand for an address.
    pub fn place(&self, address: u64) -> (usize, u64) {
        let page = (address - self.base) / PAGE;
        ((page / 64) as usize, 1 << (page % 64))
    }

    /// Whether the page at an address was last reported.
    pub fn has(&self, address: u64) -> bool {
        let (word, bit) = self.place(address);
        self.bitmap()[word].load(Relaxed) & bit != 0
    }

    /// The address of page number `page` of the bitmap.
    pub fn address(&self, page: u64) -> u64 {
        self.base + page * PAGE
    }

    /// Harvests, and fails the test unless exactly these pages are reported.
    ///
    /// # Errors
    ///
    /// As [`Log::harvest`].
    pub fn must_report(&self, pages: &[u64], what: &str) -> Result<(), Stop> {
        let count = self.harvest()?;
        for &page in pages {
            check!(self.has(page), "{what}: {page:#x} was written and is not reported");
        }
        let first =
            (0..self.words * 64).map(|page| self.address(page)).find(|&at| self.has(at) && !pages.contains(&at));
        check!(
            first.is_none(),
            "{what}: {count} pages reported, among them {:#x}, which was not written",
            first.unwrap_or(0)
        );
        Ok(())
    }
}

fn bitmap(address: u64, words: u64) -> &'static [AtomicU64] {
    // SAFETY: words of memory that the test has allocated, accessed as atomics only. They are given back when the test is
    // over, as whatever it keeps this in is.
    unsafe { core::slice::from_raw_parts(address as *const AtomicU64, words as usize) }
}

/// Undoes whatever a test has left behind: logs, watched ranges, permissions, small leaves, refused frames.
pub fn reset() {
    if !USED.swap(false, Relaxed) {
        return;
    }
    meet_all_frames();
    for handle in 0..8 {
        status_of(function::LOG_STOP, [handle, 0, 0]);
    }
    for ram in machine::get().ram() {
        let ram = ram.start.next_multiple_of(PAGE)..ram.end / PAGE * PAGE;
        let undone = [watch(&ram, hypervisor_abi::watch::NONE), protect(&ram, ALL), collapse(&ram)];
        if undone != [status::SUCCESS; 3] {
            report::failure(format_args!("putting {ram:#x?} back as it was: statuses {undone:?}"));
        }
    }
    while status_of(function::WATCH_TAKE, [0; 3]) == status::SUCCESS {}
}
