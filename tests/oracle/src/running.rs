//! What is known of an operation that has begun and not returned.

use crate::change::Change;
use crate::event::Operation;
use crate::memory::FrameId;
use crate::shape::Shape;
use crate::span::Span;
use crate::translation::Translation;
use core::ops::Range;
use rustc_hash::FxHashMap;

/// A time in which an address could not be translated, or not used as before.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub frame: FrameId,
    pub span: Span,
    pub old: u64,
    /// What was mapped, each with its descriptor; for a table at level 0, where windows are only counted, its first leaf.
    pub leaves: Vec<(Translation, u64)>,
}

impl Window {
    /// Whether the new entry is the one that was broken, but for what it permits: that never needs a break (R_GPPYH).
    pub fn is_but_permissions(&self, change: &Change) -> bool {
        let old = self.leaves.first().filter(|(leaf, _)| leaf.span == self.span);
        let pair = old.map(|(leaf, _)| leaf).zip(change.new_leaf());
        pair.is_some_and(|(old, new)| old.resized(&new).is_none() && !old.differs(&new))
    }
}

/// A busy mark: whose it is, and the event that set it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Busy {
    pub owner: u8,
    pub since: u64,
}

/// An operation that has begun and not returned.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub operation: Operation,
    pub number: u64,
    /// Bytes of the largest leaf that there is.
    pub largest: u64,
    /// What it was asked for, or reports, page by page.
    pub pages: Vec<Range<u64>>,
    /// What it has changed.
    pub touched: Vec<Range<u64>>,
    /// Stage-2 invalidations that it has issued: when, and for what.
    pub invalidations: Vec<(u64, Range<u64>)>,
    /// What fault handlers have changed that returned while it ran.
    pub meanwhile: Vec<Range<u64>>,
    /// What changes of permissions have touched that ended meanwhile.
    pub set_meanwhile: Vec<Range<u64>>,
    pub runs: Vec<(FrameId, usize)>,
    /// By descriptor: invalid for a time.
    pub windows: FxHashMap<(FrameId, usize), Window>,
    /// By descriptor: valid all the time, but not with all the rights of this leaf.
    pub restricted: FxHashMap<(FrameId, usize), Translation>,
    /// Rights that it took away: from which entry, what was left of them, and when.
    pub took: Vec<(Translation, Translation, u64)>,
    /// Bits that it took from entries which other PEs had marked busy.
    pub taken_early: Vec<(Change, Option<Busy>)>,
    /// Leaves whose permissions it changed although they do not lie in its range.
    pub outside: Vec<(Span, Translation)>,
}

impl Running {
    /// An operation that begins.
    pub fn new(operation: Operation, number: u64, shape: Shape) -> Self {
        Self {
            operation,
            number,
            largest: shape.largest(),
            pages: Vec::new(),
            touched: Vec::new(),
            invalidations: Vec::new(),
            meanwhile: Vec::new(),
            set_meanwhile: Vec::new(),
            runs: Vec::new(),
            windows: FxHashMap::default(),
            restricted: FxHashMap::default(),
            took: Vec::new(),
            taken_early: Vec::new(),
            outside: Vec::new(),
        }
    }
}
