//! A set-associative store that forgets what was used least recently.

use crate::sizes::Capacity;

/// The store. A set's entries stand in the order of their last use, the latest first.
#[derive(Debug, Clone)]
pub struct Lru<E> {
    sets: Vec<Vec<E>>,
    ways: usize,
}

impl<E> Lru<E> {
    pub fn new(Capacity { entries, ways }: Capacity) -> Self {
        let sets = entries.checked_div(ways).unwrap_or(0);
        Self { sets: (0..sets).map(|_| Vec::with_capacity(ways)).collect(), ways }
    }

    /// The set that `index` belongs to; none if there are no entries.
    fn set(&mut self, index: u64) -> Option<&mut Vec<E>> {
        match self.sets.len() {
            0 => None,
            1 => self.sets.first_mut(),
            sets => self.sets.get_mut((index % sets as u64) as usize),
        }
    }

    /// The entry of `index`'s set that `is` picks; it is the latest now.
    #[inline]
    pub fn find(&mut self, index: u64, is: impl Fn(&E) -> bool) -> Option<&E> {
        let set = self.set(index)?;
        let at = set.iter().position(is)?;
        if at > 0 {
            set.get_mut(..=at)?.rotate_right(1);
        }
        set.first()
    }

    /// Puts an entry into `index`'s set, in the place of the one that was used least recently.
    pub fn insert(&mut self, index: u64, entry: E) {
        let ways = self.ways;
        if let Some(set) = self.set(index) {
            set.truncate(ways - 1);
            set.insert(0, entry);
        }
    }

    /// Forgets the entries that `keep` does not keep.
    pub fn retain(&mut self, keep: impl Fn(&E) -> bool) {
        self.sets.iter_mut().for_each(|set| set.retain(&keep));
    }

    /// All entries.
    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = &E> {
        self.sets.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = Lru::new(Capacity::full(3));
        (1..=3).for_each(|n| lru.insert(0, n));
        assert_eq!(lru.find(0, |&n| n == 1), Some(&1));
        lru.insert(0, 4);
        assert_eq!(lru.iter().copied().collect::<Vec<_>>(), [4, 1, 3]);
        lru.retain(|&n| n != 1);
        lru.insert(0, 5);
        assert_eq!(lru.iter().copied().collect::<Vec<_>>(), [5, 4, 3]);
    }

    #[test]
    fn sets_do_not_share_ways() {
        let mut lru = Lru::new(Capacity::sets(4, 2));
        [0, 2, 4, 1].into_iter().for_each(|n| lru.insert(n, n));
        assert_eq!(lru.iter().copied().collect::<Vec<_>>(), [4, 2, 1]);
        assert_eq!(lru.find(1, |&n| n == 4), None);
    }

    #[test]
    fn without_entries_nothing_is_kept() {
        let mut lru = Lru::new(Capacity::full(0));
        lru.insert(0, 1);
        assert_eq!(lru.find(0, |_| true), None);
    }
}
