//! How often, and why, the guest left for EL2.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why the guest left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Exit {
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
    /// A data abort at stage 2.
    DataAbort,
    /// An instruction abort at stage 2.
    InstructionAbort,
    /// A system register access that traps.
    SystemRegister,
    /// WFI or WFE; none traps, so this stays 0.
    Wfx,
    /// An interrupt; none comes to EL2, so this stays 0.
    Irq,
    /// Everything else.
    Other,
}

/// Number of kinds.
pub const KINDS: usize = 8;

/// All kinds, with the names that reports give them.
pub const NAMED: [(Exit, &str); KINDS] = [
    (Exit::Hvc, "hvc"),
    (Exit::Smc, "smc"),
    (Exit::DataAbort, "data-abort"),
    (Exit::InstructionAbort, "instruction-abort"),
    (Exit::SystemRegister, "system-register"),
    (Exit::Wfx, "wfx"),
    (Exit::Irq, "irq"),
    (Exit::Other, "other"),
];

/// One CPU's counts. An increment is a plain load and store: only the CPU itself may count, any CPU may read.
#[derive(Debug)]
#[repr(transparent)]
pub struct ExitCounts([AtomicU64; KINDS]);

impl ExitCounts {
    /// All zero.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; KINDS])
    }

    /// Where one of the counts lies, in bytes from the first.
    pub const fn offset_of(exit: Exit) -> usize {
        size_of::<AtomicU64>() * exit as usize
    }

    /// Counts one exit.
    #[inline(always)]
    pub fn count(&self, exit: Exit) {
        let cell = &self.0[exit as usize];
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The counts so far.
    pub fn snapshot(&self) -> Totals {
        Totals(core::array::from_fn(|kind| self.0[kind].load(Relaxed)))
    }
}

impl Default for ExitCounts {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts at one moment. Displays as `hvc 1 smc 0 …`: every kind, also those that never happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals([u64; KINDS]);

impl Totals {
    /// With `more` exits of a kind.
    #[must_use]
    pub fn with(mut self, exit: Exit, more: u64) -> Self {
        self.0[exit as usize] = self.0[exit as usize].wrapping_add(more);
        self
    }
}

impl core::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum = sum.wrapping_add(count);
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (exit, name)) in NAMED.into_iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{name} {}", self.0[exit as usize])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_counter_and_name() {
        let counts = ExitCounts::new();
        for (index, (exit, _)) in NAMED.into_iter().enumerate() {
            assert_eq!(exit as usize, index);
            (0..index).for_each(|_| counts.count(exit));
        }
        let mut totals = counts.snapshot();
        totals += counts.snapshot().with(Exit::Smc, 1);
        assert_eq!(
            std::format!("{totals}"),
            "hvc 0 smc 3 data-abort 4 instruction-abort 6 system-register 8 wfx 10 irq 12 other 14"
        );
    }
}
