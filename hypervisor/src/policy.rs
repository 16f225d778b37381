//! Which stores of the guest are reported or stopped, range by range.

use crate::range::PhysRange;
use alloc::vec::Vec;

/// What happens to a store. The stronger one is the greater one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// It is logged and carried out.
    Report,
    /// It is logged and aborts.
    Deny,
}

/// The most ranges there can be.
pub const MAX_RANGES: usize = 64;

/// Ranges with a policy: sorted, apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies(Vec<(PhysRange, Policy)>);

impl Policies {
    /// None.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Gives `range` a policy, or takes it away. Where there is a stronger one already, that stays.
    ///
    /// Returns nothing, and changes nothing, if there would be more than [`MAX_RANGES`].
    pub fn set(&mut self, range: PhysRange, policy: Option<Policy>) -> Option<()> {
        let mut bounds: Vec<u64> = self.0.iter().flat_map(|(other, _)| [other.start(), other.end()]).collect();
        bounds.extend([range.start(), range.end()]);
        bounds.sort_unstable();
        bounds.dedup();
        let mut painted: Vec<(PhysRange, Policy)> = Vec::new();
        for (start, end) in bounds.iter().zip(bounds.iter().skip(1)) {
            let Some(piece) = PhysRange::new(*start, *end) else { continue };
            let before = self.at(*start);
            let now = match range.contains_range(piece) {
                true => policy.map(|policy| before.map_or(policy, |before| before.max(policy))),
                false => before,
            };
            let Some(now) = now else { continue };
            match painted.last_mut() {
                Some((last, same)) if *same == now && last.end() == *start => {
                    *last = PhysRange::new(last.start(), *end)?;
                }
                _ => painted.push((piece, now)),
            }
        }
        (painted.len() <= MAX_RANGES).then(|| self.0 = painted)
    }

    /// The policy that holds at `address`.
    pub fn at(&self, address: u64) -> Option<Policy> {
        self.0.iter().find(|(range, _)| range.contains(address)).map(|&(_, policy)| policy)
    }

    /// All ranges, upwards.
    pub fn iter(&self) -> impl Iterator<Item = (PhysRange, Policy)> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(start, end).unwrap()
    }

    #[test]
    fn deny_wins_and_allow_clears() {
        let mut policies = Policies::new();
        policies.set(range(0x2000, 0x5000), Some(Policy::Deny)).unwrap();
        policies.set(range(0x1000, 0x8000), Some(Policy::Report)).unwrap();
        let expected = [
            (range(0x1000, 0x2000), Policy::Report),
            (range(0x2000, 0x5000), Policy::Deny),
            (range(0x5000, 0x8000), Policy::Report),
        ];
        assert_eq!(policies.iter().collect::<Vec<_>>(), expected);
        policies.set(range(0x3000, 0x6000), None).unwrap();
        assert_eq!(
            [0x2000, 0x3000, 0x5fff, 0x6000].map(|at| policies.at(at)),
            [Some(Policy::Deny), None, None, Some(Policy::Report)]
        );
    }

    #[test]
    fn there_is_an_end_to_ranges() {
        let mut policies = Policies::new();
        for n in 0..MAX_RANGES as u64 {
            policies.set(range(n * 0x2000, n * 0x2000 + 0x1000), Some(Policy::Report)).unwrap();
        }
        let before = policies.clone();
        assert_eq!(policies.set(range(1 << 40, (1 << 40) + 0x1000), Some(Policy::Deny)), None);
        assert_eq!(policies, before);
    }

    proptest! {
        #[test]
        fn as_a_flat_table(sets in proptest::collection::vec((0u64..20, 1u64..8, 0usize..3), 0..20)) {
            let mut policies = Policies::new();
            let mut flat = [None; 32];
            for (start, length, policy) in sets {
                let policy = [None, Some(Policy::Report), Some(Policy::Deny)][policy];
                policies.set(range(start, start + length), policy).unwrap();
                for slot in &mut flat[start as usize..(start + length) as usize] {
                    *slot = policy.map(|policy| slot.map_or(policy, |before: Policy| before.max(policy)));
                }
            }
            for (at, expected) in flat.iter().enumerate() {
                prop_assert_eq!(policies.at(at as u64), *expected);
            }
        }
    }
}
