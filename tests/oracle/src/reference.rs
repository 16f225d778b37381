//! What a table ought to say: a map from ranges to outputs and attributes, kept apart from any table.

use crate::model::Model;
use core::fmt;
use stage2::descriptor::{Descriptor, bits};
use stage2::{Attributes, Execute, Ipa, IpaRange, PAGE_SIZE, Permissions, PhysAddr, Vmid};
use std::collections::BTreeMap;

/// A part that maps to adjacent addresses with the same attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    end: u64,
    output: u64,
    attributes: Attributes,
}

/// What each page maps to.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// By first address; parts do not overlap.
    parts: BTreeMap<u64, Part>,
}

/// A page of which the table says something else than the reference.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The page.
    pub ipa: Ipa,
    /// Output address and attributes as they ought to be.
    pub expected: Option<(PhysAddr, Attributes)>,
    /// Output address and attributes as the descriptor has them.
    pub found: Option<(PhysAddr, Attributes)>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ought to be {:?}, and is {:?}", self.ipa, self.expected, self.found)
    }
}

impl Reference {
    /// Nothing mapped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `at` the first address of a part, if it lies inside of one.
    fn cut(&mut self, at: u64) {
        let Some((&start, &part)) = self.parts.range(..at).next_back() else { return };
        if part.end > at {
            self.parts.insert(start, Part { end: at, ..part });
            self.parts.insert(at, Part { output: part.output + (at - start), ..part });
        }
    }

    /// [`stage2::Stage2::map`].
    pub fn map(&mut self, range: IpaRange, output: PhysAddr, attributes: Attributes) {
        self.unmap(range);
        self.parts.insert(range.start().0, Part { end: range.end().0, output: output.0, attributes });
    }

    /// [`stage2::Stage2::unmap`].
    pub fn unmap(&mut self, range: IpaRange) {
        self.cut(range.start().0);
        self.cut(range.end().0);
        let behind = self.parts.split_off(&range.end().0);
        self.parts.split_off(&range.start().0);
        self.parts.extend(behind);
    }

    /// [`stage2::Stage2::protect`].
    pub fn protect(&mut self, range: IpaRange, permissions: Permissions) {
        self.cut(range.start().0);
        self.cut(range.end().0);
        for (_, part) in self.parts.range_mut(range.start().0..range.end().0) {
            part.attributes.permissions = permissions;
        }
    }

    /// What the page of `ipa` maps to.
    #[must_use]
    pub fn at(&self, ipa: Ipa) -> Option<(PhysAddr, Attributes)> {
        let page = ipa.align_down(PAGE_SIZE).0;
        let (&start, part) = self.parts.range(..=page).next_back()?;
        (page < part.end).then(|| (PhysAddr(part.output + (page - start)), part.attributes))
    }

    /// The first page of `range` where the table in the model's memory differs, in address or attributes, or where a
    /// descriptor lets hardware do something else than its attributes say. Write protection for tracking, hardware dirty
    /// state and leaf sizes make no difference.
    #[must_use]
    pub fn difference(&self, model: &Model, vmid: Vmid, range: IpaRange) -> Option<Difference> {
        let mut at = range.start().0;
        for leaf in model.mappings(vmid, range) {
            let start = leaf.ipa.max(range.start().0);
            if let Some(missing) = self.first_in(at, start) {
                return Some(Difference { ipa: Ipa(missing), expected: self.at(Ipa(missing)), found: None });
            }
            at = start;
            let end = (leaf.ipa + leaf.bytes).min(range.end().0);
            let attributes = Descriptor(leaf.descriptor).attributes();
            while at < end {
                let (expected, found) = (self.at(Ipa(at)), (PhysAddr(leaf.output + (at - leaf.ipa)), attributes));
                if expected != Some(found) || !is_honest(leaf.descriptor, attributes) {
                    return Some(Difference { ipa: Ipa(at), expected, found: Some(found) });
                }
                at = self.end_of(at).min(end);
            }
        }
        let missing = self.first_in(at, range.end().0)?;
        Some(Difference { ipa: Ipa(missing), expected: self.at(Ipa(missing)), found: None })
    }

    /// The end of the part that `at` lies in.
    fn end_of(&self, at: u64) -> u64 {
        self.parts.range(..=at).next_back().map_or(u64::MAX, |(_, part)| part.end)
    }

    /// The first mapped page of `start..end`.
    fn first_in(&self, start: u64, end: u64) -> Option<u64> {
        if start >= end {
            return None;
        }
        if self.at(Ipa(start)).is_some() {
            return Some(start);
        }
        self.parts.range(start..end).next().map(|(&first, _)| first)
    }
}

/// Whether what hardware reads of a descriptor allows what its owner does, but for writes that are held back.
fn is_honest(value: u64, attributes: Attributes) -> bool {
    let Permissions { read, write, execute } = attributes.permissions;
    // XN\[1:0\] (D8.4.2.3).
    let xn = match execute {
        Execute::Always => 0b00,
        Execute::El0 => 0b01,
        Execute::Never => 0b10,
        Execute::El1 => 0b11,
    };
    (value & bits::READ != 0) == read
        && value >> 53 & 3 == xn
        && (write || value & (bits::WRITE | bits::DBM) == 0)
        && value & bits::ACCESS != 0
        && value & bits::BUSY == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> IpaRange {
        IpaRange::new(Ipa(start << 12), Ipa(end << 12)).unwrap()
    }

    #[test]
    fn parts_are_cut_where_operations_begin_and_end() {
        let mut reference = Reference::new();
        reference.map(range(10, 20), PhysAddr(0x10_0000), Attributes::RAM);
        reference.protect(range(12, 14), Permissions::READ);
        reference.unmap(range(13, 16));
        reference.map(range(19, 22), PhysAddr(0x9000_0000), Attributes::DEVICE);
        let at = |page: u64| reference.at(Ipa(page << 12)).map(|(output, a)| (output.0, a.permissions));
        assert_eq!(at(9), None);
        assert_eq!(at(10), Some((0x10_0000, Permissions::ALL)));
        assert_eq!(at(12), Some((0x10_2000, Permissions::READ)));
        assert_eq!((at(13), at(15)), (None, None));
        assert_eq!(at(16), Some((0x10_6000, Permissions::ALL)));
        assert_eq!(at(21), Some((0x9000_2000, Permissions::READ_WRITE)));
        assert_eq!(at(22), None);
        assert_eq!(reference.first_in(0, 10 << 12), None);
        assert_eq!(reference.first_in(13 << 12, 20 << 12), Some(16 << 12));
    }
}
