//! How large TLBs and walk caches are.

use std::fmt;
use std::str::FromStr;

/// A cache's entries and its ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Entries; none switch the cache off.
    pub entries: usize,
    /// Entries of a set; as many as there are make it fully associative.
    pub ways: usize,
}

impl Capacity {
    /// A fully associative cache.
    #[must_use]
    pub const fn full(entries: usize) -> Self {
        Self { entries, ways: entries }
    }

    /// A set-associative cache.
    #[must_use]
    pub const fn sets(entries: usize, ways: usize) -> Self {
        Self { entries, ways }
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ways == self.entries {
            write!(f, "{}", self.entries)
        } else {
            write!(f, "{}x{}", self.entries, self.ways)
        }
    }
}

/// The sizes of all that a core has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Each of the two level-1 TLBs.
    pub l1: Capacity,
    /// The level-2 TLB.
    pub l2: Capacity,
    /// Stage-1 table descriptors.
    pub stage1: Capacity,
    /// Stage-2 table descriptors and leaves.
    pub stage2: Capacity,
}

impl Default for Sizes {
    /// TLBs of a Neoverse N1 (48 fully associative; 1280, five-way). Arm has not published its walk caches: those of a
    /// Cortex-A53 (64, four-way, for each stage) stand in for them.
    fn default() -> Self {
        Self {
            l1: Capacity::full(48),
            l2: Capacity::sets(1280, 5),
            stage1: Capacity::sets(64, 4),
            stage2: Capacity::sets(64, 4),
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "l1={},l2={},stage1={},stage2={}", self.l1, self.l2, self.stage1, self.stage2)
    }
}

/// A text that gives no sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeError(String);

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no size of a TLB; write NAME=ENTRIES (fully associative) or NAME=ENTRIESxWAYS with commas between, \
             NAME being l1, l2, stage1 or stage2, as in {}; the ways divide the entries, and there are at most {MOST}",
            self.0,
            Sizes::default()
        )
    }
}

impl std::error::Error for SizeError {}

/// No TLB is larger.
const MOST: usize = 1 << 20;

impl FromStr for Sizes {
    type Err = SizeError;

    /// Reads what [`Sizes`] prints; what is left out stays as it is by default.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let mut sizes = Self::default();
        for word in text.split(',') {
            let wrong = || SizeError(word.to_owned());
            let (name, value) = word.split_once('=').ok_or_else(wrong)?;
            let capacity = match name {
                "l1" => &mut sizes.l1,
                "l2" => &mut sizes.l2,
                "stage1" => &mut sizes.stage1,
                "stage2" => &mut sizes.stage2,
                _ => return Err(wrong()),
            };
            let (entries, ways) = value.split_once('x').unwrap_or((value, value));
            let number = |text: &str| text.parse().ok().filter(|&number| number <= MOST).ok_or_else(wrong);
            *capacity = Capacity { entries: number(entries)?, ways: number(ways)? };
            let divides =
                capacity.entries == capacity.ways || (capacity.ways > 0 && capacity.entries % capacity.ways == 0);
            divides.then_some(()).ok_or_else(wrong)?;
        }
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_printed() {
        let default = Sizes::default();
        assert_eq!(default.to_string(), "l1=48,l2=1280x5,stage1=64x4,stage2=64x4");
        assert_eq!(default.to_string().parse(), Ok(default));
        let none = "stage1=0,stage2=0".parse::<Sizes>().unwrap();
        assert_eq!((none.stage1, none.l2), (Capacity::full(0), default.l2));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "l1", "l3=1", "l1=", "l1=-1", "l2=1280x3", "l2=4x0", "l1=48,,", "l1=9999999999"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }
}
