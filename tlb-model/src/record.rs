//! What was counted in a window of time, as it is written down and read again.

use crate::census::Census;
use crate::counts::Counts;
use serde::{Deserialize, Serialize};

/// A window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub window: u64,
    /// Instructions at EL0 and EL1. Each block counts whole, also where an instruction in it faults.
    pub instructions: [u64; 2],
    /// What the model counted.
    pub counts: Counts,
    /// Stage 2 as the window was opened.
    pub before: Census,
    /// Stage 2 as it was closed.
    pub after: Census,
    /// Translations of the model's that were compared with those of who executed the instructions.
    pub compared: u64,
    /// Those that were not the same.
    pub different: u64,
    /// What makes the figures worth nothing.
    pub problem: Option<String>,
}

impl Record {
    /// Instructions at EL0 and EL1.
    #[must_use]
    pub fn guest_instructions(&self) -> u64 {
        self.instructions.iter().sum()
    }

    /// Walks for a thousand instructions of the guest's.
    #[must_use]
    pub fn misses_per_thousand(&self) -> f64 {
        per_thousand(self.counts.all_walks(), self.guest_instructions())
    }

    /// The same at EL1: the kernel's own.
    #[must_use]
    pub fn kernel_misses_per_thousand(&self) -> f64 {
        per_thousand(self.counts.walks[1], self.instructions[1])
    }

    /// Descriptors that a walk read, on average.
    #[must_use]
    pub fn references_per_miss(&self) -> f64 {
        self.counts.references() as f64 / self.counts.all_walks().max(1) as f64
    }
}

fn per_thousand(count: u64, instructions: u64) -> f64 {
    count as f64 * 1000.0 / instructions.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_level_that_they_name() {
        let counts =
            Counts { walks: [6, 2], stage1_references: [8, 2], stage2_references: [5, 1], ..Counts::default() };
        let record = Record { instructions: [1000, 500], counts, ..Record::default() };
        assert_eq!(record.guest_instructions(), 1500);
        assert_eq!((record.kernel_misses_per_thousand(), record.references_per_miss()), (4.0, 2.0));
        assert!((record.misses_per_thousand() - 16.0 / 3.0).abs() < 1e-9);
        assert!(Record::default().references_per_miss().abs() < 1e-9);
    }
}
