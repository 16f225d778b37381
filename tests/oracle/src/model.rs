//! The model: what tests set up, hand to the engine, and ask.

use crate::change::How;
use crate::event::{Action, Operation};
use crate::setup::Setup;
use crate::state::State;
use crate::tlb::MAX_PES;
use crate::turn::before_act;
use crate::verdict::Verdict;
use core::cell::{Cell, RefCell};
use stage2::geometry::ENTRIES;
use stage2::{Counters, Dsb, Ipa, IpaRange, PhysAddr, Slot, Vmid};

/// A mapping, as the table in memory has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First address of the descriptor's block or page.
    pub ipa: u64,
    /// Bytes.
    pub bytes: u64,
    /// Output address of the first byte.
    pub output: u64,
    /// The descriptor.
    pub descriptor: u64,
}

/// A machine's tables, TLBs and walk caches, as an adversary would use them.
///
/// `&Model` implements [`stage2::TableMemory`] and [`stage2::Maintenance`]: hand it to [`stage2::Stage2::new`], tell the
/// model of the root with [`Model::attach`], wrap calls of the engine in [`Model::operation`], and ask for
/// [`Model::violations`]. [`crate::Checked`] does all of that.
#[derive(Debug)]
pub struct Model {
    pub(crate) state: RefCell<State>,
    pe: Cell<u8>,
    counters: [Counters; MAX_PES],
}

impl Model {
    /// A machine with empty TLBs.
    ///
    /// # Panics
    ///
    /// If `setup.pes` is not 1 to 5.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        Self { state: RefCell::new(State::new(setup)), pe: Cell::new(0), counters: Default::default() }
    }

    /// The machine's description.
    #[must_use]
    pub fn setup(&self) -> Setup {
        self.state.borrow().setup
    }

    /// The PE that executes what comes next.
    #[must_use]
    pub fn pe(&self) -> u8 {
        self.pe.get()
    }

    /// Lets another PE execute what comes next.
    ///
    /// # Panics
    ///
    /// If there is no such PE.
    pub fn set_pe(&self, pe: u8) {
        assert!(usize::from(pe) < self.setup().pes, "the model has no PE {pe}");
        self.pe.set(pe);
    }

    /// The counters of a PE, which the engine counts in.
    #[must_use]
    pub fn counters_of(&self, pe: u8) -> &Counters {
        &self.counters[usize::from(pe)]
    }

    /// The walks of `vmid` start at `root` from now on.
    ///
    /// # Panics
    ///
    /// If `ipa_bits` is not 32 to 48, or 52 where addresses have so many bits.
    pub fn attach(&self, vmid: Vmid, ipa_bits: u8, root: PhysAddr) {
        self.apply(self.pe(), Action::Attach { vmid: vmid.get(), ipa_bits, root });
    }

    /// No PE walks the table of `vmid` any more; what it held may still be cached.
    pub fn detach(&self, vmid: Vmid) {
        self.apply(self.pe(), Action::Detach { vmid: vmid.get() });
    }

    /// Calls the engine, and judges what it leaves when it returns.
    ///
    /// # Panics
    ///
    /// If the executing PE is inside of an operation.
    pub fn operation<T, E>(&self, operation: Operation, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.begin(operation);
        let result = call();
        self.finish(result.is_ok());
        result
    }

    /// The executing PE calls the engine.
    ///
    /// # Panics
    ///
    /// If it is inside of an operation.
    pub fn begin(&self, operation: Operation) {
        self.apply(self.pe(), Action::Begin(operation));
    }

    /// The engine returns to the executing PE.
    pub fn finish(&self, ok: bool) {
        self.drain();
        self.apply(self.pe(), Action::Return { ok });
    }

    /// The running operation reports these pages dirty, or (for a clear, or a change of a batch's) was asked for them and no
    /// others.
    pub fn pages(&self, range: IpaRange) {
        self.apply(self.pe(), Action::Pages { start: range.start().0, end: range.end().0 });
    }

    /// The guest writes to `ipa` on `pe`, through whatever entry it may hold. Returns whether one lets it through; if not
    /// it is a stage-2 fault.
    pub fn guest_write(&self, pe: u8, ipa: Ipa) -> bool {
        self.state.borrow_mut().guest_write(pe, ipa.0)
    }

    /// Hardware marks the leaf that translates `ipa`, if its descriptor has DBM and is clean, on behalf of the executing PE.
    /// In a scheduled thread this is a step like any other, so that it comes at any moment.
    pub fn hardware_marks(&self, vmid: Vmid, ipa: Ipa) {
        before_act();
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let number = state.spaces.iter().position(|space| space.vmid == vmid.get());
        if let Some((_, _, slot)) = number.and_then(|n| state.spaces[n].translate(&state.memory, n, ipa.0)) {
            state.mark_dirty(self.pe(), slot);
        }
    }

    /// One event, by `pe`. The traits' methods come here, and traces.
    ///
    /// # Panics
    ///
    /// If an operation begins inside of another on the same PE, or a table with an impossible IPA size is attached.
    pub fn apply(&self, pe: u8, action: Action) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        match action {
            Action::Load { .. }
            | Action::Store { .. }
            | Action::CompareExchange { .. }
            | Action::Fill { .. }
            | Action::HardwareUpdate { .. } => apply_to_descriptors(state, pe, action),
            Action::Dsb(barrier) => {
                state.stats.barriers += 1;
                state.history.push(pe, action, None);
                state.barrier(pe, barrier);
            }
            Action::Isb => state.history.push(pe, action, None),
            Action::Tlbi(invalidation) => {
                state.history.push(pe, action, None);
                state.issue(pe, invalidation);
            }
            Action::Allocate { first, frames } => {
                state.history.push(pe, action, None);
                if !state.memory.adopt(first, frames) {
                    let what = format!("{:#x} was allocated twice", first.0);
                    state.report(Verdict::Contract, 0..1 << 52, Some(first), what);
                }
            }
            Action::Free { first, frames } => {
                state.history.push(pe, action, None);
                state.free(first, frames);
            }
            Action::Attach { vmid, ipa_bits, root } => {
                state.history.push(pe, action, None);
                let shape = state.setup.granule.root(ipa_bits).expect("an IPA size of 32 to 48 (or 52) bits");
                state.attach(vmid, ipa_bits, shape, root);
            }
            Action::Detach { vmid } => {
                state.history.push(pe, action, None);
                if let Some(number) = state.spaces.iter().position(|space| space.vmid == vmid) {
                    state.abandon(number);
                }
            }
            Action::GuestMaps { vmid, va, ipa } => {
                state.history.push(pe, action, None);
                state.guest_maps(vmid, va, ipa);
            }
            Action::Access { vmid, va, access } => {
                state.history.push(pe, action, None);
                // A trace says itself what comes of it.
                let _ = state.guest_access(pe, vmid, va, access);
            }
            Action::Begin(operation) => {
                state.history.push(pe, action, operation.range.map(crate::span::plain));
                state.begin(pe, operation);
            }
            Action::Pages { start, end } => {
                state.history.push(pe, action, Some(start..end));
                if let Some(running) = &mut state.pes[usize::from(pe)].running {
                    running.pages.push(start..end);
                }
            }
            Action::Return { ok } => {
                state.history.push(pe, Action::Return { ok }, None);
                state.finish(pe, ok);
            }
        }
    }

    /// Whether no other PE is in the engine, by what the executing one does in it.
    pub(crate) fn is_exclusive(&self) -> bool {
        let state = self.state.borrow();
        state.pes[usize::from(self.pe())].running.as_ref().is_none_or(|running| running.operation.kind.is_exclusive())
    }

    /// The stores of the executing PE that have not come to memory.
    pub(crate) fn with_late<R>(&self, act: impl FnOnce(&mut Vec<(Slot, u64)>) -> R) -> R {
        act(&mut self.state.borrow_mut().pes[usize::from(self.pe())].late)
    }

    /// The value that software reads, and perhaps a hardware update right after.
    pub(crate) fn read(&self, slot: Slot) -> u64 {
        let slot = self.setup().granule.slot(slot);
        if let Some(value) = self.own_store(slot) {
            return value;
        }
        let mut state = self.state.borrow_mut();
        let value = state.load(self.pe(), slot);
        self.chance_of_mark(&mut state, slot);
        value
    }

    /// A compare-exchange, which hardware may have come before.
    pub(crate) fn exchange(&self, slot: Slot, old: u64, new: u64) -> Result<(), u64> {
        let mut state = self.state.borrow_mut();
        self.chance_of_mark(&mut state, slot);
        let found = state.load(self.pe(), slot);
        drop(state);
        self.apply(self.pe(), Action::CompareExchange { slot, old, new, found });
        if found == old { Ok(()) } else { Err(found) }
    }

    fn chance_of_mark(&self, state: &mut State, slot: Slot) {
        let rate = state.setup.mark_rate;
        if rate > 0 && state.chance.u8(..) < rate {
            // Any PE may be the one; the other than the engine's is as good as each.
            let pe = state.chance.u8(..state.setup.pes as u8);
            state.mark_dirty(pe, slot);
        }
    }

    pub(crate) fn take_frames(&self, frames: usize) -> Option<PhysAddr> {
        let mut state = self.state.borrow_mut();
        if let Some(left) = &mut state.fail_allocation {
            if *left == 0 {
                return None;
            }
            *left -= 1;
        }
        let first = state.memory.allocate(frames)?;
        state.history.push(self.pe(), Action::Allocate { first, frames }, None);
        Some(first)
    }

    pub(crate) fn counters_here(&self) -> &Counters {
        self.counters_of(self.pe())
    }

    /// After `after` more allocations, all fail; `None` lets them succeed again.
    pub fn fail_allocations(&self, after: Option<usize>) {
        self.state.borrow_mut().fail_allocation = after;
    }

    /// Only so many frames may be in use at once.
    pub fn limit_frames(&self, frames: usize) {
        self.state.borrow_mut().memory.limit_to(frames);
    }

    /// A barrier that both orders stores and completes invalidations, for tests that need a quiet machine.
    pub fn settle(&self) {
        self.apply(self.pe(), Action::Dsb(Dsb::Ish));
    }
}

/// An event that reads or writes descriptors.
fn apply_to_descriptors(state: &mut State, pe: u8, action: Action) {
    let range_of = |state: &State, slot: Slot| {
        let id = state.memory.find(slot.table);
        id.and_then(|id| state.slot_range(id, slot.index))
    };
    match action {
        Action::Load { slot, .. } => {
            state.load(pe, slot);
        }
        Action::Store { slot, value } => {
            let range = range_of(state, slot);
            state.history.push(pe, action, range);
            if let Some(id) = state.live_frame(slot) {
                state.write(pe, id, slot.index, value, How::Store);
            }
        }
        Action::CompareExchange { slot, old, new, found } => {
            let range = range_of(state, slot);
            state.history.push(pe, action, range);
            if let Some(id) = state.live_frame(slot)
                && old == found
            {
                state.write(pe, id, slot.index, new, How::Exchange);
            }
        }
        Action::Fill { table, first, step } => {
            // One frame of 4 KiB, which may be a part of a table.
            let slot = state.setup.granule.slot(Slot { table, index: 0 });
            let range = range_of(state, slot);
            state.history.push(pe, action, range);
            if let Some(id) = state.live_frame(slot) {
                for n in 0..ENTRIES {
                    let value = first.wrapping_add(step.wrapping_mul(n as u64));
                    state.write(pe, id, slot.index + n, value, How::Store);
                }
            }
        }
        Action::HardwareUpdate { slot, .. } => state.mark_dirty(pe, slot),
        _ => unreachable!("{action:?} is about no descriptor"),
    }
}
