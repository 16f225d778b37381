//! A leaf descriptor as a TLB holds it, and what two of them may not have in common.

use crate::shape::Shape;
use crate::span::Span;
use core::fmt;
use stage2::Level;
use stage2::descriptor::{Descriptor, bits};

/// Bits that a TLB takes notice of: not those for software, 58:55 (D8.3.1.2).
const NOTICED: u64 = !(0xf << 55);

/// The part of a descriptor that hardware looks at.
pub(crate) const fn noticed(value: u64) -> u64 {
    value & NOTICED
}

/// Whether `value` is a valid block or page at `level`.
pub(crate) fn is_leaf(shape: Shape, level: Level, value: u64) -> bool {
    let descriptor = Descriptor(value);
    // At level 3 a descriptor without bit 1 is reserved, which hardware treats as invalid (D8.3.1.2); so is a block at
    // level 0, but with 4 KiB and 52-bit addresses.
    let format = match level {
        Level::L0 if !shape.has_leaves(level) => false,
        Level::L3 => value & bits::TABLE != 0,
        _ => !descriptor.is_table(level),
    };
    descriptor.is_valid() && format
}

/// Whether `value` is a table descriptor at `level`.
pub(crate) fn is_table(level: Level, value: u64) -> bool {
    Descriptor(value).is_table(level)
}

/// Whether a PE has marked `value` busy: by the software's bit, or by nT in a block.
pub(crate) const fn is_busy(level: Level, value: u64) -> bool {
    value & bits::BUSY != 0
        || !matches!(level, Level::L3) && value & (bits::VALID | bits::TABLE | bits::NT) == bits::VALID | bits::NT
}

/// One leaf, as it may be cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Translation {
    pub level: Level,
    /// What the cached entry translates: that of its descriptor, or the whole run.
    pub span: Span,
    /// The descriptor, without its address.
    pub value: u64,
    /// Where the first byte maps to.
    output: u64,
    /// The bits of memory type and shareability.
    type_mask: u64,
}

impl Translation {
    /// The leaf of one descriptor.
    pub fn of(shape: Shape, level: Level, span: Span, value: u64) -> Self {
        // nT lies where pages and tables have their address.
        let nt = if level == Level::L3 { 0 } else { value & bits::NT };
        Self::at(shape, level, span, value, nt)
    }

    /// The leaf for `span`: what its descriptor has of lower bits of an address is not looked at.
    fn at(shape: Shape, level: Level, span: Span, value: u64, nt: u64) -> Self {
        let output = shape.address(value).0 & !(span.bytes() - 1);
        Self { level, span, value: noticed(value) & !shape.address_mask() | nt, output, type_mask: shape.type_mask() }
    }

    /// The leaf that the descriptor is cached as with its run, if it has the Contiguous bit (D8.7.1).
    pub fn of_run(shape: Shape, level: Level, span: Span, value: u64) -> Option<Self> {
        // The run's output is that of any member, with the member's bits taken off.
        Descriptor(value).is_contiguous().then(|| Self::at(shape, level, span.run(), value, 0))
    }

    pub fn output(&self, ipa: u64) -> u64 {
        self.output + (ipa - self.span.base)
    }

    pub fn is_contiguous(&self) -> bool {
        self.value & bits::CONTIGUOUS != 0
    }

    /// nT: bit 16 of a block (I_PJZBK).
    pub fn has_nt(&self) -> bool {
        self.level != Level::L3 && self.value & bits::NT != 0
    }

    pub fn reads(&self) -> bool {
        self.value & (bits::READ | bits::ACCESS) == bits::READ | bits::ACCESS
    }

    /// Whether fetches at EL0, or at EL1, go through: XN\[1:0\] is 0b00 for both, 0b01 for EL0, 0b11 for EL1 (D8.4.2.3).
    pub fn executes(&self, el0: bool) -> bool {
        let granted = match self.value >> 53 & 3 {
            0b00 => true,
            0b01 => el0,
            0b11 => !el0,
            _ => false,
        };
        granted && self.value & bits::ACCESS != 0
    }

    /// What goes through: reads, fetches at EL1 and at EL0, and writes, marked by hardware or not.
    pub fn rights(&self) -> [bool; 4] {
        [self.reads(), self.executes(false), self.executes(true), self.writes() || self.has_dbm()]
    }

    /// A write goes through without a word to anybody: S2AP\[1\] is set.
    pub fn writes(&self) -> bool {
        self.value & (bits::WRITE | bits::ACCESS) == bits::WRITE | bits::ACCESS
    }

    /// Hardware may mark the descriptor: DBM is set.
    pub fn has_dbm(&self) -> bool {
        self.value & bits::DBM != 0
    }

    /// Whether this entry lets the guest do what `now` does not, or reach other memory, at the first address that both
    /// translate. A writable-clean entry writes only after memory was checked (R_PQJJR), so it allows no more than a
    /// read-only one.
    pub fn allows_more_than(&self, now: &Translation) -> Option<&'static str> {
        if self.differs(now) {
            Some("another output address or memory type")
        } else if self.writes() && !now.writes() && !now.has_dbm() {
            Some("writes")
        } else if self.reads() && !now.reads() {
            Some("reads")
        } else if [false, true].into_iter().any(|el0| self.executes(el0) && !now.executes(el0)) {
            Some("instruction fetches")
        } else {
            None
        }
    }

    /// Whether the two, which share an address, differ in what needs break-before-make at every level: output address,
    /// memory type, Shareability, Cacheability (R_WHZWS).
    pub fn differs(&self, other: &Translation) -> bool {
        let ipa = self.span.base.max(other.span.base);
        self.output(ipa) != other.output(ipa) || (self.value ^ other.value) & self.type_mask != 0
    }

    /// How the two differ in size.
    pub fn resized(&self, other: &Translation) -> Option<Resize> {
        if self.level != other.level {
            Some(if self.has_nt() || other.has_nt() { Resize::UnderNt } else { Resize::Level })
        } else {
            (self.is_contiguous() != other.is_contiguous()).then_some(Resize::Contiguous)
        }
    }
}

/// A change of size between two leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resize {
    /// Block and table.
    Level,
    /// Block and table, where the block has nT.
    UnderNt,
    /// The Contiguous bit alone.
    Contiguous,
}

impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set: bool, c: char| if set { c } else { '-' };
        write!(
            f,
            "{} at level {} to {:#x} {}{}{}{}{}{}{} attributes {:#x}",
            self.span,
            self.level as u8,
            self.output(self.span.base),
            flag(self.reads(), 'r'),
            flag(self.writes(), 'w'),
            flag(self.executes(false), 'x'),
            flag(self.executes(true), 'u'),
            flag(self.has_dbm(), 'd'),
            flag(self.is_contiguous(), 'c'),
            flag(self.has_nt(), 'n'),
            (self.value & self.type_mask) >> 2,
        )
    }
}
