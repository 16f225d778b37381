//! What the view shows, as plain data.

use super::plain::Plain;
use std::collections::VecDeque;
use std::fmt;

/// Harvests whose rate is kept.
const RATES: usize = 512;
/// Lines of the guest's output that are kept.
const LINES: usize = 200;
/// Bytes of memory that a word of a dirty bitmap stands for.
pub const WORD: u64 = 64 * 4096;

/// What a harvest brought.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Harvest {
    /// Seconds since the log's start.
    pub seconds: f64,
    /// Words of the dirty bitmap: the address of the first of 64 pages, and their bits.
    pub words: Vec<(u64, u64)>,
    /// Dirty pages.
    pub pages: u64,
    /// Dirty pages a second since the harvest before.
    pub rate: f64,
    /// Bytes of stage-2 tables.
    pub table_bytes: u64,
    /// What the engine has counted since the machine started, by name.
    pub counted: Vec<(String, u64)>,
    /// How many audits there were, and how many pages they have missed.
    pub audits: Option<(u64, u64)>,
}

/// What the user wants of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A harvest now.
    Harvest,
    /// To stop the guest, or to let it go on.
    Freeze,
    /// To start the log, or to stop it.
    Log,
    /// To save the machine.
    Save,
}

/// How a word of memory stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heat {
    /// Pages that the last harvest found dirty.
    pub now: u32,
    /// Whether an earlier harvest has found one.
    pub ever: bool,
    /// Whether the guest has this memory.
    pub guest: bool,
}

/// All that is shown.
#[derive(Debug, Default)]
pub struct State {
    /// How the log is kept, for people.
    pub mechanism: String,
    /// The guest's CPUs stand still.
    pub frozen: bool,
    /// The log runs.
    pub logging: bool,
    /// The last harvest.
    pub last: Harvest,
    /// Harvests so far.
    pub harvests: u64,
    /// Dirty pages a second, the newest last.
    pub rates: VecDeque<f64>,
    /// The newest thing that was said.
    pub said: String,
    start: u64,
    heat: Vec<Heat>,
    output: Plain,
    lines: VecDeque<String>,
}

impl State {
    /// Sets the guest's memory: ranges of guest physical addresses.
    pub fn set_memory(&mut self, ranges: &[(u64, u64)]) {
        let start = ranges.iter().map(|range| range.0).min().unwrap_or(0) / WORD * WORD;
        let end = ranges.iter().map(|range| range.1).max().unwrap_or(0);
        let has = |address: u64| ranges.iter().any(|range| range.0 < address + WORD && address < range.1);
        let addresses = (start..end).step_by(WORD as usize);
        self.heat = addresses.map(|address| Heat { guest: has(address), ..Heat::default() }).collect();
        self.start = start;
    }

    /// The first address, and the first one past the last.
    pub fn memory(&self) -> (u64, u64) {
        (self.start, self.start + self.heat.len() as u64 * WORD)
    }

    /// Takes a harvest in.
    pub fn harvest(&mut self, harvest: Harvest) {
        for heat in &mut self.heat {
            heat.ever |= heat.now > 0;
            heat.now = 0;
        }
        for &(address, bits) in &harvest.words {
            let at = address.saturating_sub(self.start) / WORD;
            if let Some(heat) = usize::try_from(at).ok().and_then(|at| self.heat.get_mut(at)) {
                heat.now += bits.count_ones();
            }
        }
        self.harvests += 1;
        self.rates.push_back(harvest.rate);
        if self.rates.len() > RATES {
            self.rates.pop_front();
        }
        self.last = harvest;
    }

    /// Takes what the guest wrote.
    pub fn guest_wrote(&mut self, bytes: &[u8]) {
        let Self { output, lines, .. } = self;
        output.push(bytes, |line| {
            lines.push_back(line);
            if lines.len() > LINES {
                lines.pop_front();
            }
        });
    }

    /// The last lines of the guest's output, the unfinished one included.
    pub fn lines(&self, count: usize) -> Vec<&str> {
        let all = self.lines.iter().map(String::as_str);
        let mut lines: Vec<&str> = all.chain(Some(self.output.unfinished()).filter(|line| !line.is_empty())).collect();
        lines.drain(..lines.len().saturating_sub(count));
        lines
    }

    /// So many bytes from the memory's start on in `cells` equal parts: for each the pages that the last harvest found dirty, as a
    /// share of all that could be, and whether it was ever written, and whether the guest has it.
    pub fn cells(&self, cells: usize, bytes: u64) -> Vec<(f64, bool, bool)> {
        let words = (bytes / WORD) as usize;
        let part = |cell: usize| {
            let from = cell * words / cells;
            let until = ((cell + 1) * words / cells).max(from + 1);
            let part = self.heat.get(from..until.min(self.heat.len())).unwrap_or_default();
            let pages: u32 = part.iter().map(|heat| heat.now).sum();
            let all = (part.len() * 64).max(1);
            (
                f64::from(pages) / all as f64,
                part.iter().any(|heat| heat.ever || heat.now > 0),
                part.iter().any(|heat| heat.guest),
            )
        };
        (0..cells).map(part).collect()
    }

    /// How often what has a name that begins so has happened.
    pub fn counted(&self, prefix: &str) -> u64 {
        self.last.counted.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
    }

    /// The kinds of exits that have happened, the most frequent first.
    pub fn exits(&self) -> Vec<(String, u64)> {
        let kind = |(name, count): &(String, u64)| {
            let kind = name.strip_prefix("fault-").or((name == "first-writes").then_some("first write"))?;
            (*count > 0).then(|| (kind.replace('-', " "), *count))
        };
        let mut exits: Vec<_> = self.last.counted.iter().filter_map(kind).collect();
        exits.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        exits
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Harvest => "harvest",
            Self::Freeze => "freeze",
            Self::Log => "log",
            Self::Save => "save",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_cools_down() {
        let mut state = State::default();
        state.set_memory(&[(0x4000_0000, 0x4010_0000), (0x4020_0000, 0x4030_0000)]);
        assert_eq!(state.memory(), (0x4000_0000, 0x4030_0000));
        state.harvest(Harvest { words: vec![(0x4000_0000, u64::MAX), (0x4004_0000, 3)], ..Harvest::default() });
        let all = 0x30_0000;
        let cells = state.cells(3, all);
        assert!(cells[0].0 > 0.2 && cells[0].1 && cells[0].2, "{cells:?}");
        assert_eq!(cells[1], (0.0, false, false), "the hypervisor's memory");
        assert_eq!(cells[2], (0.0, false, true));
        state.harvest(Harvest::default());
        assert_eq!(state.cells(3, all)[0], (0.0, true, true));
        // More cells than words, more bytes than memory, and no memory at all.
        assert_eq!(state.cells(1000, all).len(), 1000);
        assert_eq!(state.cells(4, 2 * all)[3], (0.0, false, false));
        assert_eq!(State::default().cells(2, 0), [(0.0, false, false); 2]);
    }

    #[test]
    fn addresses_outside_are_left_out() {
        let mut state = State::default();
        state.set_memory(&[(0x4000_0000, 0x4010_0000)]);
        state.harvest(Harvest { words: vec![(0x5000_0000, 1), (u64::MAX, 1), (0, 1)], ..Harvest::default() });
        assert!(state.cells(4, 0x10_0000)[1..].iter().all(|cell| cell.0 == 0.0));
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut state = State::default();
        for number in 0..1000 {
            state.guest_wrote(format!("line {number}\r\n").as_bytes());
        }
        state.guest_wrote(b"half");
        assert_eq!(state.lines(2), ["line 999", "half"]);
        assert_eq!(state.lines(5000).len(), LINES + 1);
    }
}
