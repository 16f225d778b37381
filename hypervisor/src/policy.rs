//! Which stores of the guest are reported or stopped, range by range.

use crate::range::PhysRange;

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

/// Ranges with a policy: sorted, apart from each other. They need no allocation, since stores are watched while the guest runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policies {
    /// The first `count`; nothing behind them.
    ranges: [Option<(PhysRange, Policy)>; MAX_RANGES],
    count: usize,
}

impl Default for Policies {
    fn default() -> Self {
        Self::new()
    }
}

impl Policies {
    /// None.
    pub const fn new() -> Self {
        Self { ranges: [None; MAX_RANGES], count: 0 }
    }

    /// Gives `range` a policy, or takes it away. Where there is a stronger one already, that stays.
    ///
    /// Returns nothing, and changes nothing, if there would be more than [`MAX_RANGES`].
    pub fn set(&mut self, range: PhysRange, policy: Option<Policy>) -> Option<()> {
        let mut painted = Self::new();
        let mut next = self.bound_from(range, 0);
        while let Some(start) = next {
            next = self.bound_from(range, start.checked_add(1)?);
            let Some(piece) = next.and_then(|end| PhysRange::new(start, end)) else { break };
            let before = self.at(start);
            let now = match range.contains_range(piece) {
                true => policy.map(|policy| before.map_or(policy, |before| before.max(policy))),
                false => before,
            };
            if let Some(now) = now {
                painted.push(piece, now)?;
            }
        }
        *self = painted;
        Some(())
    }

    /// The parts of `range` that have one policy each, or none; upwards.
    pub fn pieces(&self, range: PhysRange) -> impl Iterator<Item = (PhysRange, Option<Policy>)> + '_ {
        let mut start = range.start();
        core::iter::from_fn(move || {
            let next = self.bound_from(range, start.checked_add(1)?)?;
            let piece =
                PhysRange::new(start, next).filter(|&piece| range.contains_range(piece) && !piece.is_empty())?;
            start = next;
            Some((piece, self.at(piece.start())))
        })
    }

    /// The first address from `from` on where `range`, or one of these, begins or ends.
    fn bound_from(&self, range: PhysRange, from: u64) -> Option<u64> {
        let all = self.iter().map(|(other, _)| other).chain([range]);
        all.flat_map(|range| [range.start(), range.end()]).filter(|&bound| bound >= from).min()
    }

    /// Adds a range behind all others; nothing if there are too many.
    fn push(&mut self, range: PhysRange, policy: Policy) -> Option<()> {
        let last = self.count.checked_sub(1).and_then(|last| self.ranges.get_mut(last));
        if let Some(Some((last, same))) = last
            && (*same, last.end()) == (policy, range.start())
        {
            *last = PhysRange::new(last.start(), range.end())?;
            return Some(());
        }
        *self.ranges.get_mut(self.count)? = Some((range, policy));
        self.count += 1;
        Some(())
    }

    /// The policy that holds at `address`.
    pub fn at(&self, address: u64) -> Option<Policy> {
        self.iter().find(|(range, _)| range.contains(address)).map(|(_, policy)| policy)
    }

    /// All ranges, upwards.
    pub fn iter(&self) -> impl Iterator<Item = (PhysRange, Policy)> + '_ {
        self.ranges.iter().map_while(|slot| *slot)
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
    fn a_range_comes_apart_where_policies_change() {
        let mut policies = Policies::new();
        policies.set(range(0x2000, 0x4000), Some(Policy::Deny)).unwrap();
        let pieces = |start, end| policies.pieces(range(start, end)).collect::<Vec<_>>();
        let denied = Some(Policy::Deny);
        assert_eq!(
            pieces(0x1000, 0x6000),
            [(range(0x1000, 0x2000), None), (range(0x2000, 0x4000), denied), (range(0x4000, 0x6000), None)]
        );
        assert_eq!(pieces(0x3000, 0x4000), [(range(0x3000, 0x4000), denied)]);
        assert_eq!(pieces(0x8000, 0x9000), [(range(0x8000, 0x9000), None)]);
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
