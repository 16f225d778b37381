//! The payload's command line: words of `/chosen/bootargs`.
//!
//! - `filter=TEXT`: run the tests whose `group::name` contains TEXT;
//! - `after=NAME`: skip all tests up to this one, which is how the tool goes on behind a test that took the machine down;
//! - `dirty=MODE`: keep dirty logs in this way only: write-protect, hardware-page or hardware-block;
//! - `storm=SECONDS`: how long each of the tests goes on that do as much as they can in a set time;
//! - `seed=NUMBER`: seed of the random numbers, decimal or 0x…; without it, from the counter;
//! - `timeout=N`: multiply every test's time limit by N;
//! - `bare`: no hypervisor is expected; what needs one is skipped instead of failing;
//! - `aim=START-END`: physical addresses that must be out of reach; without the hypervisor too, so that one can see the
//!   tests of isolation fail;
//! - `absent=ADDRESS`: a page where nothing answers, though it is the guest's: RAM or registers that the machine's tree
//!   promises and the machine has not; tests of external aborts use it;
//! - `mediated`: the tree has a disk that the hypervisor mediates, and no other device that writes memory;
//! - `saves`: the tool saves the guest when it asks for that, and has it go on elsewhere (group `saved`);
//! - `must-fail`: run the tests that have to fail, which show that failures are noticed;
//! - `strategy=pages|blocks|hardware`: measure one way to keep a dirty log (see `bench/strategy.rs`);
//! - `bench`: measure what the hypervisor costs, instead of testing (see `bench/mod.rs`);
//! - `list`: print the names of the tests and end.

use core::ops::Range;
use hypervisor_abi::log;
use spin::Once;

/// How logs are kept: name and `hypervisor_abi::log` number.
pub const MODES: [(&str, u64); 3] = [
    ("write-protect", log::WRITE_PROTECT),
    ("hardware-page", log::HARDWARE_PAGE),
    ("hardware-block", log::HARDWARE_BLOCK),
];

/// How dirty pages are noticed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Stage 2 is pages before the log begins, and stays so.
    Pages,
    /// Blocks, split by the first write to each.
    Blocks,
    /// Blocks, split when the log begins; hardware marks the pages.
    Hardware,
}

impl Strategy {
    /// The word on the command line.
    pub fn of(word: &str) -> Option<Self> {
        match word {
            "pages" => Some(Self::Pages),
            "blocks" => Some(Self::Blocks),
            "hardware" => Some(Self::Hardware),
            _ => None,
        }
    }
}

/// The options in effect.
pub struct Options {
    /// Text that a test's full name must contain.
    pub filter: &'static str,
    /// The full name of the test to go on after; empty to begin with the first.
    pub after: &'static str,
    /// The only way in which dirty logs are kept.
    pub dirty: Option<&'static str>,
    /// Seconds that the tests take that run for a set time.
    pub storm: u64,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Factor on every time limit.
    pub timeout: u64,
    /// Whether the payload may run without the hypervisor.
    pub bare: bool,
    /// Physical addresses that must be out of reach, besides what the hypervisor tells.
    pub aim: Option<Range<u64>>,
    /// A page of the guest's where nothing answers.
    pub absent: Option<u64>,
    /// The tree has a disk that the hypervisor mediates.
    pub mediated: bool,
    /// The tool saves the guest when it asks for that.
    pub saves: bool,
    /// Run the tests that have to fail.
    pub must_fail: bool,
    /// Measure instead of testing.
    pub bench: bool,
    /// Measure this strategy.
    pub strategy: Option<Strategy>,
    /// Print names only.
    pub list: bool,
}

static OPTIONS: Once<Options> = Once::new();

/// Reads the command line. A word it does not know is named on the console and ignored, as Linux does.
pub fn init(bootargs: &'static str) {
    let mut options = Options {
        filter: "",
        after: "",
        dirty: None,
        storm: 5,
        seed: read_sysreg!("CNTVCT_EL0"),
        timeout: 1,
        bare: false,
        aim: None,
        absent: None,
        mediated: false,
        saves: false,
        must_fail: false,
        bench: false,
        strategy: None,
        list: false,
    };
    for word in bootargs.split_ascii_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let known = match key {
            "filter" => {
                options.filter = value;
                true
            }
            "after" => {
                options.after = value;
                true
            }
            "dirty" => MODES.iter().find(|(name, _)| *name == value).map(|_| options.dirty = Some(value)).is_some(),
            "storm" => number(value).filter(|&n| n > 0).map(|n| options.storm = n).is_some(),
            "seed" => number(value).map(|n| options.seed = n).is_some(),
            "timeout" => number(value).filter(|&n| n > 0).map(|n| options.timeout = n).is_some(),
            "aim" => range(value).map(|range| options.aim = Some(range)).is_some(),
            "absent" => {
                number(value).filter(|at| at.is_multiple_of(4096)).map(|at| options.absent = Some(at)).is_some()
            }
            "bare" => core::mem::replace(&mut options.bare, true) || value.is_empty(),
            "mediated" => core::mem::replace(&mut options.mediated, true) || value.is_empty(),
            "saves" => core::mem::replace(&mut options.saves, true) || value.is_empty(),
            "must-fail" => core::mem::replace(&mut options.must_fail, true) || value.is_empty(),
            "strategy" => Strategy::of(value).map(|strategy| options.strategy = Some(strategy)).is_some(),
            "bench" => core::mem::replace(&mut options.bench, true) || value.is_empty(),
            "list" => core::mem::replace(&mut options.list, true) || value.is_empty(),
            _ => false,
        };
        if !known {
            println!("payload: ignoring \"{word}\" on the command line");
        }
    }
    OPTIONS.call_once(|| options);
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `START-END`, whole pages.
fn range(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.split_once('-')?;
    let range = number(start)?..number(end)?;
    (range.start < range.end && (range.start | range.end).is_multiple_of(4096)).then_some(range)
}

/// The options in effect.
pub fn get() -> &'static Options {
    OPTIONS.get().expect("options are read before the suite runs")
}
