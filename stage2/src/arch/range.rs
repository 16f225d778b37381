//! Ranges from bounds that have yet to be checked.

use crate::arch::address::{Ipa, IpaRange, PAGE_SIZE};
use crate::arch::error::Error;

impl IpaRange {
    /// The range from `start` up to `end`, which is not part of it.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] unless both are multiples of [`PAGE_SIZE`] and `start < end`.
    pub const fn new(start: Ipa, end: Ipa) -> Result<Self, Error> {
        if start.0 < end.0 && start.is_aligned(PAGE_SIZE) && end.is_aligned(PAGE_SIZE) {
            Ok(Self::new_unchecked(start, end))
        } else {
            Err(Error::BadRange { start, end })
        }
    }

    /// The range of `bytes` bytes at `start`.
    ///
    /// # Errors
    ///
    /// [`Error::BadRange`] as for [`IpaRange::new`], and where the end lies past 2^64.
    pub const fn from_size(start: Ipa, bytes: u64) -> Result<Self, Error> {
        match start.0.checked_add(bytes) {
            Some(end) => Self::new(start, Ipa(end)),
            None => Err(Error::BadRange { start, end: Ipa(u64::MAX) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_whole_pages_in_order() {
        assert!(IpaRange::new(Ipa(0x1000), Ipa(0x3000)).is_ok());
        for (start, end) in [(0x1000, 0x1000), (0x2000, 0x1000), (0x1001, 0x3000), (0x1000, 0x3800)] {
            assert_eq!(IpaRange::new(Ipa(start), Ipa(end)), Err(Error::BadRange { start: Ipa(start), end: Ipa(end) }));
        }
        assert!(IpaRange::from_size(Ipa(!0xfff), 0x2000).is_err());
    }
}
