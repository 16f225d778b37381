//! Busy marks: the PE that sets one owns the entry until it goes, others wait, and none is left when an operation returns.

use crate::change::{Change, How};
use crate::event::OperationKind;
use crate::memory::FrameId;
use crate::running::{Busy, Running};
use crate::state::State;
use crate::translation::is_busy;
use crate::verdict::Verdict;
use stage2::descriptor::bits;
use stage2::{Descriptor, Slot};

/// Whether a change does no more than to take bits that say what the guest may do.
fn only_takes(old: u64, new: u64) -> bool {
    const PERMISSIONS: u64 = bits::READ | bits::WRITE | bits::DBM | bits::WRITE_GRANTED | bits::NO_EXECUTE;
    new & !old == 0 && (old ^ new) & !PERMISSIONS == 0
}

impl State {
    /// A PE that marks an entry busy owns it until the mark goes.
    pub fn judge_ownership(&mut self, change: &Change) {
        let Change { pe, frame, index, place, old, new, how, .. } = *change;
        let key = (frame, index as u16);
        let mark = self.busy.get(&key).copied();
        let anothers = mark.is_some_and(|mark| mark.owner != pe);
        let exclusive = self.pes[pe as usize].running.as_ref().is_none_or(|op| op.operation.kind.is_exclusive());
        let wrong = match how {
            How::Hardware => None,
            _ if exclusive => None,
            How::Exchange if anothers && only_takes(old, new) => {
                // Its owner may write over it: the PE that does this has to come back.
                if let Some(running) = &mut self.pes[pe as usize].running {
                    running.taken_early.push((*change, mark));
                }
                None
            }
            _ if anothers => Some("writes an entry that another PE has marked busy"),
            How::Store if mark.is_none() && Descriptor(old).is_valid() => {
                Some("stores to an entry that other PEs may change")
            }
            _ => None,
        };
        if let Some(what) = wrong {
            self.report(Verdict::Contract, change.span.range(), None, format!("PE{pe} {what}"));
        }
        if is_busy(place.level, new) {
            let since = self.history.now();
            self.busy.entry(key).or_insert(Busy { owner: pe, since });
        } else if mark.is_some() {
            self.busy.remove(&key);
        }
    }

    /// The busy marks of a table that `pe` makes reachable are its own.
    pub fn note_published_busy(&mut self, pe: u8, id: FrameId) {
        let Some(place) = self.memory.frame(id).place else { return };
        let since = self.history.now();
        for index in 0..self.setup.granule.entries() {
            if is_busy(place.level, self.memory.frame(id).values[index]) {
                self.busy.insert((id, index as u16), Busy { owner: pe, since });
            }
        }
    }

    /// An operation that returns leaves no mark: nobody would take it away, and everybody wait for it.
    pub fn judge_left_busy(&mut self, pe: u8, running: &Running) {
        let left = self.busy.iter().find(|(_, mark)| mark.owner == pe).map(|(&(id, index), _)| (id, index));
        let Some((id, index)) = left else { return };
        self.busy.retain(|_, mark| mark.owner != pe);
        if let Some(range) = self.slot_range(id, index.into()) {
            let what = format!("{} returns, and {:#x}-{:#x} is marked busy", running.operation, range.start, range.end);
            self.report(Verdict::Contract, range, None, what);
        }
    }

    /// Whether a PE has marked an entry busy that translates `ipa`.
    pub fn is_marked_busy(&self, ipa: u64) -> bool {
        let of = |&(id, index): &(FrameId, u16)| self.slot_range(id, index.into());
        self.busy.keys().filter_map(of).any(|range| range.contains(&ipa))
    }

    /// Bits that were taken from a busy entry are gone when the operation returns, and the entry's owner, which may write
    /// over it, has been waited for.
    pub fn judge_taken_early(&mut self, running: &Running) {
        for &(Change { frame, index, span, old, new, .. }, mark) in &running.taken_early {
            let range = span.range();
            let others = self.pes.iter().filter_map(|pe| pe.running.as_ref());
            let mut setters = others.filter(|other| other.operation.kind.sets_permissions());
            let what = if self.busy.get(&(frame, index as u16)).copied() == mark {
                "is busy still, so that what was taken from it may come back"
            } else if setters.any(|other| other.touched.iter().any(|range| span.overlaps(range))) {
                continue;
            } else if self.bits_of_leaves(&range) & old & !new != 0 {
                "has got back what was taken from it while another PE had marked it busy"
            } else {
                continue;
            };
            let what = format!("{} returns, and {span} {what}", running.operation);
            self.report(Verdict::Contract, range, None, what);
        }
    }

    /// All bits that any leaf of `range` has.
    fn bits_of_leaves(&self, range: &core::ops::Range<u64>) -> u64 {
        let mut found = 0;
        let mut look = |slot: Slot| {
            let id = self.memory.find(slot.table);
            found |= id.map_or(0, |id| self.memory.frame(id).values[slot.index]);
        };
        for (number, space) in self.spaces.iter().enumerate() {
            space.leaves(&self.memory, number, range, &mut |_, _, slot| look(slot));
        }
        found
    }
}

impl OperationKind {
    /// Whether it is asked for new permissions.
    const fn sets_permissions(self) -> bool {
        matches!(self, OperationKind::Protect | OperationKind::Batch | OperationKind::Map)
    }
}
