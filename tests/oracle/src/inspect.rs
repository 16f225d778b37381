//! What tests ask a model: its tables as memory has them, what was counted, and what was found wrong.

use crate::event::Event;
use crate::model::{Mapping, Model};
use crate::setup::Stats;
use crate::verdict::{Verdict, Violation};
use stage2::{Ipa, IpaRange, PhysAddr, Slot, Vmid};

impl Model {
    /// Frames that the engine has.
    #[must_use]
    pub fn frames_in_use(&self) -> usize {
        self.state.borrow().memory.in_use()
    }

    /// The descriptors of all frames in use, to compare before and after.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(PhysAddr, Box<[u64]>)> {
        self.state.borrow().memory.snapshot()
    }

    /// The descriptor in a slot; 0 where there is no frame.
    #[must_use]
    pub fn descriptor(&self, slot: Slot) -> u64 {
        let state = self.state.borrow();
        let frame = state.memory.find(slot.table).map(|id| state.memory.frame(id));
        frame.and_then(|frame| frame.values.get(slot.index).copied()).unwrap_or(0)
    }

    /// What the table of `vmid` in memory says of `ipa`; an independent walk, not the engine's.
    #[must_use]
    pub fn translate(&self, vmid: Vmid, ipa: Ipa) -> Option<Mapping> {
        let state = self.state.borrow();
        let number = state.spaces.iter().position(|space| space.vmid == vmid.get())?;
        let (span, leaf, slot) = state.spaces[number].translate(&state.memory, number, ipa.0)?;
        let id = state.memory.find(slot.table)?;
        let descriptor = state.memory.frame(id).values[slot.index];
        Some(Mapping { ipa: span.base, bytes: span.bytes(), output: leaf.output(span.base), descriptor })
    }

    /// All mappings of `vmid` that overlap `range`, in ascending order, as the table in memory has them.
    #[must_use]
    pub fn mappings(&self, vmid: Vmid, range: IpaRange) -> Vec<Mapping> {
        let state = self.state.borrow();
        let mut all = Vec::new();
        if let Some(number) = state.spaces.iter().position(|space| space.vmid == vmid.get()) {
            let range = crate::span::plain(range);
            state.spaces[number].leaves(&state.memory, number, &range, &mut |span, leaf, slot| {
                let descriptor =
                    state.memory.find(slot.table).map_or(0, |id| state.memory.frame(id).values[slot.index]);
                all.push(Mapping { ipa: span.base, bytes: span.bytes(), output: leaf.output(span.base), descriptor });
            });
        }
        all
    }

    /// What happened, in numbers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.state.borrow().stats
    }

    /// All events so far, if the set-up asked for them.
    #[must_use]
    pub fn recording(&self) -> Vec<Event> {
        self.state.borrow().history.recording().to_vec()
    }

    /// What was found wrong so far.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.state.borrow().violations.clone()
    }

    /// Whether nothing was found wrong so far.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.state.borrow().violations.is_empty()
    }

    /// The verdicts of all violations so far, without repetition, in the order of their numbers.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Verdict> {
        let state = self.state.borrow();
        Verdict::ALL.into_iter().filter(|v| state.violations.iter().any(|w| w.verdict == *v)).collect()
    }

    /// For tests: all is well so far.
    ///
    /// # Panics
    ///
    /// With the first violation and its history, if there is one.
    #[track_caller]
    pub fn assert_clean(&self) {
        if let Some(violation) = self.state.borrow().violations.first() {
            panic!("the oracle found a violation\n{violation}");
        }
    }
}
