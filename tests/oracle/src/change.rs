//! A write to a descriptor, as the rules look at it.

use crate::memory::{FrameId, Memory, Place};
use crate::span::Span;
use crate::translation::{Translation, is_leaf, is_table};

/// How a descriptor was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    Store,
    Exchange,
    Hardware,
}

/// A write to a descriptor that a walk may read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub pe: u8,
    pub frame: FrameId,
    pub index: usize,
    pub place: Place,
    pub span: Span,
    pub old: u64,
    pub new: u64,
    pub how: How,
}

impl Change {
    pub fn old_leaf(&self) -> Option<Translation> {
        is_leaf(self.place.shape, self.place.level, self.old)
            .then(|| Translation::of(self.place.shape, self.place.level, self.span, self.old))
    }

    pub fn new_leaf(&self) -> Option<Translation> {
        is_leaf(self.place.shape, self.place.level, self.new)
            .then(|| Translation::of(self.place.shape, self.place.level, self.span, self.new))
    }

    pub fn old_table(&self, memory: &Memory) -> Option<FrameId> {
        is_table(self.place.level, self.old).then(|| memory.find(self.place.shape.address(self.old))).flatten()
    }

    pub fn new_table(&self, memory: &Memory) -> Option<FrameId> {
        is_table(self.place.level, self.new).then(|| memory.find(self.place.shape.address(self.new))).flatten()
    }
}
