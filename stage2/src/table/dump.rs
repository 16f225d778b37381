//! A table as people read it: leaves in words, and what lies side by side in one line.

use crate::arch::geometry::{Bytes, LeafSize};
use crate::arch::granule::{Granule, Granule4K};
use crate::platform::{Maintenance, TableMemory};
use crate::table::Stage2;
use crate::table::inspect::Leaf;
use core::fmt;

/// A whole table, a line for each range that is mapped alike: [`Stage2::dump`].
#[derive(Debug)]
pub struct Dump<'t, P, G: Granule = Granule4K> {
    table: &'t Stage2<P, G>,
}

impl<P: TableMemory + Maintenance, G: Granule> Stage2<P, G> {
    /// All that is mapped, for people: a line for each range whose outputs follow each other, with equal attributes and
    /// tracking, and the sizes of the leaves that it consists of. Lines end with a line feed, but for the last one.
    ///
    /// Runs on while others change the table, as [`Stage2::leaves`] does. Cost: one load a level for each leaf.
    pub fn dump(&self) -> Dump<'_, P, G> {
        Dump { table: self }
    }
}

/// Leaves that make one line.
struct Line {
    /// The first of them.
    first: Leaf,
    /// Where they end.
    end: u64,
    /// How many, of how many bytes each, smallest first.
    count: [(usize, Bytes); LeafSize::DESCENDING.len()],
}

impl Line {
    fn of(first: Leaf) -> Self {
        let mut line = Self { first, end: first.ipa.0, count: [(0, Bytes(0)); LeafSize::DESCENDING.len()] };
        line.take(&first);
        line
    }

    /// Whether `leaf` goes on where the line ends, as it began.
    fn goes_on(&self, leaf: &Leaf) -> bool {
        let Leaf { ipa, output, size: _, attributes, write_protected, hardware_tracked, bytes: _ } = self.first;
        leaf.ipa.0 == self.end
            && leaf.output == output.offset(self.end.wrapping_sub(ipa.0))
            && (leaf.attributes, leaf.write_protected, leaf.hardware_tracked)
                == (attributes, write_protected, hardware_tracked)
    }

    fn take(&mut self, leaf: &Leaf) {
        self.end = leaf.range().end().0;
        if let Some(count) = self.count.get_mut(leaf.size as usize) {
            *count = (count.0 + 1, Bytes(leaf.bytes));
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Leaf { ipa, output, attributes, .. } = self.first;
        write!(
            f,
            "{:#014x}-{:#014x} -> {:#014x} {} {}:",
            ipa.0, self.end, output.0, attributes.permissions, attributes.memory
        )?;
        let mut separator = "";
        for (count, size) in self.count.into_iter().rev() {
            if count != 0 {
                write!(f, "{separator} {count} of {size}")?;
                separator = ",";
            }
        }
        f.write_str(tracking(&self.first))
    }
}

/// How a leaf's writes are logged, in words.
const fn tracking(leaf: &Leaf) -> &'static str {
    match (leaf.write_protected, leaf.hardware_tracked) {
        (true, _) => ", write-protected for a log",
        (_, true) => ", marked by hardware",
        _ => "",
    }
}

impl<P: TableMemory + Maintenance, G: Granule> fmt::Display for Dump<'_, P, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut leaves = self.table.leaves(self.table.geometry().range());
        let Some(first) = leaves.next() else { return f.write_str("nothing is mapped") };
        let mut line = Line::of(first);
        for leaf in leaves {
            if line.goes_on(&leaf) {
                line.take(&leaf);
            } else {
                writeln!(f, "{line}")?;
                line = Line::of(leaf);
            }
        }
        write!(f, "{line}")
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, attributes, .. } = self;
        let (range, permissions, memory) = (self.range(), attributes.permissions, attributes.memory);
        write!(f, "{range} -> {output} {permissions} {memory}: {}{}", Bytes(self.bytes), tracking(self))
    }
}
